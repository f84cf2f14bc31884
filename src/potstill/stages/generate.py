"""generate_answers: one chunk of rows -> the answers of one model.

Each answer is in the store before it counts. What the store has already is not asked again; what is missing is
asked with many requests in flight, or first in batches of the provider's; all is written in the order of the input, when the last row has ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from potstill.config.model import Model
from potstill.records import Row
from potstill.rows import count_lines, publish, read_rows

if TYPE_CHECKING:
    from potstill.answers.reuse import ReusePolicy
    from potstill.generate.chunk import GenerateCounts


def generate_chunk(
    rows: Path,
    answered: Path,
    failed: Path,
    not_asked: Path | None,
    *,
    model: Model,
    settings: Mapping[str, Any],
    concurrency: int,
    answers_dir: Path,
    first_row: int = 0,
    skip: Callable[[Row], str | None] | None = None,
    read: Callable[[Path], Iterable[Row]] = read_rows,
    run_id: str = "",
    share: float = 1.0,
) -> GenerateCounts:
    """Ask a model for the answers of a chunk.

    Args:
        rows: The chunk.
        answered: Gets a line per answered sample.
        failed: Gets a line per sample that failed for good.
        not_asked: Gets a line per sample that was not to be asked; None if there can be none.
        model: The teacher.
        settings: The config's `generate`.
        concurrency: Requests in flight.
        answers_dir: Where the stores of all models are.
        first_row: The place of the chunk's first row in the whole input, for `max_rows`.
        skip: Returns why a row is not to be asked, or None.
        read: Reads the rows.
        run_id: A name for the run, such as its folder: its jobs share `budget`.
        share: This job's share of what the run may spend on rate limits, between 0 and 1.

    Returns:
        The counts.

    Raises:
        TryAgainError: After an outage, without credit, or with a full disk: the same command goes on.
        ConfigError: If the key is refused, or the server does not know the model.
        InputError: With `offline`, if answers are missing.
        StoreError: If the answer store is damaged.
    """
    # The engine's imports cost more than a rule's start may.
    from potstill.answers.key import slug
    from potstill.answers.store import AnswerStore
    from potstill.generate.batch import BatchWork, ask_in_batches, warn_of_open_batches
    from potstill.generate.chunk import Chunk
    from potstill.generate.ordered import OrderedOutput
    from potstill.generate.refusals import check_refused
    from potstill.generate.runs import forget
    from potstill.generate.spending import Budget

    job = str(answered.resolve())
    folder = answers_dir / slug(model.name)
    with contextlib.ExitStack() as scope:
        if not settings.get("offline"):
            check_refused(folder, model)
        policy = _policy(settings, folder, job)
        budget = scope.enter_context(Budget.opened(folder, run_id or job, job, settings.get("budget"), model.prices))
        if settings.get("mode") == "batch" and not settings.get("offline"):
            work = BatchWork(model, answers_dir, settings, policy, budget, job, first_row, skip)
            _run(ask_in_batches(work, lambda: read(rows)))
        else:
            warn_of_open_batches(folder)
        store = scope.enter_context(AnswerStore(answers_dir, model.name))
        files = [answered, failed, not_asked]
        writers = [None if path is None else scope.enter_context(publish(path)) for path in files]
        output = scope.enter_context(contextlib.closing(OrderedOutput(writers, answered.parent)))
        chunk = Chunk(model, store, output, policy, settings, first_row, skip, budget)
        chunk.progress.total = _count(rows, settings) if read is read_rows else None
        _run(chunk.ask(read(rows), concurrency, share))
        chunk.check_complete()
        chunk.sync()
    forget(store.folder, job)
    chunk.summarise()
    return chunk.counts


@contextlib.contextmanager
def started(model: Model) -> Iterator[Model]:
    """Start the model's own server if its file has a `server` block, and yield the model with the address to ask."""
    if model.server is None:
        yield model
        return
    from potstill.servers import running_server

    with running_server(model.server, base_url=model.addresses[0].base) as url:
        yield model.at(url)


def _run(work: Coroutine[Any, Any, None]) -> None:
    """Run work on a loop of its own: uvloop's where that is installed, which saves some of the CPU per request."""
    factory: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    with contextlib.suppress(ImportError):
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(work)


def _policy(settings: Mapping[str, Any], store: Path, job: str) -> ReusePolicy:
    from potstill.answers.reuse import ReusePolicy
    from potstill.generate.runs import began_at

    retry = settings.get("retry_failed", False)
    refresh = bool(settings.get("refresh"))
    since = began_at(store, job) if retry or refresh else 0.0
    return ReusePolicy(retry if isinstance(retry, bool) else frozenset(retry), refresh, since)


def _count(rows: Path, settings: Mapping[str, Any]) -> int | None:
    """Return how many samples a chunk has, for the progress line; counting lines costs next to nothing."""
    if not re.search(r"\.jsonl(\.gz|\.zst)?$", rows.name):
        return None
    return count_lines(rows) * int(settings.get("samples", 1))
