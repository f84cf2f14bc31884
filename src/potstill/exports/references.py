"""Files that training data must not repeat: benchmarks and test sets in the forms they are published in."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from potstill.errors import ConfigError, InputError
from potstill.records import Row
from potstill.rows import loads, open_binary, read_rows


class ReferenceRow(NamedTuple):
    """One entry of a reference file and its number, counted from 1."""

    number: int
    row: Row


def read_reference(path: Path) -> Iterator[ReferenceRow]:
    """Yield the entries of a reference file, by its ending.

    `.jsonl`, `.json` (a list, or an object that holds one), `.csv`, `.tsv`, `.parquet`; `.sql` (a statement a line,
    anything after a tab left out, as Spider's gold files have it) and `.txt` (a text a line); all but Parquet also
    packed as `.gz` or `.zst`.

    Raises:
        ConfigError: If the ending is none of these, or there is no such file.
        InputError: If the file is not what its ending says.
    """
    if not path.is_file():
        raise ConfigError(f"export.decontaminate.files: {path}: no such file")
    ending = Path(path.stem).suffix if path.suffix in {".gz", ".zst"} else path.suffix
    reader = _READERS.get(ending)
    if reader is None:
        raise ConfigError(f"export.decontaminate.files: {path}: cannot read {ending!r}; allowed: {', '.join(_READERS)}")
    yield from (ReferenceRow(number, row) for number, row in enumerate(reader(path), start=1))


def _read_jsonl(path: Path) -> Iterator[Row]:
    return read_rows(path)


def _read_json(path: Path) -> Iterator[Row]:
    with open_binary(path) as stream:
        try:
            value = loads(stream.read())
        except ValueError as error:
            raise InputError(f"{path}: not JSON ({error}); a file with one object a line must end in .jsonl") from error
    rows = value if isinstance(value, list) else _find_list(value)
    if rows is None:
        raise InputError(f"{path}: neither a list of objects nor an object that holds one")
    yield from (row if isinstance(row, dict) else {"text": row} for row in rows)


def _find_list(value: Any) -> list[Any] | None:
    if not isinstance(value, dict):
        return None
    return next((item for item in value.values() if isinstance(item, list)), None)


def _read_csv(path: Path, delimiter: str = ",") -> Iterator[Row]:
    with open_binary(path) as stream, io.TextIOWrapper(stream, encoding="utf-8-sig", newline="") as text:
        try:
            yield from csv.DictReader(text, delimiter=delimiter)
        except (csv.Error, UnicodeDecodeError) as error:
            raise InputError(f"{path}: not a table: {error}") from error


def _read_tsv(path: Path) -> Iterator[Row]:
    return _read_csv(path, delimiter="\t")


def _read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            for batch in table.iter_batches(batch_size=1000):
                yield from batch.to_pylist()
    except pyarrow.ArrowException as error:
        raise InputError(f"{path}: not Parquet: {error}") from error


def _read_lines(path: Path) -> Iterator[Row]:
    with open_binary(path) as stream:
        for line in stream:
            yield {"text": line.decode("utf-8", "replace").strip()}


def _read_statements(path: Path) -> Iterator[Row]:
    return ({"text": row["text"].partition("\t")[0]} for row in _read_lines(path))


_READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".parquet": _read_parquet,
    ".sql": _read_statements,
    ".txt": _read_lines,
}
