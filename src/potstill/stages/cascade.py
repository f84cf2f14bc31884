"""merge_cascade: the best answer per row of models that form a cascade, and what each further solved row has cost."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potstill.filters.samples import best
from potstill.reports.files import read_json
from potstill.reports.numbers import ratio
from potstill.rows import publish, publish_json
from potstill.stages.order import rows_in_order

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CascadeModel:
    """One model of a cascade.

    Args:
        alias: Its name.
        kept: Its kept rows.
        stats: Its stats.json.
        cost: Its cost_report.json.
    """

    alias: str
    kept: Path
    stats: Path
    cost: Path


def merge_cascade(
    models: Sequence[CascadeModel], prepared: Sequence[Path], merged: Path, summary: Path
) -> dict[str, Any]:
    """Write the best answer to each row that any model solved, and the summary beside it; return the latter.

    The best is an answer of the first model that solved the row: of several, the one with the best score (then
    agreement, then the shortest). Its field `solved_by` names that model.

    Args:
        models: The models, in the order of the cascade.
        prepared: The prepared chunks, in order.
        merged: The file of the best answers, in the order of the input.
        summary: Rows solved, their cost and the cost of a further solved row, for each model.

    Raises:
        ConservationError: If a file is of another run.
    """
    solved: Counter[str] = Counter()
    with publish(merged) as out:
        for answers in rows_in_order(prepared, [model.kept for model in models]):
            model, rows = next((model, rows) for model, rows in zip(models, answers, strict=True) if rows)
            solved[model.alias] += 1
            out.write({**best(rows), "solved_by": model.alias})
    total = read_json(models[0].stats)["prepared"]
    report = {
        "rows": total,
        "solved": out.count,
        "unsolved": total - out.count,
        "models": list(_describe_models(models, solved)),
    }
    publish_json(summary, report)
    logger.info("solved %d of %d rows: %s", out.count, total, dict(solved))
    return report


def _describe_models(models: Sequence[CascadeModel], solved: Mapping[str, int]) -> Iterator[dict[str, Any]]:
    """Yield what each model added, and the sums up to it; without prices all money is null from there on."""
    all_solved, all_cost = 0, 0.0
    priced = True
    for model in models:
        stats, costs = read_json(model.stats), read_json(model.cost)
        cost = costs["cost_total"]
        priced = priced and cost is not None
        all_solved += solved[model.alias]
        all_cost += cost or 0.0
        yield {
            "alias": model.alias,
            "samples_asked": stats["total"] - stats["not_asked"],
            "solved": solved[model.alias],
            "cost": cost,
            "currency": (costs["prices"] or {}).get("currency"),
            "cost_per_solved_row": ratio(cost, solved[model.alias]),
            "solved_so_far": all_solved,
            "cost_so_far": all_cost if priced else None,
            "cost_per_solved_row_so_far": ratio(all_cost if priced else None, all_solved),
        }
