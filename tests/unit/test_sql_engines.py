"""DuckDB and PostgreSQL behind the same interface as SQLite; PostgreSQL is a real server where one is installed."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from potstill.errors import ConfigError
from potstill.rows import dumps, read_rows
from potstill.stages.audit_gold import audit_gold
from potstill.stages.execute import execute_rows

TABLES = (
    "CREATE TABLE t (a INTEGER, b VARCHAR(20), d DECIMAL(10, 2), e DATE)",
    "INSERT INTO t VALUES (1, 'x', 1.50, DATE '2024-01-01'), (2, 'y', 2, NULL), (2, 'y', 2, NULL)",
)
ENDLESS = "WITH RECURSIVE c (x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT count(*) FROM c"
#: Statement, gold, pass, classes, match: what holds on both engines.
CASES: list[tuple[str, str, bool, tuple[str | None, ...], bool | None]] = [
    ("SELECT a, b FROM t ORDER BY a DESC", "SELECT a, b FROM t", True, (None,), True),
    ("SELECT DISTINCT a, b FROM t", "SELECT a, b FROM t", True, (None,), False),
    ("SELECT sum(a) FROM t", "SELECT 5", True, (None,), True),
    ("SELECT d FROM t WHERE a = 1", "SELECT 1.5", True, (None,), True),
    ("SELECT e FROM t WHERE a = 1", "SELECT '2024-01-01'", True, (None,), True),
    ("SELECT b FROM t", "SELECT b FROM t ORDER BY a DESC", True, (None,), False),
    ("SELECT b, a FROM t ORDER BY a DESC", "SELECT b, a FROM t ORDER BY a DESC", True, (None,), True),
    ("SELECT true", "SELECT 1", True, (None,), True),
    ("SELECT NULL WHERE 1 = 0", "SELECT 1 WHERE 1 = 0", True, (None,), True),
    ("SELECT random()", "SELECT random()", True, (None,), True),
    ("SELECT nope FROM t", "SELECT 1", False, ("no_such_column",), False),
    ("SELECT * FROM nope", "SELECT 1", False, ("no_such_table",), False),
    ("SELECT a FORM t", "SELECT 1", False, ("syntax", "no_such_column"), False),
    ("SELECT (1", "SELECT 1", False, ("syntax",), False),
    ("SELECT '\ud83d'", "SELECT 1", False, ("syntax",), False),
    ("DROP TABLE t", "SELECT 1", False, ("not_a_query",), False),
    ("SELECT 1; DROP TABLE t", "SELECT 1", False, ("multiple_statements",), False),
    ("WITH x AS (DELETE FROM t RETURNING a) SELECT a FROM x", "SELECT 1", False, ("forbidden", "syntax"), False),
    ("WITH x AS (SELECT 1) DELETE FROM t", "SELECT 1", False, ("forbidden", "syntax"), False),
    ("SELECT nextval('s')", "SELECT 1", False, ("forbidden",), False),
    (ENDLESS, "SELECT 1", False, ("timeout", "killed", "out_of_memory"), False),
    ("SELECT 1", "SELECT nope FROM t", True, (None,), None),
]


def execute(folder: Path, cases: list[Any], **settings: Any) -> list[dict[str, Any]]:
    source = folder / "in.jsonl"
    source.write_bytes(b"".join(dumps({"db_id": "shop", "sql": case[0], "gold_sql": case[1]}) for case in cases))
    settings = {"timeout_s": 3, "kill_grace_s": 5, **settings}
    audit_gold([source], folder / "gold.jsonl", folder / "gold.json", settings=settings)
    execute_rows(source, folder / "out.jsonl", settings=settings, gold_audit=folder / "gold.jsonl")
    return list(read_rows(folder / "out.jsonl"))


def check(rows: list[dict[str, Any]]) -> None:
    for row, (sql, _, passed, classes, match) in zip(rows, CASES, strict=True):
        assert row["exec_pass"] is passed, (sql, row["exec_error"])
        assert row["exec_error_class"] in classes, (sql, row["exec_error"])
        assert row["gold_match"] is match, (sql, row)


@pytest.fixture(scope="module")
def duck(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DuckDB database in a folder of its own."""
    duckdb = pytest.importorskip("duckdb")
    path = tmp_path_factory.mktemp("duck") / "shop.duckdb"
    with duckdb.connect(str(path)) as connection:
        for statement in (*TABLES, "CREATE SEQUENCE s"):
            connection.execute(statement)
    return path


