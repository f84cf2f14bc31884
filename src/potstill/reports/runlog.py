"""run.log: the logs of all jobs of a run in one file, in time order, each line with the job that wrote it.

Each job's log is in order already, so they are merged as they stand; of many logs, some hundred at a time.
"""

from __future__ import annotations

import heapq
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO

from potstill.rows import publish

NAME = "run.log"
#: Files that are open at the same time.
_GROUP = 200
_STAMP = re.compile(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ ")


def write_run_log(logs: Path) -> Path:
    """Merge the logs of a run's jobs.

    Args:
        logs: The folder `logs/` of a run.

    Returns:
        The file that was written, `logs/run.log`.
    """
    output = logs / NAME
    paths = sorted(path for path in logs.rglob("*.log") if path != output)
    with tempfile.TemporaryDirectory(prefix="potstill-log-") as folder, publish(output) as out:
        groups = [_merge_group(group, logs, Path(folder) / str(i)) for i, group in enumerate(_groups(paths))]
        for line in _merge(groups):
            out.write_line(line)
    return output


def _groups(paths: Sequence[Path]) -> list[Sequence[Path]]:
    return [paths[at : at + _GROUP] for at in range(0, len(paths), _GROUP)]


def _merge_group(paths: Iterable[Path], logs: Path, output: Path) -> Path:
    """Write the entries of some logs, labelled and in order, to a file of their own."""
    with ExitStack() as stack, output.open("wb") as out:
        streams = [(stack.enter_context(path.open("rb")), _label(path, logs)) for path in paths]
        for line in heapq.merge(*(_labelled(stream, label) for stream, label in streams), key=_moment):
            out.write(line)
    return output


def _label(path: Path, logs: Path) -> bytes:
    return str(path.relative_to(logs).with_suffix("")).encode()


def _labelled(stream: IO[bytes], label: bytes) -> Iterator[bytes]:
    """Yield the entries of one log: a stamped line with its job, and the lines without a stamp that follow it."""
    entry = b""
    for line in stream:
        whole = line if line.endswith(b"\n") else line + b"\n"
        if stamp := _STAMP.match(whole):
            if entry:
                yield entry
            entry = stamp.group() + label + b" " + whole[stamp.end() :]
        else:
            entry += b"    " + whole
    if entry:
        yield entry


def _merge(paths: Iterable[Path]) -> Iterator[bytes]:
    with ExitStack() as stack:
        streams = [stack.enter_context(path.open("rb")) for path in paths]
        yield from heapq.merge(*map(_entries, streams), key=_moment)


def _entries(stream: IO[bytes]) -> Iterator[bytes]:
    entry = b""
    for line in stream:
        if _STAMP.match(line) and entry:
            yield entry
            entry = b""
        entry += line
    if entry:
        yield entry


def _moment(entry: bytes) -> bytes:
    """Return what an entry is sorted by; lines before any stamp come first."""
    return entry[:20] if _STAMP.match(entry) else b""
