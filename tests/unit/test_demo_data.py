"""The demo's data: databases that can be built again, rows whose gold runs, an answer for every question."""

from __future__ import annotations

import importlib.util
import json
import sqlite3
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import jinja2
import pytest

from potstill.teacher import Answers

CONFIG = Path(__file__).parents[2] / "config"
DEMO = CONFIG / "demo"
NAMES = ["cinema", "shop"]
BAD_GOLD = "cinema-32"
EMPTY_GOLD = "cinema-33"


@pytest.fixture(scope="module")
def build() -> ModuleType:
    spec = importlib.util.spec_from_file_location("demo_build", DEMO / "build.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DEMO / "rows.jsonl").read_text(encoding="utf-8").splitlines()]


def dump(path: Path) -> list[str]:
    connection = sqlite3.connect(path)
    try:
        return list(connection.iterdump())
    finally:
        connection.close()


def query(name: str, sql: str) -> list[Any]:
    connection = sqlite3.connect(f"{(DEMO / 'databases' / name).resolve().as_uri()}.sqlite?mode=ro", uri=True)
    try:
        return connection.execute(sql).fetchall()
    finally:
        connection.close()


def test_build_gives_the_databases_that_are_in_the_repository(build: ModuleType, tmp_path: Path) -> None:
    """Building again gives the same schema and the same rows, and what is shipped is small."""
    build.main([str(tmp_path)])
    for name in NAMES:
        assert dump(tmp_path / f"{name}.sqlite") == dump(DEMO / "databases" / f"{name}.sqlite")
    assert sum(path.stat().st_size for path in (DEMO / "databases").iterdir()) < 200_000


@pytest.mark.parametrize("name", NAMES)
def test_foreign_keys_of_the_databases_hold(name: str) -> None:
    """No row points to a row that is not there, and the files are sound."""
    assert query(name, "PRAGMA foreign_key_check") == []
    assert query(name, "PRAGMA integrity_check") == [("ok",)]


def test_rows_show_the_schema_of_their_database(build: ModuleType, rows: list[dict[str, Any]]) -> None:
    """The schema in each row is that of its database as it is now."""
    schemas = {name: build.read_schema(DEMO / "databases" / f"{name}.sqlite") for name in NAMES}
    assert all(row["schema"] == schemas[row["db_id"]] for row in rows)


def test_rows_are_many_graded_and_two_of_them_repeat(rows: list[dict[str, Any]]) -> None:
    """At least 66 questions of four difficulties, with ids of their own, and two that deduplication must find."""
    assert len({row["id"] for row in rows}) == len(rows)
    assert len({row["question"] for row in rows}) == len(rows) - 2 >= 66
    counts = Counter(row["difficulty"] for row in rows)
    assert set(counts) == {"easy", "medium", "hard", "extra"}
    assert min(counts.values()) >= 8


def test_gold_runs_but_for_the_one_that_is_bad_on_purpose(rows: list[dict[str, Any]]) -> None:
    """One gold query fails, one has an empty result, all others give rows: the gold audit has something to show."""
    empty = set()
    for row in rows:
        if row["id"] == BAD_GOLD:
            with pytest.raises(sqlite3.OperationalError, match="no such column: runtime"):
                query(row["db_id"], row["gold_sql"])
        elif not query(row["db_id"], row["gold_sql"]):
            empty.add(row["id"])
    assert empty == {EMPTY_GOLD}


def test_every_prompt_of_the_demo_has_its_own_answer(rows: list[dict[str, Any]]) -> None:
    """The rendered prompt of each row finds the answers that were recorded for its question."""
    recorded = Answers.load(DEMO / "answers.jsonl")
    lines = (DEMO / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    wanted = {entry["match"]: entry["answers"][0] for entry in map(json.loads, lines)}
    template = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True).from_string(
        (CONFIG / "prompts" / "text2sql.jinja").read_text(encoding="utf-8")
    )
    assert len(recorded) == len(wanted) == len({row["question"] for row in rows})
    for row in rows:
        messages = [
            {"role": "system", "content": "Return SQL only."},
            {"role": "user", "content": template.render(row)},
        ]
        (answer,) = recorded.find({"messages": messages, "seed": 0})
        expected = wanted[row["question"]]
        assert answer == (expected if isinstance(expected, dict) else {"content": expected})
