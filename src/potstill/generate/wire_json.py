"""JSON off the wire and out of the journals: orjson first, whatever it refuses by the careful way."""

from __future__ import annotations

from typing import Any

import orjson

from potstill import rows


def loads(data: bytes | str) -> Any:
    """Return the value of a JSON text.

    Unlike `rows.loads` this does not look for integers beyond 64 bits first: replies have none that matter.

    Raises:
        ValueError: If the text is not JSON.
    """
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        try:
            return rows.loads(data)
        except RecursionError:
            raise ValueError("nested too deeply") from None
