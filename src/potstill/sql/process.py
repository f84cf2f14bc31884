"""Starting a worker process: as a copy of this process where that is safe, else from the beginning.

A copy is there at once, with all that is imported here. But a copy of a process with several threads may find a lock
held by a thread that it does not have, so there the interpreter is started anew.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from fcntl import F_DUPFD, fcntl
from pathlib import Path
from typing import Any, Protocol

from potstill.sql.worker import main

#: What a new interpreter runs: our path first, so that it finds what we found.
_START = (
    "import json, sys\n"
    "setup, sys.path[:] = json.loads(sys.argv[1])\n"
    "from potstill.sql.worker import main\n"
    "main(setup)\n"
)
#: Under which numbers a copy finds its files, beside 0, 1 and 2.
_PAGE = 3


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
    if _is_alone():
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


def _is_alone() -> bool:
    """Whether this process has one thread, those that no Python code knows of counted."""
    return sys.platform == "linux" and len(list(Path("/proc/self/task").iterdir())) == 1


class _Copy:
    """A copy of this process, as its parent sees it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def kill(self) -> None:
        if self.returncode is None:
            os.kill(self.pid, signal.SIGKILL)

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            _, status = os.waitpid(self.pid, 0)
            self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode


def _copy(setup: dict[str, Any], descriptors: tuple[int, ...]) -> _Copy:
    pid = os.fork()
    if pid:
        return _Copy(pid)
    try:
        _forget(descriptors)
        main({**setup, "page": _PAGE})
    except Exception:  # noqa: BLE001 - it is written down, and the process ends
        with open(2, "w", closefd=False) as errors:
            traceback.print_exc(file=errors)
        os._exit(1)
    finally:
        os._exit(0)  # in no case may the copy go on with what its parent was doing


def _forget(descriptors: tuple[int, ...]) -> None:
    """Let go of all that is the parent's alone: its files, its handlers, its time zone, its garbage."""
    sys.dont_write_bytecode = True  # what is written here is cut at the limit on files, without a word
    gc.freeze()  # a file of the parent's that is collected here would close a number that is ours by then
    signal.set_wakeup_fd(-1)
    for each in (signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(each, signal.SIG_DFL)
    # Out of the way first: one may have the number that another is to have.
    for number, one in enumerate([fcntl(each, F_DUPFD, _PAGE + 1) for each in descriptors]):
        os.dup2(one, number)
    os.closerange(_PAGE + 1, os.sysconf("SC_OPEN_MAX"))
    sys.path[:] = [str(Path(entry).absolute()) for entry in sys.path]
    os.environ["TZ"] = "UTC"
    time.tzset()
