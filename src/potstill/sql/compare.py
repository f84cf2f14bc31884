"""Whether a result matches gold's, by a policy."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

from potstill.sql.columns import find_columns
from potstill.sql.matching import Tolerance, same_bag, same_set
from potstill.sql.outcome import Cells, Result
from potstill.sql.policy import Policy

_NUMBER = re.compile(r"\s*[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?\s*", re.ASCII)


def matches(gold: Result, answer: Result, policy: Policy, *, groups: Sequence[int] | None = None) -> bool:
    """Whether an answer's result matches gold's.

    Args:
        gold: What gold's query gave.
        answer: What the answer's query gave.
        policy: The comparison policy.
        groups: Where gold's outermost query orders: the sizes of gold's runs of ties, in order. None where it does not.
    """
    if not gold.rows and not answer.rows:
        return policy.empty_width == "ignore" or _width_fits(gold.column_count, answer.column_count, policy)
    if not _width_fits(gold.column_count, answer.column_count, policy):
        return False
    gold_rows, answer_rows = _read(gold.rows, policy), _read(answer.rows, policy)
    sizes = runs(len(gold_rows), policy, groups)
    tolerance = Tolerance(policy.float_rel_tol, policy.float_abs_tol)

    def same(left: Sequence[Cells], right: Sequence[Cells]) -> bool:
        return _same_rows(left, right, sizes, policy, tolerance)

    if policy.column_order == "strict" and not policy.extra_columns:
        return same(gold_rows, answer_rows)
    in_order = policy.column_order == "strict"
    return find_columns(gold_rows, answer_rows, same, in_order=in_order) is not None


def runs(row_count: int, policy: Policy, groups: Sequence[int] | None) -> list[int] | None:
    """Return the sizes of the runs in which order is free; None where it is free everywhere."""
    if policy.row_order == "ignore" or (policy.row_order == "auto" and groups is None):
        return None
    if policy.row_order == "strict" or policy.ties == "strict" or groups is None:
        return [1] * row_count
    return list(groups)


def split(rows: Sequence[Cells], sizes: Sequence[int] | None) -> list[Sequence[Cells]]:
    """Return rows cut into runs of the given sizes; one run where there are none, one per row where they do not fit."""
    if sizes is None:
        return [rows]
    if sum(sizes) != len(rows):
        return [[row] for row in rows]
    return [rows[first:last] for first, last in pairwise(accumulate(sizes, initial=0))]


def _width_fits(gold: int, answer: int, policy: Policy) -> bool:
    return answer >= gold if policy.extra_columns else answer == gold


def _same_rows(
    left: Sequence[Cells], right: Sequence[Cells], sizes: Sequence[int] | None, policy: Policy, tolerance: Tolerance
) -> bool:
    if policy.duplicates == "set":
        # Without duplicates a run has no fixed size: where order counts, it is that of first appearance.
        if sizes is None:
            return same_set(left, right, tolerance)
        left, right = list(dict.fromkeys(left)), list(dict.fromkeys(right))
        return len(left) == len(right) and all(map(tolerance.rows_close, left, right))
    if len(left) != len(right):
        return False
    if sizes is None:
        return same_bag(left, right, tolerance)
    if all(map(tolerance.rows_close, left, right)):
        return True
    return all(
        same_bag(ours, theirs, tolerance) for ours, theirs in zip(split(left, sizes), split(right, sizes), strict=True)
    )


def _read(rows: Sequence[Cells], policy: Policy) -> Sequence[Cells]:
    if not policy.numeric_text:
        return rows
    return [tuple([_as_number(cell) for cell in row]) for row in rows]


def _as_number(cell: Any) -> Any:
    if not isinstance(cell, str) or not _NUMBER.fullmatch(cell):
        return cell
    text = cell.strip()
    return int(text) if text.lstrip("+-").isdecimal() and len(text) < 20 else float(text)
