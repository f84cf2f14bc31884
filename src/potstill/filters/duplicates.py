"""`filter.duplicates`: at most so many kept rows with the same statement on the same database."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from potstill.errors import ConfigError
from potstill.records import Row

REASON = "duplicate"
KINDS = ("exact", "sql", "template")


class DuplicateCap:
    """Counts what was kept, in the order of the rows: the first ones stay.

    A job sees its own chunk; the rows of all chunks are seen where they are merged. To apply the same cap there once
    more, in the same order, gives exactly what one pass over everything would have given.
    """

    def __init__(self, settings: Mapping[str, Any], *, dialect: str = "sqlite") -> None:
        self._by = settings.get("by") or "sql"
        self._keep = settings.get("keep", 1)
        self._database_field = settings.get("database_field") or "db_id"
        self._dialect = dialect
        self._counts: dict[bytes, int] = {}
        if self._by not in KINDS:
            raise ConfigError(f"filter.duplicates.by: found {self._by!r}, allowed are {', '.join(KINDS)}")

    def key(self, row: Row) -> bytes | None:
        """Return what the rows that repeat each other share; None where there is nothing to compare."""
        text = row.get("sql")
        if not isinstance(text, str):
            text = row.get("cleaned", row.get("generation"))
        if not isinstance(text, str) or not text:
            return None
        statement = _statement_key(text, self._by, self._dialect) if "sql" in row else text.strip()
        content = f"{row.get(self._database_field)}\0{statement}"
        return hashlib.blake2b(content.encode("utf-8", "surrogatepass"), digest_size=12).digest()

    def admit(self, row: Row) -> bool:
        """Count a row that would be kept; False when there are enough of its like already."""
        key = self.key(row)
        if key is None:
            return True
        count = self._counts.get(key, 0)
        if count >= self._keep:
            return False
        self._counts[key] = count + 1
        return True


def _statement_key(sql: str, by: Any, dialect: str) -> str:
    if by == "exact":
        return sql.strip()
    from potstill.sql.quality import statement_key

    return statement_key(sql, by=by, dialect=dialect)
