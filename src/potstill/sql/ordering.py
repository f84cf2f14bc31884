"""What gold's ORDER BY asks of an answer: nothing, or gold's order with the rows that tie free among themselves.

Only the outermost query counts, found in the parsed statement: the words `order by` stand in subqueries, windows and
literals too. The sizes of the groups of ties come from the database itself: the sort keys, appended to gold's own
select list as `dense_rank() OVER (ORDER BY …)`, so that collations and NULLs are its business. What that probe
returns is believed only where its other columns are gold's rows again; else the keys that stand in the result decide,
else no two rows tie.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any

from potstill.sql.matching import Tolerance, same_bag
from potstill.sql.outcome import Cells, QueryError, Result

_MAY_ORDER = re.compile(r"order\s+by|order\s*(--|/\*)", re.IGNORECASE)

RunQuery = Callable[[str], Result]


@dataclass(frozen=True, slots=True)
class Ties:
    """The runs of rows that tie under gold's ORDER BY.

    Attributes:
        sizes: How many rows each run has, in gold's order; their sum is the number of rows.
        cut: True where a LIMIT cut through a run: which of its rows are in the result was left to chance.
    """

    sizes: list[int]
    cut: bool = False


def find_ties(sql: str, result: Result, dialect: str, run: RunQuery) -> Ties | None:
    """Return the runs of ties of gold's result, or None where its outermost query does not order.

    Args:
        sql: Gold's statement, which the engine has run.
        result: What it gave.
        dialect: How sqlglot names its SQL.
        run: Runs one more statement on the same database.
    """
    if not _MAY_ORDER.search(sql):
        return None
    query = _parse(sql, dialect)
    if query is None:
        return Ties([1] * len(result.rows))  # unread: the safe side is the order that gold gave
    if not query.args.get("order"):
        return None
    if not result.rows:
        return Ties([])
    strict = Ties([1] * len(result.rows))
    if _is_uncut(query, result) and _all_differ(query, result):
        return strict
    return _probe(query, result, dialect, run) or _from_result(query, result) or strict


def _parse(sql: str, dialect: str) -> Any:
    import sqlglot
    from sqlglot import exp
    from sqlglot.errors import SqlglotError

    try:
        query = sqlglot.parse_one(sql, read=dialect)
    except (SqlglotError, RecursionError, ValueError, IndexError, AttributeError):
        return None  # the last three: sqlglot's own slips on odd statements
    while isinstance(query, exp.Subquery) and not query.args.get("order"):
        query = query.this
    return query if isinstance(query, exp.Query) else None


def _probe(query: Any, result: Result, dialect: str, run: RunQuery) -> Ties | None:
    """Ask the database for the rank of each row."""
    from sqlglot import exp

    if not isinstance(query, exp.Select):
        return None
    for resolve in (_as_written, _aliases_resolved):
        order = [resolve(key, query) for key in query.args["order"].expressions]
        if any(key is None for key in order):
            continue
        rank = exp.Window(this=exp.Anonymous(this="dense_rank"), order=exp.Order(expressions=order))
        probe = query.copy()
        probe.set("expressions", [*probe.expressions, rank])
        limit = _raise_limit(probe)
        try:
            ranked = run(probe.sql(dialect=dialect))
        except QueryError:
            continue
        ties = _read_ranks(ranked, result, limited=limit)
        if ties is not None:
            return ties
    return None


def _raise_limit(query: Any) -> bool:
    """Ask for one row more than gold does, to see whether LIMIT cuts through a tie."""
    from sqlglot import exp

    limit = query.args.get("limit")
    count = limit.args.get("expression") if isinstance(limit, exp.Limit) else None
    if not isinstance(count, exp.Literal) or count.is_string or not count.this.isdigit():
        return False
    limit.set("expression", exp.Literal.number(int(count.this) + 1))
    return True


def _as_written(key: Any, query: Any) -> Any:
    """Return a sort key for the window: a place or a bare alias stands for its select expression."""
    from sqlglot import exp

    term, key = key.this, key.copy()
    if isinstance(term, exp.Literal) and not term.is_string:
        key.set("this", _nth(query, term.this))
        return key if key.this is not None else None
    if isinstance(term, exp.Column) and not term.table:
        named = _by_alias(query, term.name)
        if named is not None:
            key.set("this", named.copy())
    return key


def _aliases_resolved(key: Any, query: Any) -> Any:
    """Return a sort key with each alias in it, not only a bare one, replaced by its select expression."""
    from sqlglot import exp

    key = _as_written(key, query)
    if key is None:
        return None

    def replace(node: Any) -> Any:
        named = _by_alias(query, node.name) if isinstance(node, exp.Column) and not node.table else None
        return exp.Paren(this=named.copy()) if named is not None else node

    return key.transform(replace)


def _nth(query: Any, place: str) -> Any:
    from sqlglot import exp

    before = query.expressions[: int(place)] if place.isdigit() else []
    if len(before) != int(place or 0) or any(item.is_star for item in before):
        return None
    last = before[-1]
    return (last.this if isinstance(last, exp.Alias) else last).copy()


def _by_alias(query: Any, name: str) -> Any:
    from sqlglot import exp

    return next(
        (item.this for item in query.expressions if isinstance(item, exp.Alias) and item.alias.lower() == name.lower()),
        None,
    )


def _read_ranks(ranked: Result, result: Result, *, limited: bool) -> Ties | None:
    """Return the runs that the ranks tell, if the other columns are gold's rows again."""
    count = len(result.rows)
    if ranked.column_count != result.column_count + 1 or not count <= len(ranked.rows) <= count + limited:
        return None
    ranks = [row[-1] for row in ranked.rows]
    if any(later < earlier for earlier, later in pairwise(ranks)):
        return None
    rows = [row[:-1] for row in ranked.rows]
    cut = len(ranks) > count and ranks[count] == ranks[count - 1]
    sizes = [sum(1 for _ in run) for _, run in groupby(ranks[:count])]
    at = 0
    for place, size in enumerate(sizes):
        is_cut = cut and place == len(sizes) - 1
        if not is_cut and not same_bag(rows[at : at + size], result.rows[at : at + size], Tolerance(1e-9, 0.0)):
            return None
        at += size
    return Ties(sizes, cut)


