"""The engines that statements run on, one file each.

A new engine is one more module here with a class that does what `Engine` says, and one more line in `ENGINES`. It
runs inside a worker process, which is killed when a statement outlives its limits, and is never shared between
threads.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from typing import Any, ClassVar, Protocol, cast

from potstill.errors import ConfigError
from potstill.sql.limits import Limits
from potstill.sql.outcome import Result


class Engine(Protocol):
    """One kind of database."""

    #: How sqlglot names the engine's SQL.
    dialect: ClassVar[str]
    #: Endings of the engine's database files, in the order in which they are looked for; empty for a server.
    suffixes: ClassVar[tuple[str, ...]]
    #: Whether `now` is always `Limits.clock`; else a result that depends on it holds for the moment only.
    pinned: ClassVar[bool]

    def __init__(self, limits: Limits) -> None:
        """Set up; called once in each worker process."""

    def run(self, database: str, sql: str, *, other_order: bool = False) -> Result:
        """Run one statement that was admitted and return all its rows, its cells None, int, float, str or bytes.

        Args:
            database: What the lookup on the other side of the pipe returned: a path with its way to open it, or a name.
            sql: The statement.
            other_order: True = read unordered rows in another order, where the engine can: what then changes in a
                result was left to chance.

        Raises:
            QueryError: When it does not come to its end within the limits.
        """

    def release(self) -> None:
        """Let go of locks that are held from one statement to the next: nothing may run for a while."""

    def close(self) -> None:
        """Close all connections."""


#: Name in the config -> module and class.
ENGINES = {
    "sqlite": "potstill.sql.engines.sqlite:SqliteEngine",
    "duckdb": "potstill.sql.engines.duckdb:DuckdbEngine",
    "postgresql": "potstill.sql.engines.postgresql:PostgresqlEngine",
}


def engine_class(name: str) -> Any:
    """Return the class of an engine.

    Raises:
        ConfigError: For a name that there is not.
    """
    if name not in ENGINES:
        raise ConfigError(f"execute.engine: no engine {name!r}; engines are {', '.join(ENGINES)}")
    module, _, attribute = ENGINES[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


#: Engines that need a package of their own: its module, and the extra that installs it.
_PACKAGES = {"postgresql": ("psycopg", "postgresql")}


def check_installed(name: str) -> None:
    """Check that what an engine needs is there, before a worker process dies of it.

    Raises:
        ConfigError: Saying what to install.
    """
    module, extra = _PACKAGES.get(name, (None, None))
    if module is not None and importlib.util.find_spec(module) is None:
        raise ConfigError(
            f"execute.engine: {name} needs the package {module}, which is not installed here ({sys.prefix}); "
            f"pip install 'potstill[{extra}]'"
        )


def make_engine(name: str, limits: Limits) -> Engine:
    """Return a new engine."""
    return cast(Engine, engine_class(name)(limits))
