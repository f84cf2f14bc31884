"""`generate.mode: batch`: what the store does not have is asked through the provider's batch API.

A pass over the rows writes what is missing into new batches; each batch is then taken step by step to its end; what
it left without an answer goes into the batches of the next pass. In the end the store has all that batches could
bring, and the ordinary engine reads it there, writes the outputs, and asks for what is left over.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potstill.answers.key import slug
from potstill.answers.reuse import ReusePolicy, next_limit
from potstill.answers.store import AnswerStore
from potstill.config.model import Model
from potstill.errors import ConfigError, PotstillError, TryAgainError
from potstill.generate.batch_api import BatchApi
from potstill.generate.batch_collect import Collected, Collector, is_queue_full, is_torn, problems_of
from potstill.generate.batch_files import INPUT, LINES, UNFINISHED, BatchFolder, BatchWriter, find_batches
from potstill.generate.faults import Fault
from potstill.generate.records import failure_record
from potstill.generate.requests import BadRowError, Job, RequestMaker
from potstill.generate.spending import Budget
from potstill.records import Row
from potstill.rows import publish_rows

logger = logging.getLogger("potstill.generate")

#: Seconds between two looks at a batch, at first and at most.
_POLL_FIRST_S = 5.0
_POLL_MOST_S = 60.0
#: Seconds after which a batch that the provider has made must be in its list.
_SETTLE_S = 5.0
#: Downloads of a file that comes torn, before it is taken as it is.
_DOWNLOADS = 5
_MOST_LINES, _MOST_BYTES = 50_000, 200_000_000

_ENDED = frozenset({"completed", "failed", "expired", "cancelled"})
_RUNNING = frozenset({"validating", "in_progress", "finalizing"})


@dataclass(frozen=True)
class BatchWork:
    """What a job asks in batches.

    Attributes:
        model: The teacher.
        answers_dir: Where the stores of all models are.
        settings: The config's `generate`.
        policy: Which stored answers serve.
        budget: What may be spent.
        job: A name that all starts of the job share.
        first_row: The place of the first row in the whole input, for `max_rows`.
        skip: Returns why a row is not to be asked, or None.
    """

    model: Model
    answers_dir: Path
    settings: Mapping[str, Any]
    policy: ReusePolicy
    budget: Budget
    job: str
    first_row: int
    skip: Callable[[Row], str | None] | None

    @property
    def store(self) -> Path:
        """The folder of the model's answers."""
        return self.answers_dir / slug(self.model.name)

    @property
    def patience_s(self) -> float:
        """How long an outage is waited out."""
        return float(self.settings.get("outage_timeout_s", 1800))

    @property
    def goes_online(self) -> bool:
        """Whether what batches leave over is asked online."""
        return bool(self.settings.get("batch_fallback", "online") == "online")

    @property
    def waits(self) -> bool:
        """Whether the job stays while batches run."""
        return bool(self.settings.get("batch_wait", True))


async def ask_in_batches(work: BatchWork, rows: Callable[[], Iterable[Row]]) -> None:
    """Bring all answers into the store that batches can bring.

    Args:
        work: What is asked.
        rows: Reads the rows, once per pass.

    Raises:
        TryAgainError: When batches are running and the job does not wait, after a cancel, an outage or without credit.
        ConfigError: If the server refuses the key or has no batch API.
    """
    ended: set[bytes] = set()
    async with BatchApi(work.model, work.model.addresses[0].base, work.patience_s) as api:
        while batches := write_missing(work, rows(), ended):
            await _Round(work, api, ended).take_to_the_end(batches)
        for batch in find_batches(work.store):
            state = batch.state()
            if state is not None and state["job"] == work.job:
                await _Round(work, api, ended).tidy(batch)


def warn_of_open_batches(store: Path) -> None:
    """Say that an online run pays again for what a batch is already working on."""
    count = sum(batch.is_open for batch in find_batches(store))
    if count:
        logger.warning(
            "%d batches of this model are not collected yet: generate.mode: batch collects them, "
            "`potstill batch cancel` cancels them",
            count,
        )


