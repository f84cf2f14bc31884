"""The first pass: what is remembered of every row (some 60 bytes), so that the second can stream."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from potstill.errors import InputError
from potstill.exports.split import Hashes, hash64
from potstill.records import Row
from potstill.rows import read_lines

#: Classes of execution errors that say something about our limits or our files, not about the statement.
OUR_CLASSES = frozenset({"timeout", "row_limit", "too_big", "out_of_memory", "killed", "no_such_database"})

#: The split of a row that names none itself.
NO_SPLIT = 255


class Verdict(IntEnum):
    """What the verifier said about a row, as far as preference data may use it."""

    UNKNOWN = 0
    GOOD = 1
    WRONG = 2
    ERROR = 3


class Located(NamedTuple):
    """A row and where its line begins."""

    offset: int
    row: Row


def judge_row(row: Row, kept: bool) -> Verdict:
    """Return the verifier's word on a row.

    Good is a kept row that matches gold, or one that executes where there is no usable gold. Wrong executes and does
    not match, on the database or on a changed copy of it. An error is a statement that fails by its own fault: one that
    ran into our limits proves nothing.
    """
    match, passed = row.get("gold_match"), row.get("exec_pass")
    if passed is False:
        return Verdict.UNKNOWN if row.get("exec_error_class") in OUR_CLASSES else Verdict.ERROR
    if passed is not True:
        return Verdict.UNKNOWN
    if match is False or row.get("variant_match") is False:
        return Verdict.WRONG
    return Verdict.GOOD if kept else Verdict.UNKNOWN


def iter_located(path: Path) -> Iterator[Located]:
    """Yield the rows of a file with the place of each.

    Raises:
        InputError: If a line is not a JSON object.
    """
    offset = 0
    for line, row in read_lines(path):
        if row is not None:
            yield Located(offset, row)
        offset += len(line)


@dataclass
class RowIndex:
    """Columns with one number per row, over all files in their order.

    Attributes:
        files: The files, and whether their rows are kept ones.
        starts: The position of each file's first row.
        limits: One column per entry of `export.limits`.
    """

    files: Sequence[tuple[Path, bool]]
    starts: list[int] = field(default_factory=list)
    offset: array[int] = field(default_factory=lambda: array("Q"))
    sample: array[int] = field(default_factory=lambda: array("Q"))
    itself: array[int] = field(default_factory=lambda: array("Q"))
    prompt: array[int] = field(default_factory=lambda: array("Q"))
    group: array[int] = field(default_factory=lambda: array("Q"))
    verdict: array[int] = field(default_factory=lambda: array("B"))
    kept: array[int] = field(default_factory=lambda: array("B"))
    usable: array[int] = field(default_factory=lambda: array("B"))
    given_split: array[int] = field(default_factory=lambda: array("B"))
    limits: list[array[int]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.offset)

    def add_identity(self, located: Located, file_number: int) -> None:
        """Note where a row is, which sample it answers, and what the verifier said.

        Raises:
            InputError: If the row has no `sample_id`.
        """
        row, kept = located.row, self.files[file_number][1]
        sample_id, sample_index = row.get("sample_id"), row.get("sample_index", 0)
        if not isinstance(sample_id, str):
            raise InputError(f"{self.files[file_number][0]}: byte {located.offset}: a row without `sample_id`")
        self.offset.append(located.offset)
        self.sample.append(hash64(sample_id))
        self.itself.append(hash64(f"{sample_id}\x1f{sample_index}\x1f{row.get('model')}"))
        self.verdict.append(judge_row(row, kept))
        self.kept.append(kept)

    def column(self, name: str) -> Hashes:
        """Return a column as a numpy array that shares its memory."""
        return np.frombuffer(getattr(self, name), dtype=np.uint64) if len(self) else np.empty(0, dtype=np.uint64)

    def flags(self, name: str) -> Any:
        """Return a column of small numbers as a numpy array that shares its memory."""
        return np.frombuffer(getattr(self, name), dtype=np.uint8) if len(self) else np.empty(0, dtype=np.uint8)

    def file_of(self, position: int) -> int:
        """Return the number of the file that holds a position."""
        return int(np.searchsorted(self.starts, position, side="right")) - 1
