"""One chunk on its way: finds answers in the store, hands out jobs for the others, takes results, keeps the order."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from potstill.answers.reuse import ReusePolicy, next_limit
from potstill.answers.store import AnswerStore
from potstill.config.model import Model
from potstill.errors import InputError
from potstill.generate.engine import Engine, KeyRefusedError, Limits
from potstill.generate.ordered import OrderedOutput
from potstill.generate.progress import Progress
from potstill.generate.records import answered_row, failed_row
from potstill.generate.refusals import note_refused
from potstill.generate.requests import BadRowError, Job, RequestMaker
from potstill.generate.spending import Budget
from potstill.records import Row, canonical_json, sha256_text
from potstill.rows import dumps

logger = logging.getLogger("potstill.generate")

#: Answers that one fsync covers, at most; what a power cut may cost beside a second's worth.
_GROUP_ROWS = 64
_GROUP_SECONDS = 1.0
#: Rows that wait for the answer to the same question, which is in flight.
_MOST_FOLLOWERS = 10_000

_ANSWERED, _FAILED, _NOT_ASKED = range(3)


@dataclass
class GenerateCounts:
    """What became of a chunk.

    Attributes:
        rows: Rows read.
        answered: Samples with an answer.
        failed: Samples without one, for good.
        not_asked: Samples that were not to be asked.
        reused: How many of the answered and failed came from the store.
        requests: Requests sent.
        rate_limited: How many of them met a rate limit.
        cost: Money spent by this start of the job.
    """

    rows: int = 0
    answered: int = 0
    failed: int = 0
    not_asked: int = 0
    reused: int = 0
    requests: int = 0
    rate_limited: int = 0
    cost: float = 0.0


class Chunk:
    """One chunk on its way: finds answers, hands out jobs, takes results."""

    def __init__(
        self,
        model: Model,
        store: AnswerStore,
        output: OrderedOutput,
        policy: ReusePolicy,
        settings: Mapping[str, Any],
        first_row: int,
        skip: Callable[[Row], str | None] | None,
        budget: Budget,
    ) -> None:
        self.counts = GenerateCounts()
        self.progress = Progress()
        self._model = model
        self._store = store
        self._output = output
        self._policy = policy
        self._skip = skip
        self._budget = budget
        self._settings = settings
        first_sample = int(settings.get("first_sample", 0))
        self._samples = tuple(range(first_sample, first_sample + int(settings.get("samples", 1))))
        self._together = settings.get("samples_mode", "requests") == "n"
        self._offline = bool(settings.get("offline"))
        self._group = min(_GROUP_ROWS, int(settings.get("batch_size", _GROUP_ROWS)))
        self._row_number = first_row
        self._max_rows = settings.get("max_rows")
        self._maker = RequestMaker(
            model,
            ladder=settings.get("max_tokens_ladder") or (),
            profile_field=settings.get("decode_profile_field", "decode_profile"),
            body_fields=settings.get("body_fields") or (),
        )
        self._slots = 0
        self._followers: dict[bytes, list[tuple[Job, int]]] = {}
        self._follower_count = 0
        self._missing = 0
        self._first_missing = ""
        self._unsynced = 0
        self._engine: Engine | None = None
        self._syncing: asyncio.Future[None] | None = None
        self._sync_timer: asyncio.TimerHandle | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="fsync")

    # -- asking -----------------------------------------------------------------------------------------------

    async def ask(self, rows: Iterable[Row], concurrency: int, share: float) -> None:
        """Ask all that is missing."""
        if self._offline:
            # No key, no connection: what the store does not have is counted as missing.
            for _ in self._jobs(iter(rows)):
                pass
            self._thread.shutdown()
            return
        limits = Limits(
            concurrency=concurrency,
            requests_per_minute=_part(self._settings.get("requests_per_minute"), share),
            tokens_per_minute=_part(self._settings.get("tokens_per_minute"), share),
            outage_timeout_s=float(self._settings.get("outage_timeout_s", 1800)),
            in_budget=self._budget.has_room,
        )
        self._engine = Engine(self._model, self._jobs(iter(rows)), self, limits)
        ticker = asyncio.create_task(self._tick())
        try:
            await self._engine.run()
        except KeyRefusedError as error:
            note_refused(self._store.folder, error.base, error.key, str(error))
            raise
        finally:
            ticker.cancel()
            await asyncio.gather(ticker, return_exceptions=True)
            self.counts.requests = self._engine.tally.sent
            self.counts.rate_limited = self._engine.tally.rate_limited
            await self._finish_syncing()

    async def _tick(self) -> None:
        assert self._engine is not None
        while True:
            await asyncio.sleep(1.0)
            tally = self._engine.tally
            self._budget.share()
            self.progress.say_now_and_then(tally.in_flight, tally.faults)

    def _jobs(self, rows: Iterator[Row]) -> Iterator[Job | None]:
        """Yield what must be asked, in input order, and None for each row that needs nothing."""
        for row in rows:
            number = self._row_number
            self._row_number += 1
            self.counts.rows += 1
            first = self._slots
            self._slots += len(self._samples)
            if "sample_id" not in row:
                row = {"sample_id": sha256_text(canonical_json(row)), **row}
            reason = self._reason_to_skip(row, number)
            if reason is not None:
                for slot, sample in enumerate(self._samples, start=first):
                    self._put_not_asked(row, sample, slot, reason)
                yield None
                continue
            try:
                job = self._maker.job(row, self._samples, first)
            except BadRowError as error:
                self._put_bad_row(row, first, str(error))
                yield None
                continue
            yield from self._open_parts(job)
            while self._follower_count > _MOST_FOLLOWERS:
                yield None

    def _reason_to_skip(self, row: Row, number: int) -> str | None:
        if self._max_rows is not None and number >= self._max_rows:
            return "pilot"
        return self._skip(row) if self._skip is not None else None

    def _open_parts(self, job: Job) -> Iterator[Job | None]:
        """End the samples that the store can answer and yield jobs for the others."""
        missing = [place for place in range(len(job.samples)) if not self._find(job, place)]
        if not missing:
            yield None
        elif self._offline:
            self._missing += len(missing)
            self._first_missing = self._first_missing or str(job.row["sample_id"])
            for place in missing:
                self._put_not_asked(job.row, job.samples[place], job.slots[place], "offline")
            yield None
        elif self._together and len(missing) > 1:
            yield self._lead(job.split(missing))
        else:
            for place in missing:
                part = job if len(job.samples) == 1 else job.split([place])
                yield self._lead(part)

    def _find(self, job: Job, place: int) -> bool:
        """End a sample with what the store has or with what is in flight already; return whether that could be done."""
        key = job.keys[place]
        followers = self._followers.get(key)
        if followers is not None:
            followers.append((job, place))
            self._follower_count += 1
            return True
        records = self._store.find(key)
        if not records:
            return False
        limits = job.recipe.limits
        record = self._policy.choose(records, limits)
        if record is None:
            if len(limits) > 1 and len(job.samples) == 1:
                job.rung = next_limit(records, limits)
            return False
        self.counts.reused += 1
        self.progress.reused += 1
        self._put_record(job.row, job.slots[place], record)
        return True

    def _lead(self, job: Job) -> Job:
        for key in job.keys:
            self._followers[key] = []
        return job

    # -- results (called by the engine) -----------------------------------------------------------------------

    def keep(self, job: Job, place: int, record: dict[str, Any], *, final: bool) -> None:
        """Store a record; a final one also ends its sample, and all that wait for the same answer."""
        key = job.keys[place]
        self._store.append(key, record)
        self._count_unsynced()
        self._budget.book(record.get("usage"))
        if not final:
            return
        self._put_record(job.row, job.slots[place], record)
        for follower, follower_place in self._followers.pop(key, ()):
            self._follower_count -= 1
            self.counts.reused += 1
            self._put_record(follower.row, follower.slots[follower_place], record)

    def skip(self, job: Job, reason: str) -> None:
        """End all samples of a job as not asked."""
        for key, sample, slot in zip(job.keys, job.samples, job.slots, strict=True):
            self._put_not_asked(job.row, sample, slot, reason)
            for follower, place in self._followers.pop(key, ()):
                self._follower_count -= 1
                self._put_not_asked(follower.row, follower.samples[place], follower.slots[place], reason)

    # -- output -----------------------------------------------------------------------------------------------

    def _put_record(self, row: Row, slot: int, record: dict[str, Any]) -> None:
        name, prices = self._model.name, self._model.prices
        if record.get("error_class"):
            self.counts.failed += 1
            self.progress.failed += 1
            self._output.put(slot, _FAILED, dumps(failed_row(row, record, name, prices)))
        else:
            self.counts.answered += 1
            self.progress.answered += 1
            self._output.put(slot, _ANSWERED, dumps(answered_row(row, record, name, prices)))

    def _put_not_asked(self, row: Row, sample: int, slot: int, reason: str) -> None:
        self.counts.not_asked += 1
        self.progress.not_asked += 1
        self._output.put(slot, _NOT_ASKED, dumps({**row, "sample_index": sample, "not_asked_reason": reason}))

    def _put_bad_row(self, row: Row, first: int, reason: str) -> None:
        for slot, sample in enumerate(self._samples, start=first):
            record = {"sample_index": sample, "error_class": "bad_row", "error": reason, "answered_at": None}
            self._put_record(row, slot, record)

    # -- durability -------------------------------------------------------------------------------------------

    def _count_unsynced(self) -> None:
        self._unsynced += 1
        if self._unsynced >= self._group:
            self._start_sync()
        elif self._sync_timer is None:
            self._sync_timer = asyncio.get_running_loop().call_later(_GROUP_SECONDS, self._start_sync)

    def _start_sync(self) -> None:
        """Sync in another thread: a disk's milliseconds must not hold up the wire."""
        if self._sync_timer is not None:
            self._sync_timer.cancel()
            self._sync_timer = None
        journal = self._store.journal
        if journal is None or self._syncing is not None or not self._unsynced:
            return
        self._unsynced = 0
        batch = journal.begin_sync()
        self._syncing = asyncio.get_running_loop().run_in_executor(self._thread, journal.finish_sync, batch)
        self._syncing.add_done_callback(self._synced)

    def _synced(self, work: asyncio.Future[None]) -> None:
        self._syncing = None
        error = work.exception()
        if error is not None and self._engine is not None:
            self._engine.fail(error)
        elif self._unsynced >= self._group:
            self._start_sync()
        elif self._unsynced and self._sync_timer is None:
            self._sync_timer = asyncio.get_running_loop().call_later(_GROUP_SECONDS, self._start_sync)

    async def _finish_syncing(self) -> None:
        if self._sync_timer is not None:
            self._sync_timer.cancel()
        if self._syncing is not None:
            await asyncio.wait([self._syncing])
        self._thread.shutdown()

    def sync(self) -> None:
        """Bring the last answers onto the disk, before the files that are made of them appear."""
        journal = self._store.journal
        if journal is not None:
            journal.finish_sync(journal.begin_sync())

    # -- end --------------------------------------------------------------------------------------------------

    def check_complete(self) -> None:
        """Refuse to publish an offline run with missing answers.

        Raises:
            InputError: If there are any.
        """
        if self._missing:
            raise InputError(
                f"generate.offline is set, and {self._missing} answers are not in {self._store.folder} "
                f"(the first: sample_id {self._first_missing}); run once without offline to ask for them"
            )

    def summarise(self) -> None:
        """Log what became of the chunk."""
        self.counts.cost = round(self._budget.spent_here, 6)
        counts = self.counts
        logger.info(
            "answered: %d, failed: %d, not asked: %d "
            "(from the store: %d; requests sent: %d, of them rate limited: %d; %.1f s)",
            counts.answered,
            counts.failed,
            counts.not_asked,
            counts.reused,
            counts.requests,
            counts.rate_limited,
            self.progress.seconds(),
        )


def _part(rate: float | None, share: float) -> float | None:
    return None if rate is None else rate * share
