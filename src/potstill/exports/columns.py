"""JSON rows to Parquet: the types are found on the first pass, so that the second can stream.

A JSON value has no declared type, and two rows may disagree. The type of a column is the smallest that holds all its
values: null < bool, null < int < float (as long as a float holds it), null < text, lists and objects by their parts.
Where values have no common type (a number here, a text there), the column holds each value as JSON text, and the
summary of the export names it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from potstill.records import Row, canonical_json
from potstill.rows import disk_errors, dumps, fsync_folder

Kind = Literal["null", "bool", "int", "long", "float", "text", "list", "object", "json"]

#: An object with more keys than this is a table of its own (keys are data): it is kept as JSON text.
_MOST_KEYS = 100
#: A batch ends at this many rows or bytes of JSON, whichever comes first: the same rows give the same row groups.
_BATCH_ROWS = 2000
_BATCH_BYTES = 16 << 20


@dataclass
class ColumnType:
    """The type of a column as far as it was seen."""

    kind: Kind = "null"
    item: ColumnType | None = None
    keys: dict[str, ColumnType] = field(default_factory=dict)

    def see(self, value: Any) -> None:
        """Widen the type so that it holds one more value."""
        kind = _kind_of(value)
        if kind == "null" or self.kind == "json":
            return
        if self.kind in {"null", kind} and kind in {"list", "object"}:
            self.kind = kind
            self._see_parts(value)
        else:
            self._widen(_common(self.kind, kind))

    def _see_parts(self, value: Any) -> None:
        if isinstance(value, list):
            self.item = self.item or ColumnType()
            for part in value:
                self.item.see(part)
            return
        for key, part in value.items():
            self.keys.setdefault(key, ColumnType()).see(part)
        if len(self.keys) > _MOST_KEYS:
            self._widen("json")

    def _widen(self, kind: Kind) -> None:
        self.kind = kind
        if kind == "json":
            self.item, self.keys = None, {}

    def arrow(self) -> Any:
        """Return the type for pyarrow."""
        import pyarrow

        if self.kind == "list":
            return pyarrow.list_((self.item or ColumnType()).arrow())
        # Parquet has no object without keys: where all are empty, they are text.
        if self.kind == "object" and self.keys:
            return pyarrow.struct([(key, part.arrow()) for key, part in sorted(self.keys.items())])
        plain = {"bool": "bool_", "int": "int64", "long": "int64", "float": "float64"}
        return getattr(pyarrow, plain.get(self.kind, "string"))()

    def find_json(self, name: str) -> list[str]:
        """Return the names of what is kept as JSON text, in this type or its parts."""
        if self.kind == "json":
            return [name]
        parts = (
            [(f"{name}[]", self.item)] if self.item else [(f"{name}.{key}", part) for key, part in self.keys.items()]
        )
        return [path for path_name, part in parts for path in part.find_json(path_name)]

    def fit(self, value: Any) -> Any:
        """Return a value as the column holds it."""
        if value is None:
            return None
        if self.kind == "json" or (self.kind == "object" and not self.keys):
            return canonical_json(value)
        if self.kind == "float":
            return float(value)
        if self.kind == "list":
            assert self.item is not None
            return [self.item.fit(part) for part in value]
        if self.kind == "object":
            return {key: part.fit(value.get(key)) for key, part in self.keys.items()}
        return value


def _kind_of(value: Any) -> Kind:
    match value:
        case None:
            return "null"
        case bool():
            return "bool"
        case int():
            # What a float cannot hold exactly must not be mixed with floats.
            small, whole = abs(value) <= 2**53, -(2**63) <= value < 2**63
            return "int" if small else "long" if whole else "json"
        case float():
            return "float"
        case str():
            return "text"
        case list():
            return "list"
        case _:
            return "object"


_COMMON: dict[frozenset[Kind], Kind] = {
    frozenset({"int", "float"}): "float",
    frozenset({"int", "long"}): "long",
}


def _common(left: Kind, right: Kind) -> Kind:
    if left in {"null", right}:
        return right
    both = frozenset({left, right})
    return _COMMON.get(both, "json")


class Columns:
    """The columns of a table, in the order in which they were first seen."""

    def __init__(self) -> None:
        self.types: dict[str, ColumnType] = {}

    def see(self, row: Row) -> None:
        """Widen the types so that they hold one more row."""
        for name, value in row.items():
            self.types.setdefault(name, ColumnType()).see(value)

    def as_json_text(self) -> list[str]:
        """Return the columns, and by dotted names the parts of columns, whose values had no common type."""
        return [path for name, column in self.types.items() for path in column.find_json(name)]

    def schema(self) -> Any:
        """Return the schema for pyarrow."""
        import pyarrow

        return pyarrow.schema([(name, column.arrow()) for name, column in self.types.items()])

    def fit(self, row: Row) -> Row:
        """Return a row as the table holds it."""
        return {name: column.fit(row.get(name)) for name, column in self.types.items()}


class ParquetWriter:
    """A Parquet file being written, in batches of rows."""

    def __init__(self, columns: Columns, writer: Any) -> None:
        self._columns, self._writer, self._schema = columns, writer, columns.schema()
        self._batch: list[Row] = []
        self._bytes = 0
        self.count = 0

    def write(self, row: Row) -> None:
        """Write one row."""
        self._batch.append(self._columns.fit(row))
        self._bytes += len(dumps(row))
        self.count += 1
        if len(self._batch) >= _BATCH_ROWS or self._bytes >= _BATCH_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write the rows of the open batch as one row group."""
        import pyarrow

        if self._batch:
            self._writer.write_table(pyarrow.Table.from_pylist(self._batch, schema=self._schema))
        self._batch, self._bytes = [], 0


@contextmanager
def publish_parquet(path: Path, columns: Columns, metadata: Mapping[str, str] | None = None) -> Iterator[ParquetWriter]:
    """Write a Parquet file that appears whole or not at all; the same rows give the same bytes.

    Args:
        path: The file to make.
        columns: The types of all its rows.
        metadata: Texts for the file's own key-value metadata.
    """
    import os

    import pyarrow.parquet

    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.uname().nodename}.{os.getpid()}.tmp")
    schema = columns.schema().with_metadata(dict(metadata or {}))
    try:
        with disk_errors(path), temporary.open("wb") as raw:
            with pyarrow.parquet.ParquetWriter(raw, schema, compression="zstd") as writer:
                out = ParquetWriter(columns, writer)
                yield out
                out.flush()
            raw.flush()
            os.fsync(raw.fileno())
        temporary.replace(path)
        fsync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)
