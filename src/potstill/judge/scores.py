"""Votes into one score, and the judge's score into the row's."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from potstill.judge.votes import Vote
from potstill.records import Row


def combine_votes(votes: Sequence[Vote], settings: Mapping[str, Any]) -> Row:
    """Return the judge's fields of a row.

    `judge_score` is null where fewer votes than `min_votes` are valid: a judge that fails has no opinion, never a zero.

    Args:
        votes: All votes, in order.
        settings: The `judge` section of a config.
    """
    scores = [vote.score for vote in votes if vote.score is not None]
    enough = len(scores) >= max(1, int(settings.get("min_votes", 1)))
    combine = statistics.median if settings.get("combine", "median") == "median" else statistics.fmean
    problems = [vote.problem for vote in votes if vote.score is None]
    return {
        "judge_score": round(float(combine(scores)), 9) if enough else None,
        "judge_votes": [None if vote.score is None else round(vote.score, 9) for vote in votes],
        "judge_reason": next((vote.reason for vote in votes if vote.reason), None),
        "judge_error": None if enough else (problems[0] if problems else "too few votes"),
    }


def pair_votes(straight: Sequence[Vote], swapped: Sequence[Vote]) -> list[Vote]:
    """Return one vote for each pair that was asked in both orders: their mean, and none where one of them is none.

    A judge that names the first place both times has no opinion on the answers: its mean is a tie.
    """
    return [
        Vote((one.score + other.score) / 2, one.reason or other.reason)
        if one.score is not None and other.score is not None
        else Vote(None, problem=one.problem or other.problem)
        for one, other in zip(straight, swapped, strict=True)
    ]


def join_score(score: float | None, judge_score: float | None, weight: float) -> float | None:
    """Return a row's score with the judge's part in it; without a judge's score it stays as it was.

    Args:
        score: The score by execution (and scorers), or None where a scorer gave none.
        judge_score: The judge's, from 0 to 1, or None.
        weight: The judge's share, from 0 to 1.
    """
    return score if score is None or judge_score is None else round((1.0 - weight) * score + weight * judge_score, 9)
