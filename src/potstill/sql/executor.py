"""What a worker process does with one row: its line in, the line with the fields of this stage out.

The process that reads and writes the files only passes lines on, so that the work of a row is done where its
statement runs. What a worker cannot do itself (find a database, make a copy of one) it asks of that process.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from potstill.errors import InputError
from potstill.records import ADDED_FIELDS, Row
from potstill.rows import dumps, loads, parse_row
from potstill.sql.admission import admit
from potstill.sql.evaluate import Answer, Evaluator, Gold
from potstill.sql.gold import GoldFile, gold_key
from potstill.sql.lookup import MAX_REMEMBERED, Database, name_of
from potstill.sql.outcome import ErrorClass, QueryError

#: Gold results, and lines of equal statements, that are kept: the rows of one prompt come one after another.
GOLD_KEPT = 512
ANSWERS_KEPT = 512
#: A longer statement is run again where it stands again: what is kept must not grow with what is written.
MAX_KEPT_CHARS = 50_000

#: What a worker is at; from `VARIANTS` on, the copies of the row's database.
GOLD, ANSWER, VARIANTS = 1, 2, 3

MISSING = Gold("missing")

Key = TypeVar("Key")
Value = TypeVar("Value")

_FIELDS = frozenset(name for name, stage in ADDED_FIELDS.items() if stage == "execute") | {"gold_status"}


@dataclass(frozen=True, slots=True)
class RowSetup:
    """What a worker must know of the stage, as plain values.

    Attributes:
        source: The file that the lines are of.
        dialect: How sqlglot names the engine's SQL.
        sql_field: The row's field with the statement.
        gold_field: The row's field with the gold query; None = there is none.
        database_field: The row's field with the name of its database.
        shared: Name and location of the database, where all rows share one.
        gold_audit: The run's gold results, if there are any.
        variants: Whether a match must hold on changed copies too.
        max_sql_bytes: The limit on a statement.
    """

    source: str
    dialect: str
    sql_field: str
    gold_field: str | None
    database_field: str
    shared: tuple[str, str] | None
    gold_audit: str | None
    variants: bool
    max_sql_bytes: int


class Verdict(NamedTuple):
    """What is counted of a row; it crosses the pipe as a plain tuple."""

    has_field: bool
    passed: bool
    match: bool | None
    error_class: str
    gold_status: str


class _Done(NamedTuple):
    """The fields of a row as a line of JSON, and what is counted of it."""

    fields: bytes
    verdict: tuple[Any, ...]


def statement_key(phase: int, row: Mapping[str, Any], setup: RowSetup) -> bytes:
    """Return the key of what a row runs in a phase; equal statements of other rows have the same."""
    asked = (
        phase,
        row.get(setup.database_field) if setup.shared is None else None,
        row.get(setup.sql_field) if phase != GOLD else None,
        row.get(setup.gold_field) if setup.gold_field else None,
    )
    return hashlib.sha256(repr(asked).encode("utf-8", "surrogatepass")).digest()[:16]


def killed_gold(message: str) -> Gold:
    """Return the result of a gold query that a worker had to be killed for."""
    return Gold("timeout", "killed", message)


def killed_row(line: bytes, number: int, message: str, setup: RowSetup) -> tuple[bytes, tuple[Any, ...]]:
    """Return the new line and the verdict of a row at which workers die, whatever they are doing with it."""
    row = parse_row(line, setup.source, number)
    done = _fill(row, Answer("killed", message), Gold("error", "killed", message), setup, None)
    return _add_fields(line, row, done.fields), done.verdict


def _fill(row: Row, answer: Answer, gold: Gold, setup: RowSetup, verdicts: list[bool] | None) -> _Done:
    passed = not answer.error_class
    fields = {
        "exec_pass": passed,
        "exec_error_class": answer.error_class or None,
        "exec_error": answer.error or None,
        "gold_match": answer.match,
        "gold_status": gold.status,
        "gold_error": gold.error or None,
        "gold_unstable": gold.unstable,
        "result_signature": answer.signature or None,
        "row_count": answer.row_count if passed else None,
        "column_count": answer.column_count if passed else None,
        "empty_result": answer.row_count == 0 if passed else None,
        "truncated": answer.truncated,
        "used_clock": answer.used_clock,
        "used_random": answer.used_random,
        "exec_s": int(answer.seconds * 1e6) / 1e6,
    }
    if setup.variants:
        fields["variant_match"] = None if verdicts is None else verdicts.count(True)
        fields["variant_count"] = None if verdicts is None else len(verdicts)
    return _Done(dumps(fields), (setup.sql_field in row, passed, answer.match, answer.error_class, gold.status))


def _add_fields(line: bytes, row: Row, fields: bytes) -> bytes:
    """Return a line with further fields: the user's own part of it stays as it was written, where that can be."""
    if line[:1] == b"{" and row and _FIELDS.isdisjoint(row) and _is_utf8(line):
        return b"%b,%b" % (line.rstrip()[:-1], fields[1:])
    return dumps({**row, **loads(fields)})


