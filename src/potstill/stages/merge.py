"""merge_answers: the chunks of one model become one file each of kept, rejected, failed and not asked rows.

The law of conservation is checked on the way, chunk by chunk: each prepared row stands, for each sample asked,
in exactly one of the four. What differs between two runs over the same answers (`VOLATILE_FIELDS`) moves to a
file of its own, so that the others are the same byte for byte.
"""

from __future__ import annotations

import collections
import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from potstill.errors import ConservationError, InputError
from potstill.filters.duplicates import REASON, DuplicateCap
from potstill.records import VOLATILE_FIELDS, Row
from potstill.rows import RowWriter, publish, read_rows
from potstill.stages.order import rows_in_order
from potstill.stages.prepare import format_id_sum

logger = logging.getLogger(__name__)

#: The four places where a row can end, in the order of the law.
OUTCOMES = ("kept", "rejected", "failed", "not_asked")


@dataclass(frozen=True)
class ChunkFiles:
    """The files in which the rows of one chunk ended; a stage that is off has none.

    Args:
        kept: Kept rows.
        rejected: Rejected rows.
        failed: Rows without an answer.
        not_asked: Rows that were not asked.
        later: The files of the later rounds.
        prepared: With later rounds, the prepared chunk: it tells the order of the rows.
    """

    kept: Path
    rejected: Path | None
    failed: Path
    not_asked: Path
    later: Sequence[ChunkFiles] = ()
    prepared: Path | None = None

    def outcomes(self) -> Iterator[tuple[str, Iterator[Row]]]:
        """Yield each outcome that has files, with its rows in the order of the input."""
        for outcome in OUTCOMES:
            paths = [path for files in (self, *self.later) if (path := getattr(files, outcome)) is not None]
            if paths:
                yield outcome, self._rows(paths)

    def _rows(self, paths: Sequence[Path]) -> Iterator[Row]:
        if self.prepared is None:
            return read_rows(paths[0])
        found = rows_in_order([self.prepared], paths)
        return (row for rounds in found for rows in rounds for row in rows)


@dataclass(frozen=True)
class MergedFiles:
    """The files that `merge_answers` writes for one model."""

    kept: Path
    rejected: Path
    failed: Path
    not_asked: Path
    timings: Path


@dataclass
class _Tally:
    """For each sample index, how many rows were seen and the sum of their ids."""

    rows: collections.Counter[int] = field(default_factory=collections.Counter)
    ids: collections.Counter[int] = field(default_factory=collections.Counter)

    def add(self, row: Row) -> None:
        index = row.get("sample_index", 0)
        self.rows[index] += 1
        self.ids[index] += int(row["sample_id"], 16)


def merge_answers(
    chunks: Sequence[ChunkFiles],
    summary: Path,
    outputs: MergedFiles,
    *,
    samples: int,
    duplicates: Mapping[str, Any] | None = None,
    dialect: str = "sqlite",
) -> dict[str, int]:
    """Merge one model's chunks, in input order.

    Args:
        chunks: The files of each chunk, in order.
        summary: `prepared/summary.json`.
        outputs: The files to write.
        samples: Answers asked per row.
        duplicates: The config's `filter.duplicates`: each chunk has applied the cap to its own rows, here it is
            applied to all of them.
        dialect: The SQL dialect of the statements.

    Returns:
        The number of rows for each outcome.

    Raises:
        ConservationError: If a row is missing, or stands in two places; the message names the chunk.
    """
    prepared = _read_summary(summary, len(chunks))
    cap = DuplicateCap(duplicates, dialect=dialect) if duplicates else None
    counts: collections.Counter[str] = collections.Counter(dict.fromkeys(OUTCOMES, 0))
    with contextlib.ExitStack() as scope:
        writers = {outcome: scope.enter_context(publish(getattr(outputs, outcome))) for outcome in OUTCOMES}
        timings = scope.enter_context(publish(outputs.timings))
        for files, expected in zip(chunks, prepared, strict=True):
            tally = _Tally()
            for outcome, rows in files.outcomes():
                for row in rows:
                    tally.add(row)
                    end = outcome
                    if outcome == "kept" and cap is not None and not cap.admit(row):
                        end = "rejected"
                        row.update(keep=False, reject_reasons=[REASON], reject_reason=REASON)
                    counts[end] += 1
                    _write(row, writers[end], timings, end)
            _check_conservation(tally, expected, samples)
    logger.info("merged %s", ", ".join(f"{outcome}: {counts[outcome]}" for outcome in OUTCOMES))
    return dict(counts)


def _write(row: Row, out: RowWriter, timings: RowWriter, outcome: str) -> None:
    volatile = {name: row.pop(name) for name in VOLATILE_FIELDS if name in row}
    out.write(row)
    if outcome != "not_asked":
        timings.write({"sample_id": row["sample_id"], "sample_index": row.get("sample_index", 0), **volatile})


def _read_summary(path: Path, chunks: int) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = orjson.loads(path.read_bytes())["chunks"]
    if len(entries) != chunks:
        raise InputError(f"{path}: it counts {len(entries)} chunks, this run has {chunks}; run prepare_rows again")
    return entries


def _check_conservation(tally: _Tally, expected: Mapping[str, Any], samples: int) -> None:
    chunk, rows = expected["chunk"], expected["rows"]
    if unexpected := sorted(set(tally.rows) - set(range(samples))):
        raise ConservationError(
            f"chunk {chunk}: rows with sample_index {unexpected[0]}, but {samples} samples were asked"
        )
    for index in range(samples):
        found = tally.rows[index]
        if found != rows:
            raise ConservationError(
                f"chunk {chunk}, sample {index}: {rows} rows were prepared, but {found} stand in "
                f"{' + '.join(OUTCOMES)}: {_describe(rows - found)}"
            )
        if format_id_sum(tally.ids[index]) != expected["id_sum"]:
            raise ConservationError(
                f"chunk {chunk}, sample {index}: the number of rows is right ({rows}), but not their sample_ids: "
                "a row was lost and another doubled, or a file is of another run"
            )


def _describe(missing: int) -> str:
    return f"{missing} lost" if missing > 0 else f"{-missing} too many"
