"""DuckDB and PostgreSQL behind the same interface as SQLite; PostgreSQL is a real server where one is installed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from potstill.errors import ConfigError
from potstill.rows import dumps, read_rows
from potstill.stages.audit_gold import audit_gold
from potstill.stages.execute import execute_rows
from tests.servers.postgres import running_postgres

TABLES = (
    "CREATE TABLE t (a INTEGER, b VARCHAR(20), d DECIMAL(10, 2), e DATE)",
    "INSERT INTO t VALUES (1, 'x', 1.50, DATE '2024-01-01'), (2, 'y', 2, NULL), (2, 'y', 2, NULL)",
)
VIEWS = (
    "CREATE VIEW fresh AS SELECT a FROM t WHERE e < CURRENT_DATE",
    "CREATE VIEW fresher AS SELECT a FROM fresh",
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


CLOCK_ON_DUCKDB = [
    "now()",
    "current_timestamp",
    "CURRENT_DATE",
    "today()",
    "current_time",
    "localtimestamp",
    "transaction_timestamp()",
    "get_current_timestamp()",
    "age(TIMESTAMP '2000-01-01')",
    "year(current_date) - 2000",
    "(SELECT d FROM clock_view)",
    "my_now()",
]


def test_the_clock_of_duckdb_stands_still(tmp_path: Path) -> None:
    """Whatever asks for the time gets the pinned one, in views and macros too, and the row is marked."""
    duckdb = pytest.importorskip("duckdb")
    path = tmp_path / "clock.duckdb"
    with duckdb.connect(str(path)) as connection:
        connection.execute("CREATE VIEW clock_view AS SELECT current_date AS d")
        connection.execute("CREATE MACRO my_now() AS now()")
    cases = [(f"SELECT {text}", f"SELECT {text}") for text in CLOCK_ON_DUCKDB]
    cases += [("SELECT current_date", "SELECT DATE '2024-02-29'"), ("SELECT 'now()' /* now() */", "SELECT 'now()'")]
    cases += [("SELECT age(DATE '2024-02-29', DATE '2024-02-28')", "SELECT INTERVAL 1 DAY")]
    rows = execute(tmp_path, cases, engine="duckdb", database=str(path), clock="2024-02-29 12:30:00")
    assert [row["gold_match"] for row in rows] == [True] * len(rows), [row["exec_error"] for row in rows]
    assert [row["used_clock"] for row in rows] == [True] * (len(CLOCK_ON_DUCKDB) + 1) + [False, False]
    again = execute(tmp_path, cases, engine="duckdb", database=str(path), clock="2024-02-29 12:30:00")
    assert [row["result_signature"] for row in again] == [row["result_signature"] for row in rows]


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT random()",
        "SELECT uuid()",
        "SELECT gen_random_uuid()",
        "SELECT a FROM t USING SAMPLE 2 ROWS",
        "SELECT a FROM t TABLESAMPLE reservoir(2)",
        "SELECT a FROM t ORDER BY random() LIMIT 1",
    ],
)
def test_the_dice_of_duckdb_fall_the_same_way(sql: str, duck: Path, tmp_path: Path) -> None:
    """A statement that throws dice is marked, and gives the same rows in another process."""
    rows = [execute(tmp_path, [(sql, "SELECT 1")], engine="duckdb", database=str(duck))[0] for _ in range(2)]
    assert [row["used_random"] for row in rows] == [True, True]
    assert rows[0]["result_signature"] == rows[1]["result_signature"] is not None


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    """A PostgreSQL server on loopback with a role that could write; the connection string for it."""
    grants = ("GRANT ALL ON ALL TABLES IN SCHEMA public TO reader", "GRANT ALL ON SEQUENCE s TO reader")
    with running_postgres((*TABLES, *VIEWS, "CREATE SEQUENCE s", *grants)) as connection:
        yield connection


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


@pytest.mark.parametrize(
    ("sql", "marked"),
    [
        ("SELECT current_date - DATE '2020-01-01' > 1", True),
        ("SELECT 'today'::date > DATE '2020-01-01'", True),
        ("SELECT age(TIMESTAMP '2000-01-01') > INTERVAL '1 day'", True),
        ("SELECT count(*) FROM fresh", True),
        ("SELECT count(*) FROM fresher", True),
        ("SELECT 'current_date', 'now()'", False),
        ("SELECT age(DATE '2024-02-29', DATE '2024-02-28')", False),
    ],
)
def test_a_servers_clock_is_marked(sql: str, marked: bool, postgres: str, tmp_path: Path) -> None:
    """A statement that asks a server for the time says so, and gold that does is no steady measure."""
    (row,) = execute(tmp_path, [(sql, sql)], engine="postgresql", database=postgres)
    assert (row["exec_error_class"], row["gold_match"]) == (None, True)
    assert (row["used_clock"], row["gold_unstable"]) == (marked, marked)


def test_gold_that_the_clock_decides_is_run_anew(postgres: str, tmp_path: Path) -> None:
    """What the audit found some time ago does not judge an answer of today."""
    sql = "SELECT current_date"
    execute(tmp_path, [(sql, sql)], engine="postgresql", database=postgres)
    (line,) = read_rows(tmp_path / "gold.jsonl")
    (tmp_path / "gold.jsonl").write_bytes(dumps({**line, "result": [["1999-01-01"]], "result_signature": "0" * 64}))
    settings = {"timeout_s": 3, "engine": "postgresql", "database": postgres}
    execute_rows(tmp_path / "in.jsonl", tmp_path / "out.jsonl", settings=settings, gold_audit=tmp_path / "gold.jsonl")
    assert [row["gold_match"] for row in read_rows(tmp_path / "out.jsonl")] == [True]


def test_a_superuser_is_refused(postgres: str, tmp_path: Path) -> None:
    """A role that may do anything is not used for statements that nobody has read."""
    database = postgres.replace("reader", "owner")
    rows = execute(tmp_path, [("SELECT 1", None)], engine="postgresql", database=database)
    assert (rows[0]["exec_pass"], rows[0]["gold_match"]) == (False, None)
    assert "superuser" in rows[0]["exec_error"]
    with pytest.raises(ConfigError, match=r"execute\.database: not one gold query.*the role is a superuser"):
        execute(tmp_path, [("SELECT 1", "SELECT 1")], engine="postgresql", database=database)


@pytest.mark.parametrize("text", ["host=h password=x", "postgresql://me:secret@h/db"])
def test_a_password_in_the_config_is_refused(text: str, tmp_path: Path) -> None:
    """A connection string with a password is an error that says where passwords belong, and does not repeat it."""
    with pytest.raises(ConfigError, match="PGPASSWORD") as caught:
        execute(tmp_path, [("SELECT 1", "SELECT 1")], engine="postgresql", database=text)
    assert "secret" not in str(caught.value)


def test_a_server_that_is_not_there_is_an_error_of_the_rows(tmp_path: Path) -> None:
    """No connection, no verdict: the class is that of a missing database, and the audit stops a run before it asks."""
    pytest.importorskip("psycopg")
    database = "host=127.0.0.1 port=1 dbname=x user=y"
    rows = execute(tmp_path, [("SELECT 1", None)], engine="postgresql", database=database)
    assert (rows[0]["exec_error_class"], rows[0]["gold_match"]) == ("no_such_database", None)
    with pytest.raises(ConfigError, match=r"execute\.database: not one gold query.*connection"):
        execute(tmp_path, [("SELECT 1", "SELECT 1")], engine="postgresql", database=database)
