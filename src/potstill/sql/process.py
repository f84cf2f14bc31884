"""Starting a worker process: as a copy of this process where that is safe, else from the beginning.

A copy is there at once, with all that is imported here. But some of what it would have of its parent it cannot let go
of, so there the interpreter is started anew: a lock held by a thread that the copy does not have, and what SQLite knows
of the databases that the parent has open (whose files and locks are not the copy's).
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import json
import logging
import os
import signal
import stat
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Iterable
from fcntl import F_DUPFD, fcntl
from pathlib import Path
from typing import Any, NoReturn, Protocol

from potstill.sql.worker import main

#: What a new interpreter runs: our path first, so that it finds what we found.
_START = (
    "import json, sys\n"
    "setup, sys.path[:] = json.loads(sys.argv[1])\n"
    "from potstill.sql.worker import main\n"
    "main(setup)\n"
)
#: Under which number a copy finds its page; 0, 1 and 2 are the others.
_PAGE = 3
#: Calls that may stand upon one another in an interpreter that was started anew.
_RECURSION_LIMIT = 1000
_SQLITE_MAGIC = b"SQLite format 3\x00"


class Process(Protocol):
    """What both kinds have in common (`subprocess.Popen` is one)."""

    @property
    def pid(self) -> int:
        """Its number."""

    @property
    def returncode(self) -> int | None:
        """How it ended: its status, or a signal's number below zero; None until somebody waited for it."""

    def kill(self) -> None:
        """Send SIGKILL."""

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end."""


def start(setup: dict[str, Any], *, requests: int, answers: int, errors: int, page: int) -> Process:
    """Start a worker.

    Args:
        setup: See `potstill.sql.worker.main`; without `page`.
        requests: Descriptor that it reads.
        answers: Descriptor that it writes.
        errors: Descriptor for its last words.
        page: Descriptor of its shared page.
    """
    if _is_plain():
        with contextlib.suppress(OSError):  # no memory for a copy of all that is here: an interpreter takes less
            return _copy(setup, (requests, answers, errors, page))
    # The same interpreter with the same path; nothing is looked up by name, no environment need be active.
    path = [str(Path(entry).absolute()) for entry in sys.path]
    return subprocess.Popen(
        [sys.executable, "-I", "-B", "-c", _START, json.dumps([{**setup, "page": page}, path])],
        stdin=requests,
        stdout=answers,
        stderr=errors,
        pass_fds=[page],
        env={**os.environ, "TZ": "UTC"},
    )


def _is_plain() -> bool:
    """Whether this process has one thread, those that no Python code knows of counted, and no SQLite database open."""
    if sys.platform != "linux":
        return False
    try:
        return len(list(Path("/proc/self/task").iterdir())) == 1 and not any(map(_is_database, _open_files()))
    except OSError:
        return False


def _open_files() -> list[int]:
    return [int(path.name) for path in Path("/proc/self/fd").iterdir()]


def _is_database(descriptor: int) -> bool:
    """Whether a descriptor is one of a SQLite file; that it was opened again and closed would cost its locks."""
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return False
        return os.pread(descriptor, len(_SQLITE_MAGIC), 0) == _SQLITE_MAGIC
    except OSError:
        return False  # closed by now, or only written to


class _Copy:
    """A copy of this process, as its parent sees it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def kill(self) -> None:
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            try:
                _, status = os.waitpid(self.pid, 0)
            except ChildProcessError:  # SIGCHLD is ignored, or somebody waits for all children: how it ended is lost
                status = 0
            self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode


def _copy(setup: dict[str, Any], descriptors: tuple[int, ...]) -> _Copy:
    # A signal that comes now must not run a handler of the parent's in the copy.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        pid = os.fork()
        if not pid:
            _be_copy(setup, descriptors, mask)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    return _Copy(pid)


def _be_copy(setup: dict[str, Any], descriptors: tuple[int, ...], mask: Iterable[int]) -> NoReturn:
    kept = sys.stdin, sys.stdout, sys.stderr  # whoever is the last to drop one closes a number that is not its own
    try:
        _forget(descriptors)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        main({**setup, "page": _PAGE})
    except Exception:  # noqa: BLE001 - it is written down, and the process ends
        traceback.print_exc()
        os._exit(1)
    finally:
        del kept
        os._exit(0)  # in no case may the copy go on with what its parent was doing


def _forget(descriptors: tuple[int, ...]) -> None:
    """Let go of all that is the parent's alone, so that a copy works as an interpreter that was started anew."""
    gc.freeze()  # a file of the parent's that is collected here would close a number that is ours by then
    _forget_handlers()
    _keep_files(descriptors)
    sys.stderr = sys.stdout = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    logging.disable()  # the files it writes to are closed, and their numbers are others' now
    warnings.simplefilter("ignore")
    sys.dont_write_bytecode = True  # what is written here is cut at the limit on files, without a word
    sys.path[:] = [str(Path(entry).absolute()) for entry in sys.path]
    sys.setrecursionlimit(_RECURSION_LIMIT + sum(1 for _ in traceback.walk_stack(None)))
    os.environ["TZ"] = "UTC"
    time.tzset()


def _forget_handlers() -> None:
    signal.set_wakeup_fd(-1)
    for each in signal.valid_signals():
        if signal.getsignal(each) not in (signal.SIG_DFL, signal.SIG_IGN):  # as after exec
            signal.signal(each, signal.SIG_DFL)
    faulthandler.disable()


def _keep_files(descriptors: tuple[int, ...]) -> None:
    """Give these descriptors the numbers from 0 on, and close all others."""
    # Out of the way first: one may have the number that another is to have.
    for number, one in enumerate([fcntl(each, F_DUPFD, _PAGE + 1) for each in descriptors]):
        os.dup2(one, number)
    for each in _open_files():
        if each > _PAGE:
            with contextlib.suppress(OSError):
                os.close(each)
