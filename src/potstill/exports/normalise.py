"""Forms under which two texts or two statements count as the same."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from sqlglot import exp

SqlForm = Literal["ast", "template", "skeleton"]

#: A word: a run of letters and digits, or one sign of a script that writes without blanks.
_WORD = re.compile(r"[぀-ヿ㐀-䶿一-鿿豈-﫿가-힯]|[^\W_぀-ヿ㐀-䶿一-鿿豈-﫿가-힯]+")


def split_words(text: str) -> list[str]:
    """Return the words of a text: compatibility forms unified, case folded, punctuation left out.

    Chinese and Japanese have no blanks between words: each sign counts as one.
    """
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def iter_ngrams(words: list[str], length: int) -> Iterator[str]:
    """Yield each run of `length` words, as one text; nothing when there are fewer words."""
    for start in range(len(words) - length + 1):
        yield " ".join(words[start : start + length])


@functools.lru_cache(maxsize=8192)
def normalise_sql(statement: str, form: SqlForm, dialect: str = "sqlite") -> str | None:
    """Return a statement in one spelling, so that equal texts mean equal queries up to the form.

    `ast` folds blanks, case of keywords and names, quotes, comments and table aliases; `template` masks the literals
    too (two questions that differ in a value only); `skeleton` masks tables and columns as well (two queries of the
    same shape over different databases).

    Args:
        statement: One SQL statement.
        form: How much is folded.
        dialect: The dialect it is written in, a name that sqlglot knows.

    Returns:
        The normal form, or None where the text does not parse as one query.
    """
    try:
        query = _parse(statement, dialect)
        return None if query is None else _write(query, form, dialect)
    except RecursionError:
        # Thousands of nested brackets: a teacher that repeats itself.
        return None


def _write(query: exp.Query, form: SqlForm, dialect: str) -> str:
    _rename_aliases(query)
    return str(query.transform(_masker(form)).sql(dialect=dialect, comments=False, normalize_functions="upper"))


def _parse(statement: str, dialect: str) -> exp.Query | None:
    import sqlglot
    from sqlglot import exp

    try:
        trees = sqlglot.parse(statement.strip().rstrip(";；"), read=dialect)
    except sqlglot.errors.SqlglotError:
        return None
    # Prose parses too ("Here is the query" is an alias), so the kind of the tree is looked at.
    return trees[0] if len(trees) == 1 and isinstance(trees[0], exp.Query) else None


def _rename_aliases(query: exp.Query) -> None:
    """Give each source a number for its alias, in the order of first mention; one source alone needs no alias."""
    from sqlglot import exp

    ctes = {cte.alias.lower() for cte in query.find_all(exp.CTE)}
    names: dict[str, str] = {}
    for source in query.find_all(exp.Table, exp.Subquery, exp.CTE):
        if source.alias_or_name:
            names.setdefault(source.alias_or_name.lower(), f"t{len(names) + 1}")
    for column in query.find_all(exp.Column):
        number = names.get(column.table.lower())
        if number is not None:
            column.set("table", None if len(names) == 1 else exp.to_identifier(number))
    for source in query.find_all(exp.Table, exp.Subquery, exp.CTE):
        _rename_source(source, names, ctes)


def _rename_source(source: exp.Expression, names: dict[str, str], ctes: set[str]) -> None:
    from sqlglot import exp

    old, name = source.alias_or_name.lower(), source.name.lower()
    if isinstance(source, exp.Table) and name in ctes:
        # A CTE is mentioned as a table: its mention follows its new name.
        source.set("this", exp.to_identifier(names[name]))
    alias = source.args.get("alias")
    if old in names and alias is not None:
        alias.set("this", exp.to_identifier(names[old]))
        if len(names) == 1 and not isinstance(source, exp.CTE):
            source.set("alias", None)
    elif old in names and isinstance(source, exp.Table) and len(names) > 1 and name not in ctes:
        source.set("alias", exp.TableAlias(this=exp.to_identifier(names[old])))


def _masker(form: SqlForm) -> Any:
    from sqlglot import exp

    def mask(node: exp.Expression) -> exp.Expression:
        if form != "ast" and isinstance(node, exp.Literal):
            return exp.Placeholder()
        if isinstance(node, exp.Identifier):
            return exp.to_identifier("_" if form == "skeleton" else node.name.lower(), quoted=False)
        return node

    return mask
