"""Worker processes that can be killed, behind one call: tasks in, outcomes out, in order.

Tasks go to the workers in batches, so that a short query does not pay for a pipe each time. A worker says on a shared
page which task it is at and since when. One that outlives its limits is killed: that task's outcome is `Killed`, the
others of the batch go to the worker that takes its place. A task at which a worker dies by itself is tried once more.

The task of a row runs several statements. It is given out again with the others, and the workers are told which
statement was one too many, so that the row says so and an equal statement of another row is not tried at all.
"""

from __future__ import annotations

import contextlib
import fcntl
import marshal
import os
import select
import signal
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from typing import IO, Any, NamedTuple

from potstill.errors import PotstillError
from potstill.sql.limits import Limits
from potstill.sql.page import SIZE, Page, Place
from potstill.sql.policy import Policy
from potstill.sql.process import start
from potstill.sql.worker import LENGTH, frame

#: A batch may have so many tasks and, about, so many bytes; it grows and shrinks to take so many seconds, so that slow
#: statements are shared out among all workers.
BATCH_TASKS = 64
BATCH_BYTES = 1 << 20
BATCH_S = 0.05
#: Batches that each worker has before it, so that it never waits for the next one.
BATCHES_AHEAD = 3
#: Bytes that a pipe should hold.
PIPE_BYTES = 1 << 20
#: Seconds between two looks at what the workers are doing.
WATCH_S = 0.2
#: Deaths in a row without one task done, after which something is wrong with the installation.
MAX_IDLE_DEATHS = 3

