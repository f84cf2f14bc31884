"""Reading a result under the caps, for engines whose cursors look like those of the DB-API."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import chain
from typing import Any

from potstill.sql.limits import Limits
from potstill.sql.outcome import Cells, QueryError

#: Rows fetched first, and then at a time: before the next are fetched, the caps are looked at.
FIRST_ROWS, FETCH_ROWS = 8, 64

_LONG_TYPES = frozenset({str, bytes})


def fetch_all(
    fetch: Callable[[int], list[Any]],
    limits: Limits,
    deadline: float,
    convert: Callable[[list[Any]], list[Cells]] = lambda rows: rows,
) -> tuple[list[Cells], set[type]]:
    """Return all rows of a result and the types of its cells.

    Args:
        fetch: Fetches so many rows, fewer at the end.
        limits: The caps.
        deadline: When to stop, on the monotonic clock.
        convert: Makes plain cells of an engine's own.

    Raises:
        QueryError: `too_big`, `row_limit` or `timeout`.
    """
    rows: list[Cells] = []
    types: set[type] = set()
    budget = limits.max_result_bytes
    step = FIRST_ROWS
    while fetched := fetch(step):  # a number counts eight bytes, a character one
        batch = convert(fetched)
        rows += batch
        cells = list(chain.from_iterable(batch))
        types.update(map(type, cells))
        budget -= 8 * len(cells)
        if not types.isdisjoint(_LONG_TYPES):
            budget -= sum([len(cell) for cell in cells if type(cell) in _LONG_TYPES])
        if budget < 0:
            raise QueryError("too_big", f"the result has more than {limits.max_result_bytes} bytes", truncated=True)
        if len(rows) > limits.max_rows:
            raise QueryError("row_limit", f"the result has more than {limits.max_rows} rows", truncated=True)
        if len(batch) < step:
            break
        if time.monotonic() > deadline:
            raise QueryError("timeout", f"stopped after {limits.timeout_s:g} s")
        step = FETCH_ROWS
    return rows, types