def _is_utf8(line: bytes) -> bool:
    """Whether a line is text; the half of a surrogate pair that stands in it unescaped is none."""
    if line.isascii():
        return True
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


class _Recent(Generic[Key, Value]):
    """What was put in or asked for lately: two dictionaries, the older of which is dropped when the younger is full.

    Half as exact as an order of use, and a quarter of its cost.
    """

    def __init__(self, size: int) -> None:
        self._half = size // 2
        self._young: dict[Key, Value] = {}
        self._old: dict[Key, Value] = {}

    def get(self, key: Key) -> Value | None:
        found = self._young.get(key)
        if found is None:
            found = self._old.get(key)
            if found is not None:
                self.put(key, found)
        return found

    def put(self, key: Key, value: Value) -> None:
        if len(self._young) >= self._half:
            self._old, self._young = self._young, {}
        self._young[key] = value


class RowExecutor:
    """Executes rows; gold results and equal answers are kept from one row to the next.

    Args:
        setup: What there is to know.
        evaluator: Runs and compares.
        with_rows: Whether a signature does not settle a comparison, so that gold's rows are needed.
        ask: Asks the other process for `("database", name)` or `("variants", database)`.
        enter: Called with the phase before each statement.
    """

    def __init__(
        self,
        setup: RowSetup,
        evaluator: Evaluator,
        *,
        with_rows: bool,
        ask: Callable[[str, Any], Any],
        enter: Callable[[int], None],
    ) -> None:
        self._setup = setup
        self._evaluator = evaluator
        self._with_rows = with_rows
        self._ask = ask
        self._enter = enter
        self._known = GoldFile(Path(setup.gold_audit)) if setup.gold_audit is not None else None
        self._shared = Database(*setup.shared) if setup.shared is not None else None
        self._databases: dict[str, Database | QueryError] = {}
        self._variants: dict[str, list[str]] = {}
        self._golds: _Recent[tuple[str, str], Gold] = _Recent(GOLD_KEPT)
        self._answers: _Recent[tuple[str, str, str | None], _Done] = _Recent(ANSWERS_KEPT)
        #: Statements that a worker had to be killed for, by their key, and what is said of them.
        self.kills: dict[bytes, str] = {}

    def close(self) -> None:
        """Let go of the gold results."""
        if self._known is not None:
            self._known.close()

    def run(self, line: bytes, number: int) -> tuple[bytes, tuple[Any, ...]] | str:
        """Execute the row of a line; return the new line and its verdict, or what is wrong with the line."""
        try:
            row = parse_row(line, self._setup.source, number)
        except InputError as error:
            return str(error)
        fields, verdict = self._execute(row)
        return _add_fields(line, row, fields), verdict

    def _execute(self, row: Row) -> _Done:
        setup = self._setup
        gold_sql = row.get(setup.gold_field) if setup.gold_field else None
        if not isinstance(gold_sql, str) or not gold_sql.strip():
            gold_sql = None
        try:
            database = self._shared or self._database(row)
        except QueryError as error:
            bad = MISSING if gold_sql is None else Gold("error", error.error_class, error.message)
            return self._failed(row, bad, error.error_class, error.message)
        gold = MISSING if gold_sql is None else self._gold(database, gold_sql, row)
        try:
            sql = self._admit(row.get(setup.sql_field))
        except QueryError as error:
            return self._failed(row, gold, error.error_class, error.message)
        key = (database.location, sql, gold_sql)
        done = self._answers.get(key)
        if done is None:
            done = self._answer(row, database, sql, gold, gold_sql or "")
            if len(sql) <= MAX_KEPT_CHARS:
                self._answers.put(key, done)
        return done

    def _failed(self, row: Row, gold: Gold, error_class: ErrorClass, message: str) -> _Done:
        answer = Answer(error_class, message, match=False if gold.usable else None)
        return _fill(row, answer, gold, self._setup, None)

    def _admit(self, sql: Any) -> str:
        return admit(sql, dialect=self._setup.dialect, max_bytes=self._setup.max_sql_bytes)

    def _database(self, row: Row) -> Database:
        name = name_of(row, self._setup.database_field)
        found = self._databases.get(name)
        if found is None:
            error_class, *rest = self._ask("database", name)
            found = QueryError(error_class, *rest) if error_class else Database(*rest)
            if len(self._databases) >= MAX_REMEMBERED:
                self._databases.clear()
            self._databases[name] = found
        if isinstance(found, QueryError):
            raise found
        return found

    def _gold(self, database: Database, sql: str, row: Row) -> Gold:
        """Return a gold result: kept, known to the audit, or run now."""
        key = (database.location, sql)
        gold = self._golds.get(key)
        if gold is None:
            if self._known is not None:
                gold = self._known.find(gold_key(database.name, sql), with_rows=self._with_rows)
            gold = gold or self._run_gold(database, sql, row)
            self._golds.put(key, gold)
        return gold

    def _run_gold(self, database: Database, sql: str, row: Row) -> Gold:
        try:
            admitted = self._admit(sql)
        except QueryError as error:
            return Gold("error", error.error_class, error.message)
        message = self._killed(GOLD, row)
        if message is not None:
            return killed_gold(message)
        self._enter(GOLD)
        return self._evaluator.gold(database.location, admitted)

    def _killed(self, phase: int, row: Row) -> str | None:
        return self.kills.get(statement_key(phase, row, self._setup)) if self.kills else None

    def _answer(self, row: Row, database: Database, sql: str, gold: Gold, gold_sql: str) -> _Done:
        message = self._killed(ANSWER, row)
        if message is not None:
            return self._failed(row, gold, "killed", message)
        self._enter(ANSWER)
        answer = self._evaluator.answer(database.location, sql, gold, lambda: self._admit(gold_sql))
        verdicts = self._on_variants(row, database, sql, gold_sql) if answer.match and self._setup.variants else None
        return _fill(row, answer, gold, self._setup, verdicts)

    def _on_variants(self, row: Row, database: Database, sql: str, gold_sql: str) -> list[bool]:
        """Run what matches on the changed copies too; return the verdicts of those that can judge."""
        locations = self._variants.get(database.location)
        if locations is None:
            locations = self._variants[database.location] = self._ask("variants", (database.name, database.location))
        admitted = self._admit(gold_sql)
        verdicts: list[bool] = []
        for number, location in enumerate(locations):
            if self._killed(VARIANTS + number, row) is not None:
                continue
            self._enter(VARIANTS + number)
            verdict = self._evaluator.agrees(location, admitted, sql)
            if verdict is not None:
                verdicts.append(verdict)
        return verdicts
