"""Run each statement of a file on its database, and compare its result with that of the gold query.

Rows pass in windows: first the gold queries of a window that are not known yet, then its answers, so that gold runs
once however many answers it judges. Equal statements of a window are run once.
"""

from __future__ import annotations

import tempfile
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from potstill.errors import InputError
from potstill.records import Row
from potstill.rows import loads, publish, read_rows
from potstill.sql.admission import admit
from potstill.sql.databases import Database, Databases
from potstill.sql.evaluate import Answer, Gold, pack, settles
from potstill.sql.gold import GoldFile, gold_key
from potstill.sql.outcome import QueryError
from potstill.sql.pool import Killed, Pool, Task
from potstill.sql.settings import ExecuteSettings, read_settings
from potstill.sql.variants import VariantStore

#: Rows of a window, and gold results kept for the windows that follow.
WINDOW_ROWS = 1024
GOLD_KEPT = 2048

MISSING = Gold("missing")


@dataclass(slots=True)
class ExecuteCounts:
    """What became of the rows of a file."""

    rows: int = 0
    exec_pass: int = 0
    gold_match: int = 0
    gold_mismatch: int = 0
    error_classes: Counter[str] = field(default_factory=Counter)
    gold_statuses: Counter[str] = field(default_factory=Counter)

    def add(self, row: Row) -> None:
        """Count one row that was executed."""
        self.rows += 1
        self.exec_pass += row["exec_pass"]
        self.gold_match += row["gold_match"] is True
        self.gold_mismatch += row["gold_match"] is False
        self.gold_statuses[row["gold_status"]] += 1
        if not row["exec_pass"]:
            self.error_classes[row["exec_error_class"]] += 1


def execute_rows(
    input: Path,
    output: Path,
    *,
    settings: dict[str, Any],
    gold_audit: Path | None = None,
    variants: Path | None = None,
) -> ExecuteCounts:
    """Execute a file of rows.

        Args: input: Rows with a statement each. output: The same rows in the same order with the fields of this
        stage. settings: The config section `execute`. gold_audit: The run's gold results; None = gold is run here,
        with the same code. variants: The run's changed copies of the databases, as `make_variants` listed them; None
        = they are made here in a scratch folder, if the settings ask for any.

    Returns:
        Counts.

    Raises:
        ConfigError: When the databases are not where the config says.
        InputError: When no row has the field with the statement.
    """
    config = read_settings(settings)
    counts = ExecuteCounts()
    with ExitStack() as stack:
        databases = stack.enter_context(config.open_databases())
        known = stack.enter_context(GoldFile(gold_audit)) if gold_audit is not None else None
        store = stack.enter_context(_open_variants(config, variants)) if config.variants else None
        executor = Executor(config, databases, stack.enter_context(config.open_pool()), known, store)
        out = stack.enter_context(publish(output))
        for row in executor.execute(read_rows(input)):
            counts.add(row)
            out.write(row)
        if counts.rows and not executor.seen_field:
            raise InputError(
                f"{input}: no row has the field {config.sql_field!r}; run `potstill clean` first, "
                "or name the field with the statement (execute.sql_field, --sql-field)"
            )
    return counts


@contextmanager
def _open_variants(config: ExecuteSettings, listed: Path | None) -> Iterator[VariantStore]:
    """Yield the changed copies: those that were made before, or new ones that go away in the end."""
    if listed is not None:
        known = loads(listed.read_bytes())["databases"]
        yield VariantStore(listed.parent, count=config.variants, seed=config.variants_seed, known=known)
        return
    with tempfile.TemporaryDirectory(prefix="potstill-variants-", ignore_cleanup_errors=True) as folder:
        yield VariantStore(Path(folder), count=config.variants, seed=config.variants_seed)


@dataclass(slots=True)
class _Case:
    """One row on its way, and what is already known of it."""

    row: Row
    database: Database | None
    sql: str
    failure: QueryError | None
    gold_sql: str | None
    gold: Gold | None


