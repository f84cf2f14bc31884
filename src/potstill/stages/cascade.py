"""merge_cascade: the best answer per row of models that form a cascade, and what each further solved row has cost."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potstill.filters.samples import best
from potstill.records import Row
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
    verdicts = _Verdicts()
    with publish(merged) as out:
        for answers in rows_in_order(prepared, [model.kept for model in models]):
            model, rows = next((model, rows) for model, rows in zip(models, answers, strict=True) if rows)
            solved[model.alias] += 1
            answer = best(rows)
            verdicts.add(answer)
            out.write({**answer, "solved_by": model.alias})
    total = read_json(models[0].stats)["prepared"]
    report = {
        "rows": total,
        "solved": out.count,
        "unsolved": total - out.count,
        "models": list(_describe_models(models, solved)),
    }
    report |= {"quality": {**_describe_rows(report), **verdicts.as_dict()}, "cost": _describe_cost(report)}
    publish_json(summary, report)
    logger.info("solved %d of %d rows: %s", out.count, total, dict(solved))
    return report


class _Verdicts:
    """The verdicts of the best answers, counted."""

    def __init__(self) -> None:
        self._rows = 0
        self._counts: Counter[str] = Counter()
        self._scores: list[float] = [0.0, 0.0]

    def add(self, row: Row) -> None:
        self._rows += 1
        for name in ("exec_pass", "gold_match"):
            self._counts[f"{name} known"] += row.get(name) is not None
            self._counts[name] += row.get(name) is True
        if row.get("score") is not None:
            self._scores[0] += row["score"]
            self._scores[1] += 1

    def as_dict(self) -> dict[str, float | None]:
        """Return the rates of what `cascade/merged.jsonl` holds, under the names of a model's quality report."""
        return {
            "exec_pass_rate": ratio(self._counts["exec_pass"], self._counts["exec_pass known"]),
            "gold_match_rate": ratio(self._counts["gold_match"], self._counts["gold_match known"]),
            "score_mean": ratio(*self._scores),
        }


def _describe_rows(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return what gates ask of a quality report: a row is kept if any model solved it."""
    asked = sum(model["samples_asked"] for model in report["models"])
    return {
        "total": report["rows"],
        "kept": report["solved"],
        "p_keep": ratio(report["solved"], report["rows"]),
        "failed_ratio": ratio(sum(model["failed"] for model in report["models"]), asked),
    }


def _describe_cost(report: Mapping[str, Any]) -> dict[str, Any]:
    last = report["models"][-1]
    return {"cost_total": last["cost_so_far"], "cost_per_accepted_row": last["cost_per_solved_row_so_far"]}


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
            "rejected": stats["rejected"],
            "failed": stats["failed"],
            "not_asked": stats["not_asked"],
            "solved": solved[model.alias],
            "cost": cost,
            "currency": (costs["prices"] or {}).get("currency"),
            "cost_per_solved_row": ratio(cost, solved[model.alias]),
            "solved_so_far": all_solved,
            "cost_so_far": all_cost if priced else None,
            "cost_per_solved_row_so_far": ratio(all_cost if priced else None, all_solved),
        }
