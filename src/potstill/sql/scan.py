"""A scanner for SQL text that knows literals, quoted names and comments, and nothing else.

It answers where a statement ends, with which word it begins, how many there are and whether it was cut off.
The cleaner and the executor's admission check share it, so that both mean the same by "one statement".
No grammar is involved: a text that is not SQL is scanned as well as any other, in one pass of linear time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

#: A full-width semicolon is what a Chinese keyboard gives; no dialect uses it for anything else.
TERMINATORS = ";；"


def words(*lines: str) -> tuple[str, ...]:
    """Return the words of some lines: a list of words is better read as a sentence than as a column."""
    return tuple(" ".join(lines).split())


#: The words that a query begins with; a statement that begins with another is none.
QUERY_WORDS = frozenset(["SELECT", "WITH", "VALUES"])

#: What may stand before a statement and means nothing: byte order mark, blanks of any script, zero-width marks.
BLANKS = "".join(filter(str.isspace, map(chr, range(0x3001)))) + "\ufeff\u200b\u200c\u200d\u2060\x00"

_BLANK_CLASS = r"[\s\ufeff\u200b\u200c\u200d\u2060\x00]"
_COMMENT = r"--[^\n]*|/\*.*?(?:\*/|\Z)"
_HASH_COMMENT = rf"#[^\n]*|{_COMMENT}"

# A literal with a doubled quote in it is scanned as two literals side by side, which ends at the same place.
# Each opening character is also matched alone, last: it then has no end in the text.
_PLAIN = rf"""'[^']*'|"[^"]*"|`[^`]*`|\[[^\]]*\]|{_COMMENT}|[;；()]|['"`\[]"""
# MySQL, BigQuery, Spark and others: a backslash escapes. The runs are possessive, so nothing is tried twice.
_ESCAPED = rf"""'(?:[^'\\]++|\\.)*+'|"(?:[^"\\]++|\\.)*+"|`[^`]*`|\[[^\]]*\]|{_HASH_COMMENT}|[;；()]|['"`\[]"""
# PostgreSQL and DuckDB: $$ … $$ and $tag$ … $tag$; square brackets are subscripts and may nest.
_DOLLAR = rf"""'[^']*'|"[^"]*"|\$(?P<tag>[A-Za-z_]*)\$.*?\$(?P=tag)\$|{_COMMENT}|[;；()]|['"]"""

_ESCAPING_DIALECTS = frozenset({"mysql", "bigquery", "spark", "spark2", "databricks", "hive", "doris", "starrocks"})
_DOLLAR_DIALECTS = frozenset({"postgres", "postgresql", "duckdb", "redshift", "materialize", "risingwave"})

_EMPTY = re.compile(rf"(?:{_BLANK_CLASS}|[;；])*+")
_LEADING = re.compile(rf"(?:{_BLANK_CLASS}++|{_COMMENT})*+", re.DOTALL)
_LEADING_PARENTHESES = re.compile(rf"(?:{_BLANK_CLASS}++|\(|{_COMMENT})*+", re.DOTALL)
_WORD = re.compile(r"[A-Za-z_]\w*")


class Statement(NamedTuple):
    """One statement of a text: `text[start:end]`, without its terminator.

    Attributes:
        start: Index of its first character that is neither blank nor comment.
        end: Index behind its last character that is neither blank nor comment.
        limit: Index of the terminator, or the length of the text.
        terminated: Whether a semicolon stands at `limit`.
        unfinished: What was left open at the end: "literal", "comment", "parenthesis"; or "".
    """

    start: int
    end: int
    limit: int
    terminated: bool
    unfinished: str


@lru_cache(maxsize=32)
def _marks(dialect: str) -> re.Pattern[str]:
    """Return the pattern of everything that matters to the scanner in a dialect."""
    if dialect in _ESCAPING_DIALECTS:
        return re.compile(_ESCAPED, re.DOTALL)
    return re.compile(_DOLLAR if dialect in _DOLLAR_DIALECTS else _PLAIN, re.DOTALL)


