"""A budget for a run, kept by all of its jobs: each writes what it has spent and reads what the others have."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from potstill.config.model import Prices
from potstill.errors import ConfigError
from potstill.generate.costs import cost_of
from potstill.rows import loads, publish_json


class Budget:
    """What one job spends of a run's budget.

    Two jobs learn of each other's spending within a second; the run may overshoot by that, and by what is in flight.

    Args:
        folder: Where the jobs of the run leave their numbers, one file each.
        job: A name for this job that its restarts share.
        limit: The money that the run may spend, or None.
        prices: What tokens cost, or None.
    """

    def __init__(self, folder: Path, job: str, limit: float | None, prices: Prices | None) -> None:
        self.spent_here = 0.0
        self._limit = limit
        self._prices = prices
        self._folder = folder
        self._file = folder / f"{_short(job)}.json"
        self._before = _spent(self._file)
        self._others = 0.0
        self._shared = -1.0

    @classmethod
    @contextlib.contextmanager
    def opened(cls, store: Path, run: str, job: str, limit: float | None, prices: Prices | None) -> Iterator[Budget]:
        """Return a job's budget; what it has spent is on the disk when the block ends.

        Raises:
            ConfigError: If there is a limit and the model file has no prices.
        """
        if limit is not None and prices is None:
            raise ConfigError(
                "generate.budget is set, but the model file has no prices: add `prices: {input: …, output: …}`"
            )
        budget = cls(store / "spent" / _short(run), job, limit, prices)
        budget.share()
        try:
            yield budget
        finally:
            budget.share()

    def has_room(self) -> bool:
        """Return whether more may be spent."""
        return self._limit is None or self._before + self._others + self.spent_here < self._limit

    def book(self, usage: dict[str, Any] | None) -> None:
        """Count the tokens of a reply."""
        if self._prices is not None:
            self.spent_here += cost_of(usage, self._prices)

    def share(self) -> None:
        """Tell the other jobs what was spent here, and read what they have spent."""
        if self._limit is None:
            return
        if self.spent_here != self._shared:
            publish_json(self._file, {"spent": self._before + self.spent_here})
            self._shared = self.spent_here
        self._others = sum(_spent(file) for file in self._folder.glob("*.json") if file != self._file)


def _spent(file: Path) -> float:
    try:
        return float(loads(file.read_bytes())["spent"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return 0.0


def _short(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:24]
