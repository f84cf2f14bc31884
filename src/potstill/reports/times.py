"""Moments, as rows and logs write them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from potstill.reports.numbers import as_number


def parse_time(value: Any) -> float | None:
    """Return a moment as seconds since 1970: a number, or ISO 8601 text (UTC where it names no zone)."""
    if not isinstance(value, str):
        return as_number(value)
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def format_time(moment: float | None) -> str | None:
    """Return a moment as ISO 8601 text in UTC; None for none, and for one beyond the calendar."""
    if moment is None:
        return None
    try:
        return datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds")
    except (OverflowError, ValueError, OSError):
        return None
