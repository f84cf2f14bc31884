"""Throughput of `execute` on short queries, as ratios to plain sqlite3 measured in the same run.

    python bench/execute.py [--rows 40000] [--workers 2]

`plain` runs each statement on one kept connection, unguarded, and fetches its rows. `unguarded evaluator` runs
statement and gold in one process and compares sorted rows and a sha256, as an evaluator without guards does. The
others are the stage from file to file: guards, signature, comparison, JSON in and out. `prompts` is how many answers
each gold query judges.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import sqlite3
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from potstill.stages.audit_gold import audit_gold
from potstill.stages.execute import execute_rows

TEMPLATES = (
    "SELECT name FROM person WHERE id = {0}",
    "SELECT count(*) FROM person WHERE city = {1} AND id <> {0}",
    "SELECT city, age FROM person WHERE id BETWEEN {0} AND {0} + 5",
    "SELECT p.name, c.name FROM person p JOIN city c ON c.id = p.city WHERE p.id = {0}",
    "SELECT name, age FROM person WHERE id > {0} ORDER BY id LIMIT 3",
)


def make_database(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE city (id INTEGER PRIMARY KEY, name TEXT)")
        connection.execute("CREATE TABLE person (id INTEGER PRIMARY KEY, name TEXT, city INTEGER, age INTEGER)")
        connection.execute("CREATE INDEX person_city ON person (city)")
        connection.executemany("INSERT INTO city VALUES (?, ?)", [(i, f"city {i}") for i in range(200)])
        people = [(i, f"person {i}", i % 200, 18 + i % 60) for i in range(2000)]
        connection.executemany("INSERT INTO person VALUES (?, ?, ?, ?)", people)
    connection.close()


def make_rows(count: int, answers_per_gold: int) -> list[dict[str, Any]]:
    """Return rows whose statements are all distinct: what is remembered must not help."""
    dice = random.Random(1)
    rows = []
    for number in range(count):
        gold = number // answers_per_gold
        sql = TEMPLATES[gold % len(TEMPLATES)].format(gold % 2000, dice.randrange(200))
        identity = hashlib.sha256(b"%d" % number).hexdigest()
        rows.append({"sample_id": identity, "sql": f"{sql} /* {number} */", "gold_sql": f"{sql} /* g{gold} */"})
    return rows


def seconds(work: Callable[[], object]) -> float:
    """Return the wall time of the better of two rounds: other work on the machine only ever slows one down."""
    times = []
    for _ in range(2):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


def plain(database: Path, rows: list[dict[str, Any]]) -> None:
    connection = sqlite3.connect(database)
    for row in rows:
        connection.execute(row["sql"]).fetchall()
    connection.close()


def unguarded(database: Path, rows: list[dict[str, Any]]) -> None:
    connection = sqlite3.connect(database)
    for row in rows:
        answer = sorted(connection.execute(row["sql"]).fetchall(), key=str)
        gold = sorted(connection.execute(row["gold_sql"]).fetchall(), key=str)
        row["match"] = answer == gold
        row["signature"] = hashlib.sha256(json.dumps(answer).encode()).hexdigest()
    connection.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=40_000)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        measure(Path(name), args.rows, args.workers)


def measure(folder: Path, count: int, workers: int) -> None:
    database = folder / "bench.sqlite"
    make_database(database)
    rows = make_rows(count, 1)
    base = seconds(lambda: plain(database, rows))
    results = {"plain sqlite3": base, "unguarded evaluator": seconds(lambda: unguarded(database, rows))}
    for answers in (1, 8):
        source = folder / f"in-{answers}.jsonl"
        source.write_text("".join(f"{json.dumps(row)}\n" for row in make_rows(count, answers)))
        audit = folder / f"audit-{answers}.jsonl"
        for number in sorted({1, workers}):
            settings = {"database": str(database), "workers": number}
            label = f"execute, {answers} answers per gold, {number} worker(s)"
            results[f"{label}, gold on the spot"] = seconds(
                lambda source=source, settings=settings: execute_rows(source, folder / "out.jsonl", settings=settings)
            )
            audit_gold([source], audit, folder / "audit.json", settings=settings)
            results[f"{label}, gold audited"] = seconds(
                lambda source=source, settings=settings, audit=audit: execute_rows(
                    source, folder / "out.jsonl", settings=settings, gold_audit=audit
                )
            )
    for label, taken in results.items():
        print(f"{count / taken:10,.0f} rows/s  {base / taken:5.2f} of plain  {label}")


if __name__ == "__main__":
    main()
