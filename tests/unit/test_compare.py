"""Two runs side by side."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from potstill.cli import main
from potstill.errors import InputError
from potstill.reports.compare import compare_configs, compare_rows, compare_runs
from tests.unit.report_runs import make_config, make_rows, make_run, write_model


def make_later(run_dir: Path) -> Path:
    """Write a run in which two rows moved, one is gone and one is new; its config differs in one key."""
    make_run(run_dir, 60)
    ends = make_rows(60, 0)
    ends["rejected"].append(ends["kept"].pop(0) | {"reject_reason": "too_long"})
    ends["kept"].append(ends["failed"].pop(0))
    ends["not_asked"].pop()
    ends["kept"].append({"sample_id": "ab" * 32, "sample_index": 0})
    write_model(run_dir / "teacher", ends)
    config = make_config(["teacher"])
    config["filter"]["min_score"] = 0.5
    (run_dir / "config.yaml").write_text(yaml.safe_dump(config))
    return run_dir


def test_moves_are_counted_and_shown(tmp_path: Path) -> None:
    """Each sample that ended elsewhere is counted by where from and where to, with examples and the reason."""
    before, after = make_run(tmp_path / "a", 60), make_later(tmp_path / "b")
    moves = {(move["before"], move["after"]): move for move in compare_rows(before / "teacher", after / "teacher")}
    moved = {ends: move["rows"] for ends, move in moves.items() if ends[0] != ends[1]}
    assert moved == {("kept", "rejected"): 1, ("failed", "kept"): 1, ("not_asked", "absent"): 1, ("absent", "kept"): 1}
    example = make_rows(60, 0)["kept"][0]["sample_id"]
    assert moves["kept", "rejected"]["examples"] == [f"{example} 0  too_long"]
    assert moves["kept", "kept"]["rows"] == len(make_rows(60, 0)["kept"]) - 1


def test_samples_of_a_row_are_told_apart(tmp_path: Path) -> None:
    """Two answers to one row that change places are two moves."""
    rows = [{"sample_id": "aa", "sample_index": index} for index in (0, 1)]
    rest: dict[str, list[dict[str, object]]] = {"failed": [], "not_asked": []}
    write_model(tmp_path / "a", {"kept": rows[:1], "rejected": rows[1:], **rest})
    write_model(tmp_path / "b", {"kept": rows[1:], "rejected": rows[:1], **rest})
    found = {(move["before"], move["after"]): move["rows"] for move in compare_rows(tmp_path / "a", tmp_path / "b")}
    assert found == {("kept", "rejected"): 1, ("rejected", "kept"): 1}


def test_config_changes_are_keys_by_path() -> None:
    """Changed, added and removed keys are named by their path, with both values."""
    before = {"a": {"b": 1, "c": [1, 2]}, "gone": None}
    after = {"a": {"b": 2, "c": [1, 3]}, "new": "x"}
    assert [tuple(change) for change in compare_configs(before, after)] == [
        ("a.b", 1, 2),
        ("a.c[1]", 2, 3),
        ("gone", None, None),
        ("new", None, "x"),
    ]
    assert compare_configs(before, before) == []


def test_command_prints_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`potstill compare` prints the changes and writes all of them as JSON."""
    before, after = make_run(tmp_path / "a", 60), make_later(tmp_path / "b")
    assert main(["compare", str(before), str(after), "--json", str(tmp_path / "c.json")]) == 0
    printed = capsys.readouterr().out
    assert "filter.min_score: 1.0 -> 0.5" in printed
    assert "kept -> rejected: 1 rows" in printed
    assert json.loads((tmp_path / "c.json").read_text())["models"][0]["model"] == "teacher"


def test_runs_without_a_common_model_are_refused(tmp_path: Path) -> None:
    """Runs of different models are refused with both lists."""
    before, after = make_run(tmp_path / "a", models=["one"]), make_run(tmp_path / "b", models=["two"])
    with pytest.raises(InputError, match=r"has the models one, .* has two"):
        compare_runs(before, after)
