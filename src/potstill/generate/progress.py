"""The progress line: rate, errors and the time that is left."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field

logger = logging.getLogger("potstill.generate")

_EVERY_S = 10.0


@dataclass
class Progress:
    """Counts and, from time to time, says how far a chunk is.

    Attributes:
        total: All samples of the chunk, or None where they were not counted.
    """

    total: int | None = None
    answered: int = 0
    failed: int = 0
    not_asked: int = 0
    reused: int = 0
    tokens: int = 0
    _started: float = field(default_factory=time.monotonic)
    _said: float = field(default_factory=time.monotonic)
    _fresh_since: tuple[float, int] = (0.0, 0)

    @property
    def done(self) -> int:
        """How many samples have ended."""
        return self.answered + self.failed + self.not_asked

    def say_now_and_then(self, in_flight: int, retries: int) -> None:
        """Log the line if the last one is old enough."""
        now = time.monotonic()
        if now - self._said >= _EVERY_S:
            logger.info("%s", self.line(now, in_flight, retries))
            self._said = now
            self._fresh_since = (now, self.done - self.reused)

    def line(self, now: float, in_flight: int, retries: int) -> str:
        """Return the line."""
        since, count = self._fresh_since
        rate = (self.done - self.reused - count) / max(now - (since or self._started), 0.001)
        of = f"/{self.total} ({100 * self.done / max(self.total, 1):.0f} %)" if self.total is not None else ""
        left = f", ETA {_span((self.total - self.done) / rate)}" if self.total is not None and rate > 0 else ""
        return (
            f"{self.done}{of} rows, {rate:.1f} rows/s, {self.failed} failed, {retries} retried, "
            f"{self.reused} from the store, {in_flight} in flight{left}"
        )

    def seconds(self) -> float:
        """Return the time since the beginning."""
        return time.monotonic() - self._started


def _span(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