Task = tuple[str, tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class Killed:
    """The outcome of a task whose worker had to be killed, or died."""

    message: str


class Host(NamedTuple):
    """What the tasks of rows need of the process that starts the workers.

    Attributes:
        setup: What the workers are to know, as plain values.
        tell: Answers what a worker asks, by the word it asks with.
        key: The key of what a row's task runs in a phase.
    """

    setup: dict[str, Any]
    tell: Callable[[str, Any], Any]
    key: Callable[[Task, int], bytes]


class Pool:
    """A few worker processes of one engine; a context manager, at whose end none of them is left.

    Args:
        engine: The engine's name.
        limits: The limits of each statement.
        policy: The comparison policy.
        workers: How many processes.
        host: What the tasks of rows need; None where there are none.
    """

    def __init__(
        self, engine: str, limits: Limits, policy: Policy, *, workers: int = 1, host: Host | None = None
    ) -> None:
        self._limits = limits
        self._host = host
        self._setup = {
            "engine": engine,
            "limits": asdict(limits),
            "policy": policy.as_dict(),
            "rows": host.setup if host is not None else None,
            "parent": os.getpid(),
            "scratch": tempfile.gettempdir(),
        }
        self._count = max(1, workers)
        self._workers: list[_Worker] = []
        self._idle_deaths = 0
        self._suspects: set[Place] = set()
        self._blamed: set[Place] = set()
        self._kills: dict[bytes, str] = {}
        self._next = 1
        self._batch_tasks = 1
        self._unsent: deque[_Batch] = deque()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill all workers: none of them holds anything that is worth a farewell."""
        self._kill_all()

    def submit(self, tasks: Iterable[Task]) -> _Batch:
        """Hand in the tasks of one batch, without waiting for anything; `collect` takes what is returned.

        Args:
            tasks: `(kind, arguments)`, as `potstill.sql.worker` knows them.
        """
        batch = _Batch(self._next, list(tasks))
        self._next += len(batch.tasks)
        self._unsent.append(batch)
        self._dispatch()
        return batch

    def collect(self, batch: _Batch) -> list[Any]:
        """Return the outcome of each task of a batch, in order: what the worker returned, or `Killed`.

        Raises:
            PotstillError: When workers die without doing anything.
        """
        while not batch.is_done():
            self._unsent.extendleft(reversed(self._wait()))
            self._dispatch()
        return batch.outcomes()

    def map(self, tasks: Iterable[Task]) -> Iterator[tuple[Task, Any]]:
        """Yield each task and its outcome, in order, reading the tasks only a bounded way ahead."""
        ahead: deque[_Batch] = deque()
        for some in self._cut(tasks):
            ahead.append(self.submit(some))
            if len(ahead) > self._count * (BATCHES_AHEAD + 1):
                yield from self._take(ahead.popleft())
        while ahead:
            yield from self._take(ahead.popleft())

    def _take(self, batch: _Batch) -> Iterator[tuple[Task, Any]]:
        return zip(batch.tasks, self.collect(batch), strict=True)

    def _cut(self, tasks: Iterable[Task]) -> Iterator[list[Task]]:
        """Yield tasks in batches; those of long rows hold fewer of them."""
        batch: list[Task] = []
        size = 0
        for task in tasks:
            batch.append(task)
            size += len(task[1][0])
            if len(batch) >= self._batch_tasks or size > BATCH_BYTES:
                yield batch
                batch, size = [], 0
        if batch:
            yield batch

    def _pace(self, tasks: int, seconds: float) -> None:
        """Learn from a batch of so many tasks, done in so many seconds, how large the next ones should be."""
        if seconds < BATCH_S / 2:
            self._batch_tasks = min(BATCH_TASKS, max(self._batch_tasks, 2 * tasks))
        elif seconds > BATCH_S * 2:
            self._batch_tasks = max(1, min(self._batch_tasks, tasks // 2))

    def _dispatch(self) -> None:
        while self._unsent and (worker := self._free_worker()) is not None:
            worker.give(self._unsent.popleft(), self._kills)

    def _kill_all(self) -> None:
        for worker in self._workers:
            worker.kill()
        self._workers.clear()

    def _free_worker(self) -> _Worker | None:
        """Return a worker with room for one more batch, started if need be."""
        ready = [worker for worker in self._workers if len(worker.batches) < BATCHES_AHEAD]
        idle = [worker for worker in ready if not worker.batches]
        if not idle and len(self._workers) < self._count:
            self._workers.append(_Worker(self._setup, self._host, self._pace))
            return self._workers[-1]
        return min(ready, key=lambda worker: len(worker.batches), default=None)

    def _wait(self) -> list[_Batch]:
        """Wait until something has happened; return the batches of workers that are no more."""
        poll = select.poll()
        todo: dict[int, Callable[[], None]] = {}
        for worker in self._workers:
            todo |= worker.register(poll)
        for descriptor, _ in poll.poll(WATCH_S * 1000):
            todo[descriptor]()
        lost: list[_Batch] = []
        for worker in list(self._workers):
            if seen := worker.overdue(self._limits):
                lost += self._bury(worker, _killed_after(self._limits), seen)
            elif message := worker.died():
                lost += self._bury(worker, message, None)
        return lost

    def _bury(self, worker: _Worker, message: str, seen: Place | None) -> list[_Batch]:
        """End a worker and return the batches to do again; the task it was at is blamed, if it is to blame.

        A worker that died by itself may have been killed by somebody: its task is tried once more before it is blamed,
        so that a stray kill never changes a verdict. One that we kill may have gone on to another task just then.

        Args:
            worker: The worker.
            message: Why it ends.
            seen: What it was at for too long; None where it died by itself.
        """
        self._workers.remove(worker)
        place = worker.kill()
        culprit = next((batch for batch in worker.batches if batch.lacks(place.number)), None)
        if culprit is not None and (place == seen or place in self._suspects):
            self._blame(culprit, place, message)
        elif seen is None:
            self._suspects.add(place)
        self._idle_deaths = 0 if culprit is not None or worker.has_answered else self._idle_deaths + 1
        if self._idle_deaths >= MAX_IDLE_DEATHS:
            raise PotstillError(f"the SQL worker process does not start: {worker.last_words() or message}")
        return [batch for batch in worker.batches if not batch.is_done()]

    def _blame(self, batch: _Batch, place: Place, message: str) -> None:
        """Give a task its outcome, or remember what a row's task must not run again."""
        if self._host is not None and place.phase:
            self._kills.setdefault(self._host.key(batch.task(place.number), place.phase), message)
            if place not in self._blamed:
                self._blamed.add(place)
                return  # whoever has the task next knows of it
        batch.take([(place.number, Killed(message))])


def _killed_after(limits: Limits) -> str:
    allowed = limits.timeout_s + limits.kill_grace_s
    return f"killed after {allowed:g} s: the time limit of {limits.timeout_s:g} s did not stop it"


class _Batch:
    """Tasks that travel together, numbered one after another, and what has come back of them."""

    def __init__(self, first: int, tasks: list[Task]) -> None:
        self.tasks = tasks
        self._first = first
        self._results: dict[int, Any] = {}

    def take(self, done: Iterable[tuple[int, Any]]) -> None:
        """Take outcomes, each with the number of its task."""
        self._results.update(done)

    def task(self, number: int) -> Task:
        """Return a task by its number."""
        return self.tasks[number - self._first]

    def lacks(self, number: int) -> bool:
        """Whether a task is of this batch and has no outcome yet."""
        return 0 <= number - self._first < len(self.tasks) and number not in self._results

    def is_done(self) -> bool:
        """Whether every task has its outcome."""
        return len(self._results) == len(self.tasks)

    def outcomes(self) -> list[Any]:
        """Return the outcomes in the order of the tasks."""
        return [self._results[number] for number in range(self._first, self._first + len(self.tasks))]

    def rest(self) -> list[tuple[int, str, tuple[Any, ...]]]:
        """Return the tasks that have no outcome yet, numbered."""
        numbered = enumerate(self.tasks, self._first)
        return [(number, *task) for number, task in numbered if number not in self._results]


class _Worker:
    """One worker process, its pipes and the batches it was given."""

    def __init__(self, setup: dict[str, Any], host: Host | None, pace: Callable[[int, float], None]) -> None:
        self._host = host
        self._pace = pace
        self._since = 0.0
        self._kills_told = 0
        self.batches: deque[_Batch] = deque()
        self.has_answered = False
        self._page_file = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the worker
        self._page_file.truncate(SIZE)
        self._page = Page(self._page_file.fileno())
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - as above
        theirs_in, self._requests = os.pipe()
        self._answers, theirs_out = os.pipe()
        self._process = start(
            setup, requests=theirs_in, answers=theirs_out, errors=self._errors.fileno(), page=self._page_file.fileno()
        )
        os.close(theirs_in)
        os.close(theirs_out)
        for pipe in (self._requests, self._answers):
            os.set_blocking(pipe, False)
            _widen(pipe)
        self._outbox = bytearray()
        self._inbox = bytearray()
        self._ended = self._killed = False
        self._words = ""

    def give(self, batch: _Batch, kills: Mapping[bytes, str]) -> None:
        """Queue one batch, and with it the kills that the worker does not know yet."""
        if not self.batches:
            self._since = time.monotonic()
        self.batches.append(batch)
        news = list(islice(kills.items(), self._kills_told, None))
        self._kills_told += len(news)
        self._outbox += frame(("tasks", news, batch.rest()))
        self._write()

    def register(self, poll: select.poll) -> dict[int, Callable[[], None]]:
        """Say what there is to wait for; return what to do when it happens, by descriptor."""
        todo = {}
        if not self._ended:
            poll.register(self._answers, select.POLLIN)
            todo[self._answers] = self._read
        if self._outbox:
            poll.register(self._requests, select.POLLOUT)
            todo[self._requests] = self._write
        return todo

    def _write(self) -> None:
        try:
            sent = os.write(self._requests, self._outbox)
        except BlockingIOError:
            return
        except BrokenPipeError:
            self._outbox.clear()  # it is dead: `died` sees to it
            return
        del self._outbox[:sent]

    def _read(self) -> None:
        try:
            chunk = os.read(self._answers, 1 << 18)
        except BlockingIOError:
            return
        if not chunk:
            self._ended = True
            return
        self._inbox += chunk
        at = 0
        while len(self._inbox) - at >= LENGTH.size:
            end = at + LENGTH.size + LENGTH.unpack_from(self._inbox, at)[0]
            if len(self._inbox) < end:
                break
            self._take(marshal.loads(memoryview(self._inbox)[at + LENGTH.size : end]))
            at = end
        del self._inbox[:at]

    def _take(self, done: list[tuple[int, Any]] | tuple[str, str, Any]) -> None:
        self.has_answered = True
        if isinstance(done, tuple):
            self._answer(*done[1:])
            return
        batch = self.batches[0]
        batch.take(done)
        if batch.is_done():
            self.batches.popleft()
            now = time.monotonic()
            self._pace(len(batch.tasks), now - self._since)
            self._since = now

    def _answer(self, what: str, value: Any) -> None:
        if self._host is not None and not self._killed:
            self._outbox += frame(("told", self._host.tell(what, value)))

    def overdue(self, limits: Limits) -> Place | None:
        """Return what the worker has been at for so long that it must be killed."""
        return self._page.overdue(limits.timeout_s + limits.kill_grace_s) if self.batches else None

    def died(self) -> str:
        """Return how the worker ended by itself, or "" while it lives."""
        if not self._ended:
            return ""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        code = self._process.returncode
        if code is not None and code < 0:
            return f"the worker process died of {signal.Signals(-code).name}"
        return f"the worker process ended with status {code}: {self.last_words()}"

    def kill(self) -> Place:
        """Kill the process, read what it had sent, and return what it was at."""
        self._killed = True
        self._process.kill()
        self._process.wait()
        while not self._ended:
            self._read()
        place = self._page.place()
        os.close(self._requests)
        os.close(self._answers)
        self._page.close()
        self._page_file.close()
        self._words = self.last_words()
        self._errors.close()
        return place

    def last_words(self) -> str:
        """Return the last line that the process wrote on stderr."""
        if self._errors.closed:
            return self._words
        self._errors.seek(0)
        lines = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else ""


def _widen(pipe: int) -> None:
    """Let a pipe hold more (on Linux), so that a worker finds its next batch there while we do something else."""
    with contextlib.suppress(OSError, AttributeError):
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
