"""Gold results on disk: one line per distinct (database, gold query), sorted by key, found without reading the file.

The file may be as large as the input; a job that executes one chunk needs a few of its lines. Each line begins with
its key, so a binary search over the mapped file finds one in some twenty steps and no index is needed.
"""

from __future__ import annotations

import hashlib
import math
import mmap
from bisect import bisect, bisect_left
from pathlib import Path
from typing import Any

from potstill.errors import InputError
from potstill.records import Row
from potstill.rows import loads
from potstill.sql.evaluate import Gold

_KEY_PREFIX = b'{"gold_key":"'
_KEY_LENGTH = 32
_KEY_END = len(_KEY_PREFIX) + _KEY_LENGTH
#: Bytes before and behind a guess that are looked through: some lines of small results.
_WINDOW = 2048
#: Places of lines that are remembered.
_LEARNED = 4096
#: One search costs as much as reading so many bytes of the file once through.
_SEARCH_BYTES = 4096
#: Of a larger file no index is made: it would take more memory than it is worth.
_MOST_INDEXED = 1 << 26


def gold_key(database: str, sql: str) -> str:
    """Return the key of a gold query on a database, both as the rows name them."""
    text = f"{database}\x00{sql}".encode("utf-8", "surrogatepass")
    return hashlib.sha256(text).hexdigest()[:_KEY_LENGTH]


def to_line(key: str, database: str, sql: str, gold: Gold) -> Row:
    """Return one line of the audit."""
    return {
        "gold_key": key,  # first: the search reads no further
        "database": database,
        "gold_sql": sql,
        "gold_status": gold.status,
        "gold_unstable": gold.unstable,
        "error_class": gold.error_class or None,
        "error": gold.error or None,
        "row_count": gold.row_count if gold.usable else None,
        "column_count": gold.column_count if gold.usable else None,
        "result_signature": gold.signature or None,
        "tie_groups": gold.groups,
        "has_real": gold.has_real,
        "used_clock": gold.used_clock,
        "used_random": gold.used_random,
        "result": None if gold.rows is None else [[_to_json(cell) for cell in row] for row in gold.rows],
    }


def from_line(line: Row, *, with_rows: bool = True) -> Gold:
    """Return the gold result of a line; without its rows where they are not asked for and hold no real numbers."""
    rows = line["result"] if with_rows or line["has_real"] else None
    return Gold(  # by place, in the order of its fields: one is made for each row that is executed
        line["gold_status"],
        line["error_class"] or "",
        line["error"] or "",
        line["column_count"] or 0,
        line["row_count"] or 0,
        None if rows is None else [tuple([_from_json(cell) for cell in row]) for row in rows],
        line["tie_groups"],
        line["result_signature"] or "",
        line["has_real"],
        line["gold_unstable"],
        line["used_clock"],
        line["used_random"],
    )


def _to_json(cell: Any) -> Any:
    if isinstance(cell, bytes):
        return {"blob": cell.hex()}
    if isinstance(cell, float) and not math.isfinite(cell):
        return {"real": repr(cell)}
    return cell


def _from_json(cell: Any) -> Any:
    if isinstance(cell, dict):
        return bytes.fromhex(cell["blob"]) if "blob" in cell else float(cell["real"])
    return cell


class GoldFile:
    """The gold results of a run, by key; a context manager.

    Args:
        path: The audit's file.

    Raises:
        InputError: When it cannot be read or is not such a file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            with path.open("rb") as stream:
                empty = not stream.read(1)
                self._map = None if empty else mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
        self._numbers = [0, 1 << (4 * _KEY_LENGTH)]
        self._starts = [0, len(self._map) if self._map is not None else 0]
        self._searches = 0
        self._index: dict[bytes, int] | None = None

    def __enter__(self) -> GoldFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        if self._map is not None:
            self._map.close()

    def find(self, key: str, *, with_rows: bool = True) -> Gold | None:
        """Return a gold result, or None where the file has no such key.

        A job that asks for a good part of the file reads it once and has an index then; others search.
        """
        if self._map is None:
            return None
        if self._index is None and self._is_worth_an_index(len(self._map)):
            self._index = self._read_index(len(self._map))
        start = self._search(key) if self._index is None else self._index.get(key.encode())
        if start is None:
            return None
        return from_line(loads(self._map[start : self._line_end(start)]), with_rows=with_rows)

    def _is_worth_an_index(self, size: int) -> bool:
        self._searches += 1
        return self._searches * _SEARCH_BYTES > size and size <= _MOST_INDEXED

    def _read_index(self, size: int) -> dict[bytes, int]:
        index, start = {}, 0
        while start < size:
            index[self._key_at(start)] = start
            start = self._line_end(start)
        return index

    def _search(self, key: str) -> int | None:
        """Return where the line of a key starts.

        Keys are hashes, so a key says about where in the file its line is: each guess is made by that (interpolation
        search), every third one halves what is left, in case the lines are of very uneven length. What stands around a
        guess is looked through as a whole, and what was seen on the way narrows the next search.
        """
        mapped = self._map
        assert mapped is not None
        wanted, number = key.encode(), int(key, 16)
        above = bisect(self._numbers, number)
        low, low_number = self._starts[above - 1], self._numbers[above - 1]
        high, high_number = self._starts[above], self._numbers[above]
        step = 0
        while low < high:  # the line, if there is one, starts in [low, high)
            step += 1
            share = (number - low_number) / (high_number - low_number) if step % 3 else 0.5
            guess = low + int((high - low) * share)
            first = mapped.rfind(b"\n", low, max(low, guess - _WINDOW)) + 1 or low
            window = mapped[first : min(high, max(guess, first) + _WINDOW)]
            at = window.find(_KEY_PREFIX + wanted)
            if at >= 0:
                return first + at
            found = self._key_at(first)
            if found > wanted:
                high, high_number = first, self._learn(found, first)
                continue
            last = first + window.rfind(b"\n", 0, -_KEY_END) + 1
            found = self._key_at(last)
            if found > wanted:
                return None  # between these two lines it would have been seen
            low, low_number = self._line_end(last), self._learn(found, last)
        return None

    def _learn(self, key: bytes, start: int) -> int:
        """Remember where the line of a key starts; return the key as a number."""
        number = int(key, 16)
        at = bisect_left(self._numbers, number)
        if self._numbers[at] != number and len(self._numbers) < _LEARNED:
            self._numbers.insert(at, number)
            self._starts.insert(at, start)
        return number

    def _line_end(self, start: int) -> int:
        assert self._map is not None
        end = self._map.find(b"\n", start)
        return len(self._map) if end < 0 else end + 1

    def _key_at(self, start: int) -> bytes:
        assert self._map is not None
        head = self._map[start : start + _KEY_END]
        if not head.startswith(_KEY_PREFIX):
            raise InputError(f"{self._path}: byte {start}: not a line of a gold audit; run audit_gold again")
        return head[len(_KEY_PREFIX) :]