# -- what to ask ----------------------------------------------------------------------------------------------


def write_missing(work: BatchWork, rows: Iterable[Row], ended: set[bytes]) -> list[BatchFolder]:
    """Write new batches of what is missing.

    Args:
        work: What is asked.
        rows: The rows.
        ended: Keys that are not to be asked again.

    Returns:
        All batches that hold something that is missing, old and new.
    """
    # First the batches, then the store: what another job collects in between is found in one of them.
    flying, left = _survey(work.store)
    with AnswerStore(work.answers_dir, work.model.name) as store:
        about = {"job": work.job, "base": work.model.addresses[0].base, "model_file": str(work.model.file.resolve())}
        most = work.settings.get("batch_max_requests", _MOST_LINES), work.settings.get("batch_max_bytes", _MOST_BYTES)
        writer = BatchWriter(work.store, about, *most)
        wanted: dict[BatchFolder, None] = {}
        try:
            for job in _missing(work, rows, store, ended):
                batch = flying.get(job.keys[0])
                if batch is not None:
                    wanted[batch] = None
                elif _may_be_asked(work, job, left.get(job.keys[0].hex()), store):
                    writer.add(job, job.attempts)
            writer.finish()
        except BaseException as error:
            writer.abandon(error)
            raise
    return [*wanted, *writer.written]


def _survey(store: Path) -> tuple[dict[bytes, BatchFolder], dict[str, dict[str, Any]]]:
    """Return the batch of each key that is being worked on, and the notes of what batches left over."""
    flying: dict[bytes, BatchFolder] = {}
    left: dict[str, dict[str, Any]] = {}
    for batch in find_batches(store):
        if batch.is_open:
            flying.update((bytes.fromhex(key), batch) for key in batch.read_keys())
        else:
            left.update((note["key"], note) for note in batch.unfinished())
    return flying, left


def _missing(work: BatchWork, rows: Iterable[Row], store: AnswerStore, ended: set[bytes]) -> Iterator[Job]:
    """Yield a job for each sample that the store has no answer for, each question once."""
    maker = RequestMaker(
        work.model,
        ladder=work.settings.get("max_tokens_ladder") or (),
        profile_field=work.settings.get("decode_profile_field", "decode_profile"),
        body_fields=work.settings.get("body_fields") or (),
    )
    first = int(work.settings.get("first_sample", 0))
    samples = tuple(range(first, first + int(work.settings.get("samples", 1))))
    seen = set(ended)
    for row in _rows_to_ask(work, rows):
        try:
            whole = maker.job(row, samples, 0)
        except BadRowError:
            continue  # the engine writes it to its output, with the reason
        for place, key in enumerate(whole.keys):
            if key in seen:
                continue
            seen.add(key)
            records = store.find(key)
            limits = whole.recipe.limits
            if work.policy.choose(records, limits) is None:
                job = whole.split([place])
                job.rung = next_limit(records, limits) if len(limits) > 1 else 0
                yield job


def _rows_to_ask(work: BatchWork, rows: Iterable[Row]) -> Iterator[Row]:
    most = work.settings.get("max_rows")
    for number, row in enumerate(rows, work.first_row):
        if most is not None and number >= most:
            return
        if work.skip is None or work.skip(row) is None:
            yield row


def _may_be_asked(work: BatchWork, job: Job, note: dict[str, Any] | None, store: AnswerStore) -> bool:
    """Return whether a request goes into a batch, with what earlier batches have left of it."""
    if note is not None and note["rung"] == job.rung:
        job.attempts, job.sends, job.usage = note["attempts"], note["sends"], note["usage"]
        job.repair = (note["repair"][0], note["repair"][1]) if note["repair"] else None
        if note.get("refused"):
            return False
        if job.attempts > work.model.max_retries:
            if not work.goes_online:
                fault = Fault(note["fault"][0], f"in {job.attempts} batches: {note['fault'][1]}")
                store.append(job.keys[0], failure_record(job, 0, fault, work.model.addresses[0].base))
            return False
    return work.budget.has_room()


