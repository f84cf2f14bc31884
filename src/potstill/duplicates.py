"""Find repeated digests among any number of rows, in memory that stays bounded.

The digests go to disk in partitions by their first byte, so that all copies of one lie in one partition; each
partition is then sorted in memory (as in a partitioned hash aggregation, Graefe 1993, "Query evaluation
techniques for large databases", section 4.2). A row costs 24 bytes of disk, and 4 more in a sparse file.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

_PARTITIONS = 256
#: Rows that are held in memory before they are spilled: 16 MB.
_BUFFERED_ROWS = 1 << 20
#: Of a sha256, 16 bytes tell 10^9 rows apart with a chance of 10^-21 for one mistake.
_DIGEST_BYTES = 16


class DuplicateFinder:
    """Takes the digests of rows, in order, and says which rows repeat an earlier one.

    Args:
        folder: A scratch folder; the caller removes it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._buffer = bytearray()
        self._spilled = 0
        self.repeats = 0
        """Rows that repeat an earlier one, after `resolve`."""

    def add(self, digest: bytes) -> None:
        """Take the digest (at least 16 bytes) of the next row."""
        self._buffer += digest[:_DIGEST_BYTES]
        if len(self._buffer) == _BUFFERED_ROWS * _DIGEST_BYTES:
            self._spill()

    def resolve(self) -> int:
        """Find the repeated rows, after the last `add`, and return how many they are."""
        import numpy

        rows = self._spilled + len(self._buffer) // _DIGEST_BYTES
        ordinals = self._folder / "ordinals"
        with ordinals.open("wb") as stream:
            stream.truncate(rows * 4)  # sparse: only the pages of repeated rows are ever written
        if rows == 0:
            return 0
        if self._spilled:
            self._spill()
        for records in self._partitions():
            # Mapped anew for each partition, so that its pages do not add up.
            found = numpy.memmap(ordinals, dtype=numpy.uint32, mode="r+")
            self._mark(records, found)
            del found
        return self.repeats

    def ordinals(self) -> Iterator[int]:
        """Yield for each row, in order, after `resolve`, how many earlier rows have its digest."""
        import numpy

        with (self._folder / "ordinals").open("rb") as stream:
            while block := stream.read(1 << 20):
                yield from numpy.frombuffer(block, dtype=numpy.uint32).tolist()

    def _partitions(self) -> Iterator[Any]:
        import numpy

        if not self._spilled:
            yield self._records()
        for partition in sorted(self._folder.glob("digests.*")):
            yield numpy.fromfile(partition, dtype=_record_type())
            partition.unlink()

    def _records(self) -> Any:
        """Return the buffered digests with the numbers of their rows."""
        import numpy

        count = len(self._buffer) // _DIGEST_BYTES
        records = numpy.empty(count, dtype=_record_type())
        digests = numpy.frombuffer(bytes(self._buffer), dtype=">u8").reshape(count, 2)
        records["high"], records["low"] = digests[:, 0], digests[:, 1]
        records["row"] = numpy.arange(self._spilled, self._spilled + count)
        return records

    def _spill(self) -> None:
        import numpy

        records = self._records()
        partition = (records["high"] >> 56).astype(numpy.uint8)
        order = numpy.argsort(partition, kind="stable")
        bounds = numpy.searchsorted(partition[order], numpy.arange(_PARTITIONS + 1))
        for number in range(_PARTITIONS):
            part = records[order[bounds[number] : bounds[number + 1]]]
            if len(part):
                with (self._folder / f"digests.{number:03d}").open("ab") as stream:
                    part.tofile(stream)
        self._spilled += len(records)
        self._buffer.clear()

    def _mark(self, records: Any, found: Any) -> None:
        """Write the ordinal of each repeated record of a partition to its row's place."""
        import numpy

        records = records[numpy.lexsort((records["row"], records["low"], records["high"]))]
        same = numpy.zeros(len(records), dtype=bool)
        same[1:] = (records["high"][1:] == records["high"][:-1]) & (records["low"][1:] == records["low"][:-1])
        places = numpy.arange(len(records))
        first = numpy.maximum.accumulate(numpy.where(same, 0, places))
        found[records["row"][same]] = (places - first)[same]
        self.repeats += int(same.sum())


def _record_type() -> Any:
    import numpy

    return numpy.dtype([("high", "<u8"), ("low", "<u8"), ("row", "<u8")])
