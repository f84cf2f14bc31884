"""The scoring stage: a number per row, from what execution found and from scorers that a user adds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from potstill.errors import ConfigError
from potstill.filters import Scorer, load_scorer
from potstill.judge.scores import join_score
from potstill.records import ADDED_FIELDS, Row
from potstill.rows import publish, read_rows


@dataclass
class ScoreCounts:
    """How many rows got which score.

    Attributes:
        rows: Rows read, and written.
        gold: Rows that match gold.
        executed: Rows that execute and do not match gold, or have no usable gold.
        failed: Rows that do not execute.
        total: The sum of all scores.
        unscored: Rows without a score, since a scorer with a weight gave no number.
        scorer_errors: Rows for which a scorer gave no number, by the scorer's name.
    """

    rows: int = 0
    gold: int = 0
    executed: int = 0
    failed: int = 0
    total: float = 0.0
    unscored: int = 0
    scorer_errors: dict[str, int] = field(default_factory=dict)


class _Weighted(NamedTuple):
    name: str
    field: str
    weight: float
    score: Scorer


def score_rows(input: Path, output: Path, *, settings: dict[str, Any]) -> ScoreCounts:
    """Add `score` (and `sql_quality` with `signals`, and each scorer's field) to each row.

    A row that matches gold has the score `gold`; one that executes has `exec`, also where there is no usable gold
    (`gold_match` null); any other has `fail`. Where a scorer that has a weight gives no number, `score` is null: what it
    would have said is not known, and is not a zero.

    Args:
        input: A file of executed (or judged) rows.
        output: The same rows with the fields added, in the same order.
        settings: The config section `score`.

    Raises:
        ConfigError: If the rows were not executed and no scorer gives their score, or a scorer is not found.
    """
    scorers = [_load(item) for item in settings.get("scorers") or ()]
    counts = ScoreCounts()
    with publish(output) as out:
        for row in read_rows(input):
            base = _base(row, settings, counts, needed=not scorers)
            row["score"] = join_score(
                _combine(base, row, scorers, counts), row.get("judge_score"), settings.get("judge_weight", 0.0)
            )
            if settings.get("signals"):
                row["sql_quality"] = _signals(row, settings.get("dialect") or "sqlite")
            counts.rows += 1
            counts.total += row["score"] or 0.0
            counts.unscored += row["score"] is None
            out.write(row)
    return counts


def _load(item: Mapping[str, Any]) -> _Weighted:
    name = item["name"]
    own = item.get("field") or name
    if own in ADDED_FIELDS:
        raise ConfigError(f"score.scorers: {name!r}: the field {own!r} is one of potstill's; give another (field: …)")
    scorer = load_scorer(name, item.get("settings") or {})
    return _Weighted(name, own, float(item.get("weight", 0.0)), scorer)


def _base(row: Row, settings: Mapping[str, Any], counts: ScoreCounts, *, needed: bool) -> float | None:
    """Return the score by execution; None where the rows were not executed and scorers stand in."""
    if "exec_pass" not in row:
        if needed:
            raise ConfigError(
                "score: the rows have no `exec_pass`, since `execute` is off; "
                "set `score: null`, or name a scorer in `score.scorers`"
            )
        return None
    if row.get("gold_match") is True:
        counts.gold += 1
        return float(settings.get("gold", 1.0))
    if row["exec_pass"]:
        counts.executed += 1
        return float(settings.get("exec", 0.5))
    counts.failed += 1
    return float(settings.get("fail", 0.0))


def _combine(base: float | None, row: Row, scorers: list[_Weighted], counts: ScoreCounts) -> float | None:
    """Weigh the parts: the scorers by their weights, the score by execution by what is left to 1."""
    weight = sum(scorer.weight for scorer in scorers)
    values = [_ask(scorer, row, counts) for scorer in scorers]
    row.update(zip((scorer.field for scorer in scorers), values, strict=True))
    if any(value is None and scorer.weight for scorer, value in zip(scorers, values, strict=True)):
        return None
    total = sum(scorer.weight * (value or 0.0) for scorer, value in zip(scorers, values, strict=True))
    if base is None:
        return round(total / weight, 9) if weight else 0.0
    return round(base * (1.0 - weight) + total, 9)


def _ask(scorer: _Weighted, row: Row, counts: ScoreCounts) -> float | None:
    try:
        value = scorer.score(row)
    except Exception:  # noqa: BLE001 - a user's code may raise anything on a row; it is that row's missing score
        value = None
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        counts.scorer_errors[scorer.name] = counts.scorer_errors.get(scorer.name, 0) + 1
        return None
    return float(value)


def _signals(row: Row, dialect: str) -> dict[str, Any] | None:
    from potstill.sql.quality import signals

    sql = row.get("sql")
    found = signals(sql, dialect) if isinstance(sql, str) else None
    return dict(found) if found else None
