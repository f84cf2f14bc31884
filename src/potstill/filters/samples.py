"""Several answers to one input: a vote by result, and the best one."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from potstill.records import Row

OUTVOTED = "outvoted"
LOW_AGREEMENT = "low_agreement"
NO_VOTE = "no_vote"
NOT_BEST = "not_best"


def vote(rows: Sequence[Row], settings: Mapping[str, Any]) -> list[str | None]:
    """Let the answers to one input vote by the result that their statements gave.

    Each answer that executed has a vote for its `result_signature`. `agreement` becomes the share of all answers to
    this input that gave the row's result. The result with most votes wins (on a tie the better score, then the earlier
    sample); rows with another result are outvoted, and all are refused when the winner has too few.

    Args:
        rows: The answers to one input; `agreement` is added to each.
        settings: `min_agreement` and `min_votes`.

    Returns:
        For each row the reason why it falls, or None.
    """
    ballots = [_ballot(row) for row in rows]
    votes = Counter(ballot for ballot in ballots if ballot is not None)
    for row, ballot in zip(rows, ballots, strict=True):
        row["agreement"] = round(votes[ballot] / len(rows), 6) if ballot is not None else 0.0
    if not votes:
        return [NO_VOTE] * len(rows)
    winner = _winner(rows, ballots, votes)
    enough = votes[winner] >= settings.get("min_votes", 1)
    agreed = votes[winner] / len(rows) >= settings.get("min_agreement", 0.0)
    return [_fate(ballot, winner, accepted=enough and agreed) for ballot in ballots]


def _ballot(row: Row) -> str | None:
    signature = row.get("result_signature")
    return signature if row.get("exec_pass") and isinstance(signature, str) else None


def _winner(rows: Sequence[Row], ballots: Sequence[str | None], votes: Counter[str]) -> str:
    best = max(votes.values())
    tied = [
        (-_score(row), place, ballot)
        for place, (row, ballot) in enumerate(zip(rows, ballots, strict=True))
        if ballot is not None and votes[ballot] == best
    ]
    return min(tied)[2]


def _fate(ballot: str | None, winner: str, *, accepted: bool) -> str | None:
    if ballot is None:
        return NO_VOTE
    if ballot != winner:
        return OUTVOTED
    return None if accepted else LOW_AGREEMENT


def _score(row: Row) -> float:
    """Return a row's score for comparison; no score is behind every score."""
    score = row.get("score", 0.0)
    return -math.inf if score is None else _number(score)


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def best(rows: Sequence[Row]) -> Row:
    """Return the best of some rows: the highest score, then agreement, then the shortest statement, then the first."""
    return min(rows, key=_badness)


def _badness(row: Row) -> tuple[float, float, int]:
    text = row.get("sql") or row.get("cleaned") or row.get("generation")
    length = len(text) if isinstance(text, str) else 0
    return (-_score(row), -_number(row.get("agreement")), length)
