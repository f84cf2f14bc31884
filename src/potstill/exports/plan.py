"""Between the two passes: which rows are used, and in which split."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from potstill.errors import ConfigError
from potstill.exports import split as splits
from potstill.exports.index import Verdict
from potstill.exports.ratios import SPLITS, Ratios
from potstill.exports.reading import Reading

Flags = NDArray[np.bool_]


class Plan(NamedTuple):
    """Which rows are used and in which split, by position.

    Attributes:
        used: Whether a row is used.
        split: Its split (0 train, 1 valid, 2 test), used or not.
        kept: Whether it is a kept row.
        groups: How many groups the used kept rows are in.
        joined: How many groups shared prompts have joined to others.
        borders: Where valid and test begin, on the line from 0 to 2**64.
    """

    used: Flags
    split: NDArray[np.uint8]
    kept: Flags
    groups: int
    joined: int
    borders: tuple[int, int]

    def is_empty(self, name: str) -> bool:
        """Return whether no kept row is in a split."""
        return not ((self.split == SPLITS.index(name)) & self.used & self.kept).any()


def make_plan(reading: Reading, settings: Mapping[str, Any], ratios: Ratios) -> Plan:
    """Place every row; adds what is over a limit to the reading's counts.

    Args:
        reading: What the first pass found.
        settings: The `export` section of a config.
        ratios: The shares of the splits.

    Raises:
        ConfigError: If rows name a split that has no share.
    """
    index = reading.index
    kept = index.flags("kept").astype(np.bool_)
    used = _apply_limits(reading, list((settings.get("limits") or {}).values()), kept)
    groups = splits.join_groups(index.column("prompt"), index.column("group"))
    places = splits.place_groups(groups, str(settings.get("split_seed", "potstill")))
    # The kept rows decide where the borders are: a split without any would be of no use.
    borders = splits.find_borders(places[used & kept], ratios)
    split = splits.assign_splits(places, borders)
    if settings.get("split_field") is not None:
        split = index.flags("given_split")
        _check_given_splits(split[used], ratios)
    distinct = len(np.unique(groups[used & kept]))
    joined = len(np.unique(index.column("group")[used & kept])) - distinct
    return Plan(used, split, kept, distinct, joined, borders)


def _apply_limits(reading: Reading, limits: list[int], kept: Flags) -> Flags:
    """Apply each limit in turn to what the one before left; kept rows and negatives each have their own room."""
    index = reading.index
    used: Flags = index.flags("usable").astype(np.bool_)
    negative = ~kept & np.isin(index.flags("verdict"), (Verdict.WRONG, Verdict.ERROR))
    for part in (kept, negative):
        for column, limit in zip(index.limits, limits, strict=True):
            at = np.flatnonzero(used & part)
            keys = np.frombuffer(column, dtype=np.uint64)[at] if len(at) else np.empty(0, dtype=np.uint64)
            stay = splits.choose_limited(keys, index.column("itself")[at], limit)
            used[at[~stay]] = False
            if part is kept:
                reading.left_out["over_limit"] += int((~stay).sum())
    return used


def _check_given_splits(split: NDArray[np.uint8], ratios: Ratios) -> None:
    absent = [name for name in SPLITS if name not in ratios.names()]
    found = [name for name in absent if (split == SPLITS.index(name)).any()]
    if found:
        raise ConfigError(
            f"export.split_field: rows name the split {found[0]!r}, and export.{found[0]}_ratio is 0; "
            "give it a ratio above 0, so that its file is part of the export"
        )
