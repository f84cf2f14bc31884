"""Results come in any order and are written in the order of the input, in bounded memory."""

from __future__ import annotations

import tempfile
from array import array
from pathlib import Path
from typing import IO, NamedTuple

from potstill.rows import RowWriter, disk_errors

#: So many bytes of finished lines wait in memory for an earlier row; more wait on the disk.
_MEMORY_BYTES = 16 << 20


class Line(NamedTuple):
    """A finished line and the file that it belongs to, by number."""

    file: int
    line: bytes


class OrderedOutput:
    """Writes lines to their files, each file in the order of the slots.

    One slow row must not hold thousands of finished ones in memory: beyond a fixed amount they wait in a nameless
    file, found again by their place in it (8 bytes a row).

    Args:
        writers: The files; None for one that nobody wants.
        folder: Where the nameless file may lie.
    """

    def __init__(self, writers: list[RowWriter | None], folder: Path) -> None:
        self._writers = writers
        self._folder = folder
        self._next = 0
        self._waiting: dict[int, Line] = {}
        self._waiting_bytes = 0
        self._spill: IO[bytes] | None = None
        self._places: array[int] = array("q")
        self._places_from = 0

    def put(self, slot: int, file: int, line: bytes) -> None:
        """Take the line of a slot; it is written as soon as all before it are."""
        if slot != self._next:
            self._keep(slot, Line(file, line))
            return
        self._write(Line(file, line))
        while (kept := self._take(self._next)) is not None:
            self._write(kept)

    def _write(self, kept: Line) -> None:
        writer = self._writers[kept.file]
        if writer is not None:
            writer.write_line(kept.line)
        self._next += 1

    def _keep(self, slot: int, kept: Line) -> None:
        if self._waiting_bytes < _MEMORY_BYTES:
            self._waiting[slot] = kept
            self._waiting_bytes += len(kept.line)
        else:
            self._spill_line(slot, kept)

    def _take(self, slot: int) -> Line | None:
        kept = self._waiting.pop(slot, None)
        if kept is not None:
            self._waiting_bytes -= len(kept.line)
            return kept
        return self._unspill(slot)

    def _spill_line(self, slot: int, kept: Line) -> None:
        with disk_errors(self._folder):
            if self._spill is None:
                self._spill = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 - closed by `close`
                self._places_from = self._next
            index = slot - self._places_from
            if index >= len(self._places):
                self._places.extend([-1] * (index + 1 - len(self._places)))
            self._places[index] = self._spill.seek(0, 2)
            self._spill.write(b"%d %d\n" % (kept.file, len(kept.line)) + kept.line)

    def _unspill(self, slot: int) -> Line | None:
        index = slot - self._places_from
        if self._spill is None or index >= len(self._places):
            self._drop_spill(index)
            return None
        place = self._places[index]
        if place < 0:
            return None
        self._spill.seek(place)
        file, length = map(int, self._spill.readline().split())
        return Line(file, self._spill.read(length))

    def _drop_spill(self, index: int) -> None:
        """Give the nameless file back once every line of it is written."""
        if self._spill is not None and index >= len(self._places):
            self._spill.close()
            self._spill, self._places = None, array("q")

    def close(self) -> None:
        """Let go of the nameless file."""
        if self._spill is not None:
            self._spill.close()
            self._spill = None
