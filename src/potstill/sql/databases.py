"""From a row to its database: one file for all rows, or a folder with one per `db_id`.

A file is looked up where Spider and BIRD put it (`{db_id}/{db_id}.sqlite`) and flat (`{db_id}.sqlite`), and never
outside the folder. A SQLite file in WAL mode, or with a journal beside it, is not opened in place: even a reader
would leave files there. Its committed state is copied into a scratch folder that goes away in the end.
"""

from __future__ import annotations

import re
import shutil
import sqlite3
import stat
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from potstill.errors import ConfigError
from potstill.sql.lookup import MAX_REMEMBERED, Database, name_of
from potstill.sql.outcome import QueryError

_SQLITE_MAGIC = b"SQLite format 3\x00"
#: Bytes 18 and 19 of the header: the file format for writing and reading; 2 means WAL.
_FORMAT_AT, _WAL = 18, 2
_SIDECARS = ("-wal", "-journal")
_COPY_TRIES = 3
#: What stands for a row's id in the connection string of a server.
_ID = "{db_id}"
_SERVER_NAME = re.compile(r"[A-Za-z0-9_-]{1,63}")
_PASSWORD = re.compile(r"\bpassword\s*=|://[^/@:]*:[^/@]+@", re.IGNORECASE)


class Databases:
    """Finds and keeps the databases of a run; a context manager, since it may hold copies.

    Args:
        suffixes: Endings of the engine's files; none for a server.
        database: The one file of all rows; for a server its connection string, in which `{db_id}` stands for the row's.
        folder: The folder that each row's database is in.
        field: The row's field that names it.
        sqlite: Whether these are SQLite's files, with their headers and journals.

    Raises:
        ConfigError: When neither or both are given, or what is given does not exist.
    """

    def __init__(
        self,
        *,
        suffixes: Sequence[str],
        database: str | Path | None,
        folder: str | Path | None,
        field: str,
        sqlite: bool = True,
    ) -> None:
        if (database is None) == (folder is None):
            raise ConfigError(
                "execute: give one of `database` (a file that all rows share) and `database_dir` "
                "(a folder with one database per row's id)"
            )
        self._suffixes = suffixes
        self._field = field
        self._sqlite = sqlite
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self._found: dict[str, Database | QueryError] = {}
        if folder is not None and not suffixes:
            raise ConfigError("execute.database_dir: the engine is a server; give `database`, a connection string")
        self._root = _existing_folder(folder) if folder is not None else None
        self._template = _connection_string(str(database)) if database is not None and not suffixes else None
        #: The database of all rows, where they share one.
        self.shared: Database | None = None
        if self._template is not None and _ID not in self._template:
            self.shared = Database(shared_name(self._template, is_server=True), self._template)
        elif database is not None and self._template is None:
            self.shared = self._open_shared(Path(database))

    def __enter__(self) -> Databases:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove all copies."""
        if self._scratch is not None:
            self._scratch.cleanup()
            self._scratch = None

    def find(self, row: Mapping[str, Any]) -> Database:
        """Return the database of a row.

        Raises:
            QueryError: `no_such_database` when the row names none, or one that is not in the folder.
        """
        if self.shared is not None:
            return self.shared
        name = name_of(row, self._field)
        found = self._found.get(name)
        if found is None:
            if len(self._found) >= MAX_REMEMBERED:
                self._found.clear()  # the rows name what they like
            found = self._found[name] = self._look_up(name)
        if isinstance(found, QueryError):
            raise found
        return found

    def _look_up(self, name: str) -> Database | QueryError:
        if self._template is not None:
            if not _SERVER_NAME.fullmatch(name):
                return QueryError("no_such_database", f"database {name!r}: letters, digits, _ and - make a name")
            return Database(name, self._template.replace(_ID, name))
        try:
            return Database(name, self._locate(self._path(name)))
        except QueryError as error:
            return error
        except (OSError, sqlite3.Error, ValueError) as error:
            return QueryError("no_such_database", f"database {name!r}: {error}")

    def _path(self, name: str) -> Path:
        """Return the file of a `db_id`, which lies inside the folder whatever the id says."""
        assert self._root is not None
        parts = name.replace("\\", "/").split("/")
        if "\x00" in name or name.startswith("/") or ".." in parts or any("\ud800" <= c <= "\udfff" for c in name):
            raise QueryError("no_such_database", f"database {name!r} is not a name inside the database folder")
        candidates = [
            path
            for suffix in self._suffixes
            for path in (self._root / name / f"{parts[-1]}{suffix}", self._root / f"{name}{suffix}")
        ]
        if name.endswith(tuple(self._suffixes)):
            candidates.append(self._root / name)
        for path in candidates:
            if path.is_file():
                resolved = path.resolve()
                if not resolved.is_relative_to(self._root):
                    raise QueryError("no_such_database", f"database {name!r} leads out of the database folder")
                return resolved
        raise QueryError("no_such_database", f"no database {name!r} in the database folder")

    def _open_shared(self, path: Path) -> Database:
        """Return the one database of all rows; whatever is wrong with it is wrong with the config."""
        if not path.is_file():
            raise ConfigError(f"execute.database: {path}: {'is a folder' if path.is_dir() else 'no such file'}")
        try:
            return Database(shared_name(path, is_server=False), self._locate(path.resolve()))
        except QueryError as error:
            raise ConfigError(f"execute.database: {path}: {error.message}") from error
        except (OSError, sqlite3.Error) as error:
            raise ConfigError(f"execute.database: {path}: cannot be read: {error}") from error

    def _locate(self, path: Path) -> str:
        if not self._sqlite:
            return str(path)
        header = _read_header(path)
        if any(_has_content(path.with_name(path.name + suffix)) for suffix in _SIDECARS):
            return f"{self._copy(path).as_uri()}?mode=ro"
        if header and header[_FORMAT_AT : _FORMAT_AT + 2] == bytes([_WAL, _WAL]):
            # All of it is in the one file. Opened as it is, even for reading, it would get a -wal and a -shm beside it.
            return f"{path.as_uri()}?mode=ro&immutable=1"
        return f"{path.as_uri()}?mode=ro"

    def _copy(self, path: Path) -> Path:
        """Copy a database with what waits beside it, and fold that in."""
        if self._scratch is None:
            self._scratch = tempfile.TemporaryDirectory(prefix="potstill-sql-", ignore_cleanup_errors=True)
        target = Path(self._scratch.name) / quote(str(len(list(Path(self._scratch.name).iterdir()))))
        for _ in range(_COPY_TRIES):
            shutil.rmtree(target, ignore_errors=True)
            target.mkdir()
            before = _state(path)
            for source in (path, *(path.with_name(path.name + suffix) for suffix in _SIDECARS)):
                if source.is_file():
                    shutil.copyfile(source, target / source.name)
            if _state(path) == before:
                break
        copy = target / path.name
        connection = sqlite3.connect(copy, isolation_level=None)
        try:
            connection.execute("PRAGMA journal_mode=DELETE").fetchall()
        finally:
            connection.close()
        return copy


def shared_name(database: str | Path, *, is_server: bool) -> str:
    """Return what the one database of all rows is called in the gold audit."""
    return "server" if is_server else Path(database).name


def _connection_string(text: str) -> str:
    """Return a server's connection string.

    Raises:
        ConfigError: When it holds a password.
    """
    if _PASSWORD.search(text):
        raise ConfigError(
            "execute.database: a connection string holds no password; libpq reads it from PGPASSWORD or ~/.pgpass"
        )
    return text


def _existing_folder(folder: str | Path) -> Path:
    path = Path(folder)
    if not path.is_dir():
        raise ConfigError(f"execute.database_dir: {path}: {'is a file' if path.is_file() else 'no such folder'}")
    return path.resolve()


def _read_header(path: Path) -> bytes:
    with path.open("rb") as stream:
        header = stream.read(100)
    if header and not header.startswith(_SQLITE_MAGIC):
        raise QueryError("no_such_database", f"{path.name} is not a SQLite database")
    return header


def _has_content(path: Path) -> bool:
    try:
        status = path.stat()
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size > 0


def _state(path: Path) -> list[tuple[int, int]]:
    """Return sizes and times of a database's files: a writer that was at work meanwhile changes them."""
    files = [path, *(path.with_name(path.name + suffix) for suffix in _SIDECARS)]
    return [(status.st_size, status.st_mtime_ns) for file in files if file.exists() for status in [file.stat()]]
