"""Which stored answer serves a request, and which one must be asked for again."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

#: Failures that a longer or shorter answer could mend: they stand only for the limit they happened at.
_LIMIT_FAILURES = frozenset({"truncated", "context_too_long"})


@dataclass(frozen=True)
class ReusePolicy:
    """What of a store may be used.

    Attributes:
        retry_failed: Failures stored before `since` are asked again: True for all, or the classes to ask again
            (`length` stands for answers that were cut off).
        refresh: Nothing stored before `since` is used.
        since: When this run (not this start of it) began, as seconds since 1970.
    """

    retry_failed: bool | frozenset[str] = False
    refresh: bool = False
    since: float = 0.0

    def choose(self, records: Iterable[dict[str, Any]], limits: list[int | None]) -> dict[str, Any] | None:
        """Return the record that serves a request, or None.

        Args:
            records: All that the store has under the request's key.
            limits: The longest answers that are asked for in turn (the ladder); the last one is what must fit.
        """
        usable = [record for record in records if self._serves(record, limits)]
        return max(usable, key=_preference, default=None)

    def _serves(self, record: dict[str, Any], limits: list[int | None]) -> bool:
        old = record["answered_at"] < self.since
        if self.refresh and old:
            return False
        kind = record.get("error_class") or (record["finish_reason"] == "length" and "length") or None
        if kind and old and self._asks_again(kind):
            return False
        return fits(record, limits[-1])

    def _asks_again(self, kind: str) -> bool:
        if isinstance(self.retry_failed, bool):
            return self.retry_failed and kind != "length"
        return kind in self.retry_failed


def _preference(record: dict[str, Any]) -> tuple[bool, bool, float]:
    return not record.get("error_class"), record["finish_reason"] != "length", record["answered_at"]


def fits(record: dict[str, Any], limit: int | None) -> bool:
    """Return whether an answer is what a request with this limit on its length would have got.

    An answer that finished serves any limit that it fits; one that was cut off serves only the limit that cut it.
    """
    asked = record.get("max_tokens")
    if asked == limit:
        return True
    if record.get("error_class"):
        return record["error_class"] not in _LIMIT_FAILURES
    if record["finish_reason"] == "length":
        return False
    if limit is None or (asked is not None and asked <= limit):
        return True
    tokens = (record.get("usage") or {}).get("completion_tokens")
    return tokens is not None and tokens <= limit


def next_limit(records: Iterable[dict[str, Any]], limits: list[int | None]) -> int:
    """Return which rung of the ladder to ask for: the first above all at which an answer was cut off already."""
    cut = [record.get("max_tokens") for record in records if record["finish_reason"] == "length"]
    highest = max((limit for limit in cut if limit is not None), default=0)
    for number, limit in enumerate(limits):
        if limit is None or limit > highest:
            return number
    return len(limits) - 1
