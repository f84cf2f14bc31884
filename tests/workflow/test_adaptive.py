"""Which rows are asked again, or of another model: routing, cascade, rounds, a target."""

import json
from pathlib import Path
from typing import Any

import pytest

from potstill.config.run import complete_config
from potstill.errors import ConfigError
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


def test_a_cascade_asks_the_large_teacher_only_what_the_small_one_did_not_solve(tmp_path: Path) -> None:
    """Rows solved by the small one are not asked; the best answer per row is merged, with the cost of each further row.

    Gates, export and the page take the result as that of one model; no model alone would pass this gate.
    """
    config = {
        "models": [LARGE, {"alias": "m", "config": "model.yaml"}],
        "cascade": ["m", "large"],
        "gates": {"min_p_keep": 0.85, "max_failed_ratio": 0.0},
        "export": {"formats": ["messages", "dpo"], "train_ratio": 1.0, "valid_ratio": 0.0},
    }
    small = Run(tmp_path, rows=14, config={"chunks": {"count": 3}, **config})
    # Right for all numbers but 6 and 13.
    add_large_teacher(small, {f"question {number}?": f"SELECT {number % 7 % 6}" for number in range(14)})
    small.snakemake()
    solved = {number for number in range(14) if number % 5 == number % 7}
    assert {int(row["id"]) for row in small.read("merged.jsonl")} == solved
    not_asked = small.read("not_asked.jsonl", "large")
    assert {int(row["id"]) for row in not_asked} == solved
    assert {row["not_asked_reason"] for row in not_asked} == {"solved_by:m"}
    assert ends(small, "m") == ends(small, "large") == sorted((str(number), 0) for number in range(14))
    merged = small.read("merged.jsonl", "cascade")
    assert [(int(row["id"]), row["solved_by"]) for row in merged] == [
        (number, "m" if number in solved else "large") for number in range(14) if number % 7 != 6
    ]
    assert all(row["gold_match"] for row in merged)
    summary = read_json(small.results / "cascade/summary.json")
    assert (summary["rows"], summary["solved"], summary["unsolved"]) == (14, 12, 2)
    first, second = summary["models"]
    assert (first["alias"], first["solved"], first["samples_asked"], first["cost"]) == ("m", len(solved), 14, None)
    assert (second["solved"], second["samples_asked"]) == (12 - len(solved), 14 - len(solved))
    assert second["cost_per_solved_row"] == pytest.approx(second["cost"] / second["solved"])
    assert second["cost"] > 0
    assert small.requests() == 14 + 14 - len(solved)
    gates = read_json(small.results / "gates.json")["gates"]
    assert [(gate["model"], gate["gate"], gate["value"], gate["met"]) for gate in gates] == [
        ("cascade", "max_failed_ratio", 0.0, True),
        ("cascade", "min_p_keep", pytest.approx(12 / 14), True),
    ]
    exported = (small.results / "cascade/export/messages/train.jsonl").read_text().splitlines()
    assert len(exported) == 12
    assert read_json(small.results / "cascade/export/summary.json")
    page = (small.results / "report.html").read_text()
    assert 'id="cascade"' in page
    assert 'id="rounds"' not in page
    assert "Nothing to be done" in small.snakemake().stdout


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cascade": ["m", "big"]}, "cascade: big: no teacher has this alias"),
        ({"cascade": ["m"]}, "cascade: found one model"),
        ({"gates": {"of": ["cascade"]}}, "gates.of: cascade: no such model; allowed are m, n"),
        ({"cascade": ["m", "n"], "filter": None}, "cascade: without a filter"),
        ({"generate": {"target_kept": 5}, "filter": None}, "generate.target_kept: without a filter"),
        ({"rounds": {"max": 2, "samples": 2}, "generate": {"samples": 3}}, "generate.samples: found 3 beside `rounds`"),
        ({"rounds": {"max": 2}, "execute": None, "filter": {}}, "rounds.stop_when: gold_match needs `execute`"),
        (
            {"rounds": {"max": 2}, "execute": {"database": "db.sqlite", "gold_field": None}},
            "rounds.stop_when: gold_match needs `execute.gold_field`",
        ),
    ],
)
def test_a_config_that_cannot_be_meant_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], message: str
) -> None:
    """The message names the key and what to do."""
    models = [{"alias": alias, "config": "model.yaml"} for alias in ("m", "n")]
    monkeypatch.chdir(tmp_path)
    small = Run(tmp_path, rows=2, config={"models": models, **change})
    with pytest.raises(ConfigError, match=message):
        complete_config(small.config, "config")


