"""Throughput of `execute` on short queries, as ratios to an evaluator without guards in one process.

    python bench/execute.py [--rows 20000] [--workers 2] [--rounds 3] [--bombs 20]

`plain` runs each statement on one kept connection, unguarded, and fetches its rows. `unguarded evaluator` runs
statement and gold in one process and compares sorted rows and a sha256, as an evaluator without guards does. The
others are the stage from file to file: guards, signature, comparison, JSON in and out. All are run in turn, several
times. In the end a file with an endless query in every tenth row is run, and its endless queries alone.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import resource
import sqlite3
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from potstill.stages.audit_gold import audit_gold
from potstill.stages.execute import execute_rows

BOMB = "WITH RECURSIVE c (x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT count(*) FROM c"
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


def bombs(count: int, answers: int, every: int) -> list[dict[str, Any]]:
    """Return rows of which every so many-th is a query without end."""
    rows = make_rows(count, answers)
    for number in range(0, count, every):
        rows[number]["sql"] = f"{BOMB} /* {number} */"
    return rows


class Cost(NamedTuple):
    """Seconds that a work took: on the wall clock, of this process and of the ones it started.

    The wall clock says what a user waits; on a busy machine only the two others say something of the work.
    """

    wall: float
    here: float
    children: float


def cost(work: Callable[[], object]) -> Cost:
    def now() -> Cost:
        here, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
        return Cost(time.perf_counter(), here.ru_utime + here.ru_stime, children.ru_utime + children.ru_stime)

    before = now()
    work()
    return Cost(*(after - earlier for after, earlier in zip(now(), before, strict=True)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--bombs", type=int, default=20, help="rows of the hostile file that never end by themselves")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        database = folder / "bench.sqlite"
        make_database(database)
        works = make_works(folder, database, args.rows, args.workers)
        costs: dict[str, list[Cost]] = {label: [] for label in works}
        for _ in range(args.rounds):
            for label, work in works.items():
                costs[label].append(cost(work))
        report(costs, args.rows)
        report_bombs(folder, database, args.bombs, args.workers)


def make_works(folder: Path, database: Path, count: int, workers: int) -> dict[str, Callable[[], object]]:
    """Return what is measured, in the order in which each round runs it."""
    rows = make_rows(count, 1)
    works: dict[str, Callable[[], object]] = {
        "plain sqlite3": lambda: plain(database, rows),
        "unguarded evaluator": lambda: unguarded(database, rows),
    }
    for answers in (1, 8):
        source, audit = folder / f"in-{answers}.jsonl", folder / f"audit-{answers}.jsonl"
        source.write_text("".join(f"{json.dumps(row)}\n" for row in make_rows(count, answers)))
        audit_gold([source], audit, folder / "audit.json", settings={"database": str(database), "workers": workers})
        for number in sorted({1, workers}):
            label = f"execute, {answers} answers per gold, {number} worker(s)"
            run = partial(
                execute_rows, source, folder / "out.jsonl", settings={"database": str(database), "workers": number}
            )
            works[f"{label}, gold audited"] = partial(run, gold_audit=audit)
            works[f"{label}, gold on the spot"] = run
    return works


def report(costs: dict[str, list[Cost]], count: int) -> None:
    """Print the best of the rounds: other work on the machine only ever slows one down."""
    best = {label: Cost(*map(min, zip(*each, strict=True))) for label, each in costs.items()}
    base = best["unguarded evaluator"]
    print("   rows/s  of unguarded   CPU us/row here + workers   busiest process, of unguarded")
    for label, taken in best.items():
        workers = int(label.split(" worker(s)")[0].rsplit(maxsplit=1)[-1]) if "worker(s)" in label else 1
        busiest = max(taken.here, taken.children / workers)
        print(
            f"{count / taken.wall:9,.0f}  {base.wall / taken.wall:12.2f}   {taken.here / count * 1e6:14.1f} + "
            f"{taken.children / count * 1e6:5.1f}      {base.here / busiest:20.2f}            {label}"
        )


def report_bombs(folder: Path, database: Path, count: int, workers: int) -> None:
    """Print what a file costs of which each tenth row never ends by itself, against its bombs alone."""
    settings = {"database": str(database), "workers": workers, "timeout_s": 1}
    times = []
    for name, rows in (("bombs", bombs(count, 1, 1)), ("mixed", bombs(10 * count, 1, 10))):
        source = folder / f"{name}.jsonl"
        source.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        times.append(cost(partial(execute_rows, source, folder / "out.jsonl", settings=settings)).wall)
    print(f"{count} endless queries alone {times[0]:.2f} s; in every tenth of {10 * count} rows {times[1]:.2f} s")


if __name__ == "__main__":
    main()
