"""Submits, follows, takes over and stops tasks. Knows nothing of Snakemake, so that it can be tested alone.

`round()` is called again and again by one thread, and never raises. `enqueue()` and `cancel()` are called by another.

How one piece of work goes:

1. `enqueue`: only remembered, so that the scheduler never waits for the platform.
2. *Placed*: is there a task from before (of a controller that was killed) that does just this? Take it over. Is there
   one that writes the same files but does something else? Stop it first.
3. *Submitted*: spec and intent on disk, then the create. If the answer is in doubt, the list is asked until it shows
   the task or enough time has passed for a list that lags; only then comes another attempt, and the fence (wrapper.py)
   keeps the first one harmless should it turn up after all.
4. *Followed*: one list for all tasks per look; single gets only for those that it should show and does not.
5. *Judged*, once the platform says that it ended: the report on the shared volume and the outputs decide. Faults of the
   platform are submitted again and cost the job nothing.
"""

from __future__ import annotations

import json
import os
import random
import shlex
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

from . import states, wrapper
from .client import ApiError, Doubtful, NotFound, Rejected, SiflowClient, TaskInfo, Throttled, Unauthorized, Unreachable
from .folder import Event, Ledger, RunFolder
from .settings import ExecutorSettings
from .task import NAME, task_name
from .work import Attempt, Proof, Verdict, Work, read_proof, same_members

BATCH = 48
THREADS = 8
GETS_PER_LOOK = 20
#: Refusals that may pass (busy, forbidden for now) before the job counts as failed.
REFUSALS = 6
STOPS_PER_CALL = 100
#: The statuses of such refusals; the others are about the task itself.
PASSING = (200, 403, 409)
#: Words by which a refusal tells that there is no room now. The platform has no code for it.
QUOTA_WORDS = ("quota", "配额")
NO_ROOM_WORDS = (*QUOTA_WORDS, "insufficient", "exceed", "limit", "不足")


class Log(Protocol):
    """What we need of a logger."""

    def info(self, message: str, /) -> None:
        """Say something."""

    def warning(self, message: str, /) -> None:
        """Say that something is odd."""


@dataclass
class Clocks:
    """Time, replaceable in tests."""

    clock: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
    sleep: Callable[[float], None] = time.sleep
    jitter: random.Random = field(default_factory=random.Random)