def is_plain(text: str) -> bool:
    """Say whether a text needs no scan: no terminator, no comment, all quotes and parentheses paired.

    A few counts in C instead of a walk; most statements are so. False means only that nothing is known.
    """
    if ";" in text or "--" in text or "/*" in text or "[" in text or "\\" in text or "；" in text:
        return False
    single, double, tick = text.count("'"), text.count('"'), text.count("`")
    if single % 2 or double % 2 or tick % 2 or (single > 0) + (double > 0) + (tick > 0) > 1:
        return False
    return text.count("(") == text.count(")")


def skip_leading(text: str, start: int = 0) -> int:
    """Return the index behind blanks and comments from `start` on."""
    match = _LEADING.match(text, start)
    return match.end() if match else start


def first_keyword(text: str, start: int = 0) -> str:
    """Return the first word behind blanks, comments and opening parentheses, in upper case; "" if there is none."""
    match = _LEADING_PARENTHESES.match(text, start)
    word = _WORD.match(text, match.end() if match else start)
    return word.group().upper() if word else ""


def statement_at(text: str, start: int = 0, *, dialect: str = "sqlite") -> Statement:
    """Scan one statement from `start` on, to its terminator or to the end of the text.

    Args:
        text: Any text.
        start: Where the statement begins; blanks and comments there are skipped.
        dialect: Decides how quotes are escaped; a name as sqlglot knows it.

    Returns:
        The statement; `start == end` where there is none.
    """
    begin = skip_leading(text, start)
    depth = 0
    end = begin  # behind the last mark that belongs to the statement
    seen = begin  # everything before has been looked at
    for match in _marks(dialect).finditer(text, begin):
        first = match.start()
        mark = match.group()
        end = _last_solid(text, seen, first, end)
        seen = match.end()
        kind = mark[0]
        if kind in TERMINATORS:
            return Statement(begin, end, first, True, "parenthesis" if depth > 0 else "")
        if kind == "(":
            depth += 1
        elif kind == ")":
            depth -= 1
        elif kind in "-/#":
            if kind == "/" and not (len(mark) > 3 and mark.endswith("*/")):
                return Statement(begin, end, len(text), False, "comment")
            continue
        elif len(mark) == 1:
            return Statement(begin, _last_solid(text, first, len(text), end), len(text), False, "literal")
        end = seen
    end = _last_solid(text, seen, len(text), end)
    return Statement(begin, end, len(text), False, "parenthesis" if depth > 0 else "")


def _last_solid(text: str, start: int, stop: int, otherwise: int) -> int:
    """Return the index behind the last character of `text[start:stop]` that is not blank, else `otherwise`."""
    while stop > start and text[stop - 1] in BLANKS:
        stop -= 1
    return stop if stop > start else otherwise


def statements(text: str, start: int = 0, *, dialect: str = "sqlite") -> Iterator[Statement]:
    """Yield the statements of a text; empty ones (`;;`, comments alone) are left out.

    Args:
        text: Any text.
        start: Where to begin.
        dialect: Decides how quotes are escaped.

    Yields:
        Each statement, in order.
    """
    while start < len(text):
        statement = statement_at(text, start, dialect=dialect)
        if statement.end > statement.start:
            yield statement
        start = statement.limit + 1
        empty = _EMPTY.match(text, start)
        start = empty.end() if empty else start


def strip_statement(text: str, *, dialect: str = "sqlite") -> str:
    """Return the first statement alone: no byte order mark, blanks or comments around it, no terminator.

    What follows the first statement is lost; ask `count_statements` first where that matters.
    """
    for statement in statements(text, dialect=dialect):
        return text[statement.start : statement.end]
    return ""


def count_statements(text: str, *, at_most: int = 2, dialect: str = "sqlite") -> int:
    """Count the statements of a text, up to `at_most`: most callers ask for none, one or several."""
    count = 0
    for _ in statements(text, dialect=dialect):
        count += 1
        if count == at_most:
            break
    return count


def unfinished(text: str, *, dialect: str = "sqlite") -> str:
    """Return what is left open at the end of a text: "literal", "comment", "parenthesis", or ""."""
    last = ""
    for statement in statements(text, dialect=dialect):
        last = statement.unfinished
    return last
