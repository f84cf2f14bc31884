"""Which rows are asked again, or of another model: routing, cascade, rounds, a target."""

import json
from pathlib import Path
from typing import Any

from tests.workflow.runs import MODEL, Run

LARGE = {"alias": "large", "config": "large.yaml"}


def add_large_teacher(small: Run, answers: dict[str, str]) -> None:
    """Give a run a second model file, `large.yaml`, whose teacher gives these answers."""
    model: dict[str, Any] = json.loads(json.dumps(MODEL))
    model["chat_config"]["model"] = "large"
    model["prices"] = {"input": 0, "output": 1_000_000}
    model["server"]["command"] = model["server"]["command"].replace("answers.jsonl", "large.jsonl")
    small.write_model("large.yaml", model)
    lines = [json.dumps({"user": user, "answers": [answer]}) + "\n" for user, answer in answers.items()]
    (small.folder / "large.jsonl").write_text("".join(lines))


def read_json(path: Path) -> dict[str, Any]:
    """Return what a JSON file holds."""
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def ends(small: Run, model: str) -> list[tuple[str, int]]:
    """Return which samples of a model stand in one of its four files, each as often as it stands there."""
    names = ("merged", "rejected", "failed", "not_asked")
    return sorted((row["id"], row["sample_index"]) for name in names for row in small.read(f"{name}.jsonl", model))


def test_rows_go_to_the_models_that_take_them(tmp_path: Path) -> None:
    """Each model answers its rows, the others are not asked and say of whom they were; all rows are accounted for."""
    models = [
        {"alias": "m", "config": "model.yaml", "only": {"field": "gold_sql", "in": ["SELECT 0", "SELECT 1"]}},
        {**LARGE, "only": {"field": "gold_sql", "in": [f"SELECT {number}" for number in range(1, 7)]}},
    ]
    small = Run(tmp_path, rows=14, config={"chunks": {"count": 2}, "models": models, "filter": {}})
    add_large_teacher(small, {f"question {number}?": "SELECT 1" for number in range(14)})
    small.snakemake()
    assert [row["id"] for row in small.read("merged.jsonl")] == ["0", "1", "7", "8"]
    assert {row["not_asked_reason"] for row in small.read("not_asked.jsonl")} == {"routed_to:large"}
    assert {(row["id"], row["not_asked_reason"]) for row in small.read("not_asked.jsonl", "large")} == {
        ("0", "routed_to:m"),
        ("7", "routed_to:m"),
    }
    assert ends(small, "m") == ends(small, "large") == sorted((str(number), 0) for number in range(14))


def test_a_row_for_no_model_stops_the_run_before_a_token_is_spent(tmp_path: Path) -> None:
    """The error names file, line, value and what is taken."""
    only = {"field": "gold_sql", "in": [f"SELECT {number}" for number in range(6)]}
    small = Run(tmp_path, rows=8, config={"models": [{"alias": "m", "config": "model.yaml", "only": only}]})
    done = small.snakemake(check=False)
    assert done.returncode == 1
    assert 'rows.jsonl: line 7: no model takes this row: gold_sql is "SELECT 6"' in done.stdout
    assert not (tmp_path / "answers").exists()
