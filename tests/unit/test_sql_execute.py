"""Execution: guards, workers that can be killed, databases that stay as they were, the gold audit."""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from potstill.cli import main
from potstill.errors import ConfigError, InputError
from potstill.rows import dumps, read_rows
from potstill.sql.databases import Databases
from potstill.sql.engines.sqlite import MAX_CONNECTIONS, SqliteEngine, classify
from potstill.sql.gold import GoldFile, gold_key
from potstill.sql.limits import Limits
from potstill.sql.outcome import ERROR_CLASSES, QueryError
from potstill.sql.policy import Policy
from potstill.sql.pool import BATCH_TASKS, Killed, Pool
from potstill.stages.audit_gold import GoldCheck, audit_gold
from potstill.stages.execute import execute_rows

ENDLESS = "WITH RECURSIVE c (x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT count(*) FROM c"
UNSTOPPABLE = "SELECT instr(zeroblob(9000000) || X'01', zeroblob(4500000) || X'02')"
QUICK = Limits(timeout_s=0.5, kill_grace_s=0.5, max_vm_steps=20_000_000)


def make_database(path: Path, *rows: int, wal: bool = False) -> Path:
    """Make a database with one table `t (a)`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        if wal:
            connection.execute("PRAGMA journal_mode=WAL").fetchall()
        connection.execute("PRAGMA synchronous=OFF")
        connection.execute("BEGIN")
        connection.execute("CREATE TABLE t (a INTEGER)")
        connection.executemany("INSERT INTO t VALUES (?)", [(row,) for row in rows])
        connection.execute("COMMIT")
    return path


def picture(folder: Path) -> dict[str, str]:
    """Return each file below a folder with the hash of its bytes."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def run(
    folder: Path, rows: list[dict[str, Any]], gold_audit: Path | None = None, **settings: Any
) -> list[dict[str, Any]]:
    """Execute rows and return them."""
    source, output = folder / "rows-in.jsonl", folder / "rows-out.jsonl"
    source.write_bytes(b"".join(map(dumps, rows)))
    execute_rows(
        source,
        output,
        settings={"timeout_s": 3, "kill_grace_s": 1, "max_vm_steps": 40_000_000, **settings},
        gold_audit=gold_audit,
    )
    return list(read_rows(output))


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """A small database in a folder of its own."""
    return make_database(tmp_path / "databases" / "one.sqlite", 1, 2, 3)


@pytest.fixture
def engine() -> Iterator[SqliteEngine]:
    """An engine in this process, its heap not limited."""
    with contextlib.closing(SqliteEngine(QUICK)) as engine:
        yield engine


def uri(path: Path) -> str:
    return f"{path.as_uri()}?mode=ro"


STATEFUL = [
    "WITH x AS (SELECT 1) INSERT INTO t SELECT 9",
    "WITH x AS (SELECT 1) DELETE FROM t",
    "SELECT random(), randomblob(4)",
    "SELECT date('now')",
    "SELECT * FROM t, t, t LIMIT 1",
    ENDLESS,
    "SELECT a FROM t WHERE a = zeroblob(20000000)",
    "SELECT load_extension('x')",
    "SELECT CAST(X'FF' AS TEXT)",
    "SELECT total_changes(), changes(), last_insert_rowid()",
    "SELECT * FROM pragma_table_info('t')",
    "SELECT nothing_here FROM t",
]
STATE = (
    "SELECT random(), hex(randomblob(4)), total_changes(), changes(), last_insert_rowid(), date('now'), "
    "(SELECT count(*) FROM t), (SELECT count(*) FROM sqlite_master), (SELECT count(*) FROM sqlite_temp_master), 'é'"
)


@pytest.mark.parametrize("before", STATEFUL)
def test_no_state_leaks_between_rows(before: str, database: Path, engine: SqliteEngine) -> None:
    """What a kept connection says of itself is the same whatever statement ran on it before."""
    with contextlib.closing(SqliteEngine(QUICK)) as fresh:
        wanted = fresh.run(uri(database), STATE)
    with contextlib.suppress(QueryError):
        engine.run(uri(database), before)
    found = engine.run(uri(database), STATE)
    assert (found.rows, found.used_clock, found.used_random) == (wanted.rows, True, True)
    assert engine.run(uri(database), "SELECT a FROM t").used_random is False


def test_the_order_of_statements_does_not_matter(tmp_path: Path, database: Path) -> None:
    """Rows give the same results forwards and backwards on kept connections."""
    rows = [{"sql": sql, "gold_sql": STATE} for sql in [*STATEFUL, STATE, "SELECT a FROM t"]]
    settings = {"database": str(database)}
    forwards, backwards = run(tmp_path, rows, **settings), run(tmp_path, rows[::-1], **settings)
    keys = [name for name in forwards[0] if name != "exec_s"]
    assert [[row[key] for key in keys] for row in forwards] == [[row[key] for key in keys] for row in backwards[::-1]]


