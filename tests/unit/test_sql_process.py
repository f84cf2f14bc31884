"""Worker processes: copies of a process that has one thread, interpreters of their own elsewhere; locks in both."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from potstill.sql.engines.sqlite import SqliteEngine
from potstill.sql.limits import Limits
from potstill.sql.outcome import QueryError
from potstill.sql.page import SIZE, Page
from potstill.sql.policy import Policy
from potstill.sql.pool import Pool
from tests.unit.test_sql_execute import ENDLESS, UNSTOPPABLE, make_database, run

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
with Pool("sqlite", Limits(timeout_s=1, kill_grace_s=1, max_vm_steps=10**15), Policy()) as pool:
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


#: What a parent may have about it; what its worker says is printed.
STATE = """
import json, logging, os, signal, sqlite3, sys, warnings
from pathlib import Path
from potstill.sql.limits import Limits
from potstill.sql.policy import Policy
from potstill.sql.pool import Killed, Pool

uri = Path(sys.argv[1]).as_uri() + "?mode=ro"
def note(*_):
    Path(sys.argv[3]).write_text("handled")
{state}
def mask(status, name):
    return int(next(line for line in status.splitlines() if line.startswith(name)).split()[1], 16)
with Pool("sqlite", Limits(timeout_s=1, kill_grace_s=1, max_vm_steps=10**15), Policy()) as pool:
    explain = ("gold", (uri, "EXPLAIN SELECT 1 ORDER BY 1"))  # sqlglot warns that it cannot parse it
    first = pool.collect(pool.submit([explain, ("gold", (uri, "SELECT a FROM t")), ("gold", (uri, sys.argv[2]))]))
    again = pool.collect(pool.submit([explain, ("gold", (uri, "SELECT a FROM t"))]))
    worker = pool._workers[0]
    status = Path(f"/proc/{{worker._process.pid}}/status").read_text()
    page = os.fstat(worker._page_file.fileno()).st_size
print(json.dumps({{
    "kind": type(worker._process).__name__, "rows": first[1][5], "killed": isinstance(first[2], Killed),
    "again": again[1][5], "caught": mask(status, "SigCgt"), "ignored": mask(status, "SigIgn"), "page": page,
}}))
"""
STATES = {
    "much memory": "import mmap; held = mmap.mmap(-1, 2_500_000_000)",
    "children that nobody waits for": "signal.signal(signal.SIGCHLD, signal.SIG_IGN)",
    "handlers": "for each in (10, 12, 14, 15): signal.signal(each, note)",
    "no hangup": "signal.signal(signal.SIGHUP, signal.SIG_IGN)",
    "warnings that are errors": "warnings.simplefilter('error')",
    "logs": "logging.basicConfig(handlers=[logging.FileHandler(f'{number}.log') for number in range(9)])",
    "a deep stack": "sys.setrecursionlimit(70)",
    "a signal mask": "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])",
}
#: SQLite would give the second connection's file, closed in the copy, to the copy's own connection.
OPEN_DATABASE = """
held = sqlite3.connect(uri, uri=True)
rows = held.execute("SELECT a FROM t"); rows.fetchone()
other = sqlite3.connect(uri, uri=True); other.execute("SELECT a FROM t").fetchall(); other.close()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="copies are made on Linux only")
@pytest.mark.parametrize("state", STATES)
def test_what_a_parent_has_does_not_matter_to_a_copy(state: str, tmp_path: Path) -> None:
    """Memory, signals, warnings, logs and stack of the process that starts a worker are not the worker's."""
    database = make_database(tmp_path / "databases" / "one.sqlite", 1, 2, 3)
    script = STATE.format(state=STATES[state])
    found = json.loads(_python(script, str(database), UNSTOPPABLE, str(tmp_path / "note"), folder=tmp_path))
    assert (found["kind"], found["rows"], found["again"]) == ("_Copy", [[1], [2], [3]], [[1], [2], [3]])
    assert found["killed"]
    assert found["caught"] == 0
    assert bool(found["ignored"] & 1) is (state == "no hangup")
    assert found["page"] == SIZE, "a worker wrote where a file of its parent's had been"
    assert not (tmp_path / "note").exists()
    assert not [path for path in tmp_path.glob("*.log") if path.stat().st_size]


@pytest.mark.skipif(sys.platform != "linux", reason="copies are made on Linux only")
def test_a_process_with_an_open_database_is_not_copied(tmp_path: Path) -> None:
    """What SQLite knows of an open database (its locks, its spare files) is not true in a copy: there is none."""
    database = make_database(tmp_path / "databases" / "one.sqlite", 1, 2, 3)
    script = STATE.format(state=OPEN_DATABASE)
    found = json.loads(_python(script, str(database), UNSTOPPABLE, str(tmp_path / "note"), folder=tmp_path))
    assert (found["kind"], found["rows"], found["again"]) == ("Popen", [[1], [2], [3]], [[1], [2], [3]])


