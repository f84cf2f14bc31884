"""Comparison and signatures: what must hold for any two results."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill.errors import ConfigError
from potstill.sql.compare import matches, runs, split
from potstill.sql.matching import Tolerance, same_bag, same_set
from potstill.sql.outcome import Result, types_of
from potstill.sql.policy import PRESETS, Policy, make_policy
from potstill.sql.signature import sign

NEAR = st.sampled_from([0, 1, 2, 1.0, 1.0000004, 1.0000008, 1.0000012, 1.0000016, -0.0, 2.5, float("inf"), 10**15])
CELLS = st.one_of(
    st.none(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.sampled_from(["", "a", "A", "1", "1.0", "NULL", "é", "a\x00b"]),
    st.binary(max_size=3),
    NEAR,
)
POLICIES = st.one_of(
    st.sampled_from(list(PRESETS.values())),
    st.builds(
        Policy,
        row_order=st.sampled_from(["auto", "strict", "ignore"]),
        ties=st.sampled_from(["free", "strict"]),
        duplicates=st.sampled_from(["bag", "set"]),
        column_order=st.sampled_from(["strict", "any"]),
        extra_columns=st.booleans(),
        empty_width=st.sampled_from(["compare", "ignore"]),
        float_rel_tol=st.sampled_from([0.0, 1e-6, 1e-3]),
        float_abs_tol=st.sampled_from([0.0, 1e-9]),
        numeric_text=st.booleans(),
    ),
)


def results(cells: st.SearchStrategy[Any] = CELLS, max_rows: int = 6) -> st.SearchStrategy[Result]:
    """Results of one to three columns."""

    def of_width(width: int) -> st.SearchStrategy[Result]:
        rows = st.lists(st.tuples(*[cells] * width), max_size=max_rows)
        return rows.map(lambda some: make(width, some))

    return st.integers(1, 3).flatmap(of_width)


def make(width: int, rows: list[tuple[Any, ...]]) -> Result:
    return Result(width, rows, types_of(rows))


def signature(result: Result, policy: Policy, groups: list[int] | None = None) -> str:
    sizes = runs(len(result.rows), policy, groups)
    return sign(result.column_count, split(result.rows, sizes), exact=policy.float_rel_tol < 2e-11)


@given(results(), POLICIES)
def test_a_result_matches_itself(result: Result, policy: Policy) -> None:
    """Every policy is reflexive, whether order counts or not."""
    assert matches(result, result, policy)
    assert matches(result, result, policy, groups=[1] * len(result.rows))


@given(results(NEAR), results(NEAR), POLICIES)
def test_matching_is_symmetric(left: Result, right: Result, policy: Policy) -> None:
    """Which of two results is gold does not matter, where gold may have no columns fewer."""
    if policy.extra_columns:
        return
    assert matches(left, right, policy) == matches(right, left, policy)


@given(results(), st.randoms(use_true_random=False), POLICIES)
def test_order_is_free_where_gold_does_not_order(result: Result, dice: random.Random, policy: Policy) -> None:
    """Shuffled rows match and have the same signature, unless the policy itself is strict about order."""
    if policy.row_order == "strict":
        return
    rows = list(result.rows)
    dice.shuffle(rows)
    shuffled = make(result.column_count, rows)
    assert matches(result, shuffled, policy)
    assert signature(result, policy) == signature(shuffled, policy)


@given(results(), results(), POLICIES)
def test_equal_signatures_imply_a_match(left: Result, right: Result, policy: Policy) -> None:
    """No two results share a signature that do not match."""
    if signature(left, policy) == signature(right, policy):
        assert matches(left, right, policy)


@given(results(NEAR, max_rows=3), results(NEAR, max_rows=3), POLICIES)
def test_equal_signatures_imply_a_match_of_near_numbers(left: Result, right: Result, policy: Policy) -> None:
    """The same, where numbers are close to each other."""
    if signature(left, policy) == signature(right, policy):
        assert matches(left, right, policy)


@given(st.lists(st.tuples(NEAR, NEAR), max_size=5), st.randoms(use_true_random=False))
def test_a_bag_is_matched_as_trying_every_pairing_would(rows: list[tuple[Any, Any]], dice: random.Random) -> None:
    """The verdict on near-ties is that of brute force over all pairings."""
    others = [(left, dice.choice([right, 1.0000004, 1.0000012])) for left, right in rows]
    dice.shuffle(others)
    tolerance = Tolerance(5e-7, 1e-12)
    pairings = (zip(rows, order, strict=True) for order in itertools.permutations(others))
    wanted = any(all(tolerance.rows_close(one, other) for one, other in pairing) for pairing in pairings)
    assert same_bag(rows, others, tolerance) == wanted


@given(st.lists(NEAR.map(lambda cell: (cell,)), max_size=6), st.lists(NEAR.map(lambda cell: (cell,)), max_size=6))
def test_a_set_is_matched_when_each_side_covers_the_other(left: list[tuple[Any]], right: list[tuple[Any]]) -> None:
    """Sets match when every row has a close one on the other side."""
    tolerance = Tolerance(5e-7, 1e-12)

    def covers(these: list[tuple[Any]], those: list[tuple[Any]]) -> bool:
        return all(any(tolerance.rows_close(row, other) for other in those) for row in these)

    assert same_set(left, right, tolerance) == (covers(left, right) and covers(right, left))


@given(results(CELLS, max_rows=5), st.randoms(use_true_random=False))
def test_one_permutation_of_columns_is_found(result: Result, dice: random.Random) -> None:
    """With `column_order: any` a permutation of columns and rows matches, and the strict policy sees the difference."""
    order = list(range(result.column_count))
    dice.shuffle(order)
    rows = [tuple(row[place] for place in order) for row in result.rows]
    dice.shuffle(rows)
    assert matches(result, make(result.column_count, rows), Policy(column_order="any"))


@pytest.mark.parametrize("rows", [1, 50, 400])
def test_twenty_six_columns_do_not_explode(rows: int) -> None:
    """Columns that all have the same content in another order of rows are told apart or given up in bounded work."""
    dice = random.Random(rows)
    columns = [dice.sample([0] * (rows - rows // 2) + [1] * (rows // 2), rows) for _ in range(26)]
    gold = make(26, list(zip(*columns, strict=True)))
    dice.shuffle(columns)
    answer = list(zip(*columns, strict=True))
    dice.shuffle(answer)
    assert matches(gold, make(26, answer), PRESETS["spider"])
    if rows > 1:
        spoiled = [tuple(1 - cell if at == 25 else cell for at, cell in enumerate(answer[0])), *answer[1:]]
        assert not matches(gold, make(26, spoiled), PRESETS["spider"])


def test_near_numbers_without_end_are_given_up() -> None:
    """A comparison made to need all pairs of many near-equal rows ends without a match, in bounded work."""
    dice = random.Random(1)
    gold = [(1 + dice.random() * 4e-6, dice.random() * 1e-7) for _ in range(5000)]
    answer = [(1 + dice.random() * 4e-6, dice.random() * 1e-7) for _ in range(4999)] + [(1.1, 0.0)]
    assert not same_bag(gold, answer, Tolerance(1e-6, 1e-6))


def test_ties_are_free_and_groups_are_not() -> None:
    """Rows of one run may change places with each other, not with those of another run."""
    gold, policy = make(1, [("a",), ("b",), ("c",)]), Policy()
    assert matches(gold, make(1, [("b",), ("a",), ("c",)]), policy, groups=[2, 1])
    assert not matches(gold, make(1, [("c",), ("b",), ("a",)]), policy, groups=[2, 1])
    assert not matches(gold, make(1, [("b",), ("a",), ("c",)]), Policy(ties="strict"), groups=[2, 1])


@pytest.mark.parametrize(
    ("left", "right"),
    [([(1,)], [("1",)]), ([(None,)], [("",)]), ([(b"a",)], [("a",)]), ([("a", "b")], [('a","b', "")]), ([()], [])],
)
def test_signatures_keep_types_and_cells_apart(left: list[tuple[Any, ...]], right: list[tuple[Any, ...]]) -> None:
    """Results that look alike as text have different signatures."""
    assert sign(len(left[0]), [left]) != sign(len(left[0]), [right])


def test_the_signature_of_an_empty_result_has_its_width() -> None:
    """Two empty results of different width differ."""
    assert sign(1, [[]]) != sign(2, [[]])


@settings(max_examples=50)
@given(st.integers(-(2**53) + 1, 2**53 - 1))
def test_integers_and_integral_reals_share_a_signature(number: int) -> None:
    """1 and 1.0 have the same token while a real number can hold the integer exactly."""
    assert sign(1, [[(number,)]]) == sign(1, [[(float(number),)]])


def test_a_preset_can_be_overruled_knob_by_knob() -> None:
    """A knob beside a preset wins over it."""
    policy = make_policy({"preset": "bird", "duplicates": "bag", "ties": None})
    assert (policy.duplicates, policy.row_order) == ("bag", "ignore")


@pytest.mark.parametrize("section", ["lenient", {"preset": "lenient"}, {"row_oder": "ignore"}])
def test_unknown_presets_and_knobs_are_refused(section: Any) -> None:
    """A misspelled name is an error that lists the right ones."""
    with pytest.raises(ConfigError, match=r"presets are|knobs are"):
        make_policy(section)


@pytest.mark.parametrize("number", [-1, float("nan")])
def test_a_tolerance_is_not_negative(number: float) -> None:
    """A tolerance that nothing can meet is refused."""
    with pytest.raises(ConfigError, match=r"float_abs_tol: .* is no tolerance"):
        make_policy({"float_abs_tol": number})
