"""Processes that end with the one that started them, and proofs that a process is dead."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from potstill.config.locate import workflow_root

#: Names the Snakemake process that starts a job: its number and its start time.
_CONTROLLER = "POTSTILL_CONTROLLER"


class ProcessId(NamedTuple):
    """A process for good: its number alone is used again after its death."""

    pid: int
    started: str


def identify(pid: int) -> ProcessId | None:
    """Return the identity of a live process, or None where it is gone or there is no `/proc`."""
    try:
        # The name in parentheses may hold blanks and parentheses: count fields from the last one.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else ProcessId(pid, fields[19])


def find_ancestors() -> Iterator[int]:
    """Yield the parent of this process, its parent, and so on, without process 1."""
    pid = os.getppid()
    while pid > 1:
        yield pid
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            return


def is_snakemake(pid: int) -> bool:
    """Say whether a process is Snakemake, by its command line (`…/snakemake …` or `python -m snakemake …`)."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:6]
    except OSError:
        return False
    return any(word.rpartition(b"/")[2] == b"snakemake" for word in words)


def find_controllers() -> list[int]:
    """Return the Snakemake processes above this one, nearest first; on a cluster node that is the inner one."""
    return [pid for pid in find_ancestors() if is_snakemake(pid)]


def announce_controller() -> None:
    """Tell the jobs that this process, a Snakemake, will start whom they must not outlive."""
    identity = identify(os.getpid())
    if identity is not None:
        os.environ[_CONTROLLER] = f"{identity.pid}:{identity.started}"


def announce_interpreter() -> None:
    """Tell the rules' shell commands the running interpreter, never a `python` of the PATH, and where the scripts are.

    Rules of a chunk call their script by `shell:`, since `script:` costs each job 35 ms, and the DAG a third of its
    time; an absolute path in the command would make every job run again on another machine.
    """
    os.environ["POTSTILL_PYTHON"] = sys.executable
    os.environ["POTSTILL_SCRIPTS"] = str(workflow_root() / "scripts")


def die_with_controllers() -> None:
    """End this process, and what it started, as soon as a Snakemake process above it is gone.

    Snakemake starts a script through a shell and leaves both behind when it is killed: they would go on
    spending money and writing beside a second run. A thread waits for the death of each controller: those above
    this process, and the one that announced itself, which may have died while this process was starting.
    """
    controllers = set(find_controllers())
    pid, _, started = os.environ.get(_CONTROLLER, "").partition(":")
    if pid:
        if identify(int(pid)) != ProcessId(int(pid), started):
            _die()
        controllers.add(int(pid))
    for controller in controllers:
        threading.Thread(target=_die_after, args=(controller,), daemon=True, name=f"watch-{controller}").start()


def _die_after(pid: int) -> None:
    wait_for_death(pid)
    _die()


def _die() -> None:
    kill_descendants(os.getpid())
    os.kill(os.getpid(), signal.SIGKILL)


def wait_for_death(pid: int) -> None:
    """Block until a process is gone."""
    identity = identify(pid)
    if hasattr(os, "pidfd_open"):
        import select

        with contextlib.suppress(ProcessLookupError):
            descriptor = os.pidfd_open(pid)
            try:
                poller = select.poll()
                poller.register(descriptor, select.POLLIN)
                poller.poll()
            finally:
                os.close(descriptor)
        return
    while identity is not None and identify(pid) == identity:
        time.sleep(0.5)


def kill_descendants(pid: int) -> None:
    """Kill all that a process has started, deepest last; what is gone already is no error."""
    for child in find_children(pid):
        kill_descendants(child)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(child, signal.SIGKILL)


def find_children(pid: int) -> list[int]:
    """Return the direct children of a process."""
    children: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            children.extend(int(word) for word in task.read_text().split())
    return children
