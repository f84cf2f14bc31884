"""DuckDB: files opened read-only, no access to anything outside them, limits on memory and time.

Each statement runs on a cursor of its own, so that what it sets (`setseed`) goes away with it. Temporary macros stand
before the functions of the same name, in views too: they pin the clock. There is no limit on time in DuckDB: a timer
interrupts, and the process that waits for this one kills it if that does not help.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from datetime import UTC, datetime
from typing import Any, ClassVar, NamedTuple

from potstill.sql.engines.cells import to_cells
from potstill.sql.engines.fetch import fetch_all
from potstill.sql.engines.marks import Marks
from potstill.sql.limits import Limits
from potstill.sql.outcome import ErrorClass, QueryError, Result

#: Databases kept open.
MAX_OPEN = 8

#: The name of an exception -> class; the first whose text is in the message decides where one name has several.
_CLASSES: dict[str, tuple[tuple[str, ErrorClass], ...]] = {
    "ParserException": (("", "syntax"),),
    "SyntaxException": (("", "syntax"),),
    "CatalogException": (("Table with name", "no_such_table"), ("", "other")),
    "BinderException": (
        ("not found in FROM clause", "no_such_column"),
        ("does not have a column", "no_such_column"),
        ("Referenced table", "no_such_column"),
        ("", "other"),
    ),
    "PermissionException": (("", "forbidden"),),
    "InvalidInputException": (("read-only mode", "forbidden"), ("", "other")),
    "TransactionException": (("read-only", "forbidden"), ("", "other")),
    "OutOfMemoryException": (("", "out_of_memory"),),
    "InterruptException": (("", "timeout"),),
    "IOException": (("", "no_such_database"),),
}


_DEFINITIONS = (
    "SELECT view_name, sql FROM duckdb_views() WHERE NOT internal AND sql IS NOT NULL UNION ALL "
    "SELECT function_name, macro_definition FROM duckdb_functions() WHERE NOT internal AND macro_definition IS NOT NULL"
)


class _Open(NamedTuple):
    connection: Any
    marks: Marks


class DuckdbEngine:
    """Runs statements on DuckDB files.

    Args:
        limits: The limits of each statement.
    """

    dialect: ClassVar[str] = "duckdb"
    suffixes: ClassVar[tuple[str, ...]] = (".duckdb", ".db")
    pinned: ClassVar[bool] = True

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._open: OrderedDict[str, _Open] = OrderedDict()
        self._macros = pinning_macros(limits.clock)

    def run(self, database: str, sql: str, *, other_order: bool = False) -> Result:
        """Run one statement; see `Engine`. The order of reading cannot be changed here."""
        del other_order
        import duckdb

        stopped = threading.Event()
        try:
            opened = self._connect(database)
            cursor = opened.connection.cursor()
        except duckdb.Error as error:
            raise QueryError("no_such_database", f"the database cannot be opened: {error}") from error

        def stop() -> None:
            stopped.set()
            cursor.interrupt()

        timer = threading.Timer(self._limits.timeout_s, stop)
        timer.start()
        try:
            return self._read(cursor, sql, opened.marks)
        except (duckdb.Error, RuntimeError, ValueError, MemoryError) as error:
            if stopped.is_set():
                raise QueryError("timeout", f"stopped after {self._limits.timeout_s:g} s") from error
            raise self._explain(error) from error
        finally:
            timer.cancel()
            timer.join()
            cursor.close()

    def release(self) -> None:
        """Let go of locks: none outlives its statement."""

    def close(self) -> None:
        """Close all databases."""
        while self._open:
            self._open.popitem()[1].connection.close()

    def _connect(self, database: str) -> _Open:
        import duckdb

        if database in self._open:
            self._open.move_to_end(database)
            return self._open[database]
        while len(self._open) >= MAX_OPEN:
            self._open.popitem(last=False)[1].connection.close()
        connection = duckdb.connect(
            database,
            read_only=True,
            config={
                "enable_external_access": "false",
                "autoinstall_known_extensions": "false",
                "autoload_known_extensions": "false",
                "allow_community_extensions": "false",
                "memory_limit": f"{self._limits.max_memory_bytes}B",
                "temp_directory": "",
                "threads": "1",
                "lock_configuration": "true",
            },
        )
        definitions = dict(connection.execute(_DEFINITIONS).fetchall())
        self._open[database] = opened = _Open(connection, Marks(definitions, clock_texts=False))
        return opened

    def _read(self, cursor: Any, sql: str, marks: Marks) -> Result:
        deadline = time.monotonic() + self._limits.timeout_s
        used_clock = marks.uses_clock(sql)
        for macro in self._macros if used_clock else ():
            cursor.execute(macro)
        cursor.execute("SELECT setseed(0.5)").fetchall()
        cursor.execute(sql)
        if cursor.description is None:
            raise QueryError("not_a_query", "the statement has no result")
        rows, types = fetch_all(cursor.fetchmany, self._limits, deadline, to_cells)
        return Result(len(cursor.description), rows, types, used_clock, marks.uses_random(sql))

    def _explain(self, error: Exception) -> QueryError:
        message = str(error)
        if isinstance(error, MemoryError):
            return QueryError("out_of_memory", f"more memory than {self._limits.max_memory_bytes} bytes")
        if "Values were not provided for" in message:
            return QueryError("other", "the statement has parameters, and nothing to put in their place")
        kinds = _CLASSES.get(type(error).__name__, (("", "other"),))
        return QueryError(next(name for text, name in kinds if text in message), message)


def pinning_macros(clock: str) -> list[str]:
    """Return statements that put the functions of time at rest.

    Args:
        clock: What `now` means, in UTC.
    """
    stamp = datetime.fromisoformat(clock)
    if stamp.tzinfo is not None:
        stamp = stamp.astimezone(UTC).replace(tzinfo=None)
    moment = f"TIMESTAMP '{stamp.isoformat(' ')}'"
    zoned = f"TIMESTAMPTZ '{stamp.isoformat(' ')}+00'"
    values = {
        **dict.fromkeys(("now", "get_current_timestamp", "transaction_timestamp"), zoned),
        **dict.fromkeys(("current_date", "today"), f"DATE '{stamp.date().isoformat()}'"),
        "get_current_time": f"TIMETZ '{stamp.time().isoformat()}+00'",
        "current_localtime": f"TIME '{stamp.time().isoformat()}'",
        "current_localtimestamp": moment,
        "uuidv7": "system.main.uuid()",
    }
    macros = [f"CREATE TEMP MACRO {name}() AS {value}" for name, value in values.items()]
    midnight = f"TIMESTAMP '{stamp.date().isoformat()}'"
    return [
        *macros,
        f"CREATE TEMP MACRO age(a) AS system.main.age({midnight}, a), (a, b) AS system.main.age(a, b)",
    ]
