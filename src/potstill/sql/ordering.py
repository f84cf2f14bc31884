"""What gold's ORDER BY asks of an answer: nothing, or gold's order with the rows that tie free among themselves.

Only the outermost query counts, found in the parsed statement: the words `order by` stand in subqueries, windows and
literals too. Which rows tie is asked of the database itself: the sort keys are appended to gold's own select list, and
where two keys differ only as a collation may overlook, `dense_rank() OVER (ORDER BY …)` instead. What such a probe
returns is believed only where its other columns are gold's rows again; else the keys that stand in the result decide,
else no two rows tie.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, groupby
from operator import eq
from typing import Any, NamedTuple

from potstill.sql.matching import Tolerance, same_bag
from potstill.sql.outcome import Cells, QueryError, Result

_MAY_ORDER = re.compile(r"order\s+by|order\s*(--|/\*)")

_RANDOM = re.compile(r"order\s+by\s+(?:random|rand)\s*\(", re.IGNORECASE)
#: What a word in it does not count: literals, quoted names, comments.
_HIDDEN = re.compile(r"""'[^']*'|"[^"]*"|`[^`]*`|\[[^\]]*\]|--[^\n]*|/\*.*?(?:\*/|\Z)""", re.DOTALL)
#: A longer statement goes to the parser: patterns take their time.
MAX_SIMPLE_CHARS = 4000
_NAME_QUOTES = '"`[]'
_QUOTES = "'\"`["
_SIMPLE = re.compile(
    r"\s*select\s+(?!distinct\b)(?P<items>.*?)(?=\sfrom\s)(?P<middle>.*?)\sorder\s+by\s(?P<terms>.*?)"
    r"(?:\slimit\s+(?P<limit>\d{1,9})(?:\s+offset\s+(?P<offset>\d{1,9}))?)?\s*",
    re.IGNORECASE | re.DOTALL,
)
_ONCE = {word: re.compile(rf"\b{word}\b") for word in ("select", "from", "order")}
_NAME = r"""[A-Za-z_]\w*|"[^"]+"|`[^`]+`|\[[^\]]+\]"""
_ITEM = re.compile(
    rf"(?P<expression>.+?)(?:\s+as\s+(?P<alias>{_NAME})|(?<=[\w)\]`\"])\s+(?P<bare>{_NAME}))?",
    re.IGNORECASE | re.DOTALL,
)
_TERM = re.compile(
    r"(?P<base>.+?)(?P<direction>(?:\s+(?:asc|desc))?(?:\s+nulls\s+(?:first|last))?)", re.IGNORECASE | re.DOTALL
)

_LIST_MARKS = re.compile("[(),]")
_DEPTHS = {"(": 1, ")": -1, ",": 0}

RunQuery = Callable[[str], Result]


@dataclass(frozen=True, slots=True)
class Ties:
    """The runs of rows that tie under gold's ORDER BY.

    Attributes:
        sizes: How many rows each run has, in gold's order; their sum is the number of rows.
        cut: True where LIMIT or OFFSET cut through a run of different rows: which of them came was left to chance.
        limit_is_fair: True where it was seen that LIMIT cut none.
    """

    sizes: list[int]
    cut: bool = False
    limit_is_fair: bool = False


def find_ties(sql: str, result: Result, dialect: str, run: RunQuery) -> Ties | None:
    """Return the runs of ties of gold's result, or None where nothing is ordered by its outermost query.

    Args:
        sql: Gold's statement, which the engine has run.
        result: What it gave.
        dialect: How sqlglot names its SQL.
        run: Runs one more statement on the same database.
    """
    lowered = sql.lower()
    if not result.rows or "order" not in lowered or not _MAY_ORDER.search(lowered):
        return None
    if "rand" in lowered and _ordered_by_chance(sql, dialect):
        return None
    simple = _read_simple(sql)
    if simple is not None:
        ties = _ask(simple, result, run)
        if ties is not None:
            return ties
    from sqlglot import exp

    query = _parse(sql, dialect)
    if query is None:
        return Ties([1] * len(result.rows))  # unread: the safe side is the order that gold gave
    if not query.args.get("order"):
        return None
    strict = Ties([1] * len(result.rows))
    select = query if isinstance(query, exp.Select) else _as_select(query, result.column_count, dialect)
    return (select and _probe(select, result, dialect, run)) or _from_result(query, result) or strict


def _ordered_by_chance(sql: str, dialect: str) -> bool:
    """Say whether the outermost query is ordered by a random number: that is no order that an answer could keep."""
    if not _RANDOM.search(sql):
        return False
    from sqlglot import exp

    query = _parse(sql, dialect)
    order = query.args.get("order") if query is not None else None
    return order is not None and isinstance(order.expressions[0].this, exp.Rand)


class _Probe(NamedTuple):
    """Statements that tell which of gold's rows tie.

    Attributes:
        by_keys: Gold's statement with the sort keys as further columns.
        key_count: How many of them there are.
        by_rank: Gold's statement with the rank as one more column.
        around: How both are wider than gold, to see whether it cuts through a tie.
        whole: Whether the sort keys are all of a row, so that rows that tie are the same row.
    """

    by_keys: str
    key_count: int
    by_rank: str
    around: _Around
    whole: bool


