"""The worker process: reads batches of tasks on stdin, answers each on stdout, says on a shared page what it is doing.

Started by `potstill.sql.pool` as `python -c`, it loads nothing that it does not need, and it may be killed at any
moment: the page tells which task it was at, and since when.

Frames are four bytes of length and a marshalled value; both ends are the same Python.
"""

from __future__ import annotations

import contextlib
import ctypes
import marshal
import mmap
import os
import resource
import signal
import struct
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, Any

from potstill.sql.engines import make_engine
from potstill.sql.evaluate import Evaluator, Gold, pack
from potstill.sql.limits import Limits
from potstill.sql.policy import Policy

LENGTH = struct.Struct("<I")
#: Number of the task being done (0 = none), and when its present statement was started (monotonic clock).
STATE = struct.Struct("<Qd")
#: Answers are sent at least this often, so that a kill costs little that was done already.
FLUSH_S = 0.05
_PR_SET_PDEATHSIG = 1


def main(setup: dict[str, Any]) -> None:
    """Serve until stdin ends.

    Args:
        setup: `engine`, `limits`, `policy`, `parent` (process id), `page` (descriptor).
    """
    _die_with(setup["parent"])
    limits = Limits(**setup["limits"])
    _leave_folders()
    _bound_process(limits)
    page = mmap.mmap(setup["page"], STATE.size)
    # Sqlite and others must never write into our pipe: it is kept under a number of its own.
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDWR), 1)
    engine = make_engine(setup["engine"], limits)
    if setup["engine"] == "sqlite":
        from potstill.sql.engines.sqlite import set_heap_limit

        set_heap_limit(limits.max_memory_bytes)
    server = _Server(page, answers)
    server.evaluator = Evaluator(engine, Policy(**setup["policy"]), server.restart_clock)
    with requests, answers, contextlib.closing(engine):
        while (batch := read_frame(requests)) is not None:
            server.serve(batch)


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

    evaluator: Evaluator

    def __init__(self, page: mmap.mmap, answers: IO[bytes]) -> None:
        self._page = page
        self._answers = answers
        self._number = 0

    def restart_clock(self) -> None:
        """Say that the next statement of the same task begins now."""
        STATE.pack_into(self._page, 0, self._number, time.monotonic())

    def serve(self, batch: list[tuple[int, str, tuple[Any, ...]]]) -> None:
        """Do one batch; the answers may leave in several frames."""
        done: list[tuple[int, Any]] = []
        flushed = time.monotonic()
        for number, kind, arguments in batch:
            now = time.monotonic()
            if now - flushed > FLUSH_S:
                self._send(done)
                done, flushed = [], now
            self._number = number
            STATE.pack_into(self._page, 0, number, now)
            done.append((number, self._do(kind, arguments)))
        STATE.pack_into(self._page, 0, 0, 0.0)
        self._send(done)

    def _do(self, kind: str, arguments: tuple[Any, ...]) -> Any:
        if kind == "answer":
            database, sql, gold, gold_sql = arguments
            return tuple(self.evaluator.answer(database, sql, None if gold is None else Gold(*gold), gold_sql))
        if kind == "gold":
            database, sql, with_rows = arguments
            return pack(self.evaluator.gold(database, sql), with_rows=with_rows)
        return self.evaluator.agrees(*arguments)

    def _send(self, done: list[tuple[int, Any]]) -> None:
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


def _leave_folders() -> None:
    """Work in a folder that is no more: no relative path leads anywhere, and nothing is left behind after a kill."""
    folder = tempfile.mkdtemp(prefix="potstill-sql-")
    os.chdir(folder)
    Path(folder).rmdir()


def _bound_process(limits: Limits) -> None:
    """Bound this process: memory, files written, core files."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    _lower(resource.RLIMIT_AS, 4 * limits.max_memory_bytes)
    _lower(resource.RLIMIT_FSIZE, 1_000_000)
    _lower(resource.RLIMIT_CORE, 0)


def _lower(limit: int, value: int) -> None:
    _, hard = resource.getrlimit(limit)
    if hard == resource.RLIM_INFINITY or value < hard:
        resource.setrlimit(limit, (value, value))