# -- step by step ---------------------------------------------------------------------------------------------


class _Round:
    """Takes batches to their end."""

    def __init__(self, work: BatchWork, api: BatchApi, ended: set[bytes]) -> None:
        self._work = work
        self._api = api
        self._ended = ended
        self._seen_running: set[Path] = set()
        self._stop: PotstillError | None = None
        self._queue_full = ""
        self._brought = 0

    async def take_to_the_end(self, batches: list[BatchFolder]) -> None:
        """Submit, look, collect, until all batches are collected."""
        wait = _POLL_FIRST_S
        while True:
            batches = [batch for batch in batches if not await self._advance(batch)]
            if not batches:
                break
            if not self._work.waits:
                raise TryAgainError(
                    f"{self._describe(batches)} not finished yet (generate.batch_wait: false); the machine may be "
                    "off: give the same command again later"
                )
            await asyncio.sleep(wait)
            wait = min(_POLL_MOST_S, 1.5 * wait)
        if self._stop is not None:
            raise self._stop
        if self._queue_full and not self._brought:
            raise TryAgainError(
                f"{self._api.base}: the queue of batches is full ({self._queue_full}); nothing is lost: give the same "
                "command again when other batches have ended, or set a smaller generate.batch_max_requests"
            )

    async def tidy(self, batch: BatchFolder) -> None:
        """Take away a batch of this job that no row needs any more; one that still runs is left alone."""
        state = batch.state()
        if state is not None and state["step"] == "created":
            try:
                await self._advance(batch)
            except PotstillError as error:
                logger.warning("%s: left as it is: %s", batch.path, error)
        state = batch.state()
        if state is not None and state["step"] in {"written", "uploaded", "collected"}:
            batch.drop()

    def _describe(self, batches: list[BatchFolder]) -> str:
        names = [str((batch.state() or {}).get("batch_id", batch.path.name)) for batch in batches]
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        return f"{len(names)} batch{'es are' if len(names) > 1 else ' is'} running ({', '.join(names[:3])}{more}),"

    async def _advance(self, batch: BatchFolder) -> bool:
        """Take a batch as far as it goes now, and return whether it is collected."""
        with batch.locked() as held:
            if not held:
                return not batch.is_open  # another job of the run is at it, or has just collected it
            state = batch.state()
            if state is None or state["step"] == "collected":
                return True
            self._check_address(batch, state)
            state = await submit(self._api, batch, state)
            info = await self._api.retrieve(state["batch_id"])
            if info.get("status") not in _ENDED:
                if info.get("status") in _RUNNING:
                    self._seen_running.add(batch.path)
                return False
            await self._collect(batch, state, info)
            return True

    def _check_address(self, batch: BatchFolder, state: dict[str, Any]) -> None:
        if state["base"] != self._api.base:
            raise ConfigError(
                f"{batch.path}: this batch was written for {state['base']}, and {self._work.model.file} asks "
                f"{self._api.base}: name that address again until it is collected, or remove the folder to forget it"
            )

    async def _collect(self, batch: BatchFolder, state: dict[str, Any], info: dict[str, Any]) -> None:
        files = [
            await self._fetch(info[name], batch.path / f"{name}.jsonl")
            for name in ("output_file_id", "error_file_id")
            if info.get(name)
        ]
        with AnswerStore(self._work.answers_dir, self._work.model.name) as store:
            counts = Collector(batch, info, self._api.base, store, self._work.budget).collect(files)
        # From here on the answers are on the disk.
        publish_rows(batch.path / UNFINISHED, counts.unfinished)
        batch.save(state, step="collected", status=info.get("status"), collected_at=round(time.time(), 3))
        for file in (*files, batch.path / INPUT, batch.path / LINES):
            file.unlink(missing_ok=True)
        self._take_counts(batch, state, info, counts)

    async def _fetch(self, file_id: str, path: Path) -> Path:
        for _ in range(_DOWNLOADS):
            await self._api.download(file_id, path)
            if not is_torn(path):
                break
            logger.warning("%s: file %s came torn: fetched again", self._api.base, file_id)
        return path

    def _take_counts(self, batch: BatchFolder, state: dict[str, Any], info: dict[str, Any], counts: Collected) -> None:
        left = len(counts.unfinished)
        logger.info(
            "batch %s %s: %d answers, %d failed, %d to be asked again",
            state["batch_id"],
            info["status"],
            counts.answered,
            counts.failed,
            left,
        )
        self._ended.update(counts.ended)
        self._brought += counts.answered + counts.failed
        self._stop = self._stop or counts.stop
        if is_queue_full(info):
            self._queue_full = problems_of(info)
        elif info["status"] == "failed" and not self._work.goes_online:
            self._stop = self._stop or ConfigError(
                f"{self._api.base} refuses batch {state['batch_id']}: {problems_of(info)}; nothing of it was answered: "
                "mend that, or set generate.batch_fallback: online"
            )
        elif info["status"] == "cancelled" and left and batch.path in self._seen_running:
            self._stop = self._stop or TryAgainError(
                f"batch {state['batch_id']} was cancelled; {counts.answered} answers of it are kept, {left} requests "
                "are left: give the same command again to ask for them"
            )


