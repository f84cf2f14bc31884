"""Worker processes: copies of a process that has one thread, interpreters of their own elsewhere; locks in both."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from potstill.sql.engines.sqlite import SqliteEngine
from potstill.sql.limits import Limits
from potstill.sql.policy import Policy
from potstill.sql.pool import Pool
from tests.unit.test_sql_execute import UNSTOPPABLE, make_database, run

#: Prints what there is to know of a worker of a process with one thread, or with two.
SCRIPT = """
import json, os, signal, sqlite3, sys, threading
from pathlib import Path
from potstill.sql.limits import Limits
from potstill.sql.policy import Policy
from potstill.sql.pool import Killed, Pool

database, other_thread = sys.argv[1], sys.argv[2] == "2"
signal.signal(signal.SIGTERM, lambda *_: None)
secret = open("secret.txt", "w")  # a file of the parent's: no worker may hold it
stop = threading.Event()
if other_thread:
    threading.Thread(target=stop.wait, daemon=True).start()
with Pool("sqlite", Limits(timeout_s=0.3, kill_grace_s=0.3, max_vm_steps=10**15), Policy()) as pool:
    uri = Path(database).as_uri() + "?mode=ro"
    first = pool.collect(pool.submit([("gold", (uri, "SELECT a FROM t")), ("gold", (uri, sys.argv[3]))]))
    again = pool.collect(pool.submit([("gold", (uri, "SELECT count(*), date('now') FROM t"))]))
    worker = pool._workers[0]._process
    files = [os.readlink(f"/proc/{worker.pid}/fd/{name}") for name in os.listdir(f"/proc/{worker.pid}/fd")]
    status = Path(f"/proc/{worker.pid}/status").read_text()
    caught = int(next(line for line in status.splitlines() if line.startswith("SigCgt")).split()[1], 16)
print(json.dumps({
    "kind": type(worker).__name__, "rows": first[0][5], "killed": isinstance(first[1], Killed), "again": again[0][5],
    "files": files, "catches_sigterm": bool(caught >> (signal.SIGTERM - 1) & 1), "folder": os.getcwd(),
    "left": worker.returncode,
}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="copies are made on Linux only")
@pytest.mark.parametrize(("threads", "kind"), [(1, "_Copy"), (2, "Popen")])
def test_a_worker_has_nothing_of_its_parents(threads: int, kind: str, tmp_path: Path) -> None:
    """Started either way it works, is replaced after a kill, and holds no file and no handler of its parent's."""
    database = make_database(tmp_path / "databases" / "one.sqlite", 1, 2, 3)
    found = json.loads(_python(SCRIPT, str(database), str(threads), UNSTOPPABLE, folder=tmp_path))
    assert found["kind"] == kind
    assert (found["rows"], found["killed"]) == ([[1], [2], [3]], True)
    assert found["again"] == [[3, "2025-01-01"]]
    assert not [name for name in found["files"] if "secret" in name]
    assert len([name for name in found["files"] if name.startswith("pipe:")]) <= 4  # in and out, each twice at most
    assert not found["catches_sigterm"]
    assert found["left"] == -9


def _python(code: str, *arguments: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_error_at_the_start_of_a_copy_is_told(tmp_path: Path) -> None:
    """A worker that cannot start says why, and its parent says it on."""
    code = (
        "from potstill.sql.limits import Limits\nfrom potstill.sql.policy import Policy\n"
        "from potstill.sql.pool import Pool\nfrom potstill.errors import PotstillError\n"
        "try:\n    pool = Pool('nonsense', Limits(), Policy()); pool.collect(pool.submit([('gold', ('x', 'y'))]))\n"
        "except PotstillError as error:\n    print(error)\n"
    )
    assert "no engine 'nonsense'" in _python(code, folder=tmp_path)


def _insert(database: Path, wait_s: float) -> None:
    with closing(sqlite3.connect(database, timeout=wait_s, isolation_level=None)) as connection:
        connection.execute("INSERT INTO t VALUES (9)")


def test_the_lock_is_held_between_statements_and_left_at_the_end(tmp_path: Path) -> None:
    """Nobody can write while the lock for reading is held; when the engine rests, anybody can."""
    database = make_database(tmp_path / "one.sqlite", 1, 2, 3)
    engine = SqliteEngine(Limits())
    location = f"{database.as_uri()}?mode=ro"
    assert len(engine.run(location, "SELECT a FROM t").rows) == 3
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        _insert(database, 0)
    engine.release()
    _insert(database, 0)
    assert len(engine.run(location, "SELECT a FROM t").rows) == 4
    engine.close()
    _insert(database, 0)


def test_workers_without_work_hold_no_lock(tmp_path: Path) -> None:
    """Between two batches a database can be written, and the next batch sees what was written."""
    database = make_database(tmp_path / "one.sqlite", 1, 2, 3)
    task = ("gold", (f"{database.as_uri()}?mode=ro", "SELECT count(*) FROM t"))
    with Pool("sqlite", Limits(), Policy()) as pool:
        counts = []
        for _ in range(3):
            counts.append(pool.collect(pool.submit([task]))[0][5])
            _insert(database, 2)
    assert counts == [[(3,)], [(4,)], [(5,)]]


def test_who_writes_has_a_turn_while_rows_are_executed(tmp_path: Path) -> None:
    """A writer waits for a moment, not for the end of the file; and no row fails for it."""
    database = make_database(tmp_path / "one.sqlite", 1, 2, 3)
    rows: list[dict[str, Any]] = [{"sql": f"SELECT a FROM t WHERE a < 4 /* {number} */"} for number in range(60_000)]
    found: list[dict[str, Any]] = []
    worker = threading.Thread(target=lambda: found.extend(run(tmp_path, rows, database=str(database), workers=2)))
    worker.start()
    written_during = 0
    while worker.is_alive():
        time.sleep(0.1)
        _insert(database, 10)
        written_during += worker.is_alive()
    worker.join()
    assert written_during > 1
    assert [row["row_count"] for row in found] == [3] * 60_000
