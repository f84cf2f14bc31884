"""What is in a file of rows: hash, number, columns, first and last identity; told while the file is written.

A manifest names every file of a run. The job that writes a file knows all that is to be said of it; to read it again
later would cost one process hours where there are many rows, and some files are gone by then. So a job leaves notes
beside its log, and whoever needs them believes a note for as long as the file is the one that it speaks of.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from potstill.records import Row


class Content(NamedTuple):
    """What is said of one file of rows: of its lines, whether the file is packed or not."""

    sha256: str
    bytes: int
    rows: int
    columns: list[str]
    min_sample_id: str | None
    max_sample_id: str | None


class ContentReader:
    """Takes the lines of a file, one after the other, and says what is in it."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._bytes = 0
        self._rows = 0
        self._columns: dict[str, None] = {}
        self._low: str | None = None
        self._high: str | None = None

    def add(self, line: bytes, row: Row | None) -> None:
        """Take a line, newline included, and the row in it; None for a blank line."""
        self._digest.update(line)
        self._bytes += len(line)
        if row is None:
            return
        self._rows += 1
        if not row.keys() <= self._columns.keys():
            self._columns.update(dict.fromkeys(row))
        if isinstance(sample_id := row.get("sample_id"), str):
            if self._low is None or sample_id < self._low:
                self._low = sample_id
            if self._high is None or sample_id > self._high:
                self._high = sample_id

    def content(self) -> Content:
        """Return what was in the lines so far."""
        columns = sorted(self._columns)
        return Content(self._digest.hexdigest(), self._bytes, self._rows, columns, self._low, self._high)


class Notes:
    """What a job has written: for each file its content, and by what to know that it is still the same file."""

    def __init__(self) -> None:
        self._found: dict[Path, dict[str, Any]] = {}

    def add(self, path: Path, content: Content) -> None:
        """Note a file that stands under its name now."""
        status = path.stat()
        self._found[path] = {"size": status.st_size, "mtime_ns": status.st_mtime_ns, **content._asdict()}

    def publish(self, file: Path) -> None:
        """Write the notes; files are named by their way from there, so that a run may be moved."""
        from potstill.rows import publish_json

        found = {os.path.relpath(path, file.parent): note for path, note in self._found.items()}
        publish_json(file, {"files": found})


#: The notes that files of rows which are being published go into; None where nobody wants any.
notes: ContextVar[Notes | None] = ContextVar("notes", default=None)


@contextlib.contextmanager
def noted(file: Path) -> Iterator[None]:
    """Note every file of rows that is published in this context, in one file at its end."""
    file.unlink(missing_ok=True)
    found = Notes()
    token = notes.set(found)
    try:
        yield
    finally:
        notes.reset(token)
    found.publish(file)


def notes_file(log: Path) -> Path:
    """Return where the job with a log leaves its notes."""
    return log.with_suffix(".files.json")


def find_note(file: Path, path: Path) -> dict[str, Any] | None:
    """Return what a job's notes say of a file, or None if they say nothing or it is another file by now.

    A file that is gone is not another one: its note says what it was.

    Args:
        file: The notes.
        path: The file of rows.
    """
    note = _read(file).get(os.path.relpath(path, file.parent))
    if note is None:
        return None
    with contextlib.suppress(FileNotFoundError):
        status = path.stat()
        if (status.st_size, status.st_mtime_ns) != (note["size"], note["mtime_ns"]):
            return None
    return note


#: The notes that were read last: those of one job are asked for one file after the other.
_last: tuple[Path, tuple[int, int], dict[str, Any]] | None = None


def _read(file: Path) -> dict[str, dict[str, Any]]:
    global _last
    try:
        status = file.stat()
        state = (status.st_size, status.st_mtime_ns)
        if _last is None or _last[:2] != (file, state):
            _last = (file, state, orjson.loads(file.read_bytes())["files"])
    except (OSError, ValueError, KeyError):
        # No notes, or none that can be read: the file itself tells.
        return {}
    return _last[2]
