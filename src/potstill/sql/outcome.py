"""What comes of running one statement: a result, or an error of a closed list of classes."""

from __future__ import annotations

from collections.abc import Iterable, Set
from typing import Any, Literal, NamedTuple, get_args

ErrorClass = Literal[
    "not_a_query",
    "multiple_statements",
    "syntax",
    "no_such_table",
    "no_such_column",
    "no_such_database",
    "forbidden",
    "timeout",
    "row_limit",
    "too_big",
    "out_of_memory",
    "killed",
    "other",
]

#: The closed list that `exec_error_class` takes its values from.
ERROR_CLASSES: tuple[ErrorClass, ...] = get_args(ErrorClass)

#: A message longer than this is cut: it may quote the statement.
MAX_MESSAGE_CHARS = 300

#: One row of a result: NULL, integer, real, text or blob in each cell.
Cells = tuple[Any, ...]


class QueryError(Exception):
    """A statement that did not come to its end: why, as a class, and in short words.

    It never leaves this package: it becomes fields of the row.

    Args:
        error_class: One of `ERROR_CLASSES`.
        message: For people; it names the limit that fired.
        truncated: True where a cap on rows or bytes stopped the reading of a result.
    """

    def __init__(self, error_class: ErrorClass, message: str, *, truncated: bool = False) -> None:
        super().__init__(message)
        self.error_class: ErrorClass = error_class
        self.message = shorten(message)
        self.truncated = truncated


class Result(NamedTuple):
    """All rows of a statement that ran to its end within every limit.

    Attributes:
        column_count: How many columns it has, also where it has no rows.
        rows: The rows.
        types: The types of all cells, so that what needs no care gets none.
        used_clock: Whether the statement asked for the time.
        used_random: Whether it threw dice.
    """

    column_count: int
    rows: list[Cells]
    types: Set[type]
    used_clock: bool = False
    used_random: bool = False

    @property
    def has_real(self) -> bool:
        """Whether any cell is a real number."""
        return float in self.types


def types_of(rows: Iterable[Cells]) -> frozenset[type]:
    """Return the types of all cells."""
    return frozenset().union(*(map(type, row) for row in rows))


def shorten(message: str) -> str:
    """Return a message as one line of bounded length."""
    line = " ".join(message.split())
    return line if len(line) <= MAX_MESSAGE_CHARS else f"{line[: MAX_MESSAGE_CHARS - 1]}…"
