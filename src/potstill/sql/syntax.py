"""Does a text parse as one SQL statement? Asked only where a text leaves a doubt.

SQLite answers for its own dialect: `EXPLAIN` compiles a statement on an empty database and runs nothing. "No such
table" means that it parsed, "syntax error" that it did not, and this costs some 6 µs. sqlglot answers for the others.
"""

from __future__ import annotations

import logging
import re
import sqlite3
import threading
from typing import Literal, NamedTuple

#: Longer texts are not compiled: nobody's answer is that long, and the scanner has judged it already.
MAX_CHECKED_CHARS = 100_000

_local = threading.local()
_UNSENDABLE = re.compile("[\x00\ud800-\udfff]")
_NEAR = re.compile(r'(?:near "(.*)": syntax error|unrecognized token: "(.*)")\Z', re.DOTALL)


class Verdict(NamedTuple):
    """What the parser said.

    Attributes:
        kind: "yes"; "no" with the token where it stopped; "incomplete" when more was expected.
        token: The token that it did not understand, or "".
    """

    kind: Literal["yes", "no", "incomplete"]
    token: str = ""


YES = Verdict("yes")
NO = Verdict("no")
INCOMPLETE = Verdict("incomplete")


def check_syntax(sql: str, dialect: str = "sqlite") -> Verdict:
    """Say whether a text is one statement that parses.

    SQLite has no parenthesised query at the top, others have: sqlglot judges that one too.

    Args:
        sql: A candidate, without terminator.
        dialect: A name as sqlglot knows it.
    """
    if not sql or len(sql) > MAX_CHECKED_CHARS:
        return NO
    verdict = _check_sqlite(sql)
    if verdict.kind == "yes" or (dialect == "sqlite" and sql[0] != "("):
        return verdict
    return YES if _parses_with_sqlglot(sql, dialect) else verdict


def _connection() -> sqlite3.Connection:
    connection: sqlite3.Connection | None = getattr(_local, "connection", None)
    if connection is None:
        connection = sqlite3.connect(":memory:", isolation_level=None, cached_statements=0)
        _local.connection = connection
    return connection


def _check_sqlite(sql: str) -> Verdict:
    try:
        _connection().execute("EXPLAIN " + sql).close()
    except sqlite3.OperationalError as error:
        message = str(error)
        near = _NEAR.match(message)
        if near:
            return Verdict("no", near.group(1) or near.group(2) or "")
        return INCOMPLETE if message == "incomplete input" else YES
    except (sqlite3.Error, sqlite3.Warning, ValueError):
        # Several statements; or a NUL or a lone surrogate, which are no matter of grammar.
        clean = _UNSENDABLE.sub("_", sql)
        return NO if clean == sql else _check_sqlite(clean)
    return YES


def _parses_with_sqlglot(sql: str, dialect: str) -> bool:
    import sqlglot
    from sqlglot import exp

    # It warns of each statement that it does not know; that is our question, and its answer is below.
    logging.getLogger("sqlglot").setLevel(logging.ERROR)
    try:
        tree = sqlglot.parse_one(sql, read=dialect)
    except (sqlglot.errors.SqlglotError, RecursionError, ValueError):
        return False
    # sqlglot reads prose as an alias expression and unknown verbs as a Command: neither is a query.
    return isinstance(tree, exp.Query | exp.DML | exp.DDL | exp.Drop)
