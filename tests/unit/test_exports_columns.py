"""Types of columns: whatever JSON rows hold, the table holds it."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pyarrow.parquet
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill.exports.columns import Columns, publish_parquet

_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=4)
_PLAIN = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**65), 2**65),
    st.integers(-3, 3),
    st.floats(allow_nan=False, allow_infinity=False),
    _TEXT,
)
_VALUES = st.recursive(
    _PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3), max_leaves=6
)
_ROWS = st.lists(st.dictionaries(st.sampled_from(["a", "b", "c.d", "é"]), _VALUES, max_size=4), min_size=1, max_size=6)


def _comes_back(value: Any, stored: Any) -> bool:
    """Say whether a stored value stands for the one that went in."""
    if value is None:
        return stored is None
    if isinstance(stored, str) and not isinstance(value, str):
        return bool(json.loads(stored) == value)
    if isinstance(value, str):
        return stored == value or stored == json.dumps(value, ensure_ascii=False)
    if isinstance(value, dict):
        return all(_comes_back(value.get(key), part) for key, part in stored.items()) and value.keys() <= stored.keys()
    if isinstance(value, list):
        return len(value) == len(stored) and all(map(_comes_back, value, stored))
    return bool(stored == value)


@settings(max_examples=150, deadline=None)
@given(_ROWS)
def test_every_value_comes_back(rows: list[dict[str, Any]]) -> None:
    """A value is itself in its column, or its JSON text where the column has no type of its own."""
    columns = Columns()
    for row in rows:
        columns.see(row)
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "t.parquet"
        with publish_parquet(path, columns) as out:
            for row in rows:
                out.write(row)
        stored = pyarrow.parquet.read_table(path).to_pylist()
    if not columns.types:
        return
    assert len(stored) == len(rows)
    for row, back in zip(rows, stored, strict=True):
        assert all(_comes_back(row.get(key), back[key]) for key in columns.types), (row, back)
