"""What a row calls its database: all that a worker process needs of the lookup, so that it starts quickly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from potstill.sql.outcome import QueryError

#: Names whose databases are remembered.
MAX_REMEMBERED = 10_000


@dataclass(frozen=True, slots=True)
class Database:
    """A database that a row names.

    Attributes:
        name: What the row calls it: its `db_id`, or the file's name where all rows share one.
        location: What the engine opens.
    """

    name: str
    location: str


def name_of(row: Mapping[str, Any], field: str) -> str:
    """Return the name of a row's database.

    Raises:
        QueryError: `no_such_database` when the row names none.
    """
    name = row.get(field)
    if isinstance(name, int) and not isinstance(name, bool):
        return str(name)
    if not isinstance(name, str) or not name.strip():
        raise QueryError("no_such_database", f"the row names no database in its field {field!r}")
    return name