class _Around(NamedTuple):
    """How many rows more than gold a probe asks for, none or one: before the first, where gold has OFFSET; after LIMIT."""

    before: int = 0
    after: int = 0


def _ask(probe: _Probe, result: Result, run: RunQuery) -> Ties | None:
    """Return the runs of ties that a probe tells; None where it does not work or does not give gold's rows again."""
    try:
        return _read_runs(run(probe.by_keys), probe.key_count, result, probe.around, whole=probe.whole)
    except _Unclear:
        pass
    except QueryError:
        return None
    try:
        return _read_runs(run(probe.by_rank), 1, result, probe.around, whole=False)
    except QueryError:
        return None


class _Unclear(Exception):
    """Raised when it depends on a collation whether two rows tie."""


def _read_simple(sql: str) -> _Probe | None:
    """Read a statement of one SELECT, one FROM and one ORDER BY; a parser takes longer than most queries.

    The probe is checked against gold's rows like any other: what is misread here is found out there.
    """
    if len(sql) > MAX_SIMPLE_CHARS:
        return None
    masked = _HIDDEN.sub(lambda hidden: ("x" if hidden.group()[0] in _QUOTES else " ") * len(hidden.group()), sql)
    lowered = masked.lower()
    once = all(lowered.count(word) == 1 or len(pattern.findall(lowered)) == 1 for word, pattern in _ONCE.items())
    found = _SIMPLE.fullmatch(masked) if once else None
    if found is None:
        return None
    if any(masked.count("(", 0, at) != masked.count(")", 0, at) for at in (found.end("items"), found.end("middle"))):
        return None
    keys = _read_keys(
        sql[slice(*found.span("items"))], found["items"], sql[slice(*found.span("terms"))], found["terms"]
    )
    if keys is None:
        return None
    head, tail, around = sql[: found.end("items")], sql[found.end("items") :], _Around()
    if found["limit"]:
        around = _Around(before=int(int(found["offset"] or 0) > 0), after=1)
        tail = sql[found.end("items") : found.start("limit")] + str(int(found["limit"]) + sum(around))
        tail += f" OFFSET {int(found['offset']) - around.before}" if found["offset"] else ""
    return _Probe(
        by_keys=f"{head}, {keys.columns} {tail}",
        key_count=keys.key_count,
        by_rank=f"{head}, dense_rank() OVER (ORDER BY {keys.order}) {tail}",
        around=around,
        whole=keys.whole,
    )


class _Keys(NamedTuple):
    """The sort keys of a statement, ready to stand in another: as columns, as an order, how many, and `_Probe.whole`."""

    columns: str
    order: str
    key_count: int
    whole: bool


@lru_cache(maxsize=256)
def _read_keys(items: str, masked_items: str, terms: str, masked_terms: str) -> _Keys | None:
    """Read a select list and an ORDER BY, each as it is and masked; statements made from one template share both."""
    columns = [_ITEM.fullmatch(items[first:last].strip()) for first, last in _spans(masked_items)]
    order = [_TERM.fullmatch(terms[first:last].strip()) for first, last in _spans(masked_terms)]
    if not all(columns) or not all(order):
        return None
    keys = _window_keys([item for item in columns if item], [term for term in order if term])
    if not keys:
        return None
    bases = {base.lower() for base, _ in keys}
    return _Keys(
        columns=", ".join(base for base, _ in keys),
        order=", ".join(f"{base} {direction}" for base, direction in keys),
        key_count=len(keys),
        whole=all(item["expression"].lower() in bases for item in columns if item),
    )


def _window_keys(items: list[re.Match[str]], terms: list[re.Match[str]]) -> list[tuple[str, str]]:
    """Return sort terms and their directions as a window takes them; none if one of them is odd.

    A place or an alias stands for its expression: a select list cannot name its own columns.
    """
    named = {
        (item["alias"] or item["bare"]).strip(_NAME_QUOTES).lower(): item["expression"]
        for item in items
        if item["alias"] or item["bare"]
    }
    keys = []
    for term in terms:
        base = term["base"].strip()
        if base.isdigit():
            item = items[int(base) - 1] if 0 < int(base) <= len(items) else None
            if item is None or any(each["expression"].endswith("*") for each in items[: int(base)]):
                return []
            base = item["expression"]
        keys.append((named.get(base.strip(_NAME_QUOTES).lower(), base), term["direction"] or ""))
    return keys


def _spans(masked: str) -> list[tuple[int, int]]:
    """Return the parts of a list between commas that stand outside parentheses."""
    spans, depth, start = [], 0, 0
    for found in _LIST_MARKS.finditer(masked):
        mark = found.group()
        depth += _DEPTHS[mark]
        if mark == "," and depth == 0:
            spans.append((start, found.start()))
            start = found.end()
    return [*spans, (start, len(masked))]


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

    for resolve in (_as_written, _aliases_resolved):
        order = [resolve(key, query) for key in query.args["order"].expressions]
        if any(key is None for key in order):
            continue
        rank = exp.Window(this=exp.Anonymous(this="dense_rank"), order=exp.Order(expressions=order))
        by_keys, around = _extended(query, [key.this.copy() for key in order])
        by_rank, _ = _extended(query, [rank])
        whole = all(item.unalias() in [key.this for key in order] for item in query.expressions)
        probe = _Probe(by_keys.sql(dialect=dialect), len(order), by_rank.sql(dialect=dialect), around, whole)
        ties = _ask(probe, result, run)
        if ties is not None:
            return ties
    return None


