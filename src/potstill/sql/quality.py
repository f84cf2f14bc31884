"""What a statement looks like, by its syntax tree: signals that a filter may use, and keys that find its like.

Nothing here is proof of right or wrong. A statement that sqlglot cannot read has no signals, and its own text as key.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any, Literal, TypedDict

import sqlglot
from sqlglot import exp

#: Longer statements are not parsed.
MAX_PARSED_CHARS = 50_000


class Signals(TypedDict):
    """The field `sql_quality` of a row.

    `joins`: tables brought in beyond the first, comma joins included. `nesting`: levels of SELECT, 1 for a flat query.
    `select_star`: a `*` in a select list (not in `COUNT(*)`). `cross_join`: two tables that no condition links.
    """

    joins: int
    nesting: int
    select_star: bool
    cross_join: bool


def parse(sql: str, dialect: str = "sqlite") -> exp.Query | None:
    """Return the tree of a query, or None where sqlglot cannot read it as one."""
    if not sql or len(sql) > MAX_PARSED_CHARS:
        return None
    try:
        tree = sqlglot.parse_one(sql, read=dialect)
    except (sqlglot.errors.SqlglotError, RecursionError, ValueError):
        return None
    return tree if isinstance(tree, exp.Query) else None


def signals(sql: str, dialect: str = "sqlite") -> Signals | None:
    """Return the signals of a statement, or None where it cannot be read."""
    tree = parse(sql, dialect)
    if tree is None:
        return None
    selects = list(tree.find_all(exp.Select))
    return Signals(
        joins=sum(len(select.args.get("joins") or ()) for select in selects),
        nesting=max((_depth(select) for select in selects), default=1),
        select_star=any(_has_star(select) for select in selects),
        cross_join=any(_is_unbounded(select) for select in selects),
    )


def _depth(select: exp.Select) -> int:
    depth = 1
    node = select.parent
    while node is not None:
        depth += isinstance(node, exp.Select)
        node = node.parent
    return depth


def _has_star(select: exp.Select) -> bool:
    return any(projection.is_star for projection in select.expressions)


def _is_unbounded(select: exp.Select) -> bool:
    """Say whether the tables of a SELECT fall into groups that no condition links."""
    joins: list[exp.Join] = select.args.get("joins") or []
    source = select.args.get("from_") or select.args.get("from")
    if not joins or source is None:
        return False
    names = [name for item in (source.this, *(join.this for join in joins)) if (name := _bounded_name(item))]
    if len(names) < 2:
        return False
    groups = {name: name for name in names}
    for join in joins:
        if join.args.get("using") or join.args.get("method") == "NATURAL" or join.method == "NATURAL":
            _link(groups, {join.alias_or_name.lower(), names[0]})
        _link_by(join.args.get("on"), groups)
    where = select.args.get("where")
    _link_by(where.this if where else None, groups)
    return len({_root(groups, name) for name in groups}) > 1


def _bounded_name(item: exp.Expression) -> str | None:
    """Return a table's name; None for what adds no rows by itself: a one-row subquery, a table function."""
    if isinstance(item, exp.Subquery) and isinstance(item.this, exp.Select):
        inner = item.this
        one_row = not inner.args.get("group") and any(part.find(exp.AggFunc) for part in inner.expressions)
        limit = inner.args.get("limit")
        if one_row or (limit is not None and str(limit.expression) == "1"):
            return None
    if isinstance(item, exp.Table) and not isinstance(item.this, exp.Identifier):
        return None
    return item.alias_or_name.lower() or None


def _link_by(condition: exp.Expression | None, groups: dict[str, str]) -> None:
    if condition is None:
        return
    for predicate in condition.find_all(exp.Predicate):
        columns = list(predicate.find_all(exp.Column))
        if len(columns) < 2:
            continue
        tables = {column.table.lower() for column in columns}
        # A column without its table's name may be of any of them: the doubt is the statement's.
        _link(groups, set(groups) if "" in tables else tables & set(groups))


def _root(groups: dict[str, str], name: str) -> str:
    while groups[name] != name:
        name = groups[name]
    return name


def _link(groups: dict[str, str], names: set[str]) -> None:
    roots = sorted({_root(groups, name) for name in names if name in groups})
    for root in roots[1:]:
        groups[root] = roots[0]


def statement_key(sql: str, *, by: Literal["exact", "sql", "template"], dialect: str = "sqlite") -> str:
    """Return a short key that is equal for statements that are the same.

    Args:
        sql: The statement.
        by: `exact`: the same text; `sql`: the same tree, whatever the case of names and keywords, blanks and
            comments; `template`: the same tree with its literals masked.
        dialect: A name as sqlglot knows it.
    """
    text = sql.strip() if by == "exact" else _normal_form(sql, dialect, mask=by == "template")
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _normal_form(sql: str, dialect: str, *, mask: bool) -> str:
    tree = parse(sql, dialect)
    if tree is None:
        return re.sub(r"\s+", " ", sql.strip())
    return str(tree.transform(_normalise, mask).sql(dialect=dialect, comments=False, normalize_functions="upper"))


def _normalise(node: exp.Expression, mask: bool) -> Any:
    if isinstance(node, exp.Identifier):
        # The case of a name means nothing in SQLite, quoted or not.
        return exp.to_identifier(node.name.lower(), quoted=False)
    if mask and isinstance(node, exp.Literal):
        return exp.Placeholder()
    return node
