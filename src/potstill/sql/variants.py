"""Changed copies of a SQLite database: a right answer stays right on them, a coincidence does not.

After the idea of the test suites of Zhong, Yu and Klein, "Semantic Evaluation for Text-to-SQL with Distilled Test
Suites" (EMNLP 2020), with changes that need no knowledge of the queries: values are shuffled within their column, rows
are left out, doubled and put together anew, NULLs are put where they may stand. Types stay, and so do the values of
keys: those that are declared, and columns that two tables share by name and content, on which queries join.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import random
import sqlite3
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from potstill.rows import disk_errors
from potstill.sql.lookup import Database

#: Part of a copy's name: copies made in another way are other copies.
VERSION = 1
#: A table's copy has at most so many rows: each variant is queried as often as the original.
MAX_ROWS = 20_000
#: Values of a column that are counted, to see whether two columns hold the same.
_COMPARED_VALUES = 10_000

#: Shares of rows left out, doubled, put together anew, and of cells made NULL, by kind of variant; they take turns.
_KINDS = (
    {"left_out": 0.0, "doubled": 0.0, "anew": 1.0, "null": 0.0},
    {"left_out": 0.2, "doubled": 0.3, "anew": 0.5, "null": 0.05},
    {"left_out": 0.0, "doubled": 0.3, "anew": 2.0, "null": 0.15},
    {"left_out": 0.5, "doubled": 0.0, "anew": 0.0, "null": 0.0},
)


class _Column(NamedTuple):
    name: str
    nullable: bool
    primary: int


class _Table(NamedTuple):
    """A table to be changed.

    Attributes:
        name: Its name.
        columns: The columns that hold values of their own.
        kept: Names of columns whose values say which rows belong together.
        unique: Names of columns that may not repeat.
        counted: The one integer primary key, whose next values are free to take; "" where there is none.
    """

    name: str
    columns: list[_Column]
    kept: frozenset[str]
    unique: frozenset[str]
    counted: str


class VariantStore:
    """A folder of changed copies, made when they are first asked for.

    Args:
        folder: Where the copies are kept, named after the content they were made from.
        count: How many of each database.
        seed: Decides every change.
        known: Copies already made: name of a database -> files.
    """

    def __init__(self, folder: Path, *, count: int, seed: int, known: Mapping[str, list[str]] | None = None) -> None:
        self._folder = folder
        self._count = count
        self._seed = seed
        self._known: dict[str, list[Path]] = {
            name: [Path(path) for path in paths] for name, paths in (known or {}).items()
        }

    def files(self, database: Database) -> list[Path]:
        """Return the copies of a database."""
        found = self._known.get(database.name)
        if found is None or len(found) < self._count or not all(path.is_file() for path in found):
            content = _hash_file(_path_of(database.location))
            found = [self._make(database, content, number) for number in range(1, self._count + 1)]
            self._known[database.name] = found
        return found[: self._count]

    def locations(self, database: Database) -> list[str]:
        """Return how to open the copies; nobody writes to them any more."""
        return [f"{path.resolve().as_uri()}?mode=ro&immutable=1" for path in self.files(database)]

    def _make(self, database: Database, content: str, number: int) -> Path:
        path = self._folder / f"{content[:24]}-{VERSION}-{self._seed}-{number}.sqlite"
        if not path.is_file():
            with disk_errors(path):
                self._folder.mkdir(parents=True, exist_ok=True)
                temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
                try:
                    make_variant(database.location, temporary, seed=self._seed, number=number)
                    temporary.replace(path)
                finally:
                    temporary.unlink(missing_ok=True)
        return path


def make_variant(location: str, target: Path, *, seed: int, number: int) -> None:
    """Write one changed copy of a database; the same arguments give the same rows.

    Args:
        location: The database, as a URI.
        target: The file to write.
        seed: Decides every change.
        number: Which variant, from 1 on.
    """
    with (
        contextlib.closing(sqlite3.connect(location, uri=True)) as source,
        contextlib.closing(sqlite3.connect(target, isolation_level=None)) as copy,
    ):
        source.backup(copy)
        copy.text_factory = bytes  # a text that is not UTF-8 is copied like any other
        for statement in ("PRAGMA journal_mode=OFF", "PRAGMA synchronous=OFF", "PRAGMA foreign_keys=OFF", "BEGIN"):
            copy.execute(statement)
        for (name,) in copy.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            copy.execute(f"DROP TRIGGER {_quote(_text(name))}")
        for table in _tables(copy):
            dice = random.Random(f"{seed}/{number}/{table.name}")
            _change(copy, table, _KINDS[(number - 1) % len(_KINDS)], dice)
        _drop_orphans(copy)
        copy.execute("COMMIT")
        copy.execute("VACUUM")


def _tables(copy: sqlite3.Connection) -> list[_Table]:
    """Return the ordinary tables; virtual ones and what they keep their content in stay as they are."""
    listed = [tuple(map(_text, row[:3])) for row in copy.execute("PRAGMA table_list").fetchall()]
    names = [name for schema, name, kind in listed if schema == "main" and kind == "table" and name[:7] != "sqlite_"]
    columns = {name: _columns(copy, name) for name in names}
    unique = {name: _unique(copy, name) for name in names}
    joined = _joined(copy, columns)
    tables = []
    for name in sorted(names):
        primary = [column.name for column in columns[name] if column.primary]
        kept = unique[name] | set(primary) | {column for table, column in joined if table == name}
        counted = primary[0] if len(primary) == 1 and _is_counted(copy, name, primary[0]) else ""
        tables.append(_Table(name, columns[name], frozenset(kept), frozenset({*unique[name], *primary}), counted))
    return tables


def _joined(copy: sqlite3.Connection, columns: Mapping[str, list[_Column]]) -> set[tuple[str, str]]:
    """Return (table, column) of all that queries join on: both ends of foreign keys, and names with shared values."""
    joined: set[tuple[str, str]] = set()
    for table in columns:
        for ours, other, theirs in _references(copy, table):
            joined |= {(table, name) for name in ours} | {(other, name) for name in theirs}
    named: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for table, found in columns.items():
        for column in found:
            named[column.name.lower()].append((table, column.name))
    for places in named.values():
        for left, right in itertools.combinations(places, 2):
            if _share_values(copy, left, right):
                joined |= {left, right}
    return joined


def _share_values(copy: sqlite3.Connection, one: tuple[str, str], other: tuple[str, str]) -> bool:
    """Whether half of the values of one of two columns stand in the other: `a.name` and `b.name` mostly do not."""
    first, second = (
        f"SELECT DISTINCT {_quote(column)} AS v FROM {_quote(table)} WHERE {_quote(column)} IS NOT NULL"
        for table, column in (one, other)
    )
    counts = [
        copy.execute(f"SELECT count(*) FROM (SELECT v FROM ({query}) LIMIT {_COMPARED_VALUES})").fetchone()[0]
        for query in (first, second, f"{first} INTERSECT {second}")
    ]
    return bool(counts[2] > 0 and 2 * counts[2] >= min(counts[:2]))


def _columns(copy: sqlite3.Connection, table: str) -> list[_Column]:
    found = copy.execute(f"PRAGMA table_xinfo({_quote(table)})").fetchall()
    return [
        _Column(_text(name), not notnull, primary) for _, name, _, notnull, _, primary, hidden in found if not hidden
    ]


def _references(copy: sqlite3.Connection, table: str) -> list[tuple[list[str], str, list[str]]]:
    """Return the declared foreign keys of a table: its columns, the other table, the columns there."""
    keys: dict[int, tuple[list[str], str, list[str]]] = {}
    for number, _, other, ours, theirs, *_ in copy.execute(f"PRAGMA foreign_key_list({_quote(table)})").fetchall():
        name = _text(other)
        key = keys.setdefault(number, ([], name, []))
        key[0].append(_text(ours))
        if theirs is not None:
            key[2].append(_text(theirs))
    for ours, name, theirs in keys.values():
        if not theirs:
            theirs += [column.name for column in _columns(copy, name) if column.primary][: len(ours)]
    return [key for key in keys.values() if len(key[0]) == len(key[2])]


def _unique(copy: sqlite3.Connection, table: str) -> set[str]:
    names: set[str] = set()
    for _, index, unique, *_ in copy.execute(f"PRAGMA index_list({_quote(table)})").fetchall():
        if unique:
            columns = copy.execute(f"PRAGMA index_info({_quote(_text(index))})").fetchall()
            names |= {_text(name) for _, _, name in columns if name is not None}
    return names


def _is_counted(copy: sqlite3.Connection, table: str, column: str) -> bool:
    found = copy.execute(f"SELECT DISTINCT typeof({_quote(column)}) FROM {_quote(table)} LIMIT 3").fetchall()
    return [_text(kind) for (kind,) in found] == ["integer"]


def _change(copy: sqlite3.Connection, table: _Table, kind: Mapping[str, float], dice: random.Random) -> None:
    names = [column.name for column in table.columns]
    listed = ", ".join(map(_quote, names))
    rows = [_restore(row) for row in copy.execute(f"SELECT {_typed(names)} FROM {_quote(table.name)}").fetchall()]
    if not rows:
        return
    if len(rows) > MAX_ROWS:
        rows = [rows[at] for at in sorted(dice.sample(range(len(rows)), MAX_ROWS))]
    changed = _shuffle(rows, table, dice)
    changed = [row for row in changed if dice.random() >= kind["left_out"]] or changed
    added = _add(changed, table, kind, dice)
    changed = _put_nulls([*changed, *added], table, kind["null"], dice)
    copy.execute(f"DELETE FROM {_quote(table.name)}")
    places = ", ".join("?" * len(names))
    # OR IGNORE: a row that a CHECK or a key of several columns refuses is one row less.
    copy.executemany(f"INSERT OR IGNORE INTO {_quote(table.name)} ({listed}) VALUES ({places})", changed)


def _typed(names: list[str]) -> str:
    """Return columns to select: texts as they are stored, marked apart from blobs."""
    return ", ".join(f"typeof({_quote(name)}) = 'text', {_quote(name)}" for name in names)


def _restore(row: tuple[Any, ...]) -> list[Any]:
    """Return the cells of a row read with `_typed`; bytes that are no UTF-8 text stay bytes."""
    cells: list[Any] = []
    for is_text, cell in zip(row[::2], row[1::2], strict=True):
        if is_text and isinstance(cell, bytes):
            try:
                cells.append(cell.decode())
            except UnicodeDecodeError:
                cells.append(cell)
        else:
            cells.append(cell)
    return cells


def _shuffle(rows: list[list[Any]], table: _Table, dice: random.Random) -> list[list[Any]]:
    """Shuffle the values of each column that no key holds, on its own, among the rows."""
    columns = [list(column) for column in zip(*rows, strict=True)]
    for at, column in enumerate(table.columns):
        if column.name not in table.kept:
            dice.shuffle(columns[at])
    return [list(row) for row in zip(*columns, strict=True)]


def _add(rows: list[list[Any]], table: _Table, kind: Mapping[str, float], dice: random.Random) -> list[list[Any]]:
    """Return rows to add: doubles, and rows put together from values of their columns."""
    counted = [at for at, column in enumerate(table.columns) if column.name == table.counted]
    if table.unique - {table.counted}:
        return []  # what may not repeat cannot be made up
    room = MAX_ROWS - len(rows)
    doubles = [list(dice.choice(rows)) for _ in range(min(room, int(len(rows) * kind["doubled"])))]
    anew = [
        [dice.choice(rows)[at] for at in range(len(table.columns))]
        for _ in range(min(room - len(doubles), int(len(rows) * kind["anew"])))
    ]
    added = [*doubles, *anew]
    for at in counted:
        after = max(row[at] for row in rows) + 1
        for number, row in enumerate(added):
            row[at] = after + number
    return added


def _put_nulls(rows: list[list[Any]], table: _Table, share: float, dice: random.Random) -> list[list[Any]]:
    if share:
        for at, column in enumerate(table.columns):
            if column.nullable and column.name not in table.kept:
                for row in rows:
                    row[at] = None if dice.random() < share else row[at]
    return rows


def _drop_orphans(copy: sqlite3.Connection) -> None:
    """Delete rows that point to rows left out, and what points to them in turn."""
    keys = [(table.name, *key) for table in _tables(copy) for key in _references(copy, table.name)]
    changed = True
    while changed:
        changed = False
        for table, ours, other, theirs in keys:
            same = " AND ".join(f"p.{_quote(b)} = c.{_quote(a)}" for a, b in zip(ours, theirs, strict=True))
            filled = " AND ".join(f"c.{_quote(a)} IS NOT NULL" for a in ours)
            # By a key: a table without rowids has no other name for its rows than its columns.
            sql = (
                f"DELETE FROM {_quote(table)} AS c WHERE {filled} "
                f"AND NOT EXISTS (SELECT 1 FROM {_quote(other)} AS p WHERE {same})"
            )
            with contextlib.suppress(sqlite3.OperationalError):  # a key to a table that there is not
                changed = copy.execute(sql).rowcount > 0 or changed


def _quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _text(value: Any) -> str:
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)


def _path_of(location: str) -> Path:
    from urllib.parse import unquote, urlsplit

    return Path(unquote(urlsplit(location).path))


def _hash_file(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
