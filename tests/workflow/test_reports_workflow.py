"""Reports, gates and page in the DAG: the demo with a gate that must fail."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]


def snakemake(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the workflow in a folder, with its `config.yaml`."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--cores", "2"]
    command += ["--configfile", str(folder / "config.yaml"), *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=280, check=False)


def write_config(folder: Path, **sections: Any) -> None:
    """Write the demo's config with other sections."""
    config = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump({**config, **sections}))


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo, run to its end with a gate that it cannot meet."""
    folder = tmp_path_factory.mktemp("gates")
    write_config(folder, gates={"min_total": 1, "min_kept": 1000})
    run = snakemake(folder)
    assert run.returncode == 1, run.stderr
    assert "min_kept: 43 (limit: >= 1000)" in run.stderr
    return folder


@pytest.mark.slow
def test_a_missed_gate_fails_and_all_results_survive(folder: Path) -> None:
    """The run fails, and what proves why (verdict, reports, page) stands."""
    demo = folder / "results" / "demo"
    verdict = json.loads((demo / "gates.json").read_text())
    assert {gate["gate"]: gate["met"] for gate in verdict["gates"]} == {"min_total": True, "min_kept": False}
    assert not (demo / "gates.passed.json").exists()
    assert (demo / "report.html").is_file()
    assert "enforce_gates/enforce_gates ERROR" in (demo / "logs" / "run.log").read_text()
    for name in ("quality_report", "timing_report", "cost_report", "manifest"):
        assert (demo / "teacher" / "reports" / f"{name}.json").is_file()


@pytest.mark.slow
def test_reports_of_the_demo_agree_with_its_rows(folder: Path) -> None:
    """Numbers of the reports are those of the row files, counted here by other code."""
    teacher = folder / "results" / "demo" / "teacher"
    kept, rejected, failed = (read(teacher / f"{name}.jsonl") for name in ("merged", "rejected", "failed"))
    answered = kept + rejected
    quality = json.loads((teacher / "reports" / "quality_report.json").read_text())
    assert quality["total"] == len(answered) + len(failed)
    assert quality["exec_pass_rate"] == sum(row["exec_pass"] for row in answered) / len(answered)
    usable = [row["gold_match"] for row in answered if row["gold_status"] in ("ok", "empty", "nondeterministic")]
    assert quality["gold_match_rate"] == sum(usable) / len(usable)
    assert quality["reject_reason_counts"] == Counter(row["reject_reason"] for row in rejected)
    # With the lowest score at 0.5, those are kept whose only fault is a result other than gold's.
    at_half = next(step["kept"] for step in quality["kept_at_min_score"] if step["min_score"] == 0.5)
    only_score = [row for row in rejected if set(row["reject_reasons"]) <= {"low_score", "gold_mismatch", "exec_error"}]
    assert at_half == len(kept) + sum(row["score"] >= 0.5 for row in only_score)
    cost = json.loads((teacher / "reports" / "cost_report.json").read_text())
    assert cost["completion_tokens"] == sum(
        (row["usage"] or {}).get("completion_tokens") or 0 for row in answered + failed
    )


@pytest.mark.slow
def test_demo_verifies_and_a_forged_label_is_found(folder: Path) -> None:
    """`potstill verify --execute` confirms every label, and finds one that was changed."""
    demo = folder / "results" / "demo"
    command = [sys.executable, "-m", "potstill", "verify", str(demo), "--execute"]
    good = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert (good.returncode, good.stderr) == (0, "")
    rejected = demo / "teacher" / "rejected.jsonl"
    honest = rejected.read_text()
    rejected.write_text(honest.replace('"gold_match":false', '"gold_match":true', 1))
    try:
        forged = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    finally:
        rejected.write_text(honest)
    assert forged.returncode == 1
    assert "sha256" in forged.stderr
    assert "gold_match was True, now False" in forged.stderr


@pytest.mark.slow
def test_a_missed_gate_may_be_a_warning(folder: Path) -> None:
    """With `on_failure: warn` the same run passes: only the gates are looked at again."""
    write_config(folder, gates={"min_total": 1, "min_kept": 1000, "on_failure": "warn"})
    run = snakemake(folder)
    assert run.returncode == 0, run.stderr
    assert "generate_answers" not in run.stderr
    assert json.loads((folder / "results" / "demo" / "gates.passed.json").read_text()) == {"met": False}
    report = snakemake(folder, "--report", "report.html")
    assert report.returncode == 0, report.stderr
    text = (folder / "report.html").read_text()
    assert "How many rows would be kept at another lowest score" in text
