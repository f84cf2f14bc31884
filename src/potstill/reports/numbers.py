"""Counting: ratios that never divide by zero, exact percentiles, counters that cannot grow without end."""

from __future__ import annotations

import math
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from typing import Any

#: A counter holds at most this many names; a teacher or a hostile field may send any number of them.
MAX_NAMES = 2000
#: Where further names are counted.
OTHER = "(other)"
MAX_NAME_CHARS = 200


def ratio(part: float | None, whole: float | None) -> float | None:
    """Return part / whole, or None where there is no whole."""
    return part / whole if part is not None and whole else None


def as_number(value: Any) -> float | None:
    """Return a finite number, or None for anything else (true and false are no numbers here)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def as_name(value: Any) -> str:
    """Return a value as a name: cut to a readable length, a lone surrogate as its escape (it is no UTF-8)."""
    return str(value)[:MAX_NAME_CHARS].encode("utf-8", "backslashreplace").decode()


class Names:
    """Counts by name, bounded; names are made text and cut to a readable length."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def add(self, name: Any, missing: str = "unknown") -> None:
        """Count one name; None counts as `missing`."""
        self._counts[self.key(name, missing)] += 1

    def key(self, name: Any, missing: str = "unknown") -> str:
        """Return the name under which a value is counted."""
        text = missing if name is None else as_name(name)
        return text if text in self._counts or len(self._counts) < MAX_NAMES else OTHER

    def as_dict(self) -> dict[str, int]:
        """Return the counts, most frequent first, equal counts by name."""
        return dict(sorted(self._counts.items(), key=lambda item: (-item[1], item[0])))


class Numbers:
    """Numbers, 8 bytes each, for exact percentiles."""

    def __init__(self) -> None:
        self._values = array("d")

    def __len__(self) -> int:
        return len(self._values)

    def add(self, value: Any) -> None:
        """Add a value if it is a finite number."""
        number = as_number(value)
        if number is not None:
            self._values.append(number)

    def total(self) -> float:
        """Return the sum, correctly rounded."""
        return math.fsum(self._values)

    def mean(self) -> float | None:
        """Return the mean, or None where there is no number."""
        return ratio(self.total(), len(self._values))

    def in_order(self) -> list[float]:
        """Return all numbers, sorted."""
        return sorted(self._values)

    def summary(self) -> dict[str, float | None]:
        """Return count, min, mean, p50, p90, p95, max."""
        values = self.in_order()
        return {
            "count": len(values),
            "min": values[0] if values else None,
            "mean": self.mean(),
            "p50": percentile(values, 50),
            "p90": percentile(values, 90),
            "p95": percentile(values, 95),
            "max": values[-1] if values else None,
        }


def percentile(values: Sequence[float], percent: float) -> float | None:
    """Return a percentile of sorted values by linear interpolation (the default of NumPy and pandas)."""
    if not values:
        return None
    position = (len(values) - 1) * percent / 100
    below = math.floor(position)
    above = min(below + 1, len(values) - 1)
    return values[below] + (values[above] - values[below]) * (position - below)


def histogram(values: Sequence[float], bins: int = 20) -> list[dict[str, float]]:
    """Return equal bins over [0, 1], widened to hold all values; the last bin holds its upper end too."""
    low = min([0.0, *values[:1]])
    high = max([1.0, *values[-1:]])
    edges = [low + (high - low) * i / bins for i in range(bins + 1)]
    if not math.isfinite(edges[-1] - edges[0]):
        return []
    counts = [0] * bins
    for value in values:
        counts[min(bisect_right(edges, value) - 1, bins - 1)] += 1
    return [{"low": edges[i], "high": edges[i + 1], "count": count} for i, count in enumerate(counts)]