def test_duckdb_gives_the_same_verdicts(duck: Path, tmp_path: Path) -> None:
    """Statements on DuckDB are admitted, run, stopped and compared as on SQLite, and change nothing."""
    before = {path.name: path.read_bytes() for path in duck.parent.iterdir()}
    check(execute(tmp_path, CASES, engine="duckdb", database_dir=str(duck.parent)))
    assert {path.name: path.read_bytes() for path in duck.parent.iterdir()} == before


@pytest.mark.parametrize(
    ("sql", "classes"),
    [
        ("SELECT * FROM read_csv('/etc/passwd')", {"forbidden"}),
        ("SELECT * FROM read_text('/etc/passwd')", {"forbidden"}),
        ("SELECT * FROM '/etc/passwd'", {"forbidden", "no_such_table"}),
        ("SELECT * FROM glob('/etc/*')", {"forbidden"}),
        ("SELECT repeat('a', 1000000000)", {"timeout", "out_of_memory", "killed", "too_big"}),
        ("SELECT list_sum(range(1000000000))", {"timeout", "out_of_memory", "killed", "too_big"}),
        ("SELECT * FROM range(10000000)", {"row_limit", "timeout"}),
        ("SELECT ?", {"other"}),
    ],
)
def test_duckdb_reaches_nothing_outside(sql: str, classes: set[str], duck: Path, tmp_path: Path) -> None:
    """Files, other databases and more than its share of memory and time are out of reach."""
    rows = execute(tmp_path, [(sql, "SELECT 1"), ("SELECT 1", "SELECT 1")], engine="duckdb", database=str(duck))
    assert rows[0]["exec_error_class"] in classes, rows[0]["exec_error"]
    assert rows[1]["gold_match"] is True


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    """A PostgreSQL server on loopback with a role that may only read; the connection string for it."""
    psycopg = pytest.importorskip("psycopg", reason="psycopg is not installed (pip install potstill[postgresql])")
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    found = str(programs[-1]) if programs else shutil.which("initdb")
    if found is None:
        pytest.skip("no PostgreSQL server is installed (apt-get install postgresql)")
    user = _user_of_the_server()
    folder = Path(tempfile.mkdtemp(prefix="potstill-pg-"))
    if user is not None:
        shutil.chown(folder, user)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "user": user, "cwd": folder}
    subprocess.run([found, "-D", str(folder / "data"), "-U", "owner", "-A", "trust", "--no-sync"], check=True, **quiet)
    options = ["-F", "-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={folder}", "-p", str(port)]
    server = subprocess.Popen([str(Path(found).with_name("postgres")), "-D", str(folder / "data"), *options], **quiet)
    try:
        base = f"host=127.0.0.1 port={port}"
        _prepare_server(psycopg, base)
        yield f"{base} dbname={{db_id}} user=reader"
    finally:
        server.terminate()
        server.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


def _user_of_the_server() -> str | None:
    """Return the user that the server runs as: PostgreSQL refuses to run as root."""
    if os.getuid() != 0:
        return None
    try:
        pwd.getpwnam("postgres")
    except KeyError:
        pytest.skip("PostgreSQL does not run as root, and there is no user `postgres`")
    return "postgres"


def _prepare_server(psycopg: Any, base: str) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            connection = psycopg.connect(f"{base} dbname=postgres user=owner", autocommit=True)
            break
        except psycopg.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
    with connection:
        connection.execute("CREATE ROLE reader LOGIN")
        connection.execute("CREATE DATABASE shop")
    with psycopg.connect(f"{base} dbname=shop user=owner", autocommit=True) as connection:
        for statement in (*TABLES, "CREATE SEQUENCE s", "GRANT ALL ON ALL TABLES IN SCHEMA public TO reader"):
            connection.execute(statement)
        connection.execute("GRANT ALL ON SEQUENCE s TO reader")


