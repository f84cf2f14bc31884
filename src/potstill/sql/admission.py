"""Which texts are tried at all: one statement, and one that asks.

No list of forbidden words: it would refuse `WHERE action = 'DELETE'`. What a statement may do is the engine's business.
"""

from __future__ import annotations

import re
from typing import Any

from potstill.sql.outcome import QueryError
from potstill.sql.scan import BLANKS, TERMINATORS, count_statements, first_keyword, strip_statement

#: A statement may begin with one of these.
QUERY_WORDS = ("SELECT", "WITH", "VALUES")

_PLAIN_START = re.compile(rf"({'|'.join(QUERY_WORDS)})\b", re.IGNORECASE)
#: What means nothing around a statement. SQLite takes most of it for letters.
_AROUND = BLANKS + TERMINATORS


def admit(sql: Any, *, dialect: str, max_bytes: int) -> str:
    """Return the one statement of a text, without what stands around it.

    Args:
        sql: What a row holds.
        dialect: Decides how quotes are escaped.
        max_bytes: A longer text is not looked at.

    Raises:
        QueryError: `not_a_query`, `multiple_statements`, `too_big`, or `syntax` for what is no text.
    """
    if not isinstance(sql, str) or not sql or sql.isspace():
        raise QueryError("not_a_query", "no statement")
    if len(sql) > max_bytes:
        raise QueryError("too_big", f"the statement has more than {max_bytes} bytes")
    if not sql.isascii():
        _check_encodable(sql)
    trimmed = sql.strip(_AROUND)
    if _PLAIN_START.match(trimmed) and ";" not in trimmed and "；" not in trimmed:
        return (
            trimmed  # most statements need no scanner: they hold no semicolon (of either width), or one at the very end
        )
    sole = strip_statement(sql, dialect=dialect)
    word = first_keyword(sole)
    if word not in QUERY_WORDS:
        raise QueryError("not_a_query", _why_not(sole, word))
    if count_statements(sql, dialect=dialect) > 1:
        raise QueryError("multiple_statements", "more than one statement")
    return sole


def _check_encodable(sql: str) -> None:
    try:
        sql.encode()
    except UnicodeEncodeError as error:
        raise QueryError("syntax", "the statement holds half of a surrogate pair, which is no text") from error


def _why_not(sole: str, word: str) -> str:
    if not word:
        return "no statement" if not sole else "the text does not begin with a keyword"
    return f"{word[:40]} is not {', '.join(QUERY_WORDS[:-1])} or {QUERY_WORDS[-1]}"