def _as_select(query: Any, width: int, dialect: str) -> Any:
    """Return a compound query as one SELECT from it that is ordered alike; None where a sort key is no plain column."""
    from sqlglot import exp

    starred = any(item.is_star for item in query.selects)
    terms = []
    for key in query.args["order"].expressions:
        term = key.copy()
        named = term.this.this if isinstance(term.this, exp.Collate) else term.this
        column = _plain_name(named) if starred else _numbered(_place(named, query, width))
        if column is None:
            return None
        named.replace(exp.column(column))
        terms.append(term.sql(dialect=dialect))
    inner = query.copy()
    limits = [inner.args[name].sql(dialect=dialect) for name in ("limit", "offset") if inner.args.get(name)]
    for name in ("order", "limit", "offset"):
        inner.set(name, None)
    columns = ", ".join(f"c{place}" for place in range(width))
    return _parse(
        f"WITH compound{'' if starred else f'({columns})'} AS ({inner.sql(dialect=dialect)}) "
        f"SELECT {'*' if starred else columns} FROM compound ORDER BY {', '.join(terms)} {' '.join(limits)}",
        dialect,
    )


def _plain_name(term: Any) -> str | None:
    """Return the name of a column that is not quoted: SQLite takes a quoted name that it does not find for a text."""
    from sqlglot import exp

    return (
        str(term.name) if isinstance(term, exp.Column) and not term.table and not term.this.args.get("quoted") else None
    )


def _numbered(place: int | None) -> str | None:
    return None if place is None else f"c{place}"


def _extended(query: Any, columns: list[Any]) -> tuple[Any, _Around]:
    """Return the query with further columns, and how many more rows it now asks for."""
    longer = query.copy()
    longer.set("expressions", [*longer.expressions, *columns])
    return longer, _widen(longer)


def _widen(query: Any) -> _Around:
    """Ask for a row more on each side that gold cuts off, to see whether it cuts through a tie."""
    from sqlglot import exp

    limit, offset = _whole_number(query.args.get("limit")), _whole_number(query.args.get("offset"))
    if limit is None:
        return _Around()
    around = _Around(before=int(bool(offset)), after=1)
    query.args["limit"].set("expression", exp.Literal.number(limit + sum(around)))
    if offset:
        query.args["offset"].set("expression", exp.Literal.number(offset - 1))
    return around


def _whole_number(clause: Any) -> int | None:
    """Return the number of a LIMIT or OFFSET, where one is written out."""
    from sqlglot import exp

    count = clause.args.get("expression") if isinstance(clause, (exp.Limit, exp.Offset)) else None
    return int(count.this) if isinstance(count, exp.Literal) and not count.is_string and count.this.isdigit() else None


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


def _read_runs(probed: Result, key_count: int, result: Result, around: _Around, *, whole: bool) -> Ties | None:
    """Return the runs that the last columns tell, if the other columns are gold's rows again."""
    count, width = len(result.rows), result.column_count
    first, last = around.before, around.before + count
    if probed.column_count != width + key_count or not last <= len(probed.rows) <= last + around.after:
        return None
    keys = [row[width:] for row in probed.rows]
    may_fold = str in map(type, chain.from_iterable(keys))
    ties = list(map(_tie if may_fold else eq, keys, keys[1:]))
    sizes = [1]
    for tied in ties[first : last - 1]:
        if tied:
            sizes[-1] += 1
        else:
            sizes.append(1)
    cut_off = {0} if first and ties[0] else set()
    if len(probed.rows) > last and ties[-1]:
        cut_off.add(len(sizes) - 1)
    rows = [row[:width] for row in probed.rows[first:last]]
    if rows != result.rows and not _same_runs(rows, result.rows, sizes, cut_off):
        return None
    cut = bool(cut_off) and not whole
    return Ties(sizes, cut, limit_is_fair=bool(around.after) and not cut)


def _same_runs(rows: list[Cells], gold: list[Cells], sizes: list[int], cut_off: set[int]) -> bool:
    """Whether a probe's rows are gold's, run for run; one that was cut off may be made of other rows."""
    at = 0
    for place, size in enumerate(sizes):
        if place not in cut_off and not same_bag(rows[at : at + size], gold[at : at + size], Tolerance(1e-9, 0.0)):
            return False
        at += size
    return True


def _tie(left: Cells, right: Cells) -> bool:
    """Whether two rows tie by their keys."""
    if left == right:
        return True
    if tuple(map(_folded, left)) == tuple(map(_folded, right)):
        raise _Unclear
    return False


def _folded(cell: Any) -> Any:
    """Return what SQLite's collations may leave of a key: NOCASE overlooks case, RTRIM trailing blanks."""
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
