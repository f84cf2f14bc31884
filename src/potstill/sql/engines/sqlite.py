"""SQLite, for statements that nobody has read.

What stops what (each of these has holes that another one covers):

- the authorizer allows reading and nothing else, functions with side effects apart, and the database is opened
  `mode=ro`;
- `setlimit` bounds values, statements, nesting, and attached databases (which also stops `VACUUM INTO`);
- the progress handler counts virtual machine steps, the clock behind it; one long operation calls no handler: the
  process that waits for this one kills it;
- the heap limit is for the whole process and cannot be raised again, so it is set in worker processes only.

Under the authorizer no state outlives a statement, so connections are kept, the least recently used closed first. Taking
and leaving the lock for reading is half of what a short statement costs, so it is held from one to the next for a moment.
Who has to wait for one lets go of all others first: else two could wait for each other.
"""

from __future__ import annotations

import re
import sqlite3
import time
from collections import OrderedDict
from typing import ClassVar, NamedTuple

from potstill.sql.engines.fetch import fetch_all
from potstill.sql.limits import Limits
from potstill.sql.outcome import ErrorClass, QueryError, Result
from potstill.sql.pinned import PINNED_NAMES, PinnedFunctions

#: Connections kept open; each holds a file handle or two.
MAX_CONNECTIONS = 32
#: Seconds for which locks for reading are held, at most; one that writes has its turn then.
LOCK_S = 0.05
#: Seconds to wait for a lock while somebody writes, and between two attempts.
PATIENCE_S, ATTEMPT_S = 2.0, 0.005
#: Virtual machine steps between two calls of the progress handler. Fewer cost time, more let long steps add up.
STEPS_PER_CALL = 1000

_HARMLESS = frozenset({sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_RECURSIVE})
#: Functions that load code, hand out pointers, touch files or the log, or write into an index.
_REFUSED_FUNCTIONS = frozenset(
    {
        "load_extension", "fts3_tokenizer", "fts5", "fts5_decode", "optimize", "rtreecheck", "sqlite_log", "readfile",
        "writefile", "edit", "zipfile", "lsmode", "fsdir",
    }
)  # fmt: skip
_LIMITS = {
    sqlite3.SQLITE_LIMIT_ATTACHED: 0,
    sqlite3.SQLITE_LIMIT_EXPR_DEPTH: 1000,
    sqlite3.SQLITE_LIMIT_COMPOUND_SELECT: 500,
    sqlite3.SQLITE_LIMIT_WORKER_THREADS: 0,
    sqlite3.SQLITE_LIMIT_TRIGGER_DEPTH: 10,
}
#: Table-valued functions that build their table on first use, which the authorizer would refuse.
_WARMED = ("SELECT * FROM json_each('[]')", "SELECT * FROM json_tree('[]')")
_NAMES_CLOCK = re.compile(r"\bnow\b|\bcurrent_", re.IGNORECASE)
_PINNED_FAILED = "user-defined function raised exception"
_PINNED_IN_SCHEMA = re.compile(rf"\b({'|'.join(PINNED_NAMES)})\b", re.IGNORECASE)

#: The start of a message (SQLite has one code for most of them) -> class. The first that fits wins.
_MESSAGES: tuple[tuple[str, ErrorClass], ...] = (
    (r"no such (table|view)", "no_such_table"),
    (r"no such column", "no_such_column"),
    (
        r"near .*: syntax error|incomplete input|unrecognized token|unterminated|the query contains a null char",
        "syntax",
    ),
    (r"you can only execute one statement", "multiple_statements"),
    (r"not authorized|authorization denied|access to .* is prohibited|attempt to write|unsafe use of", "forbidden"),
    (
        r"string or blob too big|query string is too large|expression tree is too large|too many (?!arguments)"
        r"|parser stack overflow|at most \d+ tables|LIKE or GLOB pattern too complex",
        "too_big",
    ),
    (r"out of memory", "out_of_memory"),
    (r"interrupted", "timeout"),
    (
        r"unable to open database|file is not a database|database disk image is malformed|malformed database schema"
        r"|unsupported file format|database is locked|disk i/o error",
        "no_such_database",
    ),
)
_CLASSES = tuple((re.compile(pattern, re.IGNORECASE | re.DOTALL), name) for pattern, name in _MESSAGES)