def make_rounds(folder: Path, rows: int = 11, **config: Any) -> Run:
    """Make a run in which the answer with `sample_index` number % 5 is right, and the last row's gold query is bad."""
    small = Run(folder, rows=rows, config={"chunks": {"count": 2}, **config})
    model: dict[str, Any] = json.loads(json.dumps(MODEL))
    # With a seed, the replay teacher gives the answer whose number is the seed and sample_index.
    model["chat_config"]["seed"] = 0
    model["prices"] = {"input": 0, "output": 1_000_000}
    small.write_model("model.yaml", model)
    numbers = range(rows)
    golds = ["SELECT nothing" if number == rows - 1 else f"SELECT {number % 7}" for number in numbers]
    small.write_rows([{"id": str(at), "question": f"question {at}?", "gold_sql": golds[at]} for at in numbers])
    answers = [[f"SELECT {at % 7}" if index == at % 5 else "SELECT 9" for index in range(5)] for at in numbers]
    lines = [json.dumps({"user": f"question {at}?", "answers": answers[at]}) + "\n" for at in numbers]
    (folder / "answers.jsonl").write_text("".join(lines))
    return small


def test_rows_that_no_sample_has_solved_get_more_in_the_next_round(tmp_path: Path) -> None:
    """Sample indexes go on; solved rows, and those that cannot be, are not asked again; each sample is accounted for."""
    small = make_rounds(tmp_path, rounds={"max": 2, "samples": 2})
    small.snakemake()
    merged = small.read("merged.jsonl")
    assert [(int(row["id"]), row["sample_index"]) for row in merged] == [(at, at % 5) for at in range(10) if at % 5 < 4]
    reasons = {(int(row["id"]), row["sample_index"]): row["not_asked_reason"] for row in small.read("not_asked.jsonl")}
    solved = [at for at in range(10) if at % 5 < 2]
    assert reasons == {(at, index): "bad_gold" if at == 10 else "solved" for at in [*solved, 10] for index in (2, 3)}
    rejected = [(int(row["id"]), row["sample_index"]) for row in small.read("rejected.jsonl")]
    assert [at for at, _ in rejected] == sorted(at for at, _ in rejected)
    assert ends(small, "m") == sorted((str(at), index) for at in range(11) for index in range(4))
    assert small.requests() == 22 + 2 * (10 - len(solved))
    first, second = read_json(small.results / "m/reports/cost_report.json")["rounds"]
    assert (first["rows_asked"], first["rows_solved"], second["rows_asked"], second["rows_solved"]) == (11, 4, 6, 4)
    assert (first["pass_at_k"], second["pass_at_k"]) == (pytest.approx(0.4), pytest.approx(0.8))
    assert second["cost_per_solved_row"] == pytest.approx(second["cost"] / 4)
    assert read_json(small.results / "m/reports/quality_report.json")["pass_at_k"] == {
        "2": pytest.approx(0.4),
        "4": pytest.approx(0.8),
    }
    stats = read_json(small.results / "m/stats.json")
    assert stats["rounds"] == [first, second]
    assert 'id="rounds"' in (small.results / "report.html").read_text()
    manifest = read_json(small.results / "m/reports/manifest.json")
    assert "m/rounds/2/generated/0001.jsonl" in manifest["stages"]["generated"]["files"]
    assert "Nothing to be done" in small.snakemake().stdout
    small.config["rounds"]["max"] = 3
    small.write_config()
    small.snakemake()
    assert [row["sample_index"] for row in small.read("merged.jsonl") if row["id"] in ("4", "9")] == [4, 4]
    assert ends(small, "m") == sorted((str(at), index) for at in range(11) for index in range(6))


def test_asking_stops_when_enough_rows_are_kept(tmp_path: Path) -> None:
    """Beyond the target are only the jobs that ran then; a higher target asks for what is missing, a stricter filter too."""
    generate = {"target_kept": 12}
    small = Run(tmp_path, rows=40, config={"chunks": {"count": 8}, "filter": {}, "generate": generate})
    small.snakemake()
    kept = len(small.read("merged.jsonl"))
    assert 12 <= kept <= 20
    assert {row["not_asked_reason"] for row in small.read("not_asked.jsonl")} == {"target_reached"}
    assert ends(small, "m") == sorted((str(number), 0) for number in range(40))
    assert small.requests() == kept
    assert "Nothing to be done" in small.snakemake().stdout
    generate["target_kept"] = 18
    small.config["filter"] = {"min_score": 1.0}
    small.write_config()
    small.snakemake()
    assert len(small.read("merged.jsonl")) == 10
    assert small.requests() == 40 - kept