def test_limits_name_themselves(database: Path) -> None:
    """The message of an error says which limit fired."""
    limits = Limits(max_vm_steps=1_000_000, max_rows=2, max_result_bytes=1000)
    messages = {}
    with contextlib.closing(SqliteEngine(limits)) as engine:
        for sql in (ENDLESS, "SELECT a FROM t", "SELECT hex(zeroblob(600))"):
            with pytest.raises(QueryError) as caught:
                engine.run(uri(database), sql)
            messages[caught.value.error_class] = (caught.value.message, caught.value.truncated)
    assert messages == {
        "timeout": ("stopped after 1000000 virtual machine steps", False),
        "row_limit": ("the result has more than 2 rows", True),
        "too_big": ("the result has more than 1000 bytes", True),
    }


def test_the_clock_is_behind_the_step_budget(database: Path) -> None:
    """Without a step budget the time limit stops a statement."""
    limits = Limits(timeout_s=0.2, max_vm_steps=10**12)
    with (
        contextlib.closing(SqliteEngine(limits)) as engine,
        pytest.raises(QueryError, match=r"stopped after 0\.2 s") as caught,
    ):
        engine.run(uri(database), ENDLESS)
    assert caught.value.error_class == "timeout"


def test_every_class_of_a_message_is_in_the_closed_list() -> None:
    """No message leads out of the list."""
    messages = ["no such table: x", "what is this", 'near "x": syntax error', "database disk image is malformed", ""]
    assert {classify(message) for message in messages} <= set(ERROR_CLASSES)


def test_connections_are_bounded_in_number(tmp_path: Path, engine: SqliteEngine) -> None:
    """Hundreds of databases do not run out of file handles."""
    paths = [make_database(tmp_path / f"{number}.sqlite", number) for number in range(3 * MAX_CONNECTIONS)]
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - the descriptors of this process
    assert [engine.run(uri(path), "SELECT a FROM t").rows for path in paths] == [[(n,)] for n in range(len(paths))]
    assert len(os.listdir("/proc/self/fd")) - before <= 2 * MAX_CONNECTIONS  # noqa: PTH208


def test_hundreds_of_databases_in_one_chunk(tmp_path: Path) -> None:
    """A chunk over 300 databases passes with 64 file handles per process."""
    import resource

    rows = []
    for number in range(300):
        make_database(tmp_path / "dbs" / f"d{number}" / f"d{number}.sqlite", number)
        rows.append({"db_id": f"d{number}", "sql": "SELECT a FROM t", "gold_sql": f"SELECT {number} LIMIT 1"})
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (128, limits[1]))
    try:
        found = run(tmp_path, rows, database_dir=str(tmp_path / "dbs"))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert all(row["gold_match"] is True for row in found)


def test_a_killed_worker_is_one_rows_result(tmp_path: Path, database: Path) -> None:
    """A statement that only a kill stops costs its own row; its neighbours in the batch have their results."""
    rows = [{"sql": f"SELECT {number}", "gold_sql": f"SELECT {number}"} for number in range(2 * BATCH_TASKS)]
    for place in (0, 7, BATCH_TASKS):
        rows[place]["sql"] = f"{UNSTOPPABLE} /* {place} */"
    found = run(tmp_path, rows, database=str(database), kill_grace_s=0.2, timeout_s=0.5)
    assert [row["exec_error_class"] for row in found if not row["exec_pass"]] == ["killed"] * 3
    assert sum(row["gold_match"] for row in found) == len(rows) - 3
    assert "0.7 s" in found[0]["exec_error"]


