"""The judge stage: each row is shown to a judge model and gets `judge_score` from 0 to 1, null where the judge fails.

The judge is asked by the engine that asks the teachers: its answers are in the same store, found again by the hash of
the request, with the same limits and retries. An outage or a refused key ends the stage as it ends the generation, with
nothing lost; a single row that the judge does not answer, or answers in a form that cannot be read, gets null.
"""

from __future__ import annotations

import heapq
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from potstill.records import Row
from potstill.rows import publish, read_rows

if TYPE_CHECKING:
    from potstill.config.model import Model
    from potstill.judge.rubric import Rubric

logger = logging.getLogger("potstill.judge")

#: Fields of a request to the judge: which row it is about, and which order of the answers.
_ROW, _ORDER = "judged_row", "order"


@dataclass
class JudgeCounts:
    """What became of the rows.

    Attributes:
        rows: Rows read, and written.
        judged: Rows with a score of the judge.
        null: Rows that were asked about and have none.
        skipped: Rows that were not asked about: no answer, not executed, nothing to compare with.
        cost: Money spent by this start of the job.
    """

    rows: int = 0
    judged: int = 0
    null: int = 0
    skipped: int = 0
    cost: float = 0.0


def judge_rows(
    input: Path,
    output: Path,
    *,
    settings: Mapping[str, Any],
    model: Model,
    concurrency: int,
    answers_dir: Path,
    run_id: str = "",
    share: float = 1.0,
) -> JudgeCounts:
    """Add `judge_score`, `judge_votes`, `judge_reason`, `judge_error` and `judge_usage` to each row.

    Args:
        input: A file of executed (or cleaned, or generated) rows.
        output: The same rows with the fields added, in the same order.
        settings: The config section `judge`.
        model: The judge.
        concurrency: Requests in flight.
        answers_dir: Where the stores of all models are.
        run_id: A name for the run: its jobs share the budget.
        share: This job's share of the rate limits.

    Raises:
        ConfigError: If the template or the key must be mended first.
        TryAgainError: After an outage of the judge, without credit, or with a full disk.
    """
    from potstill.judge.rubric import Rubric
    from potstill.stages.generate import generate_chunk

    rubric = Rubric(settings)
    # Beside the output under a fixed name: the engine knows a job that goes on by the path of its answers.
    parts = [output.with_name(f".{output.name}.{name}") for name in ("answered", "failed", "not_asked")]
    try:
        asked = generate_chunk(
            input,
            *parts,
            model=model,
            settings={**settings.get("generate", {}), "samples": int(settings.get("votes", 1))},
            concurrency=concurrency,
            answers_dir=answers_dir,
            read=lambda path: _iter_requests(path, rubric),
            run_id=run_id,
            share=share,
        )
        counts = _write(input, output, _iter_answers(parts), rubric, settings)
    finally:
        for part in parts:
            part.unlink(missing_ok=True)
    counts.cost = asked.cost
    logger.info("judged: %d, null: %d, skipped: %d of %d", counts.judged, counts.null, counts.skipped, counts.rows)
    return counts


def _iter_requests(path: Path, rubric: Rubric) -> Iterator[Row]:
    from potstill.prompts import PromptError

    for number, row in enumerate(read_rows(path)):
        if rubric.reason_to_skip(row) is not None:
            continue
        try:
            for order, messages in enumerate(rubric.ask(row)):
                yield {"sample_id": row["sample_id"], _ROW: number, _ORDER: order, "messages": messages}
        except PromptError as error:
            # The row says so itself, in `judge_error`: see `_judge`.
            logger.warning("row %s is not judged: %s", row.get("sample_id"), error)


def _iter_answers(parts: list[Path]) -> Iterator[Row]:
    """Yield what the judge said, and where it said nothing, in the order of the rows."""
    streams = (read_rows(path) for path in parts)
    return heapq.merge(*streams, key=lambda row: (row[_ROW], row[_ORDER], row["sample_index"]))


def _write(
    input: Path, output: Path, answers: Iterator[Row], rubric: Rubric, settings: Mapping[str, Any]
) -> JudgeCounts:
    counts = JudgeCounts()
    waiting = next(answers, None)
    with publish(output) as out:
        for number, row in enumerate(read_rows(input)):
            said: list[Row] = []
            while waiting is not None and waiting[_ROW] == number:
                said.append(waiting)
                waiting = next(answers, None)
            out.write({**row, **_judge(row, said, rubric, settings, counts)})
    return counts


def _judge(row: Row, said: list[Row], rubric: Rubric, settings: Mapping[str, Any], counts: JudgeCounts) -> Row:
    from potstill.judge.scores import combine_votes

    counts.rows += 1
    if not said:
        skipped = rubric.reason_to_skip(row)
        counts.skipped += skipped is not None
        counts.null += skipped is None
        problem = f"not asked: {skipped or 'the template misses a field of the row'}"
        return {
            "judge_score": None,
            "judge_votes": [],
            "judge_reason": None,
            "judge_error": problem,
            "judge_usage": None,
        }
    fields = combine_votes(_read_votes(said, rubric), settings)
    counts.judged += fields["judge_score"] is not None
    counts.null += fields["judge_score"] is None
    return {**fields, "judge_usage": _sum_usage(said)}


def _read_votes(said: list[Row], rubric: Rubric) -> list[Any]:
    from potstill.judge.scores import pair_votes
    from potstill.judge.votes import read_preference, read_score

    if rubric.compare_field is None:
        return [read_score(answer, rubric.low, rubric.high) for answer in said]
    straight, swapped = (
        [read_preference(answer, swapped=bool(order)) for answer in said if answer[_ORDER] == order] for order in (0, 1)
    )
    return pair_votes(straight, swapped)


def _sum_usage(said: list[Row]) -> Row | None:
    """Return the tokens, and where prices are known the money, of all votes on a row."""
    total: Row = {}
    for usage in (answer.get("usage") or {} for answer in said):
        for name, value in usage.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                total[name] = total.get(name, 0) + value
    return total or None
