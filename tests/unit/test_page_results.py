"""Results beside gold on the page: run again, guarded, or left out where that cannot be."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from potstill.reports.results import MAX_CELL, MAX_ROWS, find_results


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    """A folder with one database of twenty rows."""
    with contextlib.closing(sqlite3.connect(tmp_path / "books.sqlite")) as connection:
        connection.execute("CREATE TABLE book (id INTEGER, title TEXT, cover BLOB)")
        connection.executemany("INSERT INTO book VALUES (?, ?, ?)", [(i, "x" * 200, b"\x01") for i in range(20)])
        connection.commit()
    return {"engine": "sqlite", "database_dir": str(tmp_path), "timeout_s": 2}


def row(sql: str, gold: str, *, match: bool | None = False, passed: bool = True, status: str = "ok") -> dict[str, Any]:
    return {
        "db_id": "books",
        "sql": sql,
        "gold_sql": gold,
        "exec_pass": passed,
        "gold_match": match,
        "gold_status": status,
    }


def test_both_results_of_a_mismatch_are_shown(settings: dict[str, Any]) -> None:
    """Of an answer with another result than gold's the first rows of both are there, cut, with how many there are."""
    found = find_results([row("SELECT id FROM book ORDER BY id", "SELECT title, cover, NULL FROM book")], settings)
    assert found[0]["result"] == {"rows": [[str(i)] for i in range(MAX_ROWS)], "more_rows": 12, "columns": 1}
    assert found[0]["gold"]["rows"][0] == ["x" * MAX_CELL + "…", "x'01'", "NULL"]


def test_only_what_says_something_is_run(settings: dict[str, Any]) -> None:
    """A match shows gold's result alone; what failed, and gold that cannot be used, is not run again."""
    rows = [
        row("SELECT 1", "SELECT 1", match=True),
        row("SELEC 1", "SELECT 2", passed=False),
        row("SELECT 3", "SELEC 3", match=None, status="error"),
        {"generation": "no stage executed this"},
    ]
    found = {number: sorted(tables) for number, tables in find_results(rows, settings).items()}
    assert found == {0: ["gold"], 1: ["gold"], 2: ["result"]}


def test_statements_stay_guarded(settings: dict[str, Any], tmp_path: Path) -> None:
    """A row that claims to have passed cannot write through the page."""
    before = (tmp_path / "books.sqlite").read_bytes()
    assert find_results([row("DELETE FROM book", "PRAGMA user_version = 7")], settings) == {}
    assert (tmp_path / "books.sqlite").read_bytes() == before


def test_without_databases_the_page_does_without(tmp_path: Path) -> None:
    """Where the databases are gone there are no results, and no error."""
    assert find_results([row("SELECT 1", "SELECT 1")], {"database_dir": str(tmp_path / "gone")}) == {}