class _Key(NamedTuple):
    """Which connection: of what database, with unordered rows in another order, with clock and dice pinned."""

    database: str
    other_order: bool
    pinned: bool


class SqliteEngine:
    """Runs statements on SQLite files; see the module.

    Args:
        limits: The limits of each statement.
    """

    dialect: ClassVar[str] = "sqlite"
    suffixes: ClassVar[tuple[str, ...]] = (".sqlite", ".db", ".sqlite3")
    pinned: ClassVar[bool] = True

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._kept: OrderedDict[_Key, _Guarded] = OrderedDict()
        self._last: tuple[str, bool, _Guarded] | None = None
        self._locks = _Locks()

    def run(self, database: str, sql: str, *, other_order: bool = False) -> Result:
        """Run one statement; see `Engine`."""
        last = self._last
        try:
            if last is not None and last[0] == database and last[1] == other_order:
                return last[2].run(sql)
            guarded = self._connection(_Key(database, other_order, True))
            self._last = database, other_order, guarded
            return guarded.run(sql)
        except QueryError as error:
            self._let_go(_Key(database, other_order, True), error)
            if _PINNED_FAILED not in error.message:
                raise
        # Python hands no text to a function that is not UTF-8; the built-in functions take it.
        key = _Key(database, other_order, False)
        try:
            result = self._connection(key).run(sql)
        except QueryError as error:
            self._let_go(key, error)
            raise
        return result._replace(used_clock=_NAMES_CLOCK.search(sql) is not None)

    def _let_go(self, key: _Key, error: QueryError) -> None:
        """Close the connection of a statement that failed, if that may have upset it: it is not built upon."""
        if error.error_class in ("out_of_memory", "no_such_database", "other") and key in self._kept:
            self._last = None
            self._kept.pop(key).close()

    def release(self) -> None:
        """Let go of all locks."""
        self._locks.release()

    def close(self) -> None:
        """Close all connections."""
        while self._kept:
            self._kept.popitem()[1].close()

    def _connection(self, key: _Key) -> _Guarded:
        guarded = self._kept.get(key)
        if guarded is not None:
            self._kept.move_to_end(key)
            return guarded
        self._last = None
        while len(self._kept) >= MAX_CONNECTIONS:
            self._kept.popitem(last=False)[1].close()
        self._kept[key] = guarded = _Guarded(key, self._limits, self._locks)
        return guarded


def set_heap_limit(max_bytes: int) -> None:
    """Bound what SQLite may allocate in this process, for good."""
    connection = sqlite3.connect(":memory:")
    connection.execute(f"PRAGMA hard_heap_limit={max_bytes}")
    connection.close()


class _Locks:
    """The connections that hold the lock for reading of their database while none of their statements runs.

    Attributes:
        until: When they are to let go of it.
    """

    def __init__(self) -> None:
        self.until = 0.0
        self._holders: list[_Guarded] = []

    def take(self, guarded: _Guarded, now: float) -> None:
        """Let a connection take its lock, once more if the time is up.

        Raises:
            sqlite3.Error: When its database cannot be read, or somebody has been writing it for too long.
        """
        if now > self.until:
            self.release()
            self.until = now + LOCK_S
        while not guarded.lock(is_last_attempt=time.monotonic() > now + PATIENCE_S):
            self.release()
            time.sleep(ATTEMPT_S)
        self._holders.append(guarded)

    def release(self, *, but: _Guarded | None = None) -> None:
        """Let all connections let go of their locks, but for one whose statement is running."""
        for guarded in self._holders:
            if guarded is not but:
                guarded.unlock()
        self._holders = [] if but is None else [but]

    def has_others(self) -> bool:
        """Whether more than one connection has a lock."""
        return len(self._holders) > 1


