"""A result's signature: equal signatures imply a match, and a vote can count them.

The reverse need not hold where two numbers differ by less than the tolerance.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from typing import Any

import orjson

from potstill.sql.outcome import Cells

#: Integers beyond this have no exact float beside them: 1 and 1.0 share a token, 2**53 + 1 and its float do not.
EXACT_FLOAT_LIMIT = 2**53
#: Types that JSON holds as they are, with one text for each value.
PLAIN_TYPES = frozenset({int, str, type(None)})


def sign(column_count: int, groups: Iterable[Sequence[Cells]], *, plain: bool = False, exact: bool = False) -> str:
    """Return the signature of a result, in hex.

    Args:
        column_count: Its width: two empty results of different width differ.
        groups: The rows, in runs. Inside a run the order is free, between runs it counts: one run is a bag,
            one run per row a sequence, one per group of ties what gold's ORDER BY asks for.
        plain: True where every cell is known to be NULL, an integer or text.
        exact: True where the comparison has no tolerance: real numbers keep all their digits.
    """
    parts = [b"%d" % column_count]
    for group in groups:
        parts += sorted(map(orjson.dumps, group) if plain else [row_token(row, exact=exact) for row in group])
        parts.append(b"")
    return hashlib.sha256(b"\n".join(parts)).hexdigest()


def row_token(row: Cells, *, exact: bool = False) -> bytes:
    """Return one row as canonical JSON: the same for rows that are equal cell by cell, and only for them."""
    if PLAIN_TYPES.issuperset(map(type, row)):
        return orjson.dumps(row)
    return orjson.dumps([_cell_token(cell, exact) for cell in row])


def _cell_token(cell: Any, exact: bool) -> Any:
    if isinstance(cell, float):
        return _float_token(cell, exact)
    if isinstance(cell, bytes):
        return {"blob": cell.hex()}
    return cell


def _float_token(value: float, exact: bool) -> Any:
    if math.isinf(value) or math.isnan(value):
        return {"real": repr(value)}
    if value.is_integer():
        return int(value) if abs(value) < EXACT_FLOAT_LIMIT else {"real": repr(value) if exact else f"{value:.12g}"}
    if exact:
        return {"real": repr(value)}
    rounded = float(f"{value:.12g}")
    return _float_token(rounded, True) if rounded.is_integer() else {"real": repr(rounded)}