@pytest.mark.skipif(sys.platform != "linux", reason="a process is copied here to look over its shoulder")
def test_a_page_is_never_seen_half_written() -> None:
    """However often a worker turns its page, who reads it sees no statement that has been running for long."""
    with tempfile.TemporaryFile() as file:
        file.truncate(SIZE)
        page = Page(file.fileno())
        writer = os.fork()
        if not writer:
            while os.getppid() != 1:
                for number in range(1, 10_000):
                    page.rest(number)
                    page.enter(1)
                    page.restart()
        try:
            seen = {page.overdue(3600) for _ in range(200_000)}
        finally:
            os.kill(writer, signal.SIGKILL)
            os.waitpid(writer, 0)
            page.close()
    assert seen == {None}


def test_an_error_at_the_start_of_a_copy_is_told(tmp_path: Path) -> None:
    """A worker that cannot start says why, and its parent says it on."""
    code = (
        "from potstill.sql.limits import Limits\nfrom potstill.sql.policy import Policy\n"
        "from potstill.sql.pool import Pool\nfrom potstill.errors import PotstillError\n"
        "try:\n    pool = Pool('nonsense', Limits(), Policy()); pool.collect(pool.submit([('gold', ('x', 'y'))]))\n"
        "except PotstillError as error:\n    print(error)\n"
    )
    assert "no engine 'nonsense'" in _python(code, folder=tmp_path)


def _connect(database: Path, wait_s: float) -> sqlite3.Connection:
    return sqlite3.connect(database, timeout=wait_s, isolation_level=None)


def _insert(database: Path, wait_s: float) -> None:
    with closing(_connect(database, wait_s)) as connection:
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


def test_a_database_without_tables_is_locked_too(tmp_path: Path) -> None:
    """The lock does not hang on what is in the schema."""
    database = tmp_path / "empty.sqlite"
    with closing(sqlite3.connect(database)) as connection:
        connection.executescript("CREATE TABLE t (a); DROP TABLE t")
    with closing(SqliteEngine(Limits())) as engine:
        assert engine.run(f"{database.as_uri()}?mode=ro", "SELECT 1").rows == [(1,)]
        with pytest.raises(sqlite3.OperationalError, match="locked"), closing(_connect(database, 0)) as connection:
            connection.execute("CREATE TABLE t (a)")


def test_a_slow_statement_holds_no_lock_of_another_database(tmp_path: Path) -> None:
    """While a statement runs on one database, others can be written."""
    one, other = (make_database(tmp_path / f"{name}.sqlite", 1, 2, 3) for name in ("one", "other"))
    with closing(SqliteEngine(Limits(timeout_s=2, max_vm_steps=10**15))) as engine:
        assert len(engine.run(f"{one.as_uri()}?mode=ro", "SELECT a FROM t").rows) == 3
        writer = threading.Thread(target=_insert, args=(one, 60))
        writer.start()
        with pytest.raises(QueryError, match="stopped after 2 s"):
            engine.run(f"{other.as_uri()}?mode=ro", ENDLESS)
        writer.join(1)
        assert not writer.is_alive()


def test_who_waits_for_a_lock_holds_none(tmp_path: Path) -> None:
    """While one database is being written, an engine that waits for it lets others write the one it was at before."""
    one, other = (make_database(tmp_path / f"{name}.sqlite", 1, 2, 3) for name in ("one", "other"))
    with closing(SqliteEngine(Limits())) as engine, closing(_connect(other, 0)) as busy:
        assert len(engine.run(f"{one.as_uri()}?mode=ro", "SELECT a FROM t").rows) == 3
        assert len(engine.run(f"{other.as_uri()}?mode=ro", "SELECT a FROM t").rows) == 3
        engine.release()
        assert len(engine.run(f"{one.as_uri()}?mode=ro", "SELECT a FROM t").rows) == 3
        busy.execute("BEGIN EXCLUSIVE")
        with pytest.raises(QueryError, match="locked"):
            engine.run(f"{other.as_uri()}?mode=ro", "SELECT a FROM t")
        _insert(one, 0)
        busy.execute("COMMIT")
        assert len(engine.run(f"{other.as_uri()}?mode=ro", "SELECT a FROM t").rows) == 3
        assert len(engine.run(f"{one.as_uri()}?mode=ro", "SELECT a FROM t").rows) == 4


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