class _Window(NamedTuple):
    """Rows whose statements are with the workers.

    Attributes:
        cases: The rows.
        places: For each, which of the outcomes is its own; None where it was not admitted.
        outcomes: The outcomes, as they come in.
    """

    cases: list[_Case]
    places: list[int | None]
    outcomes: Iterator[Any]


class Executor:
    """Executes rows; gold results are kept from one window to the next.

    Args:
        config: The settings.
        databases: The lookup of databases.
        pool: The worker processes.
        known: Gold results of the run, if there are any.
        variants: Changed copies that a match must hold on, if the settings ask for them.
    """

    def __init__(
        self,
        config: ExecuteSettings,
        databases: Databases,
        pool: Pool,
        known: GoldFile | None,
        variants: VariantStore | None,
    ) -> None:
        self._variants = variants
        self._config = config
        self._databases = databases
        self._pool = pool
        self._known = known
        self._dialect = config.dialect
        self._with_rows = not settles(config.policy)
        self._golds: OrderedDict[tuple[str, str], Gold] = OrderedDict()
        #: Whether any row had the field with the statement.
        self.seen_field = False

    def execute(self, rows: Iterable[Row]) -> Iterator[Row]:
        """Yield each row with the fields of this stage."""
        stream = iter(rows)
        under_way: _Window | None = None
        while rows_read := list(islice(stream, WINDOW_ROWS)):
            cases = [self._prepare(row) for row in rows_read]
            self._find_gold(cases)
            window = self._start(cases)
            if under_way is not None:
                yield from self._finish(under_way)
            under_way = window
        if under_way is not None:
            yield from self._finish(under_way)

    def _prepare(self, row: Row) -> _Case:
        self.seen_field = self.seen_field or self._config.sql_field in row
        gold_sql = row.get(self._config.gold_field) if self._config.gold_field else None
        case = _Case(row, None, "", None, gold_sql if isinstance(gold_sql, str) and gold_sql.strip() else None, None)
        try:
            case.database = self._databases.find(row)
        except QueryError as error:
            case.failure = error
            if case.gold_sql is not None:
                case.gold = Gold("error", error.error_class, error.message)
            return case
        try:
            case.sql = self._admit(row.get(self._config.sql_field))
        except QueryError as error:
            case.failure = error
        return case

    def _admit(self, sql: Any) -> str:
        return admit(sql, dialect=self._dialect, max_bytes=self._config.limits.max_sql_bytes)

    def _find_gold(self, cases: list[_Case]) -> None:
        """Give each case its gold result: known, kept, or run now."""
        golds = self._golds
        unknown: dict[tuple[str, str], Task] = {}
        for case in cases:
            if case.database is None or case.gold_sql is None:
                continue
            key = (case.database.location, case.gold_sql)
            if key in golds:
                golds.move_to_end(key)
            elif key not in unknown:
                found = self._look_up(case.database.name, case.gold_sql)
                if found is not None:
                    golds[key] = found
                else:
                    self._ask_gold(case.database, case.gold_sql, unknown)
        for key, outcome in zip(unknown, self._pool.collect(self._pool.submit(unknown.values())), strict=True):
            golds[key] = gold_of(outcome)
        for case in cases:
            if case.gold is None:
                case.gold = (
                    MISSING
                    if case.database is None or case.gold_sql is None
                    else golds[(case.database.location, case.gold_sql)]
                )
        while len(golds) > GOLD_KEPT:
            golds.popitem(last=False)

    def _look_up(self, database: str, sql: str) -> Gold | None:
        if self._known is None:
            return None
        return self._known.find(gold_key(database, sql), with_rows=self._with_rows)

    def _ask_gold(self, database: Database, sql: str, unknown: dict[tuple[str, str], Task]) -> None:
        key = (database.location, sql)
        try:
            unknown[key] = ("gold", (database.location, self._admit(sql), self._with_rows))
        except QueryError as error:
            self._golds[key] = Gold("error", error.error_class, error.message)

    def _start(self, cases: list[_Case]) -> _Window:
        """Hand in the admitted statements of a window, equal ones once."""
        numbers: dict[tuple[str, str, str | None], int] = {}
        tasks: list[Task] = []
        places: list[int | None] = []
        for case in cases:
            if case.failure is not None or case.database is None or case.gold is None:
                places.append(None)
                continue
            key = (case.database.location, case.sql, case.gold_sql)
            place = numbers.setdefault(key, len(tasks))
            if place == len(tasks):
                gold = pack(case.gold, with_rows=self._with_rows) if case.gold.usable else None
                tasks.append(("answer", (case.database.location, case.sql, gold, case.gold_sql or "")))
            places.append(place)
        return _Window(cases, places, self._pool.collect(self._pool.submit(tasks)))

    def _finish(self, window: _Window) -> Iterator[Row]:
        """Yield the rows of a window as their answers come in."""
        if self._variants is not None:
            yield from self._finish_with_variants(window, self._variants)
            return
        answers: list[Answer] = []
        for case, place in zip(window.cases, window.places, strict=True):
            if place is not None and place == len(answers):
                answers.append(_answer_of(next(window.outcomes), case))
            yield _fill(case, _failed(case) if place is None else answers[place])

    def _finish_with_variants(self, window: _Window, store: VariantStore) -> Iterator[Row]:
        """Run what matches on the changed copies too, and yield the rows of a window."""
        outcomes = list(window.outcomes)
        answers = [
            _failed(case) if place is None else _answer_of(outcomes[place], case)
            for case, place in zip(window.cases, window.places, strict=True)
        ]
        asked = [
            self._pairs(case, store) if answer.match else [] for case, answer in zip(window.cases, answers, strict=True)
        ]
        pairs = dict.fromkeys(key for keys in asked for key in keys)
        found = self._pool.collect(self._pool.submit(("pair", key) for key in pairs))
        told = {
            key: None if isinstance(outcome, Killed) else outcome for key, outcome in zip(pairs, found, strict=True)
        }
        for case, answer, keys in zip(window.cases, answers, asked, strict=True):
            row = _fill(case, answer)
            verdicts = [told[key] for key in keys if told[key] is not None]
            row["variant_match"] = verdicts.count(True) if answer.match else None
            row["variant_count"] = len(verdicts) if answer.match else None
            yield row

    def _pairs(self, case: _Case, store: VariantStore) -> list[tuple[str, str, str]]:
        assert case.database is not None
        gold_sql = self._admit(case.gold_sql)
        return [(location, gold_sql, case.sql) for location in store.locations(case.database)]


