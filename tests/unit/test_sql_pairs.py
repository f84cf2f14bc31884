"""The pairs of tests/data/compare: statement, gold and verdict; a new case needs no Python."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from potstill.rows import dumps, read_rows
from potstill.stages.audit_gold import audit_gold
from potstill.stages.execute import execute_rows

DATA = Path(__file__).parents[1] / "data" / "compare"
PAIRS = [
    (f"{path.stem}-{number}", pair)
    for path in sorted(DATA.glob("*.yaml"))
    for number, pair in enumerate(yaml.safe_load(path.read_text(encoding="utf-8")), start=1)
]
SETTINGS: dict[str, Any] = {"timeout_s": 3, "kill_grace_s": 2, "max_vm_steps": 40_000_000, "workers": 2}


@pytest.fixture(scope="module")
def company(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database made from company.sql."""
    path = tmp_path_factory.mktemp("databases") / "company.sqlite"
    connection = sqlite3.connect(path)
    connection.executescript((DATA / "company.sql").read_text(encoding="utf-8"))
    connection.close()
    return path


@pytest.fixture(scope="module")
def verdicts(company: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What became of each pair, by name; each comparison policy is one run of the stage."""
    folder = tmp_path_factory.mktemp("pairs")
    by_policy: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for name, pair in PAIRS:
        row = {"name": name, "sql": pair["sql"], "gold_sql": pair["gold"]}
        by_policy[json.dumps(pair.get("comparison", "strict"))].append(row)
    found: dict[str, dict[str, Any]] = {}
    for policy, rows in by_policy.items():
        source = folder / "in.jsonl"
        source.write_bytes(b"".join(map(dumps, rows)))
        settings = {**SETTINGS, "database": str(company), "comparison": json.loads(policy)}
        execute_rows(source, folder / "out.jsonl", settings=settings)
        found |= {row["name"]: row for row in read_rows(folder / "out.jsonl")}
    return found


@pytest.mark.parametrize(("name", "pair"), PAIRS, ids=[name for name, _ in PAIRS])
def test_pair(name: str, pair: dict[str, Any], verdicts: dict[str, dict[str, Any]]) -> None:
    """Each pair gets the verdict that its file states."""
    row = verdicts[name]
    wanted = pair.get("class")
    assert row["exec_pass"] is pair["pass"], row["exec_error"]
    assert row["exec_error_class"] in (wanted if isinstance(wanted, list) else [wanted]), row["exec_error"]
    assert row["gold_match"] is pair["match"], row
    assert row["gold_status"] == pair.get("gold_status", row["gold_status"])
    for flag, value in pair.get("flags", {}).items():
        assert row[flag] is value, flag


LONG = {
    "IN of 30,000": f"SELECT count(*) FROM staff WHERE id IN ({','.join(map(str, range(1, 30_000)))})",
    "OR of 400": f"SELECT count(*) FROM staff WHERE {' OR '.join(f'id = {i}' for i in range(1, 401))}",
    "sum of 500": f"SELECT 6 + {' + '.join(['0'] * 500)}",
    "CASE of 300": f"SELECT CASE id {' '.join(f'WHEN {i} THEN {i + 3}' for i in range(300))} END FROM staff WHERE id = 3",
    "UNION of 300": f"SELECT count(*) - 294 FROM ({' UNION ALL '.join(['SELECT 1'] * 300)})",
    "comment of 200,000": f"SELECT 6 /* {'x' * 200_000} */",
}


@pytest.mark.parametrize("name", LONG)
def test_a_long_statement_is_no_bad_one(name: str, company: Path, tmp_path: Path) -> None:
    """What plain SQLite runs for its length alone is run here too."""
    source = tmp_path / "in.jsonl"
    source.write_bytes(dumps({"sql": LONG[name], "gold_sql": "SELECT count(*) FROM staff"}))
    execute_rows(source, tmp_path / "out.jsonl", settings={**SETTINGS, "database": str(company)})
    assert next(iter(read_rows(tmp_path / "out.jsonl")))["gold_match"] is True


def test_hostile_statements_change_nothing(company: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After every hostile statement the database has its bytes, its folder its files, the working directory none."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    rows = [{"sql": pair["sql"], "gold_sql": pair["gold"]} for _, pair in PAIRS]
    source.write_bytes(b"".join(map(dumps, rows)))
    before = _picture(company.parent)
    execute_rows(source, output, settings={**SETTINGS, "database": str(company)})
    assert _picture(company.parent) == before
    assert list(here.iterdir()) == []
    assert sum(1 for _ in read_rows(output)) == len(rows)


def test_audited_gold_gives_the_same_verdicts(company: Path, tmp_path: Path) -> None:
    """A row's verdict is the same whether its gold was audited before or is run on the spot."""
    source = tmp_path / "in.jsonl"
    rows = [
        {"sql": pair["sql"], "gold_sql": pair["gold"]}
        for name, pair in PAIRS
        if not name.startswith("hostile") and pair.get("gold_status") != "timeout"
    ]
    source.write_bytes(b"".join(map(dumps, rows)))
    settings = {**SETTINGS, "database": str(company)}
    audit_gold([source], tmp_path / "gold.jsonl", tmp_path / "gold.json", settings=settings)
    execute_rows(source, tmp_path / "spot.jsonl", settings=settings)
    execute_rows(source, tmp_path / "audited.jsonl", settings=settings, gold_audit=tmp_path / "gold.jsonl")
    spot, audited = ([_steady(row) for row in read_rows(tmp_path / name)] for name in ("spot.jsonl", "audited.jsonl"))
    assert spot == audited


def _steady(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "exec_s"}


def _picture(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}
