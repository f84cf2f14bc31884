"""Cells of engines with many types, as the five that results are compared by: NULL, integer, real, text, blob."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

from potstill.sql.outcome import Cells

_INT64 = 1 << 63
_PLAIN = frozenset({type(None), int, float, str, bytes})


def to_cells(rows: Iterable[tuple[Any, ...]]) -> list[Cells]:
    """Return rows with every cell as one of the five types."""
    return [row if _PLAIN.issuperset(map(type, row)) else tuple(map(to_cell, row)) for row in rows]


def to_cell(value: Any) -> Any:
    """Return one cell as one of the five types."""
    convert = _CONVERTERS.get(type(value))
    if convert is not None:
        return convert(value)
    if isinstance(value, list | tuple | dict):
        return json.dumps(value, default=str, ensure_ascii=False, sort_keys=True)
    return str(value)


def _from_int(value: int) -> int | float:
    return value if -_INT64 <= value < _INT64 else float(value)


def _from_decimal(value: Decimal) -> int | float:
    # A sum of integers is a decimal in PostgreSQL, and no less an integer for that.
    whole = value.is_finite() and value == value.to_integral_value() and abs(value) < _INT64
    return int(value) if whole else float(value)


_CONVERTERS: dict[type, Callable[[Any], Any]] = {
    type(None): lambda value: value,
    bool: int,
    int: _from_int,
    float: float,
    str: str,
    bytes: bytes,
    bytearray: bytes,
    memoryview: bytes,
    Decimal: _from_decimal,
    datetime: lambda value: value.isoformat(" "),
    date: lambda value: value.isoformat(),
    time: lambda value: value.isoformat(),
    timedelta: str,
}
