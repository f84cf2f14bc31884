"""Who works in a Snakemake folder, and what a killed run left there.

Snakemake locks the files of a run in `.snakemake/locks`, without a word on who holds them, so that after a
SIGKILL a person must decide. Here each controller leaves a record with a kernel lock on it, which the kernel
drops at its death, whatever kills it. When no recorded holder is alive, the locks are stale: they are removed,
and so are the outputs that were marked as being made.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
from base64 import urlsafe_b64decode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

#: The open record of this process; the kernel lock lives as long as it.
_held: dict[Path, int] = {}


class Holder(NamedTuple):
    """A controller that has, or had, a run in a folder."""

    pid: int
    host: str
    boot_id: str
    since: float

    def describe(self) -> str:
        """Say who it is, for a person."""
        return f"process {self.pid} on {self.host}, since {time.strftime('%F %T', time.localtime(self.since))}"


class Recovery(NamedTuple):
    """What was found and done."""

    living: list[Holder]
    locks_removed: int
    outputs_removed: list[str]


def recover(folder: Path, is_ours: Callable[[str], bool]) -> Recovery:
    """Remove what dead controllers left in `.snakemake`; touch nothing while one may be alive.

    Args:
        folder: The `.snakemake` folder; it need not exist.
        is_ours: Whether an output marked incomplete may be deleted, by its path. Outputs of other people's
            rules keep their marks, and Snakemake asks its user as always.

    Returns:
        The living holders, the number of locks removed and the incomplete outputs removed.
    """
    living, dead = _sort_records(folder / "potstill")
    if living or not dead:
        # No record at all: the locks, if any, are of a run that knew nothing of us.
        return Recovery(living, 0, [])
    locks = list((folder / "locks").glob("*.lock"))
    removed = list(_remove_incomplete(folder / "incomplete", is_ours))
    for path in (*locks, *dead):
        path.unlink(missing_ok=True)
    return Recovery([], len(locks), removed)


def hold(folder: Path) -> None:
    """Record that this process runs in a `.snakemake` folder, until its death."""
    records = folder / "potstill"
    records.mkdir(parents=True, exist_ok=True)
    path = records / f"{socket.gethostname()}.{os.getpid()}.json"
    if path in _held:
        return
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    holder = Holder(os.getpid(), socket.gethostname(), _boot_id(), time.time())
    os.truncate(descriptor, 0)
    os.write(descriptor, json.dumps(holder._asdict()).encode())
    _held[path] = descriptor


def _sort_records(records: Path) -> tuple[list[Holder], list[Path]]:
    living, dead = [], []
    for path in sorted(records.glob("*.json")) if records.is_dir() else []:
        if path in _held:
            continue
        holder = _read_record(path)
        if _is_dead(path, holder):
            dead.append(path)
        elif holder is not None:
            living.append(holder)
    return living, dead


def _read_record(path: Path) -> Holder | None:
    """Return a record; None where its writer died before the first byte."""
    try:
        value: dict[str, Any] = json.loads(path.read_bytes())
        return Holder(**value)
    except (OSError, ValueError, TypeError):
        return None


def _is_dead(path: Path, holder: Holder | None) -> bool:
    """Say whether the holder is provably dead.

    Under the same kernel the lock tells; after a reboot nobody of before is left. A holder on another
    machine can't be judged from here and counts as alive.
    """
    if holder is not None and holder.boot_id != _boot_id():
        return holder.host == socket.gethostname()
    with path.open("r+b") as stream:
        try:
            fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
    return True


def _boot_id() -> str:
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def _remove_incomplete(marks: Path, is_ours: Callable[[str], bool]) -> Iterator[str]:
    """Delete each marked output of ours, and its mark; it is made again from what is durable."""
    for mark in marks.rglob("*") if marks.is_dir() else []:
        if mark.is_dir():
            continue
        output = _decode_mark(mark.relative_to(marks))
        if output and is_ours(output):
            Path(output).unlink(missing_ok=True)
            mark.unlink(missing_ok=True)
            yield output


def _decode_mark(relative: Path) -> str:
    """Return the path that Snakemake's mark stands for: urlsafe base64, cut into folders `@…` when long."""
    text = "".join(part.removeprefix("@") for part in relative.parts)
    try:
        return urlsafe_b64decode(text).decode()
    except ValueError:
        return ""
