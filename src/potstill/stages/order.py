"""Several files of rows, each in the order of the input, side by side in that order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from potstill.errors import ConservationError
from potstill.records import Row
from potstill.rows import read_rows


def rows_in_order(prepared: Iterable[Path], files: Sequence[Path]) -> Iterator[list[list[Row]]]:
    """Yield, for each prepared row that stands in any of some files, its rows in each of them; memory stays flat.

    Args:
        prepared: The prepared chunks, in order.
        files: Files with any of the prepared rows, in the order of the input, those of one row on adjacent lines.

    Raises:
        ConservationError: If a file holds a row that was not prepared, or holds it out of order.
    """
    streams = [_Stream(path) for path in files]
    for chunk in prepared:
        for row in read_rows(chunk):
            found = [stream.take(row["sample_id"]) for stream in streams]
            if any(found):
                yield found
    for stream in streams:
        stream.check_end()


class _Stream:
    """A file of rows, of which those of one prepared row after the other are taken."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows = read_rows(path)
        self._head = next(self._rows, None)

    def take(self, sample_id: str) -> list[Row]:
        """Return the rows of this sample_id if they are next."""
        found = []
        while self._head is not None and self._head["sample_id"] == sample_id:
            found.append(self._head)
            self._head = next(self._rows, None)
        return found

    def check_end(self) -> None:
        """Refuse a file of which rows are left."""
        if self._head is not None:
            raise ConservationError(
                f"{self._path}: the row {self._head['sample_id']} was not prepared, or does not stand in the order of the "
                "input; the file is of another run"
            )
