"""Split a file of lines into chunk files, and merge chunk files: the plain file work, without a config."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from potstill.errors import InputError
from potstill.readers import count_rows
from potstill.rows import open_binary, publish

_BLOCK = 1 << 20
#: Endings of a file of lines; what stands before them is the file's stem.
_ENDINGS = re.compile(r"(\.jsonl|\.ndjson|\.json|\.txt)?(\.gz|\.zst)?$")


def chunk_names(count: int) -> list[str]:
    """Return the names of N chunks: `0001` …, padded to four digits or more."""
    width = max(4, len(str(count)))
    return [f"{number:0{width}d}" for number in range(1, count + 1)]


def count_chunks(rows: int, rows_per_chunk: int) -> int:
    """Return how many chunks hold so many rows; at least one."""
    return max(1, -(-rows // rows_per_chunk))


def file_stem(path: Path) -> str:
    """Return a file's name without `.jsonl`, `.jsonl.gz` and the like."""
    return _ENDINGS.sub("", path.name)


def split_file(path: Path, output_dir: Path, *, chunks: int | None = None, rows: int | None = None) -> list[Path]:
    """Split a file into `<stem>_split_0001.jsonl` …, in order, sizes equal but for one line.

    Args:
        path: A file of lines, plain or packed.
        output_dir: The folder of the chunk files; it is made.
        chunks: How many chunks, or
        rows: how many lines in a chunk, at most.

    Returns:
        The files written.

    Raises:
        InputError: If the file cannot be read.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    lines = count_rows(path)
    count = chunks if chunks is not None else count_chunks(lines, rows or 1)
    size, larger = divmod(lines, count)
    written = []
    with open_binary(path) as stream:
        for number, name in enumerate(chunk_names(count)):
            target = output_dir / f"{file_stem(path)}_split_{name}.jsonl"
            with publish(target) as out:
                for line in itertools.islice(stream, size + (number < larger)):
                    out.write_line(line if line.endswith(b"\n") else line + b"\n")
            written.append(target)
    return written


class Merged(NamedTuple):
    """What `merge_files` wrote; `errors` is None when there was no error file."""

    rows: int
    output: Path
    error_rows: int
    errors: Path | None


def merge_files(paths: Sequence[Path], output: Path) -> Merged:
    """Merge chunk files into one, in order; error files go to one of their own.

    Args:
        paths: Files, in the order given, or folders, whose `.jsonl` files are taken in the order of the
            numbers in their names.
        output: The file to write; files named `…_error.jsonl` are merged into `<its stem>_error.jsonl`.

    Returns:
        The numbers of lines and the files written.

    Raises:
        InputError: If there is nothing to merge, or a path does not exist.
    """
    error_output = output.with_name(f"{file_stem(output)}_error.jsonl")
    ours = {output.resolve(), error_output.resolve()}
    files = [file for path in paths for file in _find_files(path) if file.resolve() not in ours]
    if not files:
        raise InputError(f"{', '.join(map(str, paths))}: no .jsonl file to merge")
    errors = [file for file in files if file_stem(file).endswith("_error")]
    answers = [file for file in files if file not in errors]
    rows = _concatenate(answers, output)
    error_rows = _concatenate(errors, error_output) if errors else 0
    return Merged(rows, output, error_rows, error_output if errors else None)


def _find_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise InputError(f"{path}: no such file or folder")
    found = [file for file in path.iterdir() if re.search(r"\.jsonl(\.gz|\.zst)?$", file.name) and file.is_file()]
    return sorted((file for file in found if not file.name.startswith(".")), key=lambda file: natural_key(file.name))


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Return a sort key that puts `part_10` after `part_9`."""
    return [(1, int(part), "") if part.isdigit() else (0, 0, part) for part in re.split(r"(\d+)", name)]


def _concatenate(files: Sequence[Path], output: Path) -> int:
    lines = 0
    with publish(output) as out:
        for file in files:
            last = b"\n"
            with open_binary(file) as stream:
                while block := stream.read(_BLOCK):
                    out.write_line(block)
                    lines += block.count(b"\n")
                    last = block[-1:]
            if last != b"\n":
                out.write_line(b"\n")
                lines += 1
    return lines
