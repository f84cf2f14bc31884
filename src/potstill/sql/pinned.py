"""SQLite's clock and dice, pinned: the same query gives the same rows tomorrow.

The built-in functions are replaced on a connection. Those of time hand everything on to the built-in of a second
connection, `now` or a missing time value replaced by the pinned stamp; those of chance draw from a generator that
starts anew with each query. Both leave a mark when they were really asked, so that `used_clock` is not set by
`strftime('%Y', birthday)`.
"""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable
from functools import lru_cache
from typing import Any

#: Function -> how many arguments stand before the time value.
_TIME_FUNCTIONS = {"date": 0, "time": 0, "datetime": 0, "julianday": 0, "unixepoch": 0, "strftime": 1}
_TIMES = {"current_date": "date", "current_time": "time", "current_timestamp": "datetime"}
#: Functions that a schema may use and that are replaced here.
PINNED_NAMES = (*_TIME_FUNCTIONS, *_TIMES, "timediff", "random", "randomblob")

_SEED = 20250101
#: Values longer than any date are not remembered.
_LONG = 100


class PinnedFunctions:
    """The replaced functions of one connection.

    Args:
        clock: What `now` means: a text that SQLite reads as a time, in UTC.
        max_value_bytes: The limit on one value; `randomblob` beyond it must fail as the built-in does.
    """

    def __init__(self, clock: str, max_value_bytes: int) -> None:
        self._clock = clock
        self._max_bytes = max_value_bytes
        self._built_in = sqlite3.connect(":memory:", isolation_level=None)
        self._random: random.Random | None = None
        self.used_clock = False
        self.used_random = False

    def install(self, connection: sqlite3.Connection) -> None:
        """Replace the functions on a connection."""
        for name, before in _TIME_FUNCTIONS.items():
            connection.create_function(name, -1, self._time_function(name, before), deterministic=True)
        for name, function in _TIMES.items():
            connection.create_function(name, 0, self._keyword(function), deterministic=True)
        if sqlite3.sqlite_version_info >= (3, 43):
            connection.create_function("timediff", 2, self._time_difference(), deterministic=True)
        connection.create_function("random", 0, self._draw)
        connection.create_function("randomblob", 1, self._draw_blob)

    def start_query(self) -> None:
        """Forget everything about the query before."""
        self.used_clock = self.used_random = False
        self._random = None

    def close(self) -> None:
        """Close the second connection."""
        self._built_in.close()

    def _ask(self, name: str) -> Callable[..., Any]:
        """Return the built-in function, its answers remembered: a column of dates repeats itself."""

        def ask(*values: Any) -> Any:
            places = ",".join("?" * len(values))
            return self._built_in.execute(f"SELECT {name}({places})", values).fetchone()[0]

        remembered = lru_cache(maxsize=4096, typed=True)(ask)

        def choose(*values: Any) -> Any:
            is_long = any(isinstance(value, str | bytes) and len(value) > _LONG for value in values)
            return ask(*values) if is_long else remembered(*values)

        return choose

    def _stamp(self, value: Any) -> Any:
        # SQLite compares without regard to case, and takes `now` only as the whole value.
        if isinstance(value, str) and len(value) == 3 and value.lower() == "now":
            self.used_clock = True
            return self._clock
        return value

    def _time_function(self, name: str, before: int) -> Callable[..., Any]:
        ask = self._ask(name)

        def call(*values: Any) -> Any:
            if len(values) > before:
                return ask(*values[:before], self._stamp(values[before]), *values[before + 1 :])
            if len(values) < before:
                return ask(*values)  # the built-in's own error
            return ask(*values, self._stamp("now"))

        return call

    def _keyword(self, function: str) -> Callable[[], Any]:
        ask = self._ask(function)
        return lambda: ask(self._stamp("now"))

    def _time_difference(self) -> Callable[[Any, Any], Any]:
        ask = self._ask("timediff")
        return lambda left, right: ask(self._stamp(left), self._stamp(right))

    def _draw(self) -> int:
        return self._dice().getrandbits(64) - (1 << 63)

    def _dice(self) -> random.Random:
        self.used_random = True
        if self._random is None:
            self._random = random.Random(_SEED)
        return self._random

    def _draw_blob(self, size: Any) -> bytes:
        try:
            count = int(size)
        except (TypeError, ValueError):
            count = 1
        # One byte over the limit is refused by SQLite just as a gigabyte is, and costs less.
        return self._dice().randbytes(min(max(count, 1), self._max_bytes + 1))
