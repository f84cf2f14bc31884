"""Run every gold query before a token is spent: twice, the second time with unordered rows read the other way round.

Broken gold must never count against a teacher. The audit says of each distinct (database, gold query) whether it can
judge an answer, and keeps its result, so that no job that executes answers runs gold again.
"""

from __future__ import annotations

import sqlite3
import tempfile
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from potstill.errors import ConfigError, InputError
from potstill.records import Row
from potstill.rows import dumps, publish, publish_json, read_rows
from potstill.sql.admission import admit
from potstill.sql.databases import Databases, shared_name
from potstill.sql.engines import engine_class
from potstill.sql.evaluate import USABLE_STATUSES, Gold
from potstill.sql.gold import GoldFile, gold_key, to_line
from potstill.sql.outcome import QueryError
from potstill.sql.pool import Pool, Task
from potstill.sql.settings import ExecuteSettings, read_settings
from potstill.stages.execute import gold_of

#: Bad gold queries that are quoted in the summary, and in the error of `on_bad_gold: fail`.
MAX_EXAMPLES = 20
#: Of these, rows without a gold query: one is much like another.
MAX_MISSING_EXAMPLES = 3
_SHOWN_IN_ERROR = 3


@dataclass(slots=True)
class AuditCounts:
    """What the audit found.

    Attributes:
        rows: Rows read.
        distinct: Distinct gold queries.
        statuses: Status -> distinct gold queries; `missing` counts rows.
        unstable: Usable gold queries of whose result something was left to chance.
        databases: Database -> status -> distinct gold queries; `missing` counts rows.
        examples: Some of the bad ones.
        homeless: Distinct gold queries whose database was not found, or could not be opened.
    """

    rows: int = 0
    distinct: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    unstable: int = 0
    databases: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    examples: list[Row] = field(default_factory=list)
    homeless: int = 0

    @property
    def bad(self) -> int:
        """How many gold queries cannot judge an answer, rows without one included."""
        return sum(count for status, count in self.statuses.items() if status not in USABLE_STATUSES)

    def add(self, database: str, sql: str, gold: Gold) -> None:
        """Count one distinct gold query."""
        self.distinct += 1
        self.statuses[gold.status] += 1
        self.databases[database][gold.status] += 1
        self.unstable += gold.usable and gold.unstable
        self.homeless += gold.error_class == "no_such_database"
        if not gold.usable and len(self.examples) < MAX_EXAMPLES:
            self.examples.append(
                {"database": database, "gold_sql": sql, "gold_status": gold.status, "error": gold.error}
            )

    def add_missing(self, database: str, row: Row, gold_field: str | None) -> None:
        """Count a row without a gold query."""
        self.statuses["missing"] += 1
        self.databases[database]["missing"] += 1
        if gold_field and self.statuses["missing"] <= MAX_MISSING_EXAMPLES and len(self.examples) < MAX_EXAMPLES:
            self.examples.append(
                {
                    "database": database,
                    "sample_id": row.get("sample_id"),
                    "gold_status": "missing",
                    "error": _explain_missing(row, gold_field),
                }
            )


class _Query(NamedTuple):
    key: str
    database: str
    sql: str


def audit_gold(
    chunks: Iterable[Path], output_jsonl: Path, output_json: Path, *, settings: dict[str, Any]
) -> AuditCounts:
    """Audit the gold queries of all chunks.

    Args:
        chunks: The prepared chunks.
        output_jsonl: One line per distinct gold query, sorted by key; `potstill.sql.gold.GoldFile` reads it.
        output_json: Counts, also per database, and examples of bad gold.
        settings: The config section `execute`.

    Returns:
        Counts.

    Raises:
        ConfigError: When the databases are not where the config says.
        ConfigError: When not one row leads to a database.
        InputError: With `on_bad_gold: fail`, when a gold query cannot judge an answer.
    """
    config = read_settings(settings)
    with ExitStack() as stack:
        databases = stack.enter_context(config.open_databases())
        pool = stack.enter_context(config.open_pool())
        store = stack.enter_context(_Store())
        audit = _Audit(config, databases, pool, store)
        audit.run(row for chunk in chunks for row in read_rows(chunk))
        if audit.counts.rows:
            _check_databases(audit, config)
        if config.on_bad_gold == "fail" and audit.counts.bad:
            raise InputError(_explain_bad(audit.counts, config))
        with publish(output_jsonl) as out:
            for line in store.lines():
                out.write_line(line)
    publish_json(output_json, _summary(audit.counts, config))
    return audit.counts


class GoldCheck:
    """Tells of a row whether its gold was found bad, for the stage that asks teachers; a context manager.

    Args:
        gold_audit: The run's `gold_audit.jsonl`.
        settings: The config section `execute`.
    """

    def __init__(self, gold_audit: Path, *, settings: dict[str, Any]) -> None:
        self._config = read_settings(settings)
        self._golds = GoldFile(gold_audit)

    def __enter__(self) -> GoldCheck:
        return self

    def __exit__(self, *_: object) -> None:
        self._golds.close()

    def skips(self, row: Row) -> bool:
        """Whether the row must not be asked: `on_bad_gold: skip`, and its gold cannot judge an answer."""
        return self._config.on_bad_gold == "skip" and self.status(row) not in USABLE_STATUSES

    def status(self, row: Row) -> str:
        """Return the row's gold status."""
        sql = gold_sql_of(row, self._config)
        if sql is None:
            return "missing"
        gold = self._golds.find(gold_key(database_name(row, self._config), sql))
        return gold.status if gold is not None else "missing"


def gold_sql_of(row: Row, config: ExecuteSettings) -> str | None:
    """Return the row's gold query, or None where it has none."""
    sql = row.get(config.gold_field) if config.gold_field else None
    return sql if isinstance(sql, str) and sql.strip() else None


