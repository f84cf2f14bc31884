"""The manifest and its verification: whatever is changed afterwards is found and named."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from potstill.errors import InputError
from potstill.reports.files import ModelFiles
from potstill.reports.manifest import find_stage_files, verify_manifest, write_manifest
from potstill.reports.quality import write_quality_report
from potstill.reports.verify import verify_run
from potstill.rows import publish_rows
from tests.unit.report_runs import make_config, make_prepared, make_run


def make_manifest(run_dir: Path) -> Path:
    """Write a run with two chunks, its quality report and its manifest, and return the manifest's path."""
    make_run(run_dir, 40)
    rows = make_prepared(40)
    for chunk, part in (("0001", rows[:20]), ("0002", rows[20:])):
        publish_rows(run_dir / "prepared" / "chunks" / f"{chunk}.jsonl", part)
        publish_rows(run_dir / "teacher" / "generated" / f"{chunk}.jsonl", part)
    source = run_dir / "rows.jsonl"
    source.write_text('{"question": "How many?"}\n')
    reports = run_dir / "teacher" / "reports"
    files, summary = ModelFiles.of(run_dir / "teacher"), run_dir / "prepared" / "summary.json"
    write_quality_report(reports / "quality_report.json", model="teacher", files=files, summary=summary)
    write_manifest(
        reports / "manifest.json",
        model="teacher",
        run_dir=run_dir,
        stages=find_stage_files(run_dir, "teacher", ["0001", "0002"]),
        reports=[reports / "quality_report.json"],
        sources={"inputs": [source]},
        config=make_config(["teacher"]),
    )
    return reports / "manifest.json"


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    return make_manifest(tmp_path)


def test_manifest_describes_each_stage(manifest: Path, tmp_path: Path) -> None:
    """Counts, columns, first and last sample_id and hashes are those of the files."""
    value = json.loads(manifest.read_text())
    merged = tmp_path / "teacher" / "merged.jsonl"
    rows = [json.loads(line) for line in merged.read_text().splitlines()]
    kept = value["stages"]["kept"]
    assert kept["count"] == len(rows)
    assert kept["columns"] == sorted({name for row in rows for name in row})
    assert kept["min_sample_id"] == min(row["sample_id"] for row in rows)
    assert kept["max_sample_id"] == max(row["sample_id"] for row in rows)
    assert kept["files"]["teacher/merged.jsonl"]["sha256"] == hashlib.sha256(merged.read_bytes()).hexdigest()
    assert list(value["stages"]["prepared"]["files"]) == ["prepared/chunks/0001.jsonl", "prepared/chunks/0002.jsonl"]
    assert value["stages"]["prepared"]["count"] == 40
    policy = value["comparison_policy"]
    assert policy["limits"]["timeout_s"] == 5
    assert (policy["preset"], policy["row_order"], policy["float_rel_tol"]) == ("strict", "auto", 1e-6)
    assert value["packages"]["orjson"]


def test_the_manifest_states_each_knob_of_the_comparison(tmp_path: Path) -> None:
    """A preset's name is resolved, and a knob that was given stands as given."""
    config = make_config(["teacher"])
    config["execute"]["comparison"] = {"preset": "bird", "duplicates": "bag"}
    write_manifest(
        tmp_path / "manifest.json", model="teacher", run_dir=tmp_path, stages={}, reports=[], sources={}, config=config
    )
    policy = json.loads((tmp_path / "manifest.json").read_text())["comparison_policy"]
    assert (policy["preset"], policy["duplicates"], policy["row_order"]) == ("bird", "bag", "ignore")
    assert policy["float_rel_tol"] == 0


def test_manifest_of_the_same_results_has_the_same_run_id(tmp_path: Path) -> None:
    """The run's identity hangs on what was made from what, not on folder or time."""
    ids = {json.loads(make_manifest(tmp_path / name).read_text())["run_id"] for name in ("a", "b")}
    assert len(ids) == 1


def test_untouched_run_verifies(manifest: Path, tmp_path: Path) -> None:
    """A run as it was made has no problems."""
    assert verify_manifest(manifest, tmp_path) == []
    assert [(found.model, found.problems) for found in verify_run(tmp_path)] == [("teacher", [])]


def test_a_run_may_be_moved(tmp_path: Path) -> None:
    """A run that was moved or copied verifies where it lies now."""
    make_manifest(tmp_path / "here")
    (tmp_path / "here").rename(tmp_path / "there")
    assert [found.problems for found in verify_run(tmp_path / "there")] == [[]]


def _append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b'{"sample_id":"zz","extra":1}\n')


def _edit_manifest(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def edit(root: Path) -> None:
        path = root / "teacher" / "reports" / "manifest.json"
        value = json.loads(path.read_text())
        change(value)
        path.write_text(json.dumps(value))

    return edit


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda root: _append(root / "teacher" / "merged.jsonl"), "merged.jsonl: sha256"),
        (lambda root: _append(root / "teacher" / "generated" / "0002.jsonl"), "0002.jsonl: rows is 21"),
        (lambda root: (root / "prepared" / "chunks" / "0001.jsonl").unlink(), "0001.jsonl: missing"),
        (lambda root: (root / "rows.jsonl").write_text("{}\n"), "rows.jsonl: sha256"),
        (lambda root: (root / "teacher" / "reports" / "quality_report.json").write_text("{}"), "quality_report.json"),
        (lambda root: (root / "teacher" / "failed.jsonl").write_text("broken"), "failed.jsonl: line 1: not JSON"),
        (_edit_manifest(lambda value: value["config"].update(run="x")), "config: its hash"),
        (_edit_manifest(lambda value: value["stages"]["kept"].update(count=1)), "kept: count is"),
        (_edit_manifest(lambda value: value["sources"]["inputs"].clear()), "run_id"),
    ],
)
def test_every_change_is_found(manifest: Path, tmp_path: Path, damage: Callable[[Path], None], named: str) -> None:
    """A changed, lost or added byte, in a file of any stage, a source, a report or the manifest itself, is named."""
    damage(tmp_path)
    problems = verify_manifest(manifest, tmp_path)
    assert any(named in problem for problem in problems), problems


def test_lost_rows_break_the_law(tmp_path: Path) -> None:
    """A manifest over rows that do not add up says so, though every hash fits."""
    make_run(tmp_path, 40)
    (tmp_path / "teacher" / "failed.jsonl").write_text("")
    path = tmp_path / "teacher" / "reports" / "manifest.json"
    stages = find_stage_files(tmp_path, "teacher", ["0001"])
    config = make_config(["teacher"])
    write_manifest(path, model="teacher", run_dir=tmp_path, stages=stages, sources={}, config=config)
    assert ["40 samples were asked for" in problem for problem in verify_manifest(path, tmp_path)] == [True]


def test_verify_names_what_is_no_run(tmp_path: Path) -> None:
    """A folder without merged rows is refused with what is wanted."""
    with pytest.raises(InputError, match="no model with merged rows"):
        list(verify_run(tmp_path))
    with pytest.raises(InputError, match="no such folder"):
        list(verify_run(tmp_path / "nowhere"))
