"""Bags of rows that are equal up to a tolerance.

Closeness is not transitive (1.0 is close to 1.0000009, that one to 1.0000018, the first not to the last), so sorting
both sides and comparing in step can miss a match. Rows are split by their exact cells first; what is left is a
perfect matching in a bipartite graph, found by augmenting paths (Ford and Fulkerson) over distinct rows with their
counts.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

from potstill.sql.outcome import Cells

#: Pairs of rows looked at before a comparison is given up as no match. Only results made for it get there.
MAX_PAIRS = 1_000_000

Numbers = tuple[float | int, ...]


class Tolerance:
    """When two cells are close.

    Args:
        relative: Relative tolerance where a real number takes part.
        absolute: Absolute tolerance where a real number takes part.
    """

    def __init__(self, relative: float, absolute: float) -> None:
        self.relative = relative
        self.absolute = absolute

    def close(self, left: Any, right: Any) -> bool:
        """Whether two cells are equal: numbers by value, all else by type and value."""
        if left is right:
            return True
        if isinstance(left, float) or isinstance(right, float):
            return isinstance(left, float | int) and isinstance(right, float | int) and self._close(left, right)
        return type(left) is type(right) and bool(left == right)

    def _close(self, left: float, right: float) -> bool:
        if left == right or (left != left and right != right):
            return True
        return math.isclose(left, right, rel_tol=self.relative, abs_tol=self.absolute)

    def rows_close(self, left: Cells, right: Cells) -> bool:
        """Whether two rows are equal cell by cell."""
        return left == right or (len(left) == len(right) and all(map(self.close, left, right)))

    def reach(self, value: float) -> float:
        """Return a distance from a number beyond which nothing is close to it."""
        if math.isinf(value):
            return 0.0
        return max(self.absolute, abs(value) * self.relative * (1 + 2 * self.relative)) * (1 + 1e-9)


def same_bag(left: Sequence[Cells], right: Sequence[Cells], tolerance: Tolerance) -> bool:
    """Whether the rows of both sides can be paired, each with a close one."""
    if len(left) != len(right):
        return False
    if Counter(left) == Counter(right):
        return True
    left_kinds, right_kinds = _by_kind(left), _by_kind(right)
    if left_kinds.keys() != right_kinds.keys():
        return False
    work = _Work()
    return all(_same_numbers(numbers, right_kinds[kind], tolerance, work) for kind, numbers in left_kinds.items())


def same_set(left: Sequence[Cells], right: Sequence[Cells], tolerance: Tolerance) -> bool:
    """Whether each row of either side has a close one on the other."""
    left_rows, right_rows = set(left), set(right)
    if left_rows == right_rows:
        return True
    left_kinds, right_kinds = _by_kind(left_rows), _by_kind(right_rows)
    if left_kinds.keys() != right_kinds.keys():
        return False
    work = _Work()
    return all(
        _covers(numbers, right_kinds[kind], tolerance, work) and _covers(right_kinds[kind], numbers, tolerance, work)
        for kind, numbers in left_kinds.items()
    )


def _by_kind(rows: Iterable[Cells]) -> dict[tuple[Any, ...], list[Numbers]]:
    """Split rows by everything that must be equal exactly; the numbers of each are left."""
    kinds: dict[tuple[Any, ...], list[Numbers]] = defaultdict(list)
    for row in rows:
        kind = tuple([0 if isinstance(cell, int | float) else (type(cell).__name__, cell) for cell in row])
        kinds[kind].append(tuple([cell for cell in row if isinstance(cell, int | float)]))
    return kinds


class _Work:
    """How many pairs of rows were looked at."""

    def __init__(self) -> None:
        self.pairs = 0

    def spent(self, pairs: int) -> bool:
        self.pairs += pairs
        return self.pairs > MAX_PAIRS


def _same_numbers(left: list[Numbers], right: list[Numbers], tolerance: Tolerance, work: _Work) -> bool:
    if len(left) != len(right):
        return False
    if not left[0]:
        return True
    if all(map(tolerance.rows_close, sorted(left), sorted(right))):
        return True
    if not _has_real(left) and not _has_real(right):
        return False  # integers: `sorted` has decided it
    return _flow(Counter(left), Counter(right), tolerance, work)


def _has_real(rows: list[Numbers]) -> bool:
    return any(isinstance(cell, float) for row in rows for cell in row)


def _covers(left: Iterable[Numbers], right: list[Numbers], tolerance: Tolerance, work: _Work) -> bool:
    index = _Index(right, tolerance, work)
    return all(index.near(numbers) for numbers in left)


class _Index:
    """The close rows of any row, by a window over the most telling column."""

    def __init__(self, rows: list[Numbers], tolerance: Tolerance, work: _Work) -> None:
        self._tolerance = tolerance
        self._work = work
        width = len(rows[0]) if rows else 0
        self._column = max(range(width), key=lambda column: len({row[column] for row in rows}), default=0)
        # A NaN (which SQLite never gives) has no place in an order: its rows are looked at every time.
        self._unordered = [at for at, row in enumerate(rows) if width and row[self._column] != row[self._column]]
        outside = set(self._unordered)
        self._order = sorted(
            (at for at in range(len(rows)) if at not in outside),
            key=lambda at: rows[at][self._column] if width else 0,
        )
        self._keys = [rows[at][self._column] if width else 0 for at in self._order]
        self._rows = rows

    def near(self, numbers: Numbers) -> list[int]:
        """Return the places of all rows close to this one; none once the work is spent."""
        if not numbers:
            return list(range(len(self._rows)))
        value = numbers[self._column]
        reach = self._tolerance.reach(value)
        first, last = bisect_left(self._keys, value - reach), bisect_right(self._keys, value + reach)
        window = [*self._order[first:last], *self._unordered]
        if self._work.spent(len(window)):
            return []
        return [at for at in window if self._tolerance.rows_close(numbers, self._rows[at])]


def _flow(left: Counter[Numbers], right: Counter[Numbers], tolerance: Tolerance, work: _Work) -> bool:
    """Whether all of `left` can flow to close rows of `right`, counts as capacities."""
    sources, sinks = list(left), list(right)
    index = _Index(sinks, tolerance, work)
    edges = [index.near(numbers) for numbers in sources]
    if not all(edges):
        return False
    room = [right[numbers] for numbers in sinks]
    flow: list[dict[int, int]] = [{} for _ in sinks]  # sink -> source -> how many
    return all(_send(source, left[numbers], edges, room, flow, work) for source, numbers in enumerate(sources))


def _send(
    source: int, amount: int, edges: list[list[int]], room: list[int], flow: list[dict[int, int]], work: _Work
) -> bool:
    """Send the whole amount of one source, moving earlier ones aside where that makes room."""
    while amount:
        path = _find_path(source, edges, room, flow, work)
        if not path:
            return False
        sent = min(amount, room[path[-1][1]], *(flow[sink][other] for other, sink in _displaced(path)))
        for other, sink in _displaced(path):
            flow[sink][other] -= sent
            if not flow[sink][other]:
                del flow[sink][other]
        for other, sink in path:
            flow[sink][other] = flow[sink].get(other, 0) + sent
        room[path[-1][1]] -= sent
        amount -= sent
    return True


def _displaced(path: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the edges of a path that lose flow: each later source leaves the sink before it."""
    return [(later[0], earlier[1]) for earlier, later in pairwise(path)]


def _find_path(
    source: int, edges: list[list[int]], room: list[int], flow: list[dict[int, int]], work: _Work
) -> list[tuple[int, int]]:
    """Return the shortest augmenting path as (source, sink) pairs; empty when there is none."""
    came_from: dict[int, int] = {}  # sink -> the source it was reached from
    entered: dict[int, int | None] = {source: None}  # source -> the sink it would leave
    queue = deque([source])
    while queue:
        here = queue.popleft()
        if work.spent(len(edges[here])):
            return []
        for sink in edges[here]:
            if sink in came_from:
                continue
            came_from[sink] = here
            if room[sink]:
                return _trace(sink, came_from, entered)
            for other in flow[sink]:
                if other not in entered:
                    entered[other] = sink
                    queue.append(other)
    return []


def _trace(sink: int, came_from: dict[int, int], entered: dict[int, int | None]) -> list[tuple[int, int]]:
    path: list[tuple[int, int]] = []
    at: int | None = sink
    while at is not None:
        source = came_from[at]
        path.append((source, at))
        at = entered[source]
    return path[::-1]