def database_name(row: Row, config: ExecuteSettings) -> str:
    """Return what a row calls its database, as the audit's keys have it."""
    if config.database is None or "{db_id}" in config.database:
        return str(row.get(config.database_field))
    return shared_name(config.database, is_server=not engine_class(config.engine).suffixes)


class _Store:
    """The lines of the audit until they are written: on disk, each key once, in the order of the keys."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="potstill-gold-", ignore_cleanup_errors=True)
        self._connection = sqlite3.connect(Path(self._folder.name) / "gold.db", isolation_level=None)
        for statement in ("PRAGMA journal_mode=OFF", "PRAGMA synchronous=OFF", "BEGIN"):
            self._connection.execute(statement)
        self._connection.execute("CREATE TABLE gold (key TEXT PRIMARY KEY, line BLOB) WITHOUT ROWID")

    def __enter__(self) -> _Store:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()
        self._folder.cleanup()

    def is_new(self, key: str) -> bool:
        """Take note of a key; return whether it was not there before."""
        return self._connection.execute("INSERT OR IGNORE INTO gold VALUES (?, NULL)", (key,)).rowcount == 1

    def put(self, key: str, line: bytes) -> None:
        """Keep a line."""
        self._connection.execute("UPDATE gold SET line = ? WHERE key = ?", (line, key))

    def lines(self) -> Iterator[bytes]:
        """Yield all lines, sorted by key."""
        with closing(self._connection.execute("SELECT line FROM gold ORDER BY key")) as cursor:
            for (line,) in cursor:
                yield line


class _Audit:
    def __init__(self, config: ExecuteSettings, databases: Databases, pool: Pool, store: _Store) -> None:
        self._config = config
        self._databases = databases
        self._pool = pool
        self._store = store
        self._dialect = config.dialect
        self._asked: deque[_Query] = deque()
        self.counts = AuditCounts()
        self.has_databases = False

    def run(self, rows: Iterable[Row]) -> None:
        """Run the gold query of each row, each distinct one once."""
        for _, outcome in self._pool.map(self._tasks(rows)):
            self._keep(self._asked.popleft(), gold_of(outcome))

    def _tasks(self, rows: Iterable[Row]) -> Iterator[Task]:
        for row in rows:
            self.counts.rows += 1
            sql = gold_sql_of(row, self._config)
            name = database_name(row, self._config)
            self.has_databases |= self._databases.shared is not None or row.get(self._config.database_field) is not None
            if sql is None:
                self.counts.add_missing(name, row, self._config.gold_field)
                continue
            query = _Query(gold_key(name, sql), name, sql)
            if not self._store.is_new(query.key):
                continue
            try:
                admitted = admit(sql, dialect=self._dialect, max_bytes=self._config.limits.max_sql_bytes)
                task: Task = ("gold", (self._databases.find(row).location, admitted))
            except QueryError as error:
                self._keep(query, Gold("error", error.error_class, error.message))
                continue
            self._asked.append(query)
            yield task

    def _keep(self, query: _Query, gold: Gold) -> None:
        self.counts.add(query.database, query.sql, gold)
        self._store.put(query.key, dumps(to_line(*query, gold)))


def _check_databases(audit: _Audit, config: ExecuteSettings) -> None:
    """Raise where not one row leads to a database: the rows are not to blame, and no token is to be spent.

    Raises:
        ConfigError: Naming the key, and what was found.
    """
    counts = audit.counts
    if not audit.has_databases:
        raise ConfigError(
            f"execute.database_field: no row has the field {config.database_field!r}; name the field with the "
            "database's id, or give the one database of all rows as execute.database"
        )
    if counts.distinct and counts.homeless == counts.distinct and not counts.statuses["missing"]:
        error = next(example["error"] for example in counts.examples if example["gold_status"] != "missing")
        where = "database_dir" if config.database_dir is not None else "database"
        raise ConfigError(
            f"execute.{where}: not one gold query could be run: {error}; mend it before anything is asked"
        )


def _explain_missing(row: Row, gold_field: str) -> str:
    if gold_field not in row:
        return f"the row has no field {gold_field!r}"
    value = row[gold_field]
    if value is None or isinstance(value, str):
        return f"{gold_field!r} is {'null' if value is None else 'empty'}"
    return f"{gold_field!r} is no text but {type(value).__name__}"


def _summary(counts: AuditCounts, config: ExecuteSettings) -> dict[str, Any]:
    return {
        "rows": counts.rows,
        "distinct": counts.distinct,
        "statuses": dict(sorted(counts.statuses.items())),
        "bad": counts.bad,
        "unstable": counts.unstable,
        "databases": {name: dict(sorted(statuses.items())) for name, statuses in sorted(counts.databases.items())},
        "bad_examples": counts.examples,
        "engine": config.engine,
        "comparison": config.policy.as_dict(),
        "limits": asdict(config.limits),
    }


def _explain_bad(counts: AuditCounts, config: ExecuteSettings) -> str:
    shown = "; ".join(
        f"{example['database']}: {example['gold_status']} ({example['error']}): "
        f"{example['gold_sql'][:120] if 'gold_sql' in example else 'sample_id ' + str(example['sample_id'])}"
        for example in counts.examples[:_SHOWN_IN_ERROR]
    )
    statuses = ", ".join(
        f"{status} {count}" for status, count in sorted(counts.statuses.items()) if status not in USABLE_STATUSES
    )
    return (
        f"gold audit: {counts.bad} gold queries (field {config.gold_field!r}) cannot judge an answer: {statuses}. "
        f"{shown + '. ' if shown else ''}Mend them, or set execute.on_bad_gold to keep or skip"
    )
