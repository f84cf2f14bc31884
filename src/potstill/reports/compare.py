"""Two runs side by side: what changed in the config, which rows moved between kept, rejected, failed and not asked.

A sample is known by its sample_id and sample_index. Memory: 8 bytes for each sample of both runs (a hash of 61 bits
and where the sample ended).
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from potstill.errors import InputError
from potstill.records import Row, sha256_text
from potstill.reports.files import ModelFiles, find_models, read_json
from potstill.rows import read_rows

_ENDS = ("kept", "rejected", "failed", "not_asked")
#: Where a sample of the other run ended that this run does not have.
ABSENT = "absent"
EXAMPLES = 20
_END_BITS = 3
_END_MASK = (1 << _END_BITS) - 1

#: Numbers of the quality report that are compared.
NUMBERS = (
    "total",
    "kept",
    "rejected",
    "failed",
    "not_asked",
    "p_keep",
    "exec_pass_rate",
    "gold_match_rate",
    "score_mean",
)


class Change(NamedTuple):
    """One key of the config that differs; None where it is not there."""

    key: str
    before: Any
    after: Any


def compare_configs(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Change]:
    """Return every key that differs, nested keys joined by dots."""
    old, new = dict(_flatten(before)), dict(_flatten(after))
    keys = list(dict.fromkeys([*old, *new]))
    return [Change(key, old.get(key), new.get(key)) for key in keys if old.get(key, ...) != new.get(key, ...)]


def _flatten(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for name, item in value.items():
            yield from _flatten(item, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list) and value:
        for number, item in enumerate(value):
            yield from _flatten(item, f"{key}[{number}]")
    else:
        yield key, value


def _tag(row: Row, end: int) -> int:
    """Return a sample's hash with its end in the lowest bits."""
    digest = sha256_text(f"{row.get('sample_id')}#{row.get('sample_index', 0)}")
    return (int(digest[:16], 16) & ~_END_MASK) | end


def _rows(folder: Path) -> Iterator[tuple[int, Row]]:
    for end, path in enumerate(ModelFiles.of(folder)[: len(_ENDS)]):
        for row in read_rows(path):
            yield end, row


def _load(folder: Path) -> Any:
    """Return the tags of all samples of a model, sorted, as a NumPy array."""
    import numpy as np

    tags = array("Q")
    for end, row in _rows(folder):
        tags.append(_tag(row, end))
    return np.sort(np.frombuffer(tags, dtype=np.uint64)) if tags else np.array([], dtype=np.uint64)


def compare_rows(before: Path, after: Path) -> list[dict[str, Any]]:
    """Return how many samples went from each end to each other, with examples of those that moved.

    Args:
        before: A model's folder of the earlier run.
        after: A model's folder of the later run.
    """
    import numpy as np

    old, new = _load(before), _load(after)
    shift = np.uint64(_END_BITS)
    old_ids, new_ids = old >> shift, new >> shift
    _, in_old, in_new = np.intersect1d(old_ids, new_ids, assume_unique=True, return_indices=True)
    moves = Counter(zip(_ends(old[in_old]), _ends(new[in_new]), strict=True))
    moves += Counter((end, ABSENT) for end in _ends(np.delete(old, in_old)))
    moves += Counter((ABSENT, end) for end in _ends(np.delete(new, in_new)))
    moved = {
        int(tag): end
        for tag, end, now in zip(new[in_new], _ends(old[in_old]), _ends(new[in_new]), strict=True)
        if end != now
    }
    examples = _examples(after, moved)
    return [
        {"before": old_end, "after": new_end, "rows": rows, "examples": examples.get((old_end, new_end), [])}
        for (old_end, new_end), rows in sorted(moves.items(), key=lambda item: (item[0][0] == item[0][1], -item[1]))
    ]


def _ends(tags: Any) -> list[str]:
    return [_ENDS[int(tag) & _END_MASK] for tag in tags]


def _examples(folder: Path, moved: Mapping[int, str]) -> dict[tuple[str, str], list[str]]:
    """Return a few sample_ids of each move, with the reason where they were rejected."""
    found: dict[tuple[str, str], list[str]] = {}
    for end, row in _rows(folder) if moved else ():
        came_from = moved.get(_tag(row, end))
        if came_from is not None:
            shown = found.setdefault((came_from, _ENDS[end]), [])
            if len(shown) < EXAMPLES:
                reason = row.get("reject_reason") or row.get("error_class") or row.get("not_asked_reason")
                shown.append(f"{row.get('sample_id')} {row.get('sample_index', 0)}{f'  {reason}' if reason else ''}")
    return found


def compare_runs(before: Path, after: Path) -> dict[str, Any]:
    """Compare two runs; models are paired by alias.

    Args:
        before: The folder of the earlier run.
        after: The folder of the later run.

    Raises:
        InputError: If a folder is no run, or the two have no model in common.
    """
    old, new = ({folder.name: folder for folder in find_models(run)} for run in (before, after))
    common = [alias for alias in new if alias in old]
    if not common:
        raise InputError(
            f"{before} has the models {', '.join(old) or 'none'}, {after} has {', '.join(new) or 'none'}: "
            "two runs are compared by the aliases of their models"
        )
    changes = compare_configs(_config(before), _config(after))
    return {
        "before": str(before),
        "after": str(after),
        "config": [change._asdict() for change in changes],
        "models": [
            {"model": alias, "numbers": _numbers(old[alias], new[alias]), "moves": compare_rows(old[alias], new[alias])}
            for alias in common
        ],
        "only_before": sorted(old.keys() - new.keys()),
        "only_after": sorted(new.keys() - old.keys()),
    }


def _config(run_dir: Path) -> dict[str, Any]:
    import yaml

    path = run_dir / "config.yaml"
    return (yaml.safe_load(path.read_text()) or {}) if path.is_file() else {}


def _numbers(before: Path, after: Path) -> dict[str, list[float | None]]:
    reports = [folder / "reports" / "quality_report.json" for folder in (before, after)]
    if not all(path.is_file() for path in reports):
        return {}
    old, new = map(read_json, reports)
    return {key: [old.get(key), new.get(key)] for key in NUMBERS}


def describe(comparison: Mapping[str, Any]) -> Iterator[str]:
    """Yield a comparison as lines for people."""
    yield f"before: {comparison['before']}\nafter:  {comparison['after']}\n\nconfig:"
    yield from [
        f"  {change['key']}: {change['before']!r} -> {change['after']!r}" for change in comparison["config"]
    ] or ["  the same"]
    for model in comparison["models"]:
        yield f"\nmodel {model['model']}:"
        yield from (
            f"  {key}: {_number(old)} -> {_number(new)}" for key, (old, new) in model["numbers"].items() if old != new
        )
        yield from (f"  {move['before']} -> {move['after']}: {move['rows']} rows" for move in model["moves"])
    for key, word in (("only_before", "before"), ("only_after", "after")):
        if comparison[key]:
            yield f"\nmodels that only the run {word} has: {', '.join(comparison[key])}"


def _number(value: float | None) -> str:
    return "not known" if value is None else f"{value:.6g}"
