"""A fixed sample of a model's rows for the page: every end and every reason is represented, the choice is repeatable.

A stratum is an end and its reason. Within a stratum the rows with the lowest sample_id are taken: a sample_id is a
hash, so that is a random choice, the same one in every run over the same input.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from potstill.records import Row
from potstill.reports.files import ModelFiles
from potstill.reports.numbers import Names

#: Rows of each stratum that the sample holds at least, as far as there are so many and room for all strata.
LEAST = 12

#: Fields of which every value is to have an example.
EXAMPLES_OF = ("exec_error_class", "finish_reason", "gold_status")

Stratum = tuple[str, str]


class Picked(NamedTuple):
    """One row of the sample and where it stands."""

    end: str
    file: str
    line: int
    row: Row


def strata_of(quality: Mapping[str, Any]) -> dict[Stratum, int]:
    """Return the number of rows of every stratum, as the quality report counts them."""
    sources = {
        "rejected": "reject_reason_counts",
        "failed": "error_class_counts",
        "not_asked": "not_asked_reason_counts",
    }
    strata = {("kept", ""): quality["kept"]} if quality["kept"] else {}
    for end, key in sources.items():
        strata |= {(end, name): count for name, count in quality[key].items()}
    return strata


def share_out(strata: Mapping[Stratum, int], size: int) -> dict[Stratum, int]:
    """Return how many rows each stratum gives: all of them where they fit, else a least number and the rest by size."""
    if sum(strata.values()) <= size:
        return dict(strata)
    least = max(1, min(LEAST, size // max(len(strata), 1)))
    quotas = {stratum: min(count, least) for stratum, count in strata.items()}
    left = max(0, size - sum(quotas.values()))
    open_rows = {stratum: count - quotas[stratum] for stratum, count in strata.items()}
    total = sum(open_rows.values())
    return {stratum: quota + open_rows[stratum] * left // max(total, 1) for stratum, quota in quotas.items()}


def _all_rows(files: ModelFiles) -> Iterator[tuple[Stratum, Picked]]:
    from potstill.rows import read_rows

    reasons = {"kept": None, "rejected": "reject_reason", "failed": "error_class", "not_asked": "not_asked_reason"}
    for (end, field), path in zip(reasons.items(), files[:4], strict=True):
        names = Names()
        for line, row in enumerate(read_rows(path), start=1):
            yield (end, names.key(row.get(field)) if field else ""), Picked(end, path.name, line, row)


class _Lowest:
    """The rows with the lowest sample_ids of each stratum, as many as its quota says."""

    def __init__(self) -> None:
        self._heaps: dict[Stratum, list[tuple[_Last, int, Picked]]] = {}

    def offer(self, stratum: Stratum, quota: int, number: int, picked: Picked) -> None:
        """Take a row in if it is among the lowest."""
        heap = self._heaps.setdefault(stratum, [])
        entry = (_Last(f"{picked.row.get('sample_id')}"), -number, picked)
        if len(heap) < quota:
            heapq.heappush(heap, entry)
        elif heap and heap[0][0] < entry[0]:
            heapq.heapreplace(heap, entry)

    def rows(self) -> dict[int, Picked]:
        """Return the rows by their number."""
        return {-number: picked for heap in self._heaps.values() for _, number, picked in heap}


def pick_rows(files: ModelFiles, quality: Mapping[str, Any], size: int) -> list[Picked]:
    """Return the sample, in the order of the files; memory holds little more than the sample.

    Beyond the sample come a few rows of each class of errors, finish reason and state of gold that it has none of.
    """
    quotas = share_out(strata_of(quality), size)
    sample, examples = _Lowest(), _Lowest()
    names = {field: Names() for field in EXAMPLES_OF}
    for number, (stratum, picked) in enumerate(_all_rows(files)):
        sample.offer(stratum, quotas.get(stratum, 1), number, picked)
        for field in EXAMPLES_OF:
            if (value := picked.row.get(field)) is not None:
                examples.offer((field, names[field].key(value)), 1, number, picked)
                names[field].add(value)
    chosen = examples.rows() | sample.rows()
    return [chosen[number] for number in sorted(chosen)]


class _Last(str):
    """A text that sorts backwards, so that a heap's first entry is the one to give up."""

    __slots__ = ()

    def __lt__(self, other: str) -> bool:
        return str.__gt__(self, other)
