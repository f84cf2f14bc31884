"""Small runs on disk with everything a real one has: kept, rejected, failed and not asked rows, two models, times."""

from __future__ import annotations

import random
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from potstill.records import VOLATILE_FIELDS, Row, sha256_text
from potstill.rows import publish_json, publish_rows

START = datetime(2026, 5, 4, 9, 0, tzinfo=UTC)
DATABASES = ("library", "orchard", "trains")
DIFFICULTIES = ("simple", "moderate", "challenging")
SCHEMA = "CREATE TABLE book (id INTEGER PRIMARY KEY, title TEXT, pages INTEGER, author_id INTEGER);"


def make_prepared(count: int) -> list[Row]:
    """Return prepared rows."""
    return [
        {
            "sample_id": sha256_text(f"row {number}"),
            "id": number,
            "db_id": DATABASES[number % 3],
            "difficulty": DIFFICULTIES[number % 7 % 3],
            "question": f"How many books have more than {number} pages?",
            "gold_sql": f"SELECT count(*) FROM book WHERE pages > {number}",
            "messages": [
                {"role": "system", "content": "Return SQL only."},
                {"role": "user", "content": f"{SCHEMA}\n\nHow many books have more than {number} pages?"},
            ],
        }
        for number in range(count)
    ]


def _answer(row: Row, number: int, chance: random.Random, outcome: str) -> Row:
    sql = row["gold_sql"] if outcome == "match" else f"SELECT pages FROM book WHERE pages > {number}"
    if outcome == "broken":
        sql = f"SELEC count(*) FROM book WHERE pages > {number}"
    passed = outcome in ("match", "differs")
    gold_usable = number % 11 != 5
    moment = START + timedelta(seconds=number * 0.4 + chance.random())
    return row | {
        "generation": f"<think>Count them.</think>\n```sql\n{sql}\n```\nThat counts the books.",
        "reasoning": "Count them.",
        "tool_calls": None,
        "finish_reason": "stop",
        "usage": {
            "prompt_tokens": 120 + number % 9,
            "completion_tokens": 40 + number % 13,
            "reasoning_tokens": 10,
            "cached_tokens": 64 if number % 2 else 0,
        },
        "model": "teacher-large",
        "sample_index": 0,
        "sql": sql,
        "clean_method": "fence",
        "clean_note": "had_reasoning",
        "exec_pass": passed,
        "exec_error_class": None if passed else "syntax",
        "exec_error": None if passed else 'near "SELEC": syntax error',
        "gold_match": (outcome == "match") if gold_usable else None,
        "gold_status": "ok" if gold_usable else "error",
        "result_signature": sha256_text(outcome) if passed else None,
        "row_count": 1 if passed else None,
        "column_count": 1 if passed else None,
        "empty_result": False,
        "used_clock": False,
        "used_random": False,
        "score": {"match": 1.0, "differs": 0.5, "broken": 0.0}[outcome],
        "endpoint": "http://127.0.0.1:8000/v1",
        "latency_s": 0.5 + chance.random(),
        "attempts": 1 + (number % 17 == 0),
        "answered_at": moment.isoformat(),
        "served_model": "teacher-large-0504",
        "system_fingerprint": None,
        "exec_s": 0.001 + chance.random() / 100,
    }


def judge(row: Row) -> Row:
    """Return an answered row with its verdict: score at least 1, at most 200 characters of answer."""
    reasons = [] if row["exec_pass"] else ["exec_failed"]
    reasons += ["low_score"] if row["score"] < 1 else []
    reasons += ["too_long"] if len(row["generation"]) > 200 else []
    return row | {"keep": not reasons, "reject_reasons": reasons, "reject_reason": reasons[0] if reasons else None}


def make_rows(count: int, seed: int = 1) -> dict[str, list[Row]]:
    """Return the rows of one model by their end: kept, rejected, failed, not_asked."""
    chance = random.Random(seed)
    ends: dict[str, list[Row]] = {"kept": [], "rejected": [], "failed": [], "not_asked": []}
    for number, row in enumerate(make_prepared(count)):
        fate = chance.choices(["match", "differs", "broken", "failed", "not_asked"], [60, 18, 12, 6, 4])[0]
        if fate == "failed":
            failure = {"error_class": "timeout", "error": "no answer within 600 s", "attempts": 4, "sample_index": 0}
            ends["failed"].append(row | failure)
        elif fate == "not_asked":
            ends["not_asked"].append(row | {"not_asked_reason": "budget", "sample_index": 0})
        else:
            judged = judge(_answer(row, number, chance, fate))
            ends["kept" if judged["keep"] else "rejected"].append(judged)
    return ends


def without_times(row: Row) -> Row:
    """Return a row as the merged files hold it."""
    return {name: value for name, value in row.items() if name not in VOLATILE_FIELDS}


def times_of(rows: Iterable[Row]) -> list[Row]:
    """Return the lines of timings.jsonl for rows."""
    keys = ("sample_id", "sample_index", *VOLATILE_FIELDS)
    return [{name: row[name] for name in keys if name in row} for row in rows]


def write_model(folder: Path, ends: dict[str, list[Row]]) -> None:
    """Write the merged files of one model."""
    names = {"kept": "merged", "rejected": "rejected", "failed": "failed", "not_asked": "not_asked"}
    for end, name in names.items():
        publish_rows(folder / f"{name}.jsonl", map(without_times, ends[end]))
    publish_rows(folder / "timings.jsonl", times_of(ends["kept"] + ends["rejected"] + ends["failed"]))


def make_config(models: Iterable[str]) -> dict[str, Any]:
    """Return the config of a run of ours."""
    return {
        "run": "sample",
        "models": [{"alias": alias, "config": f"{alias}.yaml"} for alias in models],
        "generate": {"samples": 1, "concurrency": 30},
        "execute": {"engine": "sqlite", "database_field": "db_id", "gold_field": "gold_sql", "timeout_s": 5},
        "filter": {"min_score": 1.0},
        "gates": {"min_total": 1, "min_exec_pass_rate": 0.5, "on_failure": "fail"},
    }


def make_run(run_dir: Path, count: int = 60, models: Iterable[str] = ("teacher",)) -> Path:
    """Write a whole run before its reports, and return its folder."""
    import yaml

    models = list(models)
    run_dir.mkdir(parents=True, exist_ok=True)
    publish_json(
        run_dir / "prepared" / "summary.json", {"lines": count + 3, "rows": count, "rejected": 1, "duplicates": 2}
    )
    publish_rows(run_dir / "prepared" / "chunks" / "0001.jsonl", make_prepared(count))
    (run_dir / "config.yaml").write_text(yaml.safe_dump(make_config(models)))
    for seed, model in enumerate(models):
        write_model(run_dir / model, make_rows(count, seed))
        for chunk in ("0001", "0002"):
            benchmark = run_dir / "benchmarks" / "generate_answers" / model / f"{chunk}.tsv"
            benchmark.parent.mkdir(parents=True, exist_ok=True)
            benchmark.write_text(f"s\th:m:s\tmax_rss\n{12.5 + seed}\t0:00:12\t150.25\n")
    return run_dir