def gold_of(outcome: Any) -> Gold:
    """Return the gold result that came back from a worker."""
    return Gold("timeout", "killed", outcome.message) if isinstance(outcome, Killed) else Gold(*outcome)


def _answer_of(outcome: Any, case: _Case) -> Answer:
    if isinstance(outcome, Killed):
        return Answer("killed", outcome.message, match=_mismatch(case))
    return Answer(*outcome)


def _failed(case: _Case) -> Answer:
    assert case.failure is not None
    return Answer(case.failure.error_class, case.failure.message, match=_mismatch(case))


def _mismatch(case: _Case) -> bool | None:
    """Return the verdict on a statement that failed: a mismatch, if there was gold to miss."""
    return False if case.gold is not None and case.gold.usable else None


def _fill(case: _Case, answer: Answer) -> Row:
    passed = not answer.error_class
    gold = case.gold or MISSING
    row = case.row
    row["exec_pass"] = passed
    row["exec_error_class"] = answer.error_class or None
    row["exec_error"] = answer.error or None
    row["gold_match"] = answer.match
    row["gold_status"] = gold.status
    row["gold_error"] = gold.error or None
    row["gold_unstable"] = gold.unstable
    row["result_signature"] = answer.signature or None
    row["row_count"] = answer.row_count if passed else None
    row["column_count"] = answer.column_count if passed else None
    row["empty_result"] = answer.row_count == 0 if passed else None
    row["truncated"] = answer.truncated
    row["used_clock"] = answer.used_clock
    row["used_random"] = answer.used_random
    row["exec_s"] = round(answer.seconds, 6)
    return row