def test_what_was_killed_once_is_not_tried_again(
    tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal statements that only a kill stops cost one kill, as gold and as answer, whichever worker has the row."""
    answer, gold = f"{UNSTOPPABLE} /* a */", f"{UNSTOPPABLE} /* g */"
    rows: list[dict[str, Any]] = []
    for number in range(4 * BATCH_TASKS):
        rows += [{"sql": f"SELECT {number}", "gold_sql": gold if number % 3 else f"SELECT {number}"}]
        rows += [{"sql": answer, "gold_sql": "SELECT 1"}] if number % 10 == 0 else []
    blamed: list[str] = []
    blame = Pool._blame
    monkeypatch.setattr(Pool, "_blame", lambda self, *args: (blamed.append(args[-1]), blame(self, *args))[1])
    found = run(tmp_path, rows, database=str(database), workers=2, timeout_s=0.5, kill_grace_s=0.5)
    assert 2 <= len(blamed) <= 4  # both workers may be at the same statement when it is first killed
    assert {row["exec_error_class"] for row in found if row["sql"] == answer} == {"killed"}
    judged = [row for row in found if row["sql"] != answer]
    assert all(row["exec_pass"] for row in judged)
    assert {row["gold_status"] for row in judged if row["gold_sql"] == gold} == {"timeout"}
    assert {row["gold_match"] for row in judged if row["gold_sql"] == gold} == {None}
    assert {row["gold_match"] for row in judged if row["gold_sql"] != gold} == {True}


def test_workers_change_no_byte(tmp_path: Path, database: Path) -> None:
    """One worker or three: the same lines, the time taken apart."""
    statements = [
        "SELECT a FROM t",
        "SELECT b FROM t",
        "SELECT random()",
        "SELECT date('now')",
        "DROP TABLE t",
        ENDLESS,
    ]
    rows = [{"n": number, "sql": statements[number % 6], "gold_sql": "SELECT a FROM t"} for number in range(400)]
    outputs = []
    for workers in (1, 3):
        found = run(tmp_path, rows, database=str(database), workers=workers, max_vm_steps=1_000_000)
        outputs.append([dumps({**row, "exec_s": 0}) for row in found])
    assert outputs[0] == outputs[1]


def test_the_users_part_of_a_line_stays_as_it_was_written(tmp_path: Path, database: Path) -> None:
    """Blanks, escapes and long numbers of the input pass through; what is no text is written anew."""
    lines = [
        b'{"big": 123456789012345678901234567890, "e": 1E2, "u": "\\u00e9", "sql": "SELECT 1"}',
        b'  { "sql": "SELECT 1" }\r',
        b'{"half": "\\ud83d", "sql": "SELECT 1"}',
        b'{"raw": "\xed\xa0\xbd", "sql": "SELECT 1"}',
        b'{"exec_pass": false, "sql": "SELECT 1", "row_count": 7}',
        '{"text": "数据", "sql": "SELECT 1"}'.encode(),
    ]
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_bytes(b"\xef\xbb\xbf" + b"\n".join(lines))
    execute_rows(source, output, settings={"database": str(database)})
    written = output.read_bytes().splitlines()
    assert written[1].startswith(b'{"sql":"SELECT 1","exec_pass":true')
    for place in (2, 5):
        assert written[place].startswith(lines[place][:-1] + b',"exec_pass":true')
    assert b"123456789012345678901234567890" in written[0]
    assert rb'"raw":"\ud83d"' in written[3]
    assert [row["exec_pass"] for row in read_rows(output)] == [True] * 6
    assert json.loads(written[4])["row_count"] == 1


@pytest.mark.parametrize("bad", [b"{broken", b"[1]", b'{"a": NaN}'])
def test_a_line_that_is_no_row_is_named(bad: bytes, tmp_path: Path, database: Path) -> None:
    """The error says which line of which file, and nothing is published."""
    source = tmp_path / "in.jsonl"
    source.write_bytes(dumps({"sql": "SELECT 1"}) * 200 + b"\n" + bad + b"\n" + dumps({"sql": "SELECT 1"}))
    with pytest.raises(InputError, match=r"in\.jsonl: line 202: "):
        execute_rows(source, tmp_path / "out.jsonl", settings={"database": str(database), "workers": 2})
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize(("kills", "blamed"), [(1, 0), (2, 1)])
def test_a_task_is_blamed_for_its_workers_death_only_when_it_happens_twice(
    database: Path, kills: int, blamed: int
) -> None:
    """A worker that somebody kills once changes no verdict; a statement that kills each of its workers is one row's result."""
    with Pool("sqlite", Limits(timeout_s=4), Policy()) as pool:
        slow = ("gold", (uri(database), ENDLESS))
        quick = ("gold", (uri(database), "SELECT 1"))
        batch = pool.submit([quick, slow, quick])
        killer = threading.Thread(target=kill_workers, args=(pool, kills), daemon=True)
        killer.start()
        found = pool.collect(batch)
        killer.join()
    assert [isinstance(outcome, Killed) for outcome in found].count(True) == blamed
    assert isinstance(found[1], Killed) or found[1][0] == "timeout"
    assert found[2][0] == "ok"


def kill_workers(pool: Pool, kills: int) -> None:
    """SIGKILL the worker that is at the second task, so many times."""
    dead: set[int] = set()
    while len(dead) < kills:
        time.sleep(0.02)
        for worker in list(pool._workers):
            pid = worker._process.pid
            with contextlib.suppress(ValueError):  # it was buried just now
                if pid not in dead and worker._page.place().number == 2:
                    os.kill(pid, signal.SIGKILL)
                    dead.add(pid)


def test_workers_die_with_their_parent(database: Path) -> None:
    """When the process that started them is killed, no worker lives on, whatever it is doing."""
    code = (
        "import sys\n"
        "from potstill.sql.limits import Limits\n"
        "from potstill.sql.policy import Policy\n"
        "from potstill.sql.pool import Pool\n"
        "pool = Pool('sqlite', Limits(timeout_s=600, max_vm_steps=10**15), Policy())\n"
        "pool.submit([('gold', (sys.argv[1], sys.argv[2]))])\n"
        "print(pool._workers[0]._process.pid, flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, uri(database), UNSTOPPABLE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        parent.kill()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and is_alive(worker):
        time.sleep(0.05)
    assert not is_alive(worker)


def is_alive(process: int) -> bool:
    """Whether a process lives; a zombie does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_memory_is_bounded_in_the_worker(tmp_path: Path, database: Path) -> None:
    """A statement that gathers memory ends with its class, and the next one runs."""
    numbers = "WITH RECURSIVE c (x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c LIMIT 400)"
    hungry = f"{numbers} SELECT count(DISTINCT x || hex(zeroblob(900000))) FROM c"
    found = run(
        tmp_path,
        [{"sql": hungry}, {"sql": "SELECT 1"}],
        database=str(database),
        timeout_s=20,
        max_memory_bytes=60_000_000,
    )
    assert [row["exec_error_class"] for row in found] == ["out_of_memory", None]


def test_a_large_parent_takes_no_memory_from_its_workers(database: Path, tmp_path: Path) -> None:
    """What the process that starts a worker holds itself is not counted against the worker."""
    ballast = mmap.mmap(-1, 3_000_000_000, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # addresses, no memory
    try:
        found = run(tmp_path, [{"sql": "SELECT 1"}], database=str(database), max_memory_bytes=60_000_000)
    finally:
        ballast.close()
    assert found[0]["exec_pass"]


def test_a_database_in_wal_mode_is_read_rightly_and_left_alone(tmp_path: Path) -> None:
    """Rows that only the -wal holds are seen; no file appears beside the database or changes."""
    folder = tmp_path / "databases"
    make_database(folder / "closed.sqlite", 1, wal=True)
    live = make_database(folder / "live.sqlite", 1, wal=True)
    with contextlib.closing(sqlite3.connect(live, isolation_level=None)) as writer:
        writer.execute("INSERT INTO t VALUES (2)")
        before = picture(folder)
        assert "live.sqlite-wal" in before
        rows = [
            {"db_id": name, "sql": "SELECT sum(a) FROM t", "gold_sql": f"SELECT {total}"}
            for name, total in (("closed", 1), ("live", 3))
        ]
        found = run(tmp_path, rows, database_dir=str(folder))
        assert picture(folder) == before
    assert [row["gold_match"] for row in found] == [True, True]


def test_a_hot_journal_is_rolled_back_in_a_copy(tmp_path: Path) -> None:
    """A database with an unfinished transaction beside it is read as it was before that, and left as it is."""
    folder = tmp_path / "databases"
    path = make_database(folder / "hot.sqlite", *range(20000))
    code = (
        "import os, sqlite3, sys\n"
        "c = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "c.execute('PRAGMA cache_size=5')\n"
        "c.execute('BEGIN'); c.execute('UPDATE t SET a = -1')\n"
        "os._exit(0)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=True)
    before = picture(folder)
    assert "hot.sqlite-journal" in before
    found = run(tmp_path, [{"sql": "SELECT min(a) FROM t", "gold_sql": "SELECT 0"}], database=str(path))
    assert found[0]["gold_match"] is True
    assert picture(folder) == before


@pytest.mark.parametrize("name", ["odd ?name#1%41.sqlite", "a'b\".sqlite", "ü 数据.sqlite"])
def test_any_file_name_opens_that_file(name: str, tmp_path: Path) -> None:
    """Characters that mean something in a URI do not lead to another file."""
    path = make_database(tmp_path / "databases" / name, 5)
    before = picture(path.parent)
    assert (
        run(tmp_path, [{"sql": "SELECT a FROM t", "gold_sql": "SELECT 5"}], database=str(path))[0]["gold_match"] is True
    )
    assert picture(path.parent) == before


def test_databases_are_found_in_every_layout(tmp_path: Path) -> None:
    """The layouts of Spider and BIRD and the flat one, with each ending."""
    folder = tmp_path / "dbs"
    for number, relative in enumerate(("a/a.sqlite", "b.sqlite", "c.db", "d/d.sqlite3", "x/e.sqlite", "7.sqlite")):
        make_database(folder / relative, number)
    rows = [
        {"db_id": name, "sql": "SELECT a FROM t", "gold_sql": f"SELECT {n}"}
        for n, name in enumerate(["a", "b", "c", "d", "x/e", 7])
    ]
    assert all(row["gold_match"] for row in run(tmp_path, rows, database_dir=str(folder)))


@pytest.mark.parametrize(
    "name",
    [
        "../secret",
        "/etc/passwd",
        "..",
        "a/../../secret",
        "linked",
        "linked_folder/secret",
        "nul\x00l",
        "",
        None,
        "\ud800",
        "missing",
        "text",
        ["a"],
        "a" * 5000,
    ],
)
def test_a_name_that_leads_nowhere_or_out_is_an_error_of_the_row(name: Any, tmp_path: Path) -> None:
    """Such a row has its class and no verdict, the next one its result."""
    folder = tmp_path / "dbs"
    make_database(folder / "good.sqlite", 1)
    secret = make_database(tmp_path / "outside" / "secret.sqlite", 42)
    make_database(tmp_path / "secret.sqlite", 42)
    (folder / "linked.sqlite").symlink_to(secret)
    (folder / "linked_folder").symlink_to(secret.parent)
    (folder / "text.sqlite").write_text("this is no database, only text of some length " * 10)
    rows = [
        {"db_id": name, "sql": "SELECT a FROM t", "gold_sql": "SELECT 42"},
        {"db_id": "good", "sql": "SELECT a FROM t"},
    ]
    found = run(tmp_path, rows, database_dir=str(folder))
    assert (found[0]["exec_pass"], found[0]["exec_error_class"]) == (False, "no_such_database")
    assert found[0]["gold_match"] is None
    assert found[1]["exec_pass"] is True


def test_a_damaged_database_is_an_error_of_its_rows(tmp_path: Path) -> None:
    """A file that only begins like a database has a class of its own."""
    path = make_database(tmp_path / "dbs" / "bad.sqlite", *range(5000))
    content = bytearray(path.read_bytes())
    content[100:] = b"\x55" * (len(content) - 100)
    path.write_bytes(content)
    found = run(tmp_path, [{"db_id": "bad", "sql": "SELECT a FROM t"}], database_dir=str(path.parent))
    assert found[0]["exec_error_class"] == "no_such_database"


def test_a_damaged_page_is_not_the_answers_fault(tmp_path: Path) -> None:
    """Where gold's pages are whole and the answer meets a damaged one, nothing is said about the answer."""
    path = make_database(tmp_path / "dbs" / "hurt.sqlite", *range(5000))
    content = bytearray(path.read_bytes())
    content[8192:12288] = b"\xff" * 4096
    path.write_bytes(content)
    row = {"db_id": "hurt", "sql": "SELECT sum(a) FROM t", "gold_sql": "SELECT 1"}
    found = run(tmp_path, [row], database_dir=str(path.parent))
    assert (found[0]["exec_error_class"], found[0]["gold_status"]) == ("no_such_database", "ok")
    assert found[0]["gold_match"] is None


def test_a_schema_that_is_not_utf8_is_no_obstacle(tmp_path: Path) -> None:
    """Names in an old encoding hide nothing but the columns that bear them; a message that holds one has its class."""
    path = tmp_path / "dbs" / "old.sqlite"
    path.parent.mkdir()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.executescript(
            'CREATE TABLE t ("cafXX" TEXT, n INT); INSERT INTO t VALUES (1, 1); CREATE VIEW v AS SELECT nopeXX FROM t'
        )
    path.write_bytes(path.read_bytes().replace(b"cafXX", b"caf\xe9\xe8").replace(b"nopeXX", b"nope\xe9\xe8"))
    statements = ["SELECT n FROM t", "SELECT n FROM v", "SELECT * FROM t"]
    found = run(tmp_path, [{"db_id": "old", "sql": sql} for sql in statements], database_dir=str(path.parent))
    assert [row["exec_error_class"] for row in found] == [None, "no_such_column", "other"]
    assert "not UTF-8" in found[2]["exec_error"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "give one of"),
        ({"database": "a", "database_dir": "b"}, "give one of"),
        ({"database": "{tmp}/none.sqlite"}, "no such file"),
        ({"database": "{tmp}"}, "is a folder"),
        ({"database": "{tmp}/text"}, "not a SQLite database"),
        ({"database_dir": "{tmp}/none"}, "no such folder"),
        ({"database_dir": "{tmp}/text"}, "is a file"),
        ({"database": "{tmp}/text", "engine": "oracle"}, "engines are"),
        ({"database": "{tmp}/text", "comparison": "loose"}, "presets are"),
    ],
)
def test_what_is_wrong_with_the_config_is_a_config_error(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    """A missing folder or file that all rows need stops the command before any row."""
    (tmp_path / "text").write_text("x" * 200)
    with pytest.raises(ConfigError, match=message):
        run(tmp_path, [{"sql": "SELECT 1"}], **{key: value.format(tmp=tmp_path) for key, value in settings.items()})


def test_a_missing_field_is_named(tmp_path: Path, database: Path) -> None:
    """A file in which no row has the field is an error that says how to name another."""
    with pytest.raises(InputError, match="--sql-field"):
        run(tmp_path, [{"query": "SELECT 1"}], database=str(database))


def test_an_empty_chunk_gives_an_empty_file(tmp_path: Path, database: Path) -> None:
    """No rows in, no rows out, no worker needed."""
    assert run(tmp_path, [], database=str(database)) == []


def test_rows_keep_their_order_and_their_fields(tmp_path: Path, database: Path) -> None:
    """What the user had in a row stays, with several workers and more rows than a window."""
    rows = [{"id": number, "x": {"y": [1, None]}, "sql": f"SELECT {number % 50}"} for number in range(2500)]
    found = run(tmp_path, rows, database=str(database), workers=2)
    assert [row["id"] for row in found] == list(range(2500))
    assert found[7]["x"] == {"y": [1, None]}
    assert found[0]["gold_status"] == "missing"


def test_a_large_gold_result_still_judges(tmp_path: Path, database: Path) -> None:
    """A gold result too large to be carried about is compared all the same, tolerance included."""
    many = "WITH RECURSIVE c (x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < 20000) SELECT x, x * {} FROM c"
    rows = [
        {"sql": many.format("1.00000001"), "gold_sql": many.format("1.0")},
        {"sql": many.format("1.01"), "gold_sql": many.format("1.0")},
        {"sql": many.format("1"), "gold_sql": many.format("1")},
    ]
    found = run(tmp_path, rows, database=str(database), timeout_s=10)
    assert [row["gold_match"] for row in found] == [True, False, True]


def test_the_audit_counts_and_keeps_results(tmp_path: Path, database: Path) -> None:
    """Each distinct gold query is run once and stands in the file under its key, with status and result."""
    golds = [
        "SELECT a FROM t",
        "SELECT a FROM t",
        "SELECT 1 WHERE 0",
        "SELECT x FROM t",
        ENDLESS,
        "SELECT a FROM t LIMIT 1",
        None,
    ]
    source = tmp_path / "chunk.jsonl"
    source.write_bytes(b"".join(dumps({"gold_sql": sql}) for sql in golds))
    settings = {"database": str(database), "timeout_s": 0.5}
    counts = audit_gold([source], tmp_path / "gold.jsonl", tmp_path / "gold.json", settings=settings)
    wanted = {"ok": 1, "empty": 1, "error": 1, "timeout": 1, "nondeterministic": 1, "missing": 1}
    assert (counts.rows, counts.distinct, counts.bad, dict(counts.statuses)) == (7, 5, 3, wanted)
    summary = json.loads((tmp_path / "gold.json").read_text())
    assert summary["statuses"] == wanted
    assert summary["databases"] == {"one.sqlite": wanted}
    keys = [line["gold_key"] for line in read_rows(tmp_path / "gold.jsonl")]
    assert keys == sorted(keys)
    with GoldFile(tmp_path / "gold.jsonl") as file:
        found = file.find(gold_key("one.sqlite", "SELECT a FROM t"))
        assert found is not None
        assert (found.status, found.rows) == ("ok", [(1,), (2,), (3,)])
        assert file.find(gold_key("one.sqlite", "SELECT 2")) is None


def test_execution_uses_the_audit_and_runs_no_gold(tmp_path: Path, database: Path) -> None:
    """With an audit at hand gold is not run again: a verdict follows what the audit says."""
    row = {"sql": "SELECT a FROM t", "gold_sql": "SELECT a FROM t"}
    source, audit = tmp_path / "chunk.jsonl", tmp_path / "gold.jsonl"
    source.write_bytes(dumps(row))
    audit_gold([source], audit, tmp_path / "gold.json", settings={"database": str(database)})
    line = next(read_rows(audit))
    audit.write_bytes(dumps({**line, "gold_status": "error", "error": "doctored"}))
    found = run(tmp_path, [row], gold_audit=audit, database=str(database))
    assert (found[0]["gold_match"], found[0]["gold_status"], found[0]["gold_error"]) == (None, "error", "doctored")


def test_blobs_and_infinities_survive_the_audit(tmp_path: Path, database: Path) -> None:
    """Cells that JSON lacks are the same after the way through the file."""
    sql = "SELECT X'00FF', 9e999, -9e999, 1.5, 9223372036854775807, 'é', NULL"
    source, audit = tmp_path / "chunk.jsonl", tmp_path / "gold.jsonl"
    source.write_bytes(dumps({"gold_sql": sql}))
    audit_gold([source], audit, tmp_path / "gold.json", settings={"database": str(database)})
    with GoldFile(audit) as file:
        found = file.find(gold_key("one.sqlite", sql))
    assert found is not None
    assert found.rows == [(b"\x00\xff", float("inf"), float("-inf"), 1.5, 9223372036854775807, "é", None)]


def test_every_line_of_a_gold_file_is_found(tmp_path: Path) -> None:
    """The search finds each key, whatever the lengths of the lines, and no other."""
    keys = sorted(gold_key("d", str(number)) for number in range(500))
    empty = {"gold_status": "ok", "error_class": None, "error": "", "column_count": 1, "row_count": 1, "result": None}
    rest = {
        "tie_groups": None,
        "result_signature": "",
        "has_real": False,
        "gold_unstable": False,
        "used_clock": False,
        "used_random": False,
    }
    path = tmp_path / "gold.jsonl"
    lines = [
        {"gold_key": key, **empty, **rest, "error": "x" * (5000 if at % 97 == 0 else 3)} for at, key in enumerate(keys)
    ]
    path.write_bytes(b"".join(map(dumps, lines)))
    with GoldFile(path) as file:
        assert all(file.find(key) is not None for key in keys)
        assert not any(file.find(gold_key("e", str(number))) for number in range(200))
    path.write_bytes(b"")
    with GoldFile(path) as file:
        assert file.find(keys[0]) is None


def test_on_bad_gold_fail_stops_and_skip_names_the_rows(tmp_path: Path, database: Path) -> None:
    """`fail` raises with the query and publishes nothing; `skip` tells which rows are not to be asked."""
    rows = [{"gold_sql": "SELECT x FROM t"}, {"gold_sql": "SELECT a FROM t"}, {"gold_sql": None}]
    source, audit = tmp_path / "chunk.jsonl", tmp_path / "gold.jsonl"
    source.write_bytes(b"".join(map(dumps, rows)))
    settings = {"database": str(database), "on_bad_gold": "fail"}
    with pytest.raises(InputError, match="no such column: x"):
        audit_gold([source], audit, tmp_path / "gold.json", settings=settings)
    assert not audit.exists()
    settings["on_bad_gold"] = "skip"
    audit_gold([source], audit, tmp_path / "gold.json", settings=settings)
    with GoldCheck(audit, settings=settings) as check:
        assert [check.skips(row) for row in rows] == [True, False, True]
    with GoldCheck(audit, settings={**settings, "on_bad_gold": "keep"}) as check:
        assert [check.skips(row) for row in rows] == [False, False, False]


def test_copies_go_away_with_the_lookup(tmp_path: Path) -> None:
    """The scratch copy of a database with a -wal beside it is removed at the end."""
    live = make_database(tmp_path / "live.sqlite", 1, wal=True)
    with contextlib.closing(sqlite3.connect(live, isolation_level=None)) as writer:
        writer.execute("INSERT INTO t VALUES (2)")
        with Databases(suffixes=(".sqlite",), database=live, folder=None, field="db_id") as databases:
            location = databases.find({}).location
            copy = Path(location.removeprefix("file://").partition("?")[0])
            assert copy.exists()
            assert copy.parent != live.parent
        assert not copy.exists()


def test_the_command_line_writes_its_output_and_nothing_else(
    tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command says what came of the rows, exits 0 when rows failed, and leaves no other file."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    source = tmp_path / "in.jsonl"
    source.write_bytes(
        dumps({"q": "SELECT a FROM t", "g": "SELECT a FROM t"}) + dumps({"q": "DROP TABLE t", "g": "SELECT 1"})
    )
    words = ["execute", "--input", str(source), "--output", "out.jsonl", "--database", str(database)]
    assert main([*words, "--sql-field", "q", "--gold-field", "g", "--timeout", "2", "--comparison", "bird"]) == 0
    assert "2 rows: 1 passed, 1 match gold, 1 do not" in capsys.readouterr().out
    assert [path.name for path in here.iterdir()] == ["out.jsonl"]
    assert main([*words[:-1], str(tmp_path / "none.sqlite")]) == 78
    assert "no such file" in capsys.readouterr().err


def test_bombs_cost_no_more_than_their_own_time(tmp_path: Path, database: Path) -> None:
    """A chunk with a bomb in every tenth row spends its time on the bombs; no other row is touched by them."""
    rows = [{"sql": f"SELECT {number}", "gold_sql": f"SELECT {number}"} for number in range(100)]
    for number in range(0, 100, 10):
        rows[number]["sql"] = f"{ENDLESS} /* {number} */"
    found = run(tmp_path, rows, database=str(database), max_vm_steps=3_000_000)
    assert {row["exec_error_class"] for row in found[::10]} == {"timeout"}
    assert all(row["gold_match"] for number, row in enumerate(found) if number % 10)


@pytest.mark.parametrize("seconds", [0, -1, "nan", "inf"])
def test_a_time_limit_is_a_time(seconds: Any, tmp_path: Path, database: Path) -> None:
    """No time, and time without end, are refused."""
    with pytest.raises(ConfigError, match="above 0"):
        run(tmp_path, [{"sql": "SELECT 1"}], database=str(database), timeout_s=seconds)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--max-rows", "0"], "1 or more"),
        (["--workers", "0"], "--workers: found 0, allowed is 1 to 64"),
        (["--variants", "101"], "--variants: found 101, allowed is 0 to 100"),
        (["--float-rel-tol", "nan"], "--float-rel-tol: found nan, allowed is 0 or more"),
        (["--float-abs-tol", "-1"], "--float-abs-tol: found -1, allowed is 0 or more"),
    ],
)
def test_flags_have_the_bounds_of_the_config(
    flags: list[str], message: str, database: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A number that a config could not have is a usage error of the command line."""
    words = ["execute", "--input", "x.jsonl", "--output", "y.jsonl", "--database", str(database)]
    with pytest.raises(SystemExit) as caught:
        main([*words, *flags])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_a_wrong_database_field_is_an_error_of_the_command(tmp_path: Path, database: Path) -> None:
    """Where no row has the field with the database's id, that is said once, and no row is blamed."""
    with pytest.raises(InputError, match=r"no row has the field 'dbid'.*--database-field"):
        run(tmp_path, [{"db_id": "one", "sql": "SELECT 1"}], database_dir=str(database.parent), database_field="dbid")


def test_a_gold_field_that_no_row_has_is_said(
    tmp_path: Path, database: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rows without gold are executed; a command that finds none at all says so."""
    source = tmp_path / "rows.jsonl"
    source.write_bytes(dumps({"sql": "SELECT 1", "gold": "SELECT 1"}))
    words = ["execute", "--input", str(source), "--output", str(tmp_path / "out.jsonl"), "--database", str(database)]
    assert main([*words, "--gold-field", "golden"]) == 0
    assert "no row has a gold query in its field 'golden'" in capsys.readouterr().err
    assert main([*words, "--gold-field", "gold"]) == 0
    assert capsys.readouterr().err == ""


def test_an_engine_without_its_package_is_an_error_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is missing is named with its cure; no worker process dies of it in a row's name."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs the package psycopg.*pip install 'potstill\[postgresql\]'"):
        run(tmp_path, [{"sql": "SELECT 1"}], engine="postgresql", database="dbname=x")


def audit(tmp_path: Path, rows: list[dict[str, Any]], **settings: Any) -> dict[str, Any]:
    """Audit some rows and return the summary."""
    source = tmp_path / "chunk.jsonl"
    source.write_bytes(b"".join(map(dumps, rows)))
    audit_gold([source], tmp_path / "gold.jsonl", tmp_path / "gold.json", settings=settings)
    summary: dict[str, Any] = json.loads((tmp_path / "gold.json").read_text())
    return summary


def test_the_audit_tells_which_rows_have_no_gold(tmp_path: Path, database: Path) -> None:
    """Missing gold is counted per database, and the first rows without it are named, with what stands there instead."""
    rows: list[dict[str, Any]] = [{"sample_id": f"s{number}", "db_id": "one"} for number in range(5)]
    rows[1]["gold_sql"], rows[2]["gold_sql"] = None, ["SELECT 1"]
    summary = audit(tmp_path, [*rows, {"db_id": "one", "gold_sql": "SELECT 1"}], database_dir=str(database.parent))
    assert summary["databases"] == {"one": {"missing": 5, "ok": 1}}
    assert [(item["sample_id"], item["error"]) for item in summary["bad_examples"]] == [
        ("s0", "the row has no field 'gold_sql'"),
        ("s1", "'gold_sql' is null"),
        ("s2", "'gold_sql' is no text but list"),
    ]
    with pytest.raises(InputError, match=r"missing 5.*one: missing \(the row has no field 'gold_sql'\): sample_id s0"):
        audit(tmp_path, rows, database_dir=str(database.parent), on_bad_gold="fail")


def test_the_audit_stops_where_no_row_leads_to_a_database(tmp_path: Path, database: Path) -> None:
    """A wrong field or folder of databases is found before a token is spent; a wrong id is its row's own trouble."""
    folder = str(database.parent)
    rows = [{"db_id": "two", "gold_sql": "SELECT 1"}, {"db_id": "three", "gold_sql": "SELECT 1"}]
    with pytest.raises(ConfigError, match=r"execute\.database_field: no row has the field 'dbid'"):
        audit(tmp_path, rows, database_dir=folder, database_field="dbid")
    with pytest.raises(ConfigError, match=r"execute\.database_dir: not one gold query could be run: no database 'two'"):
        audit(tmp_path, rows, database_dir=folder)
    summary = audit(tmp_path, [*rows, {"db_id": "one", "gold_sql": "SELECT 1"}], database_dir=folder)
    assert summary["statuses"] == {"error": 2, "ok": 1}
