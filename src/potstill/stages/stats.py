"""write_stats: all counts of one model by name, in one small file."""

from __future__ import annotations

import collections
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson

from potstill.records import Row
from potstill.rows import publish_json, read_rows
from potstill.stages.merge import OUTCOMES


def write_stats(files: Mapping[str, Path], output: Path, *, model: str, samples: int) -> dict[str, Any]:
    """Count the rows of one model and write `stats.json`.

    Args:
        files: The files of `merge_answers` by outcome, and `summary`: `prepared/summary.json`; where rows are asked in
            rounds also `cost`: the model's `cost_report.json`, which tells what each round has brought.
        output: The file to write.
        model: The model's alias.
        samples: Answers asked per row.

    Returns:
        What was written.
    """
    prepared = orjson.loads(files["summary"].read_bytes())
    counters: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    counts = {outcome: _count(files[outcome], counters) for outcome in OUTCOMES}
    stats = {
        "model": model,
        "input_lines": prepared["lines"],
        "input_rejected": prepared["rejected"],
        "duplicates_dropped": prepared["duplicates"],
        "prepared": prepared["rows"],
        "samples": samples,
        "total": prepared["rows"] * samples,
        **counts,
        "answered": counts["kept"] + counts["rejected"],
        **{name: dict(sorted(counters[name].items(), key=_by_count)) for name in _COUNTED},
    }
    if "cost" in files:
        stats["rounds"] = orjson.loads(files["cost"].read_bytes())["rounds"]
    publish_json(output, stats)
    return stats


#: Name in stats.json -> the field that is counted.
_COUNTED = {
    "reject_reason_counts": "reject_reason",
    "exec_error_counts": "exec_error_class",
    "failed_class_counts": "error_class",
    "not_asked_reason_counts": "not_asked_reason",
    "finish_reason_counts": "finish_reason",
    "gold_status_counts": "gold_status",
}


def _by_count(item: tuple[str, int]) -> tuple[int, str]:
    return -item[1], item[0]


def _count(path: Path, counters: dict[str, collections.Counter[str]]) -> int:
    rows = 0
    for row in read_rows(path):
        rows += 1
        for name, value in _counted_values(row):
            counters[name][value] += 1
    return rows


def _counted_values(row: Row) -> Iterator[tuple[str, str]]:
    for name, field in _COUNTED.items():
        if row.get(field) is not None:
            yield name, str(row[field])
