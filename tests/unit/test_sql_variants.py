"""Changed copies of a database: what they keep, what they change, and what they find out."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from potstill.errors import ConfigError
from potstill.rows import dumps, read_rows
from potstill.sql.lookup import Database
from potstill.sql.variants import MAX_ROWS, VariantStore
from potstill.stages.execute import execute_rows
from potstill.stages.make_variants import make_variants

SCHEMA = """
CREATE TABLE city (id INTEGER PRIMARY KEY, name TEXT NOT NULL, people INTEGER);
CREATE TABLE shop (
  id INTEGER PRIMARY KEY, city_id INTEGER REFERENCES city (id), name TEXT, rating REAL CHECK (rating < 10),
  stars INTEGER GENERATED ALWAYS AS (CAST(rating AS INTEGER)));
CREATE TABLE code (code TEXT PRIMARY KEY, shop_id INTEGER REFERENCES shop) WITHOUT ROWID;
CREATE TABLE loose (what TEXT, raw BLOB);
CREATE TRIGGER t AFTER INSERT ON shop BEGIN DELETE FROM city; END;
CREATE VIEW v AS SELECT name FROM shop;
CREATE VIRTUAL TABLE docs USING fts5 (body);
INSERT INTO docs VALUES ('a fox');
INSERT INTO city VALUES (1, 'Ulm', 10), (2, 'Bonn', 20), (3, 'Kiel', 30);
INSERT INTO loose VALUES ('x', X'00'), (CAST(X'E9' AS TEXT), NULL), ('y', X'01');
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A database with keys, constraints, a trigger, a view and a full-text table."""
    path = tmp_path / "dbs" / "shops.sqlite"
    path.parent.mkdir()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.executescript(SCHEMA)
        connection.execute("DROP TRIGGER t")
        shops = [(n, 1 + n % 3, f"shop {n}", n % 9 + 0.5) for n in range(1, 40)]
        connection.executemany("INSERT INTO shop (id, city_id, name, rating) VALUES (?, ?, ?, ?)", shops)
        connection.executemany("INSERT INTO code VALUES (?, ?)", [(f"c{n}", n) for n in range(1, 30)])
        connection.execute("CREATE TRIGGER t AFTER INSERT ON shop BEGIN DELETE FROM city; END")
        connection.commit()
    return path


def made(source: Path, folder: Path, seed: int = 0, count: int = 4) -> list[Path]:
    return VariantStore(folder, count=count, seed=seed).files(Database("shops", f"{source.as_uri()}?mode=ro"))


def rows_of(path: Path, sql: str) -> list[tuple[Any, ...]]:
    with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
        connection.text_factory = bytes
        return connection.execute(sql).fetchall()


def test_keys_and_types_are_kept(source: Path, tmp_path: Path) -> None:
    """No variant has a broken foreign key, a value of another type, or a value that its column had not."""
    original = set(rows_of(source, "SELECT typeof(rating), rating FROM shop")) | {(b"null", None)}
    for path in made(source, tmp_path / "variants"):
        assert rows_of(path, "PRAGMA integrity_check") == [(b"ok",)]
        assert rows_of(path, "PRAGMA foreign_key_check") == []
        assert set(rows_of(path, "SELECT typeof(rating), rating FROM shop")) <= original
        assert rows_of(path, "SELECT count(*) FROM city")[0][0] > 0
        assert (
            rows_of(path, "SELECT typeof(what), typeof(raw) FROM loose WHERE typeof(raw) NOT IN ('null', 'blob')") == []
        )
        assert rows_of(path, "SELECT count(*) FROM city WHERE name IS NULL") == [(0,)]
        assert rows_of(path, "SELECT body FROM docs WHERE docs MATCH 'fox'") == [(b"a fox",)]


def test_the_same_seed_gives_the_same_rows(source: Path, tmp_path: Path) -> None:
    """Variants are decided by seed and number alone, and differ from the original and from each other."""
    everything = "SELECT * FROM shop ORDER BY id"
    first = [rows_of(path, everything) for path in made(source, tmp_path / "a")]
    assert first == [rows_of(path, everything) for path in made(source, tmp_path / "b")]
    assert first != [rows_of(path, everything) for path in made(source, tmp_path / "c", seed=1)]
    distinct = {json.dumps(rows, default=str) for rows in [*first, rows_of(source, everything)]}
    assert len(distinct) == 5


def test_copies_are_made_once(source: Path, tmp_path: Path) -> None:
    """A copy that is there already is used again; another content makes another copy."""
    before = {path: path.stat().st_mtime_ns for path in made(source, tmp_path / "variants")}
    assert {path: path.stat().st_mtime_ns for path in made(source, tmp_path / "variants")} == before
    with contextlib.closing(sqlite3.connect(source)) as connection:
        connection.execute("UPDATE city SET people = 11 WHERE id = 1")
        connection.commit()
    assert not set(made(source, tmp_path / "variants")) & set(before)


def test_large_tables_are_sampled(tmp_path: Path) -> None:
    """A copy of a large table stays small."""
    path = tmp_path / "large.sqlite"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE t (a INTEGER)")
        connection.executemany("INSERT INTO t VALUES (?)", [(n,) for n in range(MAX_ROWS + 5000)])
        connection.commit()
    assert rows_of(made(path, tmp_path / "variants", count=1)[0], "SELECT count(*) FROM t") == [(MAX_ROWS,)]


#: Answers that match gold on the original; whether they are right.
ANSWERS = [
    ("SELECT count(*) FROM shop s JOIN city c ON c.id = s.city_id WHERE c.name = 'Ulm'", "SELECT 13", False),
    ("SELECT name FROM city WHERE people > 15", "SELECT name FROM city WHERE id > 1", False),
    ("SELECT count(DISTINCT city_id) FROM shop", "SELECT count(*) FROM city", False),
    ("SELECT name FROM city WHERE people > 15", "SELECT c.name FROM city AS c WHERE c.people > 15", True),
    ("SELECT max(people) FROM city", "SELECT people FROM city ORDER BY people DESC LIMIT 1", True),
]


def execute(folder: Path, settings: dict[str, Any], variants: Path | None = None) -> list[dict[str, Any]]:
    source = folder / "in.jsonl"
    rows = [{"db_id": "shops", "gold_sql": gold, "sql": sql} for gold, sql, _ in ANSWERS]
    source.write_bytes(b"".join(map(dumps, [*rows, {"db_id": "shops", "gold_sql": "SELECT 1", "sql": "SELECT 2"}])))
    execute_rows(source, folder / "out.jsonl", settings=settings, variants=variants)
    return list(read_rows(folder / "out.jsonl"))


def test_matches_by_coincidence_fall_on_variants(source: Path, tmp_path: Path) -> None:
    """Every answer matches on the original; the wrong ones fail on some variant, the right ones on none."""
    rows = execute(tmp_path, {"database_dir": str(source.parent), "variants": 4})
    assert [row["gold_match"] for row in rows] == [True] * 5 + [False]
    holds = [row["variant_match"] == row["variant_count"] for row in rows[:5]]
    assert holds == [right for *_, right in ANSWERS]
    assert all(0 < row["variant_count"] <= 4 for row in rows[:5])
    assert (rows[5]["variant_match"], rows[5]["variant_count"]) == (None, None)
    assert [path.name for path in source.parent.iterdir()] == ["shops.sqlite"]


def test_copies_made_before_give_the_same_verdicts(source: Path, tmp_path: Path) -> None:
    """The stage that makes the copies and the one that makes its own agree."""
    settings = {"database_dir": str(source.parent), "variants": 3, "variants_seed": 5}
    chunk = tmp_path / "chunk.jsonl"
    chunk.write_bytes(dumps({"db_id": "shops"}) * 3 + dumps({"db_id": "none"}))
    counts = make_variants([chunk], tmp_path / "variants", tmp_path / "variants.json", settings=settings)
    assert (counts.databases, counts.copies) == (1, 3)
    listed = execute(tmp_path, settings, tmp_path / "variants.json")
    fresh = execute(tmp_path, settings)
    assert [(row["variant_match"], row["variant_count"]) for row in listed] == [
        (row["variant_match"], row["variant_count"]) for row in fresh
    ]


def test_variants_of_another_engine_are_refused(tmp_path: Path) -> None:
    """Copies are made of SQLite files only, and the error says so."""
    (tmp_path / "x.duckdb").touch()
    with pytest.raises(ConfigError, match="sqlite"):
        execute(tmp_path, {"engine": "duckdb", "database": str(tmp_path / "x.duckdb"), "variants": 2})