class _Guarded:
    """One connection with all its guards."""

    def __init__(self, key: _Key, limits: Limits, locks: _Locks) -> None:
        self._limits = limits
        self._locks = locks
        self._pinned = PinnedFunctions(limits.clock, limits.max_value_bytes)
        self._denied = ""
        self._calls_left = 0
        self._deadline = 0.0
        self._stopped_by = ""
        self._lock: sqlite3.Cursor | None = None
        try:
            # No cache of statements: the authorizer sees a statement only when it is prepared. SQLite itself waits for
            # no lock: it knows nothing of those on other databases.
            self._connection = sqlite3.connect(
                key.database, uri=True, isolation_level=None, cached_statements=0, timeout=0
            )
        except sqlite3.Error as error:
            self._pinned.close()
            raise QueryError("no_such_database", f"the database cannot be opened: {error}") from error
        try:
            self._guard(key)
        except (sqlite3.Error, MemoryError) as error:
            self.close()
            raise QueryError("no_such_database", f"the database cannot be read: {error}") from error

    def close(self) -> None:
        """Close both connections."""
        self.unlock()
        self._connection.close()
        self._pinned.close()

    def _guard(self, key: _Key) -> None:
        connection = self._connection
        connection.text_factory = _decode  # old databases hold names in other encodings
        self._locks.take(self, time.monotonic())
        schema = connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
        self._locks.release()  # while a statement runs, no function can be replaced
        if key.pinned:
            self._pinned.install(connection)
        # A replaced function is no longer one that an untrusted schema may call: a view with `date()` would fail.
        uses_pinned = key.pinned and any(_PINNED_IN_SCHEMA.search(sql) for _, sql in schema)
        connection.execute(f"PRAGMA trusted_schema={'ON' if uses_pinned else 'OFF'}")
        connection.execute("PRAGMA temp_store=MEMORY")
        connection.execute("PRAGMA query_only=ON")
        if key.other_order:
            connection.execute("PRAGMA reverse_unordered_selects=ON")
        self._locks.take(self, time.monotonic())
        self._warm(schema)
        for limit, value in _LIMITS.items():
            connection.setlimit(limit, value)
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, self._limits.max_value_bytes)
        connection.setlimit(sqlite3.SQLITE_LIMIT_SQL_LENGTH, self._limits.max_sql_bytes)
        connection.set_progress_handler(self._tick, STEPS_PER_CALL)
        connection.set_authorizer(self._authorize)

    def _warm(self, schema: list[tuple[str, str]]) -> None:
        """Build virtual tables now: their building declares a table, which the authorizer refuses."""
        tables = [name for name, sql in schema if sql[:21].upper().startswith("CREATE VIRTUAL TABLE")]
        quoted = [name.replace('"', '""') for name in tables]
        for statement in (*_WARMED, *(f'SELECT * FROM "{name}" LIMIT 0' for name in quoted)):
            try:
                self._connection.execute(statement).close()
            except sqlite3.Error:
                continue  # a module that this SQLite lacks: whoever asks for the table gets the error

    def _authorize(
        self, action: int, first: str | None, second: str | None, _database: str | None, _view: str | None
    ) -> int:
        if action in _HARMLESS:
            return 0  # SQLITE_OK; this is called for each column of each statement
        if action == sqlite3.SQLITE_FUNCTION:
            if second is None or second.lower() not in _REFUSED_FUNCTIONS:
                return sqlite3.SQLITE_OK
            self._denied = f"the function {second}"
            return sqlite3.SQLITE_DENY
        if action == sqlite3.SQLITE_PRAGMA and first == "data_version" and second is None:
            return sqlite3.SQLITE_OK  # what the full-text module asks by itself whenever its table is read
        self._denied = _ACTIONS.get(action, f"action {action}")
        return sqlite3.SQLITE_DENY

    def _tick(self) -> bool:
        self._calls_left -= 1
        now = time.monotonic()
        if self._calls_left < 0:
            self._stopped_by = f"{self._limits.max_vm_steps} virtual machine steps"
        elif now > self._deadline:
            self._stopped_by = f"{self._limits.timeout_s:g} s"
        elif now > self._locks.until and self._locks.has_others():
            self._locks.release(but=self)
        return bool(self._stopped_by)

    def run(self, sql: str) -> Result:
        """Run one statement."""
        try:
            self._start()
            return self._read(sql, tolerant=False)
        except sqlite3.OperationalError as error:
            if not str(error).startswith("Could not decode to UTF-8"):
                raise self._explain(error) from error
        except _ENGINE_ERRORS as error:
            raise self._explain(error) from error
        # Only a text that is not UTF-8 pays for a decoder in Python.
        try:
            self._start()
            return self._read(sql, tolerant=True)
        except _ENGINE_ERRORS as error:
            raise self._explain(error) from error

    def _start(self) -> None:
        self._denied = self._stopped_by = ""
        self._calls_left = self._limits.max_vm_steps // STEPS_PER_CALL
        now = time.monotonic()
        self._deadline = now + self._limits.timeout_s
        self._pinned.start_query()
        if self._lock is None or now > self._locks.until:
            self._locks.take(self, now)

    def lock(self, *, is_last_attempt: bool) -> bool:
        """Lock the database for reading; return whether it is locked now, or somebody is writing it."""
        try:
            # A statement that is read half keeps the lock. This one has a row even where the schema is empty.
            self._lock = self._connection.execute("SELECT 1 UNION ALL SELECT 1 FROM sqlite_master")
        except sqlite3.OperationalError as error:
            if is_last_attempt or getattr(error, "sqlite_errorcode", 0) & 0xFF != sqlite3.SQLITE_BUSY:
                raise
        return self._lock is not None

    def unlock(self) -> None:
        """Let go of the lock that is held from one statement to the next."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _read(self, sql: str, *, tolerant: bool) -> Result:
        self._connection.text_factory = _decode if tolerant else str
        cursor = self._connection.execute(sql)
        try:
            columns = cursor.description
            if columns is None:
                raise QueryError("not_a_query", "the statement has no result")
            rows, types = fetch_all(cursor.fetchmany, self._limits, self._deadline)
            pinned = self._pinned
            return Result(len(columns), rows, types, pinned.used_clock, pinned.used_random)
        finally:
            cursor.close()

    def _explain(self, error: BaseException) -> QueryError:
        if self._denied:
            return QueryError("forbidden", f"not allowed: {self._denied}")
        if self._stopped_by:
            return QueryError("timeout", f"stopped after {self._stopped_by}")
        if isinstance(error, MemoryError):
            return QueryError("out_of_memory", f"more memory than {self._limits.max_memory_bytes} bytes")
        if isinstance(error, UnicodeDecodeError):  # Python can hand over neither such a message nor such a column
            message = _decode(error.object)
            name = classify(message)
            # Nothing was forbidden (see above): the authorizer could not be asked about the name.
            return QueryError("other" if name == "forbidden" else name, f"{message} (a name that is not UTF-8)")
        message = str(error)
        if "Incorrect number of bindings" in message:
            return QueryError("other", "the statement has parameters, and nothing to put in their place")
        if message.removeprefix("no such function: ").lower() in _REFUSED_FUNCTIONS:
            return QueryError("forbidden", message)
        return QueryError(classify(message), message)


def classify(message: str) -> ErrorClass:
    """Return the class of an error of SQLite's from its message."""
    return next((name for pattern, name in _CLASSES if pattern.match(message)), "other")


