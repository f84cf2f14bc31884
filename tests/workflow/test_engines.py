"""The DAG on engines other than SQLite."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.servers.postgres import running_postgres
from tests.workflow.runs import Run

TABLES = (
    "CREATE TABLE city (id INTEGER PRIMARY KEY, name VARCHAR(20), people INTEGER)",
    "INSERT INTO city VALUES (1, 'Ulm', 128), (2, 'Bonn', 331), (3, 'Kiel', 247)",
)
#: Gold, answer, reject reason: one row each; what one engine knows and the others do not is among them.
ROWS = [
    ("SELECT name FROM city WHERE people > 200", "SELECT c.name FROM city AS c WHERE c.people >= 247", None),
    ("SELECT sum(people) FROM city", "SELECT 128 + 331 + 247", None),
    ("SELECT string_agg(name, '-' ORDER BY id) FROM city", "SELECT 'Ulm-Bonn-Kiel'::varchar", None),
    ("SELECT name FROM city ORDER BY people", "SELECT name FROM city ORDER BY people DESC", "gold_mismatch"),
    ("SELECT count(*) FROM city", "SELECT count(*) FROM town", "exec_error"),
    ("SELECT count(*) FROM city", "DELETE FROM city", "not_a_query"),
    ("SELECT count(*) FROM city", "WITH gone AS (DELETE FROM city RETURNING 1) SELECT 3", "exec_error"),
    ("SELECT nothing FROM city", "SELECT 1", "gold_not_usable"),
    ("SELECT current_date", "SELECT current_date", "used_clock"),
    ("SELECT count(*) FROM city", "SELECT count(id) FROM city", None),
]


def run_dag(folder: Path, dialect: str, **execute: Any) -> Run:
    """Run the DAG over the rows, with a teacher that gives their answers."""
    made = Run(
        folder,
        rows=len(ROWS),
        config={
            "chunks": {"count": 2},
            "clean": {"kind": "sql", "dialect": dialect},
            "execute": {"timeout_s": 10, **execute},
            "filter": {"require": ["gold_match"], "reject": ["not_a_query", "used_clock"]},
        },
    )
    questions = [f"question {number}?" for number in range(len(ROWS))]
    made.write_rows(
        [
            {"id": str(number), "question": question, "db_id": "shop", "gold_sql": gold}
            for number, (question, (gold, *_)) in enumerate(zip(questions, ROWS, strict=True))
        ]
    )
    answers = [{"user": question, "answers": [sql]} for question, (_, sql, _) in zip(questions, ROWS, strict=True)]
    (folder / "answers.jsonl").write_text("".join(json.dumps(answer) + "\n" for answer in answers))
    made.snakemake()
    return made


def check(made: Run) -> None:
    reasons = {row["id"]: None for row in made.read("merged.jsonl")}
    reasons |= {row["id"]: row["reject_reason"] for row in made.read("rejected.jsonl")}
    assert [reasons[str(number)] for number in range(len(ROWS))] == [reason for *_, reason in ROWS]
    audit = json.loads((made.results / "gold_audit.json").read_text())
    assert (audit["bad"], audit["statuses"]["error"]) == (1, 1)
    assert "Nothing to be done" in made.snakemake().stdout


def test_the_dag_on_duckdb(tmp_path: Path) -> None:
    """Rows, a replayed teacher and a DuckDB file: every row ends where it should, and the file is as it was."""
    duckdb = pytest.importorskip("duckdb")
    database = tmp_path / "dbs" / "shop.duckdb"
    database.parent.mkdir()
    with duckdb.connect(str(database)) as connection:
        for statement in TABLES:
            connection.execute(statement)
    before = database.read_bytes()
    check(run_dag(tmp_path, "duckdb", engine="duckdb", database_dir="dbs"))
    assert [path.name for path in database.parent.iterdir()] == ["shop.duckdb"]
    assert database.read_bytes() == before


def test_the_dag_on_postgresql(tmp_path: Path) -> None:
    """The same on a real server, by a role that could write."""
    with running_postgres((*TABLES, "GRANT ALL ON city TO reader")) as connection:
        check(run_dag(tmp_path, "postgres", engine="postgresql", database=connection))
