"""Verification of a finished run: its files against the manifests, its labels against the databases."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from potstill.errors import InputError
from potstill.records import Row
from potstill.reports.files import ModelFiles, find_models, read_json
from potstill.reports.manifest import verify_manifest
from potstill.reports.sample import pick_rows
from potstill.rows import publish_rows, read_rows

#: What execution says of a row, and must say again.
LABELS = ("exec_pass", "exec_error_class", "gold_match", "result_signature", "row_count")
#: Differences that are listed one by one; the rest is counted.
LISTED = 20


class Verified(NamedTuple):
    """What was found for one model."""

    model: str
    problems: list[str]
    executed: int


def verify_run(run_dir: Path, *, execute: int | None = None) -> Iterator[Verified]:
    """Verify every model of a run.

    Args:
        run_dir: The run's folder.
        execute: None: nothing is run; 0: the statements of all answered rows are; else of a sample of that size.

    Raises:
        InputError: If the folder is no finished run.
    """
    folders = find_models(run_dir)
    if not folders:
        raise InputError(
            f"{run_dir}: no model with merged rows here; give the folder of a finished run: output_dir/run"
        )
    for folder in folders:
        manifest = folder / "reports" / "manifest.json"
        problems = verify_manifest(manifest, run_dir)
        executed = 0
        if execute is not None:
            executed, different = verify_labels(folder, read_json(manifest)["config"], execute)
            problems += different
        yield Verified(folder.name, problems, executed)


def verify_labels(folder: Path, config: Mapping[str, Any], size: int) -> tuple[int, list[str]]:
    """Run statements of a model again and return how many, and every label that came out another way.

    Raises:
        InputError: If the run did not execute anything.
    """
    from potstill.stages.execute import execute_rows

    settings = config.get("execute")
    if not settings:
        raise InputError(f"{folder}: this run has no execute stage: there are no labels to run again")
    with tempfile.TemporaryDirectory() as scratch:
        before, after = Path(scratch) / "before.jsonl", Path(scratch) / "after.jsonl"
        publish_rows(before, _answered(folder, size))
        execute_rows(before, after, settings=dict(settings), gold_audit=None)
        different: list[str] = []
        executed = 0
        for old, new in zip(read_rows(before), read_rows(after), strict=True):
            executed += 1
            different += _differences(old, new)
    extra = [f"… and {len(different) - LISTED} more"] if len(different) > LISTED else []
    return executed, different[:LISTED] + extra


def _answered(folder: Path, size: int) -> Iterator[Row]:
    files = ModelFiles.of(folder)
    if not size:
        yield from (row for _, row in files.answered())
        return
    quality = read_json(folder / "reports" / "quality_report.json")
    quality |= {"error_class_counts": {}, "not_asked_reason_counts": {}}
    yield from (picked.row for picked in pick_rows(files, quality, size) if picked.end in ("kept", "rejected"))


def _differences(old: Row, new: Row) -> list[str]:
    return [
        f"{old.get('sample_id')} {old.get('sample_index', 0)}: {label} was {old.get(label)!r}, now {new.get(label)!r}"
        for label in LABELS
        if old.get(label) != new.get(label)
    ]
