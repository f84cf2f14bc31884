"""The splits, their names and their shares. Imports nothing heavy: rules ask it which files there will be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from potstill.errors import ConfigError

SPLITS = ("train", "valid", "test")
#: What people call them; the file names are ours.
SPLIT_NAMES = {"train": 0, "valid": 1, "validation": 1, "val": 1, "dev": 1, "test": 2}


@dataclass(frozen=True)
class Ratios:
    """The shares of groups that go to each split; they add up to 1."""

    train: float
    valid: float
    test: float

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Ratios:
        """Read them; `valid_ratio: null` is what train and test leave.

        Raises:
            ConfigError: If they are out of range or do not add up to 1.
        """
        train, test = float(settings.get("train_ratio", 0.9)), float(settings.get("test_ratio") or 0.0)
        given = settings.get("valid_ratio")
        valid = round(1.0 - train - test, 12) if given is None else float(given)
        if min(train, valid, test) < 0 or abs(train + valid + test - 1.0) > 1e-9:
            raise ConfigError(
                f"export: train_ratio {train:g} + valid_ratio {valid:g} + test_ratio {test:g} must be 1, none below 0"
            )
        return cls(train, valid, test)

    def as_list(self) -> list[float]:
        """Return them in the order of `SPLITS`."""
        return [self.train, self.valid, self.test]

    def names(self) -> list[str]:
        """Return the splits that are asked for; a run of ratios 1, 0, 0 has only `train`."""
        return [name for name, ratio in zip(SPLITS, self.as_list(), strict=True) if ratio > 0]