def _decode(raw: bytes) -> str:
    return raw.decode("utf-8", "backslashreplace")


#: Everything that running a statement may raise; `sqlite3.Warning` is what old versions raise for two statements.
_ENGINE_ERRORS: tuple[type[BaseException], ...] = (
    sqlite3.Error, sqlite3.Warning, MemoryError, OverflowError, ValueError, RecursionError,
)  # fmt: skip

_ACTIONS: dict[int, str] = {
    getattr(sqlite3, f"SQLITE_{name}"): name.replace("_", " ")
    for name in (
        "CREATE_INDEX", "CREATE_TABLE", "CREATE_TEMP_INDEX", "CREATE_TEMP_TABLE", "CREATE_TEMP_TRIGGER",
        "CREATE_TEMP_VIEW", "CREATE_TRIGGER", "CREATE_VIEW", "DELETE", "DROP_INDEX", "DROP_TABLE", "DROP_TEMP_INDEX",
        "DROP_TEMP_TABLE", "DROP_TEMP_TRIGGER", "DROP_TEMP_VIEW", "DROP_TRIGGER", "DROP_VIEW", "INSERT", "PRAGMA",
        "TRANSACTION", "UPDATE", "ATTACH", "DETACH", "ALTER_TABLE", "REINDEX", "ANALYZE", "CREATE_VTABLE",
        "DROP_VTABLE", "SAVEPOINT",
    )
}  # fmt: skip