async def submit(api: BatchApi, batch: BatchFolder, state: dict[str, Any]) -> dict[str, Any]:
    """See to it that the provider has a batch, once, and return how far it is.

    Args:
        api: The provider.
        batch: The batch, locked.
        state: How far it is.
    """
    if state["step"] == "written":
        file_id = await api.upload(batch.path / INPUT, f"{batch.path.name}.jsonl")
        state = batch.save(state, step="uploaded", file_id=file_id)
    since, attempt = time.monotonic(), 0
    while state["step"] != "created":
        info = None
        if state["step"] == "creating":
            # The reply was lost, or we were killed: there may be such a batch already.
            info = await find_created(api, batch, state)
        else:
            state = batch.save(state, step="creating")
        if info is None:
            outcome = await api.create(state["file_id"], batch.path.name)
            if isinstance(outcome, Fault):
                await api.pause(outcome, attempt, since, "creating a batch")
                attempt += 1
                continue
            info = outcome
        state = batch.save(state, step="created", batch_id=info["id"], created_at=round(time.time(), 3))
        logger.info("batch %s: %d requests handed over", info["id"], state["requests"])
    return state


async def find_created(api: BatchApi, batch: BatchFolder, state: dict[str, Any]) -> dict[str, Any] | None:
    """Return the provider's batch of which we do not know whether it was made, or None if it was not."""
    found = await api.find(batch.path.name, state["file_id"])
    if found is None:
        # A list may lag behind what was just made.
        await asyncio.sleep(_SETTLE_S)
        found = await api.find(batch.path.name, state["file_id"])
    return found


async def cancel(api: BatchApi, batch: BatchFolder) -> str:
    """Cancel one batch and return what became of it; its partial answers are collected by the next run."""
    with batch.locked() as held:
        state = batch.state()
        if state is None or state["step"] == "collected":
            return "ended already"
        if state["step"] == "creating" and held:
            found = await find_created(api, batch, state)
            if found is not None:
                state = batch.save(state, step="created", batch_id=found["id"], created_at=round(time.time(), 3))
        if state["step"] == "created":
            return f"{state['batch_id']}: {(await api.cancel(state['batch_id'])).get('status')}"
        if not held:
            return "a job is handing it over just now: try again"
        batch.drop()
        return "was never handed over: forgotten"