def _is_uncut(query: Any, result: Result) -> bool:
    """Whether no LIMIT can have cut a run of ties: there is none, or fewer rows came than it allows."""
    from sqlglot import exp

    limit = query.args.get("limit")
    count = limit.args.get("expression") if isinstance(limit, exp.Limit) else limit
    if count is None:
        return True
    return isinstance(count, exp.Literal) and count.this.isdigit() and int(count.this) > len(result.rows)


def _all_differ(query: Any, result: Result) -> bool:
    """Whether the rows differ in sort keys that stand in the result, under any collation that SQLite has."""
    places = [_place(key.this, query, result.column_count) for key in query.args["order"].expressions]
    known = [place for place in places if place is not None]
    keys = {tuple([_folded(row[place]) for place in known]) for row in result.rows}
    return bool(known) and len(keys) == len(result.rows)


def _folded(cell: Any) -> Any:
    return cell.rstrip(" ").lower() if isinstance(cell, str) else cell


def _from_result(query: Any, result: Result) -> Ties | None:
    """Return the runs by the sort keys that stand in the result, if all of them do."""
    places = [_place(key.this, query, result.column_count) for key in query.args["order"].expressions]
    if any(place is None for place in places):
        return None

    def keys(row: Cells) -> Sequence[Any]:
        return [row[place] for place in places if place is not None]

    return Ties([sum(1 for _ in run) for _, run in groupby(result.rows, key=keys)])


def _place(term: Any, query: Any, column_count: int) -> int | None:
    """Return which column of the result a sort key is; None where it is none of them, or unclear."""
    from sqlglot import exp

    if isinstance(term, exp.Literal) and not term.is_string:
        place = int(term.this) - 1 if term.this.isdigit() else -1
        return place if 0 <= place < column_count else None
    selects = query.selects
    if len(selects) != column_count or any(item.is_star for item in selects):
        return None
    for place, item in enumerate(selects):
        if isinstance(term, exp.Column) and not term.table and item.alias_or_name.lower() == term.name.lower():
            return place
        if term == item.unalias():
            return place
    return None
