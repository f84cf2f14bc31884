"""PostgreSQL: a read-only transaction per statement, on a role that may only read.

`execute.database` is a connection string (`host=… dbname={db_id} user=reader`); each row's id may name the database
in it. Passwords come from where libpq looks for them (PGPASSWORD, ~/.pgpass, a service file), never from the config.

The statement is run as a server-side cursor, which takes queries only and hands out rows by the batch. The server stops
it by `statement_timeout`, and by itself when this process is killed. What a session may keep (advisory locks, settings)
is discarded behind each statement. The server's clock goes on: a statement that asks for the time is marked, and a
gold result that depends on it is made anew for each comparison.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import Any, ClassVar

from potstill.sql.engines.cells import to_cells
from potstill.sql.engines.fetch import fetch_all
from potstill.sql.engines.marks import Marks
from potstill.sql.limits import Limits
from potstill.sql.outcome import ErrorClass, QueryError, Result

#: Connections kept open.
MAX_CONNECTIONS = 4

#: The start of an SQLSTATE -> class; the longest that fits wins.
_CLASSES: dict[str, ErrorClass] = {
    "42601": "syntax",
    "42602": "syntax",
    "42P01": "no_such_table",
    "42703": "no_such_column",
    "3D000": "no_such_database",
    "08": "no_such_database",
    "28": "no_such_database",
    "42501": "forbidden",
    "25": "forbidden",
    "57014": "timeout",
    "53200": "out_of_memory",
    "53": "out_of_memory",
    "54": "too_big",
}
_OWN = "NOT IN ('pg_catalog', 'information_schema')"
_DEFINITIONS = (
    f"SELECT viewname, definition FROM pg_views WHERE schemaname {_OWN} AND definition IS NOT NULL UNION ALL "
    "SELECT p.proname, coalesce(p.prosrc, '') || coalesce(pg_get_function_sqlbody(p.oid), '') FROM pg_proc p "
    f"JOIN pg_namespace n ON n.oid = p.pronamespace WHERE n.nspname {_OWN}"
)
_MAY_WRITE = "data-modifying statements"


class PostgresqlEngine:
    """Runs statements on a PostgreSQL server.

    Args:
        limits: The limits of each statement.
    """

    dialect: ClassVar[str] = "postgres"
    suffixes: ClassVar[tuple[str, ...]] = ()
    pinned: ClassVar[bool] = False

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._kept: OrderedDict[str, Any] = OrderedDict()
        self._marks: dict[str, Marks] = {}

    def run(self, database: str, sql: str, *, other_order: bool = False) -> Result:
        """Run one statement; see `Engine`. With `other_order` plans that sort and hash by other means are taken."""
        import psycopg

        connection = self._connect(database)
        try:
            with connection.transaction(force_rollback=True):
                if other_order:
                    connection.execute("SET LOCAL enable_hashagg = off; SET LOCAL enable_hashjoin = off")
                    connection.execute("SET LOCAL enable_seqscan = off")
                result = self._read(connection, sql, self._marks[database])
            connection.execute("DISCARD ALL")
        except (psycopg.Error, ValueError, MemoryError) as error:
            self._recover(database)
            raise self._explain(error) from error
        except QueryError:
            self._recover(database)
            raise
        return result

    def release(self) -> None:
        """Let go of locks: none outlives its statement."""

    def close(self) -> None:
        """Close all connections."""
        while self._kept:
            self._kept.popitem()[1].close()

    def _connect(self, database: str) -> Any:
        import psycopg

        if database in self._kept:
            self._kept.move_to_end(database)
            return self._kept[database]
        while len(self._kept) >= MAX_CONNECTIONS:
            self._kept.popitem(last=False)[1].close()
        milliseconds = max(1, int(self._limits.timeout_s * 1000))
        settings = {
            "default_transaction_read_only": "on",
            "statement_timeout": milliseconds,
            "lock_timeout": milliseconds,
            "client_connection_check_interval": 1000,
            "max_parallel_workers_per_gather": 0,
            "timezone": "UTC",
        }
        options = " ".join(f"-c {name}={value}" for name, value in settings.items())
        try:
            connection = psycopg.connect(database, options=options, autocommit=True, connect_timeout=10)
        except psycopg.Error as error:
            raise QueryError("no_such_database", f"the database cannot be opened: {error}") from error
        row = connection.execute("SELECT rolsuper FROM pg_roles WHERE rolname = current_user").fetchone()
        if row is None or row[0]:
            connection.close()
            raise QueryError("no_such_database", "the role is a superuser; connect as a role that may only read")
        if database not in self._marks:
            self._marks[database] = Marks(dict(connection.execute(_DEFINITIONS).fetchall()), clock_texts=True)
        self._kept[database] = connection
        return connection

    def _recover(self, database: str) -> None:
        """Put a connection back into its first state, or drop it."""
        import psycopg

        connection = self._kept.get(database)
        try:
            if connection is not None:
                connection.execute("DISCARD ALL")
        except psycopg.Error:
            self._kept.pop(database).close()

    def _read(self, connection: Any, sql: str, marks: Marks) -> Result:
        deadline = time.monotonic() + self._limits.timeout_s
        connection.execute("SELECT setseed(0.5)")
        with connection.cursor(name="potstill") as cursor:
            cursor.execute(sql)
            width = len(cursor.description)
            rows, types = fetch_all(cursor.fetchmany, self._limits, deadline, to_cells)
        return Result(width, rows, types, marks.uses_clock(sql), marks.uses_random(sql))

    def _explain(self, error: BaseException) -> QueryError:
        if isinstance(error, MemoryError):
            return QueryError("out_of_memory", "more memory than the worker process may have")
        state = getattr(error, "sqlstate", None)
        if state is None:
            lost = "connection" in str(error)
            return QueryError("no_such_database" if lost else "syntax", str(error))
        if state == "57014":
            return QueryError("timeout", f"stopped after {self._limits.timeout_s:g} s")
        message = str(error).partition("\n")[0]
        if _MAY_WRITE in message:
            return QueryError("forbidden", message)
        fitting = [prefix for prefix in _CLASSES if state.startswith(prefix)]
        return QueryError(_CLASSES[max(fitting, key=len)] if fitting else "other", message)