class Dispatcher:
    """The table of all work and all attempts, and what is done about them.

    Args:
        client: The platform.
        folder: The run's folder on the shared volume; prepared.
        settings: The executor's settings.
        log: Where to say things.
        patience: Seconds for which an ended task's files may stay invisible (Snakemake's latency wait).
        clocks: Time.
    """

    def __init__(
        self,
        client: SiflowClient,
        folder: RunFolder,
        settings: ExecutorSettings,
        log: Log,
        patience: float = 5.0,
        clocks: Clocks | None = None,
    ) -> None:
        self._client = client
        self._folder = folder
        self._settings = settings
        self._log = log
        self._patience = patience
        self._time = clocks or Clocks()
        self._generation = folder.generation()
        self._pending: deque[Event] = deque()
        self._ledger = Ledger(folder.path / "ledger.jsonl")
        self._attempts: dict[str, Attempt] = {}
        self._numbers: dict[str, int] = defaultdict(int)
        self._works: dict[str, Work] = {}
        self._incoming: deque[Work] = deque()
        self._round_lock = threading.Lock()
        self._closing = False
        self._filtered = True
        self._next_look = 0.0
        self._interval = settings.poll_seconds
        self._reports_seen: set[str] = set()
        self._confirmed_at = float("-inf")
        self._taken_over = 0
        self._lags: list[float] = []
        self._status_at = self._time.clock()
        self._complained: dict[str, float] = {}
        self._recall()
        self._synced = not self._attempts

    # -- what other threads call -------------------------------------------------------------------------------------

    def enqueue(self, work: Work) -> None:
        """Take a piece of work; nothing is sent here."""
        self._incoming.append(work)

    def verdict(self, work: Work) -> Verdict | None:
        """What became of a piece of work; from then on it is forgotten."""
        if work.verdict is not None and self._works.get(work.key) is work:
            del self._works[work.key]
        return work.verdict

    @property
    def pause(self) -> float:
        """How long the next round can wait."""
        now = self._time.clock()
        if self._incoming:
            return 0.05
        ready = any(work.attempt is None and not work.blockers and work.not_before <= now for work in self._open())
        return 0.1 if ready else min(0.5, max(0.05, self._next_look - now))

    def live_attempts(self) -> list[Attempt]:
        """Every attempt that may be running, whoever asked for it."""
        return [attempt for attempt in list(self._attempts.values()) if attempt.live]

    # -- one round ---------------------------------------------------------------------------------------------------

    def round(self) -> None:
        """Take everything one step further. Never raises: an error is said and the next round tries again."""
        with self._round_lock:
            for step in (self._accept, self._look_if_due, self._place, self._submit, self._judge, self._say_status):
                if self._closing:
                    return
                try:
                    step()
                except ApiError as error:
                    self._complain(str(error))
                except Exception as error:  # noqa: BLE001 - an escaping error would end the run and orphan all tasks
                    self._complain(f"{step.__name__.strip('_')}: {type(error).__name__}: {error}")

    def _accept(self) -> None:
        """Take what was enqueued into the table."""
        while self._incoming:
            work = self._incoming.popleft()
            self._works[work.key] = work

    def _open(self) -> list[Work]:
        """The work without a verdict."""
        return [work for work in list(self._works.values()) if work.verdict is None]

    # -- the past ----------------------------------------------------------------------------------------------------

    def _recall(self) -> None:
        """Read from the ledger which attempts of earlier controllers are not settled."""
        for event in self._ledger.events:
            self._numbers[event.key] = max(self._numbers[event.key], event.attempt)
            label = f"{event.key}-a{event.attempt}"
            if event.event == "intent":
                self._revive(event.key, event.attempt, self._since(event.data["t"]))
            elif label in self._attempts and event.event == "submitted":
                self._attempts[label].uuid = event.data["uuid"]
            elif label in self._attempts and event.event == "settled":
                self._attempts[label].settled = True
        self._attempts = {label: attempt for label, attempt in self._attempts.items() if not attempt.settled}

    def _since(self, wall: float) -> float:
        """A moment of an earlier process on this process's clock."""
        return self._time.clock() - max(0.0, self._time.wall() - wall)

    def _revive(self, key: str, number: int, posted_at: float, rule: str = "job") -> Attempt:
        """Make an attempt of an earlier controller known again, with what its spec tells."""
        spec = self._folder.read_json("tasks", f"{key}-a{number}") or {}
        attempt = Attempt(
            key=key,
            number=number,
            rule=spec.get("rule", rule),
            log=spec.get("log", ""),
            name=task_name(self._settings.name_prefix, self._folder.run, key, number),
            outputs=frozenset(spec.get("outputs", ())),
            members=spec.get("members", {}),
            posted_at=posted_at,
            inherited=True,
            cancelled=int(spec.get("generation", 0)) < self._generation,
        )
        attempt.name = spec.get("name", attempt.name)
        self._attempts[attempt.label] = attempt
        return attempt

    # -- looking -----------------------------------------------------------------------------------------------------

    def _look_if_due(self) -> None:
        """Look at the platform if it is time, or if a report has just appeared on the volume."""
        now = self._time.clock()
        if not self.live_attempts() and self._synced:
            return
        if self._has_news() or now >= self._next_look:
            self._next_look = now + self._interval
            self._look()

    def _has_news(self) -> bool:
        """Whether a task has put down a report since the last look: it ends now."""
        try:
            reports = {entry.name.removesuffix(".json") for entry in os.scandir(self._folder.path / "reports")}
        except OSError:
            return False
        fresh = reports - self._reports_seen
        self._reports_seen = reports
        return any(label in self._attempts and self._attempts[label].live for label in fresh)

    def _look(self) -> None:
        """One list of all our tasks, then what it does not show."""
        found = self._client.list_all(labels=f"run={self._folder.run}" if self._filtered else "")
        now = self._time.clock()
        shown, news = self._take_rows(found, now)
        self._synced = True
        self._check_filter(shown, now)
        news |= self._chase_missing(shown, now)
        for attempt in self.live_attempts():
            attempt.looks += 1
        self._stop_unclear(now)
        self._stop_unwanted(now)
        young = any(now < attempt.posted_at + self._settings.poll_seconds for attempt in self.live_attempts())
        grown = self._settings.poll_seconds if news or young else self._interval * 1.3
        # Polling takes at most half of the calls that are allowed.
        pages = len(found) // self._settings.page_size + 1
        least = 2 * pages / self._settings.max_calls_per_second
        self._interval = max(least, min(grown, max(self._settings.poll_seconds, self._settings.poll_seconds_max)))
        self._next_look = now + self._interval

    def _take_rows(self, found: Iterable[TaskInfo], now: float) -> tuple[set[str], bool]:
        """Match what the platform shows with our attempts; returns the labels shown and whether anything is new."""
        shown: set[str] = set()
        news = False
        for task in found:
            attempt = self._match(task)
            if attempt is None:
                continue
            if attempt.uuid is None:
                attempt.uuid = task.uuid
                self._note(attempt, "submitted", uuid=task.uuid)
            if attempt.uuid != task.uuid:
                self._stop_double(attempt, task)
                continue
            shown.add(attempt.label)
            if not attempt.looks and not attempt.inherited and not attempt.status:
                self._lags.append(now - attempt.posted_at)
            news |= attempt.see(task.status, task.message, task.rank, now)
        return shown, news

    def _match(self, task: TaskInfo) -> Attempt | None:
        """The attempt that a task is, by its name and, where they are given, its labels; never by its uuid alone."""
        match = NAME.fullmatch(task.name)
        if match is None or match["run"] != self._folder.run[:8]:
            return None
        if task.labels.get("run", self._folder.run) != self._folder.run:
            return None
        label = f"{match['key']}-a{match['attempt']}"
        attempt = self._attempts.get(label)
        if attempt is None and not states.is_ended(task.status):
            # A live task of this run that our ledger does not know: its last lines were lost, or it was settled.
            number = int(match["attempt"])
            attempt = self._revive(match["key"], number, self._time.clock(), task.labels.get("rule", "job"))
            attempt.settled = number < self._numbers[match["key"]] or self._is_settled(label)
            self._numbers[match["key"]] = max(self._numbers[match["key"]], number)
        return attempt

    def _is_settled(self, label: str) -> bool:
        """Whether the ledger says of an attempt that it is settled."""
        return any(e.event == "settled" and f"{e.key}-a{e.attempt}" == label for e in self._ledger.events)

    def _stop_double(self, attempt: Attempt, task: TaskInfo) -> None:
        """Stop a second task of one attempt: the one we know first stays."""
        if not states.is_ended(task.status):
            self._log.warning(f"siflow: stopping {task.name}, a second task of the same attempt as {attempt.uuid}")
            self._try_stop([task.uuid])

    def _check_filter(self, shown: set[str], now: float) -> None:
        """If a filtered list shows none of the tasks that it must, do not use the filter again."""
        if shown or not self._filtered:
            return
        old = now - self._settings.list_grace
        if any(a.uuid and a.looks > 1 and a.posted_at < old for a in self.live_attempts()):
            self._filtered = False
            self._next_look = now

    def _chase_missing(self, shown: set[str], now: float) -> bool:
        """Ask singly for tasks that the list should show by now; returns whether anything is new."""
        missing = [a for a in self.live_attempts() if a.label not in shown and not (a.settled and not a.stop_reason)]
        for attempt in [a for a in missing if a.uuid is None]:
            self._settle_doubt(attempt, now)
        due = [
            a
            for a in missing
            if a.uuid and (now > a.posted_at + self._settings.list_grace or a.label in self._reports_seen)
        ]
        due.sort(key=lambda attempt: attempt.last_get)
        news = [self._get(attempt, now) for attempt in due[:GETS_PER_LOOK]]
        return any(news)

    def _get(self, attempt: Attempt, now: float) -> bool:
        """Ask for one task; returns whether it has news."""
        attempt.last_get = now
        try:
            task = self._client.get(attempt.uuid or "")
        except NotFound:
            return self._miss(attempt, now)
        return attempt.see(task.status, task.message, task.rank, now)

    def _miss(self, attempt: Attempt, now: float) -> bool:
        """Count a 'not found'; only several of them over some time, with no list showing it, mean that it is lost."""
        if attempt.not_found == 0:
            attempt.not_found_since = now
        attempt.not_found += 1
        if attempt.not_found < 3 or now < attempt.not_found_since + self._settings.lost_after:
            return False
        attempt.status, attempt.message, attempt.ended_at = "lost", "the platform does not know the task any more", now
        return True

    def _settle_doubt(self, attempt: Attempt, now: float) -> None:
        """Give a create up whose answer was in doubt, once the list has had time enough to show it."""
        grace = self._grace()
        if now < attempt.posted_at + grace or attempt.looks < 2:
            return
        if self._confirmed_at < attempt.posted_at + grace and self._filtered:
            # The filter may be the reason why nothing was found: look once without it.
            name = f"{self._settings.name_prefix}-{self._folder.run[:8]}-"
            rows = self._client.list_all(name=name, most=50) or self._client.list_all(most=50)
            self._confirmed_at = now
            self._take_rows(rows, now)
        if attempt.uuid is None:
            self._settle(attempt, "never accepted")
            self._free(attempt, 0.0)

    def _grace(self) -> float:
        """How long a list may hide a new task: the setting, or less once we have seen that it is much faster."""
        if len(self._lags) < 5:
            return self._settings.list_grace
        return min(self._settings.list_grace, max(10.0, 4 * max(self._lags)))

    def _stop_unclear(self, now: float) -> None:
        """Stop tasks that have been in an unclear state for too long, to submit them again."""
        limit = self._settings.unknown_after
        for attempt in self.live_attempts():
            if limit and states.is_unclear(attempt.status) and attempt.status and now > attempt.status_since + limit:
                attempt.stop_reason = attempt.stop_reason or f"{attempt.status} for {limit:.0f} s"

    def _stop_unwanted(self, now: float) -> None:
        """Ask the platform to stop what has a reason to stop, and again every ten seconds."""
        for attempt in self.live_attempts():
            if attempt.settled and attempt.uuid and not attempt.stop_reason:
                attempt.stop_reason = "replaced by a newer attempt"
        unwanted = [
            attempt
            for attempt in self.live_attempts()
            if attempt.uuid
            and attempt.stop_reason
            and attempt.status != "Stopping"
            and (attempt.stop_asked_at is None or now > attempt.stop_asked_at + 10)
        ]
        if unwanted and self._try_stop([attempt.uuid for attempt in unwanted if attempt.uuid]):
            for attempt in unwanted:
                attempt.stop_asked_at = now

    def _try_stop(self, uuids: list[str]) -> bool:
        """Stop tasks, many per call; if that call is refused, one by one. Returns whether all calls went well."""
        good = True
        for start in range(0, len(uuids), STOPS_PER_CALL):
            some = uuids[start : start + STOPS_PER_CALL]
            try:
                self._client.stop(some)
            except Rejected:
                stopped = [self._try_stop_one(uuid) for uuid in some]
                good &= all(stopped)
            except ApiError as error:
                self._complain(f"stop: {error}")
                good = False
        return good

    def _try_stop_one(self, uuid: str) -> bool:
        """Stop one task; one that is gone counts as stopped."""
        try:
            self._client.stop_one(uuid)
        except (NotFound, Rejected):
            return True
        except ApiError:
            return False
        return True

    # -- placing -----------------------------------------------------------------------------------------------------

    def _place(self) -> None:
        """Connect new work with attempts of earlier controllers, once the platform has said what lives."""
        if not self._synced:
            return
        before = self._taken_over
        strangers = [a for a in self._attempts.values() if a.inherited and a.owner is None and not a.settled]
        by_output: dict[str, list[Attempt]] = defaultdict(list)
        for attempt in strangers:
            for path in attempt.outputs:
                by_output[path].append(attempt)
        for work in self._open():
            if not work.placed:
                work.placed = True
                touching = {id(a): a for path in work.outputs for a in by_output.get(path, ())}
                touching.update({id(a): a for a in strangers if a.key == work.key})
                self._place_one(work, sorted(touching.values(), key=lambda a: a.number))
            work.blockers = [attempt for attempt in work.blockers if attempt.live]
        if self._taken_over > before:
            self._log.info(f"siflow: took over {self._taken_over - before} task(s) of an earlier start of this run")

    def _place_one(self, work: Work, touching: list[Attempt]) -> None:
        """Take over the attempt that does this work; stop all others that write the same files."""
        fit = [
            attempt
            for attempt in touching
            if attempt.outputs >= work.outputs and not attempt.cancelled and same_members(work.members, attempt.members)
        ]
        chosen = next((a for a in reversed(fit) if a.ended_at is None or self._proof(a) is Proof.DONE), None)
        if chosen is not None:
            chosen.owner, work.attempt = work, chosen
            self._taken_over += 1
        for attempt in touching:
            if attempt is chosen or attempt.owner is not None:
                continue
            if attempt.ended_at is not None:
                self._settle(attempt, "ended before")
            elif attempt.uuid is not None:
                attempt.stop_reason = "its work has changed"
                work.blockers.append(attempt)
                self._next_look = 0.0
            else:
                # It may not exist at all; should it turn up, the fence and `_stop_unwanted` see to it.
                self._settle(attempt, "its work has changed")

    # -- submitting --------------------------------------------------------------------------------------------------

    def _submit(self) -> None:
        """Create tasks for work that is due, some at a time."""
        now = self._time.clock()
        if not self._synced:
            return
        ready = [w for w in self._open() if w.placed and w.attempt is None and not w.blockers and w.not_before <= now]
        batch = [(work, self._prepare(work)) for work in ready[:BATCH]]
        if not batch:
            return
        for _, attempt in batch:
            self._note(attempt, "intent", sync=False, t=self._time.wall())
        self._flush()
        todo = deque(batch)
        threads = [
            threading.Thread(target=self._post_all, args=(todo,), daemon=True) for _ in range(min(THREADS, len(batch)))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self._flush()
        self._next_look = min(self._next_look, self._time.clock() + self._settings.poll_seconds)
        self._interval = self._settings.poll_seconds

    def _prepare(self, work: Work) -> Attempt:
        """Number the next attempt, write its spec, and raise the fence for older ones."""
        number = self._numbers[work.key] + 1
        self._numbers[work.key] = number
        name = task_name(self._settings.name_prefix, self._folder.run, work.key, number)
        label = f"{work.key}-a{number}"
        log = str(self._folder.log_path(work.rule, label))
        attempt = Attempt(
            key=work.key,
            number=number,
            rule=work.rule,
            name=name,
            log=log,
            outputs=work.outputs,
            members=work.members,
            posted_at=self._time.clock(),
            owner=work,
        )
        spec = {
            **work.spec,
            "generation": self._generation,
            "attempt": number,
            "name": name,
            "log": log,
            "members": work.members,
        }
        wrapper.write_whole(self._folder.spec_path(label), json.dumps(spec))
        self._folder.raise_fence(work.key, number)
        self._attempts[label] = attempt
        work.attempt = attempt
        return attempt

    def _post_all(self, todo: deque[tuple[Work, Attempt]]) -> None:
        """Create tasks until none is left; one of several threads."""
        try:
            while True:
                try:
                    work, attempt = todo.popleft()
                except IndexError:
                    return
                self._post(work, attempt)
        finally:
            self._client.close()

    def _post(self, work: Work, attempt: Attempt) -> None:
        """Create one task and sort out the answer."""
        if self._closing:
            self._settle(attempt, "not sent", sync=False)
            return
        body = {**work.body, "namePrefix": attempt.name, "cmd": self._command(work, attempt)}
        body["labels"] = {
            "run": self._folder.run,
            "key": attempt.key,
            "attempt": str(attempt.number),
            "rule": attempt.rule,
        }
        try:
            attempt.uuid = self._client.create(body)
        except Doubtful as error:
            self._complain(f"create: {error}; looking for the task")
        except (Unreachable, Throttled, Unauthorized) as error:
            self._refused(work, attempt, str(error), self._backoff(2.0, min(work.refusals, 4)))
        except (Rejected, NotFound) as error:
            self._rejected(work, attempt, error)
        except Exception as error:  # noqa: BLE001 - whatever it was, the task may exist: treat it as in doubt
            self._complain(f"create: {type(error).__name__}: {error}")
        else:
            work.refusals, work.waits_for = 0, ""
            self._note(attempt, "submitted", sync=False, uuid=attempt.uuid)
        attempt.posted_at = self._time.clock()

    def _command(self, work: Work, attempt: Attempt) -> str:
        """The task's `cmd`: nothing in it but paths."""
        quote = shlex.quote
        spec = self._folder.spec_path(attempt.label)
        python = quote(str(work.spec["python"]))
        script = quote(str(self._folder.path / "wrapper.py"))
        return f"cd {quote(work.spec['workdir'])} && exec {python} {script} {quote(str(spec))}\n"

    def _refused(self, work: Work, attempt: Attempt, reason: str, wait: float) -> None:
        """The platform has certainly not accepted it: try again later."""
        work.refusals += 1
        work.waits_for = reason
        self._complain(f"create: {reason}; trying again")
        self._settle(attempt, "refused", sync=False)
        self._free(attempt, wait)

    def _rejected(self, work: Work, attempt: Attempt, error: Rejected | NotFound) -> None:
        """The platform says no: for good, or for now."""
        text = str(error)
        status = error.status if isinstance(error, Rejected) else 404
        words = NO_ROOM_WORDS if status in PASSING else QUOTA_WORDS
        no_room = any(word in text.lower() for word in words)
        for_now = no_room or (status in PASSING and work.refusals < REFUSALS)
        if for_now:
            self._refused(work, attempt, text, self._backoff(5.0 if no_room else 2.0, min(work.refusals, 4)))
            return
        self._settle(attempt, "refused", sync=False)
        work.verdict = Verdict(False, f"SiFlow refuses the task of {work.rule}: {text}")

    def _backoff(self, first: float, doublings: int) -> float:
        """A pause that grows and is never quite the same for two."""
        return min(300.0, first * 2.0**doublings) * self._time.jitter.uniform(0.7, 1.3)

    def _free(self, attempt: Attempt, wait: float) -> None:
        """Let the work of an attempt be submitted again after a wait."""
        work = attempt.owner
        if work is not None and work.attempt is attempt:
            work.attempt = None
            work.not_before = self._time.clock() + wait
        attempt.owner = None

    # -- judging -----------------------------------------------------------------------------------------------------

    def _judge(self) -> None:
        """Decide about all ended attempts; each has its verdict once."""
        now = self._time.clock()
        for work in self._open():
            attempt = work.attempt
            if attempt is not None and attempt.ended_at is not None:
                self._judge_one(work, attempt, now)
        self._flush()

    def _proof(self, attempt: Attempt) -> Proof:
        """What an attempt left on the volume."""
        return read_proof(self._folder.read_json("reports", attempt.label))

    def _judge_one(self, work: Work, attempt: Attempt, now: float) -> None:
        """Decide about one ended attempt."""
        proof = self._proof(attempt)
        if proof is Proof.DONE:
            self._settle(attempt, "done", sync=False)
            work.verdict = Verdict(True)
        elif proof in (Proof.LATE, Proof.NOTHING) and now < (attempt.ended_at or now) + self._patience:
            return  # The volume may show it late.
        elif proof is Proof.FAILED:
            self._settle(attempt, "failed", sync=False)
            work.verdict = Verdict(False, f"the job failed in task {attempt.name} ({attempt.uuid})", attempt.log)
        elif self._stopped_by_somebody(attempt):
            self._settle(attempt, "stopped", sync=False)
            reason = attempt.message or "no reason given"
            text = f"task {attempt.name} ({attempt.uuid}) was stopped by somebody else: {reason}"
            work.verdict = Verdict(False, text, attempt.log)
        else:
            self._platform_fault(work, attempt, proof)

    @staticmethod
    def _stopped_by_somebody(attempt: Attempt) -> bool:
        """Whether a person, not we and not the platform, has stopped a task."""
        return (
            attempt.status == states.STOPPED and not attempt.stop_reason and not states.was_preempted(attempt.message)
        )

    def _platform_fault(self, work: Work, attempt: Attempt, proof: Proof) -> None:
        """Submit again after a fault of the platform; the job's attempts are not touched."""
        work.infra_faults += 1
        what = {
            Proof.LATE: "its outputs did not become visible",
            Proof.NO_PROOF: "it ended well but its outputs are missing or old",
            Proof.TERMINATED: "it was told to end",
        }.get(proof, "without a result")
        reason = attempt.stop_reason or attempt.message
        text = f"task {attempt.name} ({attempt.uuid}) ended as {attempt.status}, {what}: {reason}"
        self._settle(attempt, "platform fault", sync=False)
        if work.infra_faults > self._settings.infra_retries:
            work.verdict = Verdict(
                False, f"{text}; given up after {work.infra_faults} faults of the platform", attempt.log
            )
            return
        wait = self._backoff(self._settings.infra_backoff, work.infra_faults - 1)
        self._log.info(f"siflow: {text}; submitting it again in {wait:.0f} s, which costs the job no attempt")
        self._free(attempt, wait)

    # -- the ledger --------------------------------------------------------------------------------------------------

    def _note(self, attempt: Attempt, event: str, sync: bool = True, **data: Any) -> None:
        """Remember something for the next controller; with `sync=False` at the next `_flush`."""
        self._pending.append(Event(event, attempt.key, attempt.number, data))
        if sync:
            self._flush()

    def _settle(self, attempt: Attempt, outcome: str, sync: bool = True) -> None:
        """Expect nothing of an attempt any more."""
        attempt.settled = True
        self._note(attempt, "settled", sync, outcome=outcome, t=self._time.wall())

    def _flush(self) -> None:
        """Write down what is to be remembered, with one wait for the disk."""
        events = []
        while self._pending:
            events.append(self._pending.popleft())
        self._ledger.append(*events)

    # -- saying ------------------------------------------------------------------------------------------------------

    def _complain(self, text: str) -> None:
        """Say that something does not work, at most once a minute for each kind of it."""
        now = self._time.clock()
        kind = text[:60]
        if now >= self._complained.get(kind, float("-inf")) + 60:
            self._complained[kind] = now
            self._log.warning(f"siflow: {text}")

    def _say_status(self) -> None:
        """One line a minute: how many tasks in which state, and which waits longest."""
        now = self._time.clock()
        if now < self._status_at + self._settings.status_line_seconds or not self._open():
            return
        self._status_at = now
        self._log.info(self.status_line())

    def status_line(self) -> str:
        """The state of all tasks in one line."""
        now = self._time.clock()
        mine = [work.attempt for work in self._open() if work.attempt is not None]
        counts = Counter(attempt.status or "Submitted" for attempt in mine)
        held = [work for work in self._open() if work.attempt is None]
        parts = [f"{number} {word}" for word, number in sorted(counts.items())] + (
            [f"{len(held)} not yet submitted"] if held else []
        )
        line = f"siflow run {self._folder.run}: {', '.join(parts)}"
        waiting = [attempt for attempt in mine if attempt.status in states.WAITING]
        if waiting:
            oldest = min(waiting, key=lambda attempt: attempt.status_since)
            rank = "" if oldest.rank is None else f", place {oldest.rank} in the queue"
            why = f" ({oldest.message})" if oldest.message else ""
            line += f"; longest pending {now - oldest.status_since:.0f} s: {oldest.name}{rank}{why}"
        reasons = {work.waits_for for work in held if work.waits_for}
        return line + "".join(f"; waiting: {reason}" for reason in sorted(reasons)[:1])

    # -- the end -----------------------------------------------------------------------------------------------------

    def detach(self) -> int:
        """Send nothing more; returns how many tasks live on."""
        self._closing = True
        self._round_lock.acquire(timeout=2)
        self._flush()
        return len(self.live_attempts())

    def cancel(self, seconds: float = 8.0) -> list[Attempt]:
        """Stop every live task of the run from our own table.

        The fence stops running ones through the shared volume too, should the API not answer.

        Args:
            seconds: How long to try.

        Returns:
            The attempts of which it is not certain that they stop.
        """
        self._closing = True
        deadline = self._time.clock() + seconds
        self._client.hurry(2.0)
        # A create that is just under way may still be accepted; wait for its answer a little.
        self._round_lock.acquire(timeout=2)
        self._folder.cancel_generation(self._generation)
        for attempt in self.live_attempts():
            attempt.stop_reason = attempt.stop_reason or "the run was cancelled"
        while (left := self._stop_all()) and self._time.clock() < deadline:
            self._time.sleep(0.3)
        self._settle_cancelled()
        return left

    def _stop_all(self) -> list[Attempt]:
        """Stop all live tasks once and look; returns those that are not known to stop."""
        now = self._time.clock()
        try:
            self._take_rows(self._client.list_all(labels=f"run={self._folder.run}" if self._filtered else ""), now)
        except ApiError as error:
            self._complain(f"cancel: {error}")
        left = [a for a in self.live_attempts() if a.status != "Stopping"]
        if left:
            self._try_stop([attempt.uuid for attempt in left if attempt.uuid])
        return left

    def _settle_cancelled(self) -> None:
        """Settle what has ended."""
        for attempt in list(self._attempts.values()):
            if attempt.stop_reason and not attempt.settled and not attempt.live:
                self._settle(attempt, "cancelled", sync=False)
        self._flush()

    def unclaimed(self) -> list[Attempt]:
        """Live tasks of this run that no job of this controller has asked for."""
        return [
            attempt for attempt in self.live_attempts() if attempt.owner is None or attempt.owner.verdict is not None
        ]

    def close(self) -> None:
        """Close the ledger; end the run if nothing of it is left."""
        self._flush()
        if not self.live_attempts():
            self._folder.finish()
        self._ledger.close()
        self._client.close()
