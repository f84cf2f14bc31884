"""What a judge said, checked: a number on the scale, or why it is no vote."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from potstill.exports.examples import strip_reasoning
from potstill.records import Row

_MOST_REASON = 500
_SIDES = {"a": 1.0, "b": 0.0, "tie": 0.5}


class Vote(NamedTuple):
    """One vote: a score from 0 to 1 and the judge's reason, or the problem that makes it none."""

    score: float | None
    reason: str = ""
    problem: str = ""


def read_score(row: Row, low: float, high: float) -> Vote:
    """Return the vote of a judge that gave a number.

    Args:
        row: The generated row: `generation`, or `error_class` where there is none.
        low: The number that stands for 0.
        high: The number that stands for 1.
    """
    found = _read_object(row, "score")
    if isinstance(found, Vote):
        return found
    score = found["score"]
    if isinstance(score, bool) or not isinstance(score, int | float) or not low <= score <= high:
        return Vote(None, problem=f"score is {str(score)[:40]!r}, no number from {low:g} to {high:g}")
    return Vote((score - low) / (high - low), _reason(found))


def read_preference(row: Row, *, swapped: bool) -> Vote:
    """Return the vote of a judge that named the better of two answers.

    Args:
        row: The generated row.
        swapped: Whether the row's own answer stood second.
    """
    found = _read_object(row, "better")
    if isinstance(found, Vote):
        return found
    score = _SIDES.get(str(found["better"]).strip().lower())
    if score is None:
        return Vote(None, problem=f"better is {str(found['better'])[:40]!r}; allowed: A, B, tie")
    return Vote(1.0 - score if swapped else score, _reason(found))


def _reason(found: dict[str, Any]) -> str:
    reason = found.get("reason")
    return reason[:_MOST_REASON] if isinstance(reason, str) else ""


def _read_object(row: Row, key: str) -> dict[str, Any] | Vote:
    """Return the last JSON object in an answer that has a key; what comes before it is thinking aloud."""
    if row.get("error_class") or row.get("not_asked_reason"):
        return Vote(None, problem=f"no answer: {row.get('error_class') or row['not_asked_reason']}")
    text = strip_reasoning(row.get("generation") or "", row.get("reasoning"))
    found: dict[str, Any] | None = None
    at = text.find("{")
    while at >= 0:
        value, end = _decode(text, at)
        if isinstance(value, dict) and key in value:
            found = value
        at = text.find("{", end)
    return found if found is not None else Vote(None, problem=f"no JSON object with `{key}`: {text.strip()[:60]!r}")


_DECODER = json.JSONDecoder()


def _decode(text: str, at: int) -> tuple[Any, int]:
    try:
        return _DECODER.raw_decode(text, at)
    except (ValueError, RecursionError):
        return None, at + 1
