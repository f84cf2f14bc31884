"""DuckDB: files opened read-only, no access to anything outside them, limits on memory and time.

Each statement runs on a cursor of its own, so that what it sets (`setseed`) goes away with it. There is no limit on
time in DuckDB: a timer interrupts, and the process that waits for this one kills it if that does not help.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from typing import Any, ClassVar

from potstill.sql.engines.cells import USES_CLOCK, USES_RANDOM, to_cells
from potstill.sql.engines.fetch import fetch_all
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


class DuckdbEngine:
    """Runs statements on DuckDB files.

    Args:
        limits: The limits of each statement.
    """

    dialect: ClassVar[str] = "duckdb"
    suffixes: ClassVar[tuple[str, ...]] = (".duckdb", ".db")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._open: OrderedDict[str, Any] = OrderedDict()

    def run(self, database: str, sql: str, *, other_order: bool = False) -> Result:
        """Run one statement; see `Engine`. The order of reading cannot be changed here."""
        del other_order
        import duckdb

        stopped = threading.Event()
        try:
            cursor = self._connect(database).cursor()
        except duckdb.Error as error:
            raise QueryError("no_such_database", f"the database cannot be opened: {error}") from error

        def stop() -> None:
            stopped.set()
            cursor.interrupt()

        timer = threading.Timer(self._limits.timeout_s, stop)
        timer.start()
        try:
            return self._read(cursor, sql)
        except (duckdb.Error, RuntimeError, ValueError, MemoryError) as error:
            if stopped.is_set():
                raise QueryError("timeout", f"stopped after {self._limits.timeout_s:g} s") from error
            raise self._explain(error) from error
        finally:
            timer.cancel()
            timer.join()
            cursor.close()

    def close(self) -> None:
        """Close all databases."""
        while self._open:
            self._open.popitem()[1].close()

    def _connect(self, database: str) -> Any:
        import duckdb

        if database in self._open:
            self._open.move_to_end(database)
            return self._open[database]
        while len(self._open) >= MAX_OPEN:
            self._open.popitem(last=False)[1].close()
        self._open[database] = duckdb.connect(
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
        return self._open[database]

    def _read(self, cursor: Any, sql: str) -> Result:
        deadline = time.monotonic() + self._limits.timeout_s
        cursor.execute("SELECT setseed(0.5)").fetchall()
        cursor.execute(sql)
        if cursor.description is None:
            raise QueryError("not_a_query", "the statement has no result")
        rows, types = fetch_all(cursor.fetchmany, self._limits, deadline, to_cells)
        used_clock, used_random = USES_CLOCK.search(sql) is not None, USES_RANDOM.search(sql) is not None
        return Result(len(cursor.description), rows, frozenset(types), used_clock, used_random)

    def _explain(self, error: Exception) -> QueryError:
        message = str(error)
        if isinstance(error, MemoryError):
            return QueryError("out_of_memory", f"more memory than {self._limits.max_memory_bytes} bytes")
        if "Values were not provided for" in message:
            return QueryError("other", "the statement has parameters, and nothing to put in their place")
        kinds = _CLASSES.get(type(error).__name__, (("", "other"),))
        return QueryError(next(name for text, name in kinds if text in message), message)
