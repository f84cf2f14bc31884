"""Snakemake's folder lock, held so that a dead holder can be told from a live one.

Snakemake locks a working directory by files without a word on who made them, so after a kill a person must unlock it.
Here the plugin's own lock (`RunFolder.hold`, dropped by the kernel when its process dies, however) proves the death,
and a record says which of the lock files the dead one has made: exactly these are removed.

With `nolock: true`, as our profile has it, the plugin takes Snakemake's lock itself, after it has its own: then there
is no moment at which a kill leaves a lock behind that nobody can explain.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .folder import Held, RunFolder
from .wrapper import read_text, write_whole

RECORD = "snakemake_locks.json"


def lock_files(snakemake_folder: Path) -> set[str]:
    """The lock files that are there now."""
    return {path.name for path in (snakemake_folder / "locks").glob("*.lock")}


def remove_dead_locks(snakemake_folder: Path) -> None:
    """Remove the lock files of a controller of ours; the caller knows that it is dead."""
    record = snakemake_folder / "siflow" / RECORD
    try:
        told: dict[str, Any] = json.loads(read_text(record) or "null") or {}
    except ValueError:
        told = {}
    if told.get("host") == os.uname().nodename:
        for path in (snakemake_folder / "locks").glob("*.lock"):
            with contextlib.suppress(FileNotFoundError):
                if path.name in told["files"] or ("pending" in told and path.stat().st_mtime >= told["pending"] - 1):
                    path.unlink()
    record.unlink(missing_ok=True)


def remove_locks_after_death(snakemake_folder: Path) -> None:
    """Before Snakemake looks at its lock: remove what a dead controller of ours left; respect a live one."""
    if not (snakemake_folder / "siflow" / RECORD).exists():
        return
    try:
        held = RunFolder(snakemake_folder / "siflow", "").hold()
    except (Held, OSError):
        return
    remove_dead_locks(snakemake_folder)
    held.close()


@contextlib.contextmanager
def snakemake_lock(persistence: Any, taken: bool) -> Iterator[None]:
    """Hold Snakemake's lock, or only remember what it is made of if Snakemake holds it itself.

    Args:
        persistence: Snakemake's own, whose `lock` does nothing under `--nolock`; that of its class does.
        taken: Whether Snakemake has taken the lock.

    Raises:
        LockException: When somebody else works in the folder, or left a lock that only a person can judge.
    """
    folder = Path(persistence.path)
    record = folder / "siflow" / RECORD
    told: dict[str, Any] = {
        "host": os.uname().nodename,
        "pid": os.getpid(),
        "files": sorted(lock_files(folder) if taken else ()),
    }
    if taken:
        write_whole(record, json.dumps(told))
        yield
        record.unlink(missing_ok=True)
        return
    before = lock_files(folder)
    write_whole(record, json.dumps({**told, "pending": time.time()}))
    taking = type(persistence).lock(persistence)
    try:
        taking.__enter__()
    except BaseException:
        # Somebody else's lock: it stays.
        record.unlink(missing_ok=True)
        raise
    try:
        write_whole(record, json.dumps({**told, "files": sorted(lock_files(folder) - before)}))
        yield
    finally:
        # The instance's own `unlock`, with which that `lock` ends, does nothing under `--nolock` either.
        type(persistence).unlock(persistence)
        record.unlink(missing_ok=True)
