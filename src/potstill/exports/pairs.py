"""Preference data made by the verifier: of one prompt, an answer that is right and one that is not.

The columns are those of TRL: `prompt`, `chosen`, `rejected` (conversational, explicit prompt) for DPO and `prompt`,
`completion`, `label` for KTO. Beside them stands why the rejected answer is one.

Hard negatives first: a statement that executes and gives another result teaches more than one that fails. Among the
former the nearest result comes first. Distance is known from what the rows carry, since their results are not kept:
the right answer has the shape of gold's result, so it is whether the number of columns differs, then the difference of
row counts relative to the larger, then the share of words that the two statements do not have in common.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from potstill.exports.examples import Example, prompt_key
from potstill.exports.index import Verdict
from potstill.exports.normalise import split_words
from potstill.records import Row


class Candidate(NamedTuple):
    """One answer to a prompt, with the verifier's word on it and its row's position."""

    position: int
    row: Row
    example: Example
    verdict: Verdict


class Distance(NamedTuple):
    """How far a wrong answer is from a right one; smaller is harder to tell apart."""

    error: bool
    columns_differ: bool
    rows: float
    words: float

    def as_number(self) -> float:
        """Return it as one number from 0 to 4, for people to read: the parts weigh in their order."""
        return round(2.0 * self.error + self.columns_differ + 0.5 * self.rows + 0.5 * self.words, 4)


def measure_distance(good: Row, bad: Row) -> Distance:
    """Return the distance of two answers to one prompt."""
    failed = bad.get("exec_pass") is not True
    return Distance(
        error=failed,
        columns_differ=not failed and good.get("column_count") != bad.get("column_count"),
        rows=0.0 if failed else _relative(good.get("row_count"), bad.get("row_count")),
        words=_unlike(_statement(good), _statement(bad)),
    )


def _relative(left: int | None, right: int | None) -> float:
    if left is None or right is None or left == right:
        return 0.0
    return abs(left - right) / max(left, right)


def _statement(row: Row) -> str:
    return str(row.get("sql") or row.get("generation") or "")


def _unlike(left: str, right: str) -> float:
    words, others = set(split_words(left)), set(split_words(right))
    return 1.0 - len(words & others) / len(words | others) if words | others else 0.0


def make_pairs(candidates: Iterable[Candidate], max_pairs: int) -> list[tuple[Candidate, Candidate]]:
    """Return the pairs of one prompt, hardest first: each wrong answer once, the right ones in turn.

    Args:
        candidates: Answers to one and the same prompt.
        max_pairs: The most pairs a prompt may give.
    """
    known = list(candidates)
    good = _distinct([one for one in known if one.verdict is Verdict.GOOD])
    right = {one.example.answer["content"] for one in good}
    bad = _distinct([one for one in known if one.verdict in (Verdict.WRONG, Verdict.ERROR)])
    # The same words judged right once and wrong once (a clock, a random number) prove nothing.
    bad = [one for one in bad if one.example.answer["content"] not in right]
    if not good:
        return []
    good.sort(key=lambda one: -(one.row.get("score") or 0.0))
    bad.sort(key=lambda one: min(measure_distance(other.row, one.row) for other in good))
    return [(good[number % len(good)], one) for number, one in enumerate(bad[:max_pairs])]


def _distinct(candidates: list[Candidate]) -> list[Candidate]:
    seen: dict[str, Candidate] = {}
    for one in candidates:
        seen.setdefault(one.example.answer["content"], one)
    return list(seen.values())


def group_by_prompt(candidates: Iterable[Candidate]) -> list[list[Candidate]]:
    """Return answers in groups of one prompt: rows of one sample may have been asked in different words."""
    groups: dict[str, list[Candidate]] = {}
    for one in candidates:
        groups.setdefault(prompt_key(one.example.prompt), []).append(one)
    return list(groups.values())


def to_dpo(chosen: Candidate, rejected: Candidate) -> Row:
    """Return the row of a pair."""
    return {
        "prompt": chosen.example.prompt,
        "chosen": [chosen.example.answer],
        "rejected": [rejected.example.answer],
        **_identity(chosen.row),
        "chosen_model": chosen.row.get("model") or "",
        "rejected_model": rejected.row.get("model") or "",
        "rejected_reason": reason_of(rejected),
        "distance": measure_distance(chosen.row, rejected.row).as_number(),
    }


def to_kto(candidate: Candidate) -> Row:
    """Return the row of one answer with its label."""
    return {
        "prompt": candidate.example.prompt,
        "completion": [candidate.example.answer],
        "label": candidate.verdict is Verdict.GOOD,
        **_identity(candidate.row),
        "reason": reason_of(candidate),
    }


def _identity(row: Mapping[str, Any]) -> Row:
    return {"sample_id": row["sample_id"]}


def reason_of(candidate: Candidate) -> str:
    """Return why an answer is right or wrong, in one word.

    `match`, `executes` (there was no usable gold), `wrong_result`, `variant_mismatch` or the class of its error.
    """
    if candidate.verdict is Verdict.GOOD:
        return "match" if candidate.row.get("gold_match") is True else "executes"
    if candidate.verdict is Verdict.ERROR:
        return str(candidate.row.get("exec_error_class") or "error")
    return "wrong_result" if candidate.row.get("gold_match") is False else "variant_mismatch"
