"""Merged and rejected rows as `merge_answers` writes them, for the tests of the exports."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from potstill.records import Row
from potstill.rows import publish_rows, read_rows


def make_row(number: int, *, sample_index: int = 0, **changes: Any) -> Row:
    """Return one kept row; `changes` overrides any field."""
    sample_id = hashlib.sha256(f"row {number}".encode()).hexdigest()
    question = changes.pop("question", f"How many singers of group {number} are older than 30?")
    sql = changes.pop("sql", f"SELECT count(*) FROM singer WHERE grp = {number} AND age > 30")
    row = {
        "id": f"q-{number:05d}",
        "db_id": f"db_{number % 7}",
        "question": question,
        "gold_sql": f"SELECT count(*) FROM singer WHERE grp = {number} AND age > 30",
        "sample_id": sample_id,
        "messages": [
            {"role": "system", "content": "Return SQL only."},
            {"role": "user", "content": f"CREATE TABLE singer (grp, age)\n\n{question}"},
        ],
        "generation": f"<think>\nI count.\n</think>\n\n```sql\n{sql}\n```",
        "reasoning": "I count.",
        "tool_calls": None,
        "finish_reason": "stop",
        "usage": {"prompt_tokens": 10, "completion_tokens": 5},
        "model": "teacher",
        "sample_index": sample_index,
        "sql": sql,
        "clean_method": "fence",
        "clean_note": None,
        "exec_pass": True,
        "exec_error_class": None,
        "exec_error": None,
        "gold_match": True,
        "row_count": 1,
        "column_count": 1,
        "gold_status": "ok",
        "score": 1.0,
        "keep": True,
        "reject_reasons": [],
        "reject_reason": None,
    }
    return {**row, **changes}


def make_wrong(number: int, *, sample_index: int = 1, **changes: Any) -> Row:
    """Return a rejected row: it executes and does not match gold."""
    facts = {"sql": f"SELECT count(age) FROM singer WHERE grp = {number}", "gold_match": False, "score": 0.5}
    return make_row(number, sample_index=sample_index, **{**facts, "keep": False, **changes})


def make_error(number: int, *, sample_index: int = 2, **changes: Any) -> Row:
    """Return a rejected row: it does not execute."""
    facts = {
        "sql": f"SELECT nothing FROM singers WHERE grp = {number}",
        "exec_pass": False,
        "exec_error_class": "no_such_table",
        "gold_match": False,
        "row_count": None,
        "column_count": None,
        "score": 0.0,
        "keep": False,
    }
    return make_row(number, sample_index=sample_index, **{**facts, **changes})


def write(path: Path, rows: list[Row]) -> Path:
    """Write rows to a file and return its path."""
    publish_rows(path, rows)
    return path


def read(path: Path) -> list[Row]:
    """Return the rows of a file."""
    return list(read_rows(path))