def test_postgresql_gives_the_same_verdicts(postgres: str, tmp_path: Path) -> None:
    """Statements on a server are admitted, run, stopped and compared as on SQLite, by a role that could write."""
    check(execute(tmp_path, CASES, engine="postgresql", database=postgres))
    rows = execute(tmp_path, [("SELECT count(*) FROM t", "SELECT 3")], engine="postgresql", database=postgres)
    assert rows[0]["gold_match"] is True


@pytest.mark.parametrize(
    ("sql", "classes"),
    [
        ("SELECT pg_sleep(60)", {"timeout"}),
        ("SELECT set_config('statement_timeout', '0', false), pg_sleep(60)", {"timeout"}),
        ("SELECT pg_read_file('/etc/passwd')", {"forbidden"}),
        ("SELECT lo_import('/etc/passwd')", {"forbidden"}),
        ("SELECT repeat('a', 2000000000)", {"too_big", "out_of_memory", "timeout"}),
        ("SELECT generate_series(1, 10000000)", {"row_limit", "timeout"}),
        ("SELECT 1 % 0", {"other"}),
        ("SELECT 'a\x00b'", {"syntax"}),
    ],
)
def test_postgresql_stops_what_goes_too_far(sql: str, classes: set[str], postgres: str, tmp_path: Path) -> None:
    """Time, files and rows are bounded, and the row behind has its result."""
    cases = [(sql, "SELECT 1"), ("SELECT 1", "SELECT 1")]
    rows = execute(tmp_path, cases, engine="postgresql", database=postgres)
    assert rows[0]["exec_error_class"] in classes, rows[0]["exec_error"]
    assert rows[1]["gold_match"] is True


def test_nothing_stays_in_a_session(postgres: str, tmp_path: Path) -> None:
    """A lock or a setting made by one statement is gone for the next."""
    cases = [
        ("SELECT pg_advisory_lock(7) IS NULL", "SELECT true"),
        ("SELECT set_config('search_path', 'nowhere', false)", "SELECT 'nowhere'"),
        ("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'", "SELECT 0"),
        ("SELECT a FROM t", "SELECT a FROM t"),
    ]
    rows = execute(tmp_path, cases, engine="postgresql", database=postgres)
    assert [row["exec_error_class"] for row in rows] == [None] * 4
    assert [row["gold_match"] for row in rows[2:]] == [True, True]


def test_a_superuser_is_refused(postgres: str, tmp_path: Path) -> None:
    """A role that may do anything is not used for statements that nobody has read."""
    rows = execute(
        tmp_path, [("SELECT 1", "SELECT 1")], engine="postgresql", database=postgres.replace("reader", "owner")
    )
    assert (rows[0]["exec_pass"], rows[0]["gold_match"]) == (False, None)
    assert "superuser" in rows[0]["exec_error"]


@pytest.mark.parametrize("text", ["host=h password=x", "postgresql://me:secret@h/db"])
def test_a_password_in_the_config_is_refused(text: str, tmp_path: Path) -> None:
    """A connection string with a password is an error that says where passwords belong, and does not repeat it."""
    with pytest.raises(ConfigError, match="PGPASSWORD") as caught:
        execute(tmp_path, [("SELECT 1", "SELECT 1")], engine="postgresql", database=text)
    assert "secret" not in str(caught.value)


def test_a_server_that_is_not_there_is_an_error_of_the_rows(tmp_path: Path) -> None:
    """No connection, no verdict: the class is that of a missing database."""
    pytest.importorskip("psycopg")
    database = "host=127.0.0.1 port=1 dbname=x user=y"
    rows = execute(tmp_path, [("SELECT 1", "SELECT 1")], engine="postgresql", database=database)
    assert (rows[0]["exec_error_class"], rows[0]["gold_match"]) == ("no_such_database", None)
