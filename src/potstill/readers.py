"""Read a user's input: JSONL (plain, gzip, zstd), CSV and Parquet, one file, a list or a glob.

A line that cannot be used is a value, not an exception: it is written out with its reason, and the rest goes on.
"""

from __future__ import annotations

import csv
import datetime
import decimal
import glob
import io
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from potstill.errors import InputError
from potstill.records import Row
from potstill.rows import loads, open_binary

#: What an input file's name may end in.
FORMATS = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".json", ".ndjson", ".csv", ".parquet")


class InputLine(NamedTuple):
    """One line of an input file: a row, or the reason why there is none."""

    file: str
    number: int
    row: Row | None
    reason: str = ""


def expand_inputs(patterns: str | Sequence[str]) -> list[Path]:
    """Return the files that paths and globs name, each glob's in sorted order.

    Raises:
        InputError: If one names no file, or a file of a kind that is not read.
    """
    files: list[Path] = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        path = Path(pattern)
        found = [path] if path.is_file() else [Path(name) for name in sorted(glob.glob(pattern, recursive=True))]  # noqa: PTH207 - patterns are text, absolute or not
        found = [name for name in found if name.is_file()]
        if not found:
            raise InputError(f"input.path {pattern}: no such file; paths are relative to {Path.cwd()}")
        files.extend(found)
    for path in files:
        if not path.name.endswith(FORMATS):
            raise InputError(
                f"input.path {path}: this kind of file is not read; allowed endings are {', '.join(FORMATS)}"
            )
    return files


def read_input(path: Path, max_line_bytes: int) -> Iterator[InputLine]:
    """Yield the lines of one input file, numbered from 1 (CSV: with the header as line 1; Parquet: rows).

    Args:
        path: The file, of one of `FORMATS`.
        max_line_bytes: A longer line is a bad line; it is never held whole in memory.

    Raises:
        InputError: If the file cannot be read on, such as a damaged archive or Parquet file.
    """
    reader = {".csv": _read_csv, ".parquet": _read_parquet}.get(path.suffix, _read_jsonl)
    try:
        yield from reader(path, max_line_bytes)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read to its end: {error}") from error
    except Exception as error:
        # zstandard and pyarrow have error classes of their own; importing them here would cost every start.
        if type(error).__module__.partition(".")[0] not in {"zstd", "zstandard", "pyarrow"}:
            raise
        raise InputError(f"{path}: cannot be read to its end: {error}") from error


def count_rows(path: Path) -> int:
    """Return the number of lines of an input file, fast: for CSV and Parquet its rows."""
    if path.suffix == ".parquet":
        import pyarrow.parquet

        return int(pyarrow.parquet.read_metadata(path).num_rows)
    if path.suffix == ".csv":
        return sum(1 for _ in _read_csv(path, 1 << 30))
    lines, last = 0, b"\n"
    with open_binary(path) as stream:
        while block := stream.read(1 << 20):
            lines += block.count(b"\n")
            last = block[-1:]
    return lines + (last != b"\n")


def _read_jsonl(path: Path, max_line_bytes: int) -> Iterator[InputLine]:
    with open_binary(path) as stream:
        for number, line in enumerate(_bounded_lines(stream, max_line_bytes), start=1):
            if line is None:
                yield InputLine(str(path), number, None, f"line longer than prepare.max_line_bytes ({max_line_bytes})")
                continue
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line.strip():
                yield _parse_line(str(path), number, line)


def _bounded_lines(stream: IO[bytes], limit: int) -> Iterator[bytes | None]:
    """Yield lines; None for one that is longer than the limit, whose rest is skipped unread."""
    while line := stream.readline(limit + 1):
        if len(line) <= limit or line.endswith(b"\n"):
            yield line
            continue
        while (rest := stream.readline(1 << 20)) and not rest.endswith(b"\n"):
            pass
        yield None


def _parse_line(file: str, number: int, line: bytes) -> InputLine:
    if b"\0" in line:
        return InputLine(file, number, None, "a NUL byte")
    try:
        value = loads(line.decode())
    except UnicodeDecodeError as error:
        return InputLine(file, number, None, f"not UTF-8 (byte {error.start + 1} of the line)")
    except RecursionError:
        return InputLine(file, number, None, "nested too deeply")
    except ValueError as error:
        return InputLine(file, number, None, f"not JSON: {error}")
    if not isinstance(value, dict):
        return InputLine(file, number, None, f"not a JSON object but {type(value).__name__}")
    return InputLine(file, number, value)


def _read_csv(path: Path, max_line_bytes: int) -> Iterator[InputLine]:
    csv.field_size_limit(max_line_bytes)
    with (
        open_binary(path) as raw,
        io.TextIOWrapper(raw, encoding="utf-8-sig", newline="", errors="surrogateescape") as text,
    ):
        reader = csv.DictReader(text, strict=True)
        while True:
            try:
                record = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield InputLine(str(path), reader.line_num, None, f"not CSV: {error}")
                continue
            yield _check_record(str(path), reader.line_num, record, len(reader.fieldnames or ()))


def _check_record(file: str, number: int, record: dict[Any, Any], width: int) -> InputLine:
    if None in record or None in record.values():
        found = width + len(record.get(None, ())) if None in record else sum(v is not None for v in record.values())
        return InputLine(file, number, None, f"{found} fields where the header has {width}")
    if any("\0" in value for value in record.values()):
        return InputLine(file, number, None, "a NUL byte")
    if any(not value.isascii() and _is_escaped(value) for value in record.values()):
        return InputLine(file, number, None, "not UTF-8")
    return InputLine(file, number, record)


def _is_escaped(text: str) -> bool:
    """Say whether decoding met bytes that are not UTF-8 (`surrogateescape` turned them into lone surrogates)."""
    return any("\udc80" <= char <= "\udcff" for char in text)


def _read_parquet(path: Path, max_line_bytes: int) -> Iterator[InputLine]:
    import pyarrow.parquet

    number = 0
    with pyarrow.parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=1000):
            for record in batch.to_pylist():
                number += 1
                try:
                    yield InputLine(str(path), number, {key: to_json(value) for key, value in record.items()})
                except TypeError as error:
                    yield InputLine(str(path), number, None, str(error))


def to_json(value: Any) -> Any:
    """Return the JSON form of a value of Parquet: times in ISO 8601, decimals as text.

    Raises:
        TypeError: For bytes and what else JSON has not.
    """
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, datetime.datetime | datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, decimal.Decimal):
        return str(value)
    if isinstance(value, dict):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, bytes):
        return [to_json(item) for item in value]
    raise TypeError(f"a value of type {type(value).__name__} is not JSON")
