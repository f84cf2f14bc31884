"""Run each statement of a file on its database, and compare its result with that of the gold query.

This process reads and writes lines, watches the workers' clocks and looks databases up; everything that is done with
one row is done by the worker that runs its statement (`potstill.sql.executor`).
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from potstill.errors import InputError
from potstill.rows import loads, numbered_lines, parse_row, publish, read_rows
from potstill.sql.databases import Databases
from potstill.sql.evaluate import Gold
from potstill.sql.executor import RowSetup, Verdict, killed_gold, killed_row, statement_key
from potstill.sql.gold import GoldFile
from potstill.sql.lookup import Database
from potstill.sql.outcome import QueryError
from potstill.sql.pool import Host, Killed, Pool, Task
from potstill.sql.settings import ExecuteSettings, read_settings
from potstill.sql.variants import VariantStore


@dataclass(slots=True)
class ExecuteCounts:
    """What became of the rows of a file."""

    rows: int = 0
    exec_pass: int = 0
    gold_match: int = 0
    gold_mismatch: int = 0
    error_classes: Counter[str] = field(default_factory=Counter)
    gold_statuses: Counter[str] = field(default_factory=Counter)

    def add(self, verdict: Verdict, rows: int) -> None:
        """Count rows of one verdict."""
        self.rows += rows
        self.exec_pass += rows * verdict.passed
        self.gold_match += rows * (verdict.match is True)
        self.gold_mismatch += rows * (verdict.match is False)
        self.gold_statuses[verdict.gold_status] += rows
        if not verdict.passed:
            self.error_classes[verdict.error_class] += rows


def execute_rows(
    input: Path,
    output: Path,
    *,
    settings: dict[str, Any],
    gold_audit: Path | None = None,
    variants: Path | None = None,
) -> ExecuteCounts:
    """Execute a file of rows.

    Args:
        input: Rows with a statement each.
        output: The same rows in the same order with the fields of this stage.
        settings: The config section `execute`.
        gold_audit: The run's gold results; None = gold is run here, with the same code.
        variants: The run's changed copies of the databases, as `make_variants` listed them; None = they are made here in a
            scratch folder, if the settings ask for any.

    Returns:
        Counts.

    Raises:
        ConfigError: When the databases are not where the config says.
        InputError: When no row has the field with the statement.
    """
    config = read_settings(settings)
    verdicts: Counter[tuple[Any, ...]] = Counter()
    with ExitStack() as stack:
        databases = stack.enter_context(config.open_databases())
        if gold_audit is not None:
            GoldFile(gold_audit).close()  # what is wrong with it is said here, not by a worker
        store = stack.enter_context(_open_variants(config, variants)) if config.variants else None
        parent = _Parent(_make_setup(config, databases, input, gold_audit), databases, store)
        pool = stack.enter_context(config.open_pool(parent.host()))
        out = stack.enter_context(publish(output))
        for line, verdict in parent.execute(pool, numbered_lines(input)):
            verdicts[verdict] += 1
            out.write_line(line)
        if verdicts and not any(Verdict(*verdict).has_field for verdict in verdicts):
            raise InputError(
                f"{input}: no row has the field {config.sql_field!r}; run `potstill clean` first, "
                "or name the field with the statement (execute.sql_field, --sql-field)"
            )
        if gold_audit is None and databases.shared is None and _all_homeless(verdicts):
            _check_field(input, config.database_field)
    counts = ExecuteCounts()
    for verdict, rows in verdicts.items():
        counts.add(Verdict(*verdict), rows)
    return counts


def _all_homeless(verdicts: Counter[tuple[Any, ...]]) -> bool:
    return bool(verdicts) and all(Verdict(*verdict).error_class == "no_such_database" for verdict in verdicts)


def _check_field(input: Path, name: str) -> None:
    """Raise where no row says which database is its own: it is the field that is wrong, not the rows."""
    if not any(row.get(name) is not None for row in read_rows(input)):
        raise InputError(
            f"{input}: no row has the field {name!r}; name the field with the database's id "
            "(execute.database_field, --database-field), or give the one database of all rows (--database)"
        )


@contextmanager
def _open_variants(config: ExecuteSettings, listed: Path | None) -> Iterator[VariantStore]:
    """Yield the changed copies: those that were made before, or new ones that go away in the end."""
    if listed is not None:
        known = loads(listed.read_bytes())["databases"]
        yield VariantStore(listed.parent, count=config.variants, seed=config.variants_seed, known=known)
        return
    with tempfile.TemporaryDirectory(prefix="potstill-variants-", ignore_cleanup_errors=True) as folder:
        yield VariantStore(Path(folder), count=config.variants, seed=config.variants_seed)


class _Parent:
    """This side of the rows that the workers execute."""

    def __init__(self, setup: RowSetup, databases: Databases, variants: VariantStore | None) -> None:
        self._setup = setup
        self._databases = databases
        self._variants = variants

    def host(self) -> Host:
        """Return what the pool is to know."""
        return Host(asdict(self._setup), self._tell, self._key)

    def _tell(self, what: str, value: Any) -> Any:
        """Answer a worker: where a database is, or where its changed copies are."""
        if what == "variants":
            assert self._variants is not None
            return self._variants.locations(Database(*value))
        try:
            database = self._databases.find({self._setup.database_field: value})
        except QueryError as error:
            return error.error_class, error.message
        return "", database.name, database.location

    def _key(self, task: Task, phase: int) -> bytes:
        line, number = task[1]
        return statement_key(phase, parse_row(line, self._setup.source, number), self._setup)

    def execute(self, pool: Pool, lines: Iterable[tuple[int, bytes]]) -> Iterator[tuple[bytes, tuple[Any, ...]]]:
        """Yield the new line and the verdict of each row.

        Raises:
            InputError: For a line that is no row.
        """
        tasks: Iterator[Task] = (("row", (line, number)) for number, line in lines)
        for (_, (line, number)), outcome in pool.map(tasks):
            if isinstance(outcome, str):
                raise InputError(outcome)
            if isinstance(outcome, Killed):
                yield killed_row(line, number, outcome.message, self._setup)
            else:
                yield outcome


def _make_setup(config: ExecuteSettings, databases: Databases, source: Path, gold_audit: Path | None) -> RowSetup:
    shared = databases.shared
    return RowSetup(
        source=str(source),
        dialect=config.dialect,
        sql_field=config.sql_field,
        gold_field=config.gold_field,
        database_field=config.database_field,
        shared=None if shared is None else (shared.name, shared.location),
        gold_audit=None if gold_audit is None else str(gold_audit.absolute()),
        variants=bool(config.variants),
        max_sql_bytes=config.limits.max_sql_bytes,
    )


def gold_of(outcome: Any) -> Gold:
    """Return the gold result that came back from a worker."""
    return killed_gold(outcome.message) if isinstance(outcome, Killed) else Gold(*outcome)
