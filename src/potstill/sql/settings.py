"""The config section `execute`, as the SQL stages read it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from potstill.errors import ConfigError
from potstill.sql.databases import Databases
from potstill.sql.engines import check_installed, engine_class
from potstill.sql.limits import VM_STEPS_PER_SECOND, Limits
from potstill.sql.policy import Policy, make_policy
from potstill.sql.pool import Host, Pool


@dataclass(frozen=True, slots=True)
class ExecuteSettings:
    """What the stages `execute` and `audit_gold` need of the config section `execute`.

    Attributes:
        engine: Name of the engine.
        database: The file that all rows share, or None.
        database_dir: The folder with one database per row's id, or None.
        database_field: The row's field with that id.
        sql_field: The row's field with the statement.
        gold_field: The row's field with the gold query; None = there is none.
        limits: Limits of each statement.
        policy: The comparison policy.
        workers: Worker processes.
        on_bad_gold: keep, skip or fail.
        variants: Changed copies of each database that a match must hold on.
        variants_seed: Decides how the copies differ.
    """

    engine: str
    database: str | None
    database_dir: str | None
    database_field: str
    sql_field: str
    gold_field: str | None
    limits: Limits
    policy: Policy
    workers: int
    on_bad_gold: str
    variants: int
    variants_seed: int

    @property
    def dialect(self) -> str:
        """How sqlglot names the engine's SQL."""
        return str(engine_class(self.engine).dialect)

    def open_databases(self) -> Databases:
        """Return the lookup of databases.

        Raises:
            ConfigError: When the config names none, or one that does not exist, or the engine is not installed.
        """
        check_installed(self.engine)
        return Databases(
            suffixes=engine_class(self.engine).suffixes,
            database=self.database,
            folder=self.database_dir,
            field=self.database_field,
            sqlite=self.engine == "sqlite",
        )

    def open_pool(self, host: Host | None = None) -> Pool:
        """Return the worker processes; `host` is what the tasks of rows need."""
        return Pool(self.engine, self.limits, self.policy, workers=self.workers, host=host)


def read_settings(section: Mapping[str, Any]) -> ExecuteSettings:
    """Return the settings of a config section; a key left out has its default.

    Raises:
        ConfigError: For an engine, a preset or a knob that there is not.
    """

    def get(name: str, default: Any) -> Any:
        value = section.get(name)
        return default if value is None else value

    timeout_s = float(get("timeout_s", 5.0))
    if not 0 < timeout_s < math.inf:
        raise ConfigError(f"execute.timeout_s (--timeout): {timeout_s:g} is no time limit; give seconds above 0")
    clock = str(get("clock", Limits().clock))
    if not _is_time(clock):
        raise ConfigError(f"execute.clock (--clock): {clock!r} is no time; give YYYY-MM-DD HH:MM:SS, in UTC")
    plain = Limits()
    limits = Limits(
        timeout_s=timeout_s,
        kill_grace_s=float(get("kill_grace_s", plain.kill_grace_s)),
        max_vm_steps=int(get("max_vm_steps", timeout_s * VM_STEPS_PER_SECOND)),
        max_rows=int(get("max_rows", plain.max_rows)),
        max_result_bytes=int(get("max_result_bytes", plain.max_result_bytes)),
        max_value_bytes=int(get("max_value_bytes", plain.max_value_bytes)),
        max_sql_bytes=int(get("max_sql_bytes", plain.max_sql_bytes)),
        max_memory_bytes=int(get("max_memory_bytes", plain.max_memory_bytes)),
        clock=clock,
    )
    engine = get("engine", "sqlite")
    engine_class(engine)
    variants = int(get("variants", 0))
    if variants and engine != "sqlite":
        raise ConfigError(
            f"execute.variants: changed copies are made of sqlite databases, not of {engine}; set it to 0"
        )
    return ExecuteSettings(
        engine=engine,
        database=section.get("database"),
        database_dir=section.get("database_dir"),
        database_field=get("database_field", "db_id"),
        sql_field=get("sql_field", "sql"),
        gold_field=section.get("gold_field", "gold_sql"),
        limits=limits,
        policy=make_policy(section.get("comparison")),
        workers=int(get("workers", 2)),
        on_bad_gold=get("on_bad_gold", "keep"),
        variants=variants,
        variants_seed=int(get("variants_seed", 0)),
    )


def _is_time(text: str) -> bool:
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return True
