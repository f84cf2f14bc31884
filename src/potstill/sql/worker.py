"""The worker process: reads batches of tasks on stdin, answers each on stdout, says on a shared page what it is doing.

Started by `potstill.sql.pool` as `python -c`, it loads nothing that it does not need, and it may be killed at any
moment: the page tells which task it was at, and since when.

A frame to it is ("tasks", kills, tasks) or ("told", value); one from it is a list of `(number, outcome)`, or what it asks
as `("ask", what, value)`. Frames are four bytes of length and a marshalled value; both ends are the same Python.
"""

from __future__ import annotations

import ctypes
import marshal
import os
import resource
import signal
import struct
import sys
import time
from collections import deque
from contextlib import ExitStack, closing
from pathlib import Path
from typing import IO, Any

from potstill.sql.engines import Engine, make_engine
from potstill.sql.evaluate import Evaluator, settles
from potstill.sql.executor import RowExecutor, RowSetup
from potstill.sql.limits import Limits
from potstill.sql.page import Page
from potstill.sql.policy import Policy

LENGTH = struct.Struct("<I")
#: Answers are sent at least this often, so that a kill costs little that was done already.
FLUSH_S = 0.05
_PR_SET_PDEATHSIG = 1


def main(setup: dict[str, Any]) -> None:
    """Serve until stdin ends.

    Args:
        setup: `engine`, `limits`, `policy`, `rows` (see `RowSetup`, or None), `parent` (process id), `page` (descriptor),
            `scratch` (a folder for passing files).
    """
    _die_with(setup["parent"])
    limits = Limits(**setup["limits"])
    rows = RowSetup(**setup["rows"]) if setup["rows"] else None
    _leave_folders(setup["scratch"])
    _bound_process(limits, mapped=Path(rows.gold_audit).stat().st_size if rows and rows.gold_audit else 0)
    page = Page(setup["page"])
    # Sqlite and others must never write into our pipe: it is kept under a number of its own.
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDWR), 1)
    engine = make_engine(setup["engine"], limits)
    if setup["engine"] == "sqlite":
        from potstill.sql.engines.sqlite import set_heap_limit

        set_heap_limit(limits.max_memory_bytes)
    with requests, answers, closing(engine), ExitStack() as stack:
        server = _Server(page, requests, answers, engine, Policy(**setup["policy"]))
        if rows is not None:
            stack.enter_context(closing(server.open_rows(rows)))
        server.serve()


def read_frame(stream: IO[bytes]) -> Any:
    """Return the next value, or None at the end of the stream."""
    head = stream.read(LENGTH.size)
    if len(head) < LENGTH.size:
        return None
    body = stream.read(LENGTH.unpack(head)[0])
    return marshal.loads(body)


def frame(value: Any) -> bytes:
    """Return a value as a frame."""
    body = marshal.dumps(value)
    return LENGTH.pack(len(body)) + body


class _Server:
    """Does tasks in order: `(number, kind, arguments)` in, `(number, outcome)` out."""

    def __init__(self, page: Page, requests: IO[bytes], answers: IO[bytes], engine: Engine, policy: Policy) -> None:
        self._page = page
        self._requests = requests
        self._answers = answers
        self._engine = engine
        self._policy = policy
        self._evaluator = Evaluator(engine, policy, page.restart)
        self._rows: RowExecutor | None = None
        self._waiting: deque[Any] = deque()

    def open_rows(self, setup: RowSetup) -> RowExecutor:
        """Make ready for tasks of the kind `row`."""
        with_rows = not settles(self._policy)
        self._rows = RowExecutor(setup, self._evaluator, with_rows=with_rows, ask=self._ask, enter=self._page.enter)
        return self._rows

    def serve(self) -> None:
        """Do what comes in, until nothing can come any more."""
        while (message := self._waiting.popleft() if self._waiting else read_frame(self._requests)) is not None:
            _, kills, tasks = message
            if self._rows is not None:
                self._rows.kills.update(kills)
            self._do_all(tasks)

    def _do_all(self, tasks: list[tuple[int, str, tuple[Any, ...]]]) -> None:
        """Do one batch; the answers may leave in several frames."""
        done: list[tuple[int, Any]] = []
        flushed = time.monotonic()
        for number, kind, arguments in tasks:
            now = time.monotonic()
            if now - flushed > FLUSH_S:
                self._send(done)
                done, flushed = [], now
            self._page.rest(number)
            done.append((number, self._do(kind, arguments)))
        self._page.rest(0)
        self._send(done)

    def _do(self, kind: str, arguments: tuple[Any, ...]) -> Any:
        if kind == "row":
            assert self._rows is not None
            return self._rows.run(*arguments)
        self._page.restart()
        return tuple(self._evaluator.gold(*arguments))

    def _ask(self, what: str, value: Any) -> Any:
        """Return what the process that started us says; what it had sent before waits."""
        self._page.rest(self._page.place().number)
        self._send(("ask", what, value))
        while (message := read_frame(self._requests)) is not None:
            if message[0] == "told":
                return message[1]
            self._waiting.append(message)
        raise SystemExit(0)  # nobody is there any more

    def _send(self, done: Any) -> None:
        """Send what there is; no lock is held while the other process has its turn."""
        self._engine.release()
        if done:
            self._answers.write(frame(done))
            self._answers.flush()


def _die_with(parent: int) -> None:
    """End when the parent ends, however it ends (elsewhere than on Linux: when our stdin does)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _leave_folders(scratch: str) -> None:
    """Work in a folder that is no more: no relative path leads anywhere, and nothing is left behind after a kill."""
    folder = Path(scratch) / f"potstill-sql-{os.getpid()}-{time.monotonic_ns()}"
    folder.mkdir(mode=0o700)
    os.chdir(folder)
    folder.rmdir()


def _bound_process(limits: Limits, *, mapped: int) -> None:
    """Bound this process: memory (beyond what it has; a file that is mapped takes none, but counts), files, core files."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    _lower(resource.RLIMIT_AS, 4 * limits.max_memory_bytes + mapped + _size())
    _lower(resource.RLIMIT_FSIZE, 1_000_000)
    _lower(resource.RLIMIT_CORE, 0)


def _size() -> int:
    """Return the address space that this process has: a copy has its parent's, which may be large."""
    counts = Path("/proc/self/statm")
    return int(counts.read_text().split()[0]) * resource.getpagesize() if counts.exists() else 0


def _lower(limit: int, value: int) -> None:
    _, hard = resource.getrlimit(limit)
    if hard == resource.RLIM_INFINITY or value < hard:
        resource.setrlimit(limit, (value, value))
