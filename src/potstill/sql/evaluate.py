"""What a worker process does with one statement: run gold and see how steady it is, run an answer and compare it.

The results cross a pipe, so they are tuples of plain values.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from potstill.sql.compare import matches, runs, split
from potstill.sql.engines import Engine
from potstill.sql.ordering import Ties, find_ties
from potstill.sql.outcome import Cells, QueryError, Result, types_of
from potstill.sql.policy import Policy
from potstill.sql.signature import PLAIN_TYPES, sign

#: Gold results larger than this are not carried about: the signature decides most comparisons, else gold runs again.
MAX_CARRIED_BYTES = 16_000
#: Results of fewer rows are signed and compared in no time.
MANY_ROWS = 1000
#: Gold results on changed databases that a worker remembers: the answers of one prompt come one after another.
VARIANT_GOLDS_KEPT = 256
_LONG_TYPES = frozenset({str, bytes})
#: Below this tolerance two numbers of twelve equal digits need not be close, so a signature keeps all digits.
_TWELVE_DIGITS = 2e-11

#: Statements whose bag of rows no order of reading can change: one plain select, or a count alone (in small letters).
_LEFT_TO_CHANCE = re.compile(
    r"[(]|\b(limit|offset|group|having|distinct|union|intersect|except|window|over|with|values|current_\w+)\b"
)
#: One of them is in each text that the pattern finds; looking for them takes a tenth of its time.
_LEFT_TO_CHANCE_HINTS = (
    "(", "limit", "offset", "group", "having", "distinct", "union", "intersect", "except", "window", "over", "with",
    "values", "current_",
)  # fmt: skip
_LAST_LIMIT = re.compile(r"\blimit\s+\d+\s*(?=$|--|/\*)")
_ONLY_COUNT = re.compile(r"select\s+count\s*\(\s*\*\s*\)(?=\s+from\b)")


class Gold(NamedTuple):
    """What became of a gold query.

    Attributes:
        status: ok, empty, nondeterministic (these are usable), error, timeout.
        error_class: Why it failed, as a class, or "".
        error: Why it failed, in words, or "".
        column_count: Width of the result.
        row_count: Number of rows.
        rows: The rows, where they are few enough to be carried about.
        groups: Where the outermost query orders: the sizes of the runs of ties.
        signature: The result's signature under the policy.
        has_real: Whether any cell is a real number.
        unstable: Whether something in the result was left to chance.
        used_clock: Whether it asked for the time.
        used_random: Whether it threw dice.
    """

    status: str
    error_class: str = ""
    error: str = ""
    column_count: int = 0
    row_count: int = 0
    rows: list[Cells] | None = None
    groups: list[int] | None = None
    signature: str = ""
    has_real: bool = False
    unstable: bool = False
    used_clock: bool = False
    used_random: bool = False

    @property
    def usable(self) -> bool:
        """Whether an answer can be compared with it."""
        return self.status in USABLE_STATUSES


USABLE_STATUSES = frozenset({"ok", "empty", "nondeterministic"})


class Answer(NamedTuple):
    """What became of a statement that a model wrote; `error_class` is "" where it passed."""

    error_class: str
    error: str = ""
    truncated: bool = False
    row_count: int = 0
    column_count: int = 0
    signature: str = ""
    used_clock: bool = False
    used_random: bool = False
    match: bool | None = None
    seconds: float = 0.0


class Evaluator:
    """Runs gold queries and answers on one engine under one policy.

    Args:
        engine: The engine.
        policy: The comparison policy.
        restart_clock: Called before a further statement is run for the same task, so that each has its own time.
    """

    def __init__(self, engine: Engine, policy: Policy, restart_clock: Callable[[], None] = lambda: None) -> None:
        self._engine = engine
        self._policy = policy
        self._restart_clock = restart_clock
        self._exact = policy.float_rel_tol < _TWELVE_DIGITS
        self._settles = settles(policy)
        self._variant_golds: dict[tuple[str, str], Gold] = {}
        #: The gold query that was run last, with what it gave and its seconds: an answer may be the same to the letter.
        self._latest: tuple[str, str, Result, float] | None = None

    def gold(self, database: str, sql: str) -> Gold:
        """Run a gold query, once more in another order of reading, and find its runs of ties."""
        self._latest = None
        started = time.perf_counter()
        try:
            result = self._engine.run(database, sql)
        except QueryError as error:
            status = "timeout" if error.error_class in ("timeout", "killed") else "error"
            return Gold(status, error.error_class, error.message)
        seconds = time.perf_counter() - started
        if len(result.rows) > MANY_ROWS:
            self._restart_clock()
        ties = find_ties(sql, result, self._engine.dialect, lambda probe: self._run_again(database, probe))
        unsteady = self._is_unsteady(database, sql, result, ties)
        groups = None if ties is None else ties.sizes
        passing = result.used_clock and not self._engine.pinned
        small = _is_small(result)
        if small and not passing and not result.used_random:
            self._latest = database, sql, result, seconds
        return Gold(  # by place, in the order of its fields: names take half a microsecond
            "nondeterministic" if unsteady else "ok" if result.rows else "empty",
            "",
            "",
            result.column_count,
            len(result.rows),
            result.rows if small else None,
            groups,
            self._sign(result, runs(len(result.rows), self._policy, groups)),
            result.has_real,
            unsteady or result.used_random or passing or (ties is not None and ties.cut),
            result.used_clock,
            result.used_random,
        )

    def answer(self, database: str, sql: str, gold: Gold, gold_sql: Callable[[], str]) -> Answer:
        """Run an answer and compare it with gold, if gold is usable.

        Gold that depends on a clock which goes on is run anew: what it gave yesterday is no measure today. An answer that
        is the gold query which was run a moment ago is not run again.

        Args:
            database: Where.
            sql: The statement, admitted.
            gold: What became of gold.
            gold_sql: Returns gold's statement, admitted; called where gold must run again.
        """
        if gold.used_clock and not self._engine.pinned and gold.usable:
            gold = self.gold(database, gold_sql())
            self._restart_clock()
        usable = gold.usable
        latest = self._latest
        if latest is not None and latest[1] == sql and latest[0] == database:
            result, seconds = latest[2:]
        else:
            started = time.perf_counter()
            try:
                result = self._engine.run(database, sql)
            except QueryError as error:
                seconds = time.perf_counter() - started
                to_blame = error.error_class != "no_such_database"  # a damaged page is not the statement's fault
                missed = False if usable and to_blame else None
                return Answer(error.error_class, error.message, error.truncated, match=missed, seconds=seconds)
            seconds = time.perf_counter() - started
        if len(result.rows) > MANY_ROWS:
            self._restart_clock()  # signing and comparing have a time of their own
        match: bool | None
        if usable and _is_same(gold, result):
            signature, match = gold.signature, True
        else:
            sizes = runs(len(result.rows), self._policy, gold.groups if usable else None)
            if sizes is not None and sum(sizes) == gold.row_count != len(result.rows):
                sizes = [1] * len(result.rows)
            signature = self._sign(result, sizes)
            match = self._match(database, gold, gold_sql, result, signature) if usable else None
        width, clock, dice = result.column_count, result.used_clock, result.used_random
        return Answer("", "", False, len(result.rows), width, signature, clock, dice, match, seconds)

    def agrees(self, database: str, gold_sql: str, sql: str) -> bool | None:
        """Run gold and an answer on a changed database; None where gold fails there, or leaves its rows to chance."""
        key = (database, gold_sql)
        gold = self._variant_golds.pop(key, None) or self.gold(database, gold_sql)
        self._variant_golds[key] = gold
        if len(self._variant_golds) > VARIANT_GOLDS_KEPT:
            del self._variant_golds[next(iter(self._variant_golds))]
        if not gold.usable or gold.unstable:
            return None
        self._restart_clock()
        return bool(self.answer(database, sql, gold, lambda: gold_sql).match)

    def _match(
        self, database: str, gold: Gold, gold_sql: Callable[[], str], result: Result, signature: str
    ) -> bool | None:
        if signature == gold.signature:
            return True
        if self._settles and not gold.has_real and not result.has_real:
            return False
        if self._settles and (gold.row_count, gold.column_count) != (len(result.rows), result.column_count):
            return False
        rows = gold.rows
        if rows is None:
            try:
                rows = self._run_again(database, gold_sql()).rows
            except QueryError:
                return None  # gold ran before, and now it does not: nobody's answer is to blame
        return matches(Result(gold.column_count, rows, types_of(rows)), result, self._policy, groups=gold.groups)

    def _is_unsteady(self, database: str, sql: str, result: Result, ties: Ties | None) -> bool:
        """Whether the bag of rows changes when unordered rows are read in another order."""
        lowered = sql.lower()
        for word in _LEFT_TO_CHANCE_HINTS:
            if word in lowered:
                break
        else:
            return False
        settled = _ONLY_COUNT.sub("", lowered)
        if ties is not None and ties.limit_is_fair:
            settled = _LAST_LIMIT.sub("", settled)
        if not _LEFT_TO_CHANCE.search(settled):
            return False
        self._restart_clock()
        try:
            other = self._engine.run(database, sql, other_order=True)
        except QueryError:
            return False  # it ran once within its limits; the second time only asks about its rows
        bag = replace(self._policy, row_order="ignore", duplicates="bag", column_order="strict", extra_columns=False)
        return not matches(result, other, bag)

    def _run_again(self, database: str, sql: str) -> Result:
        self._restart_clock()
        return self._engine.run(database, sql)

    def _sign(self, result: Result, sizes: list[int] | None) -> str:
        return sign(
            result.column_count, split(result.rows, sizes), plain=result.types <= PLAIN_TYPES, exact=self._exact
        )


def settles(policy: Policy) -> bool:
    """Whether two unequal signatures mean no match, unless real numbers take part."""
    return (
        policy.duplicates == "bag"
        and policy.column_order == "strict"
        and not policy.extra_columns
        and not policy.numeric_text
        and policy.empty_width == "compare"
    )


def _is_same(gold: Gold, result: Result) -> bool:
    """Whether a result is gold's to the letter, so that there is nothing to sign and to compare."""
    if gold.rows != result.rows or gold.column_count != result.column_count:
        return False
    return not gold.has_real and result.types <= PLAIN_TYPES


def _is_small(result: Result) -> bool:
    if len(result.rows) * result.column_count * 8 > MAX_CARRIED_BYTES:
        return False
    if result.types.isdisjoint(_LONG_TYPES):
        return True
    return (
        sum([len(cell) if type(cell) in _LONG_TYPES else 8 for row in result.rows for cell in row]) <= MAX_CARRIED_BYTES
    )
