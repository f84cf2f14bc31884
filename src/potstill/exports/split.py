"""Train, valid and test: whole groups by the hash of their name, so that a group is never in two of them.

A group is what `export.split_by` names (one prompt, one SQL template, one database …). Rows of one prompt are
kept together in any case: two groups that share a prompt are one group here. Each group has a number in 0..1 from
the hash of its name and the seed; below `train_ratio` it is train, then valid, then test. So a group stays where it
is when rows are added, and the ratios hold over groups, not rows: near enough only where groups are many. Where they
are so few that a split would be empty, the borders move to the nearest group: each split gets one as long as there
are enough, train before valid before test.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from potstill.errors import InputError
from potstill.exports.ratios import SPLIT_NAMES, Ratios

Hashes = NDArray[np.uint64]


def hash64(text: str) -> int:
    """Return 64 bits of a text's hash: enough to tell 10 million prompts apart (chance of a mistake 3 in a million)."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def join_groups(prompts: Hashes, groups: Hashes) -> Hashes:
    """Return for each row the smallest group hash among all groups that shared prompts tie together.

    Union-find over the distinct pairs of prompt and group (Tarjan 1975, with path halving): a prompt that stands in
    two groups makes them one, since its rows must not be parted.

    Args:
        prompts: The hash of each row's prompt.
        groups: The hash of each row's group.
    """
    if len(prompts) == 0 or np.array_equal(prompts, groups):
        return groups
    prompt_ids = np.unique(prompts, return_inverse=True)[1]
    names, group_ids = np.unique(groups, return_inverse=True)
    pairs = np.unique(np.stack([prompt_ids, group_ids], axis=1), axis=0)
    parents = list(range(len(names)))
    tied = pairs[1:, 0] == pairs[:-1, 0]
    for left, right in zip(pairs[:-1, 1][tied].tolist(), pairs[1:, 1][tied].tolist(), strict=True):
        _unite(parents, left, right)
    roots = np.fromiter((_find(parents, node) for node in range(len(names))), dtype=np.int64, count=len(names))
    return np.asarray(names[roots][group_ids], dtype=np.uint64)


def _find(parents: list[int], node: int) -> int:
    while parents[node] != node:
        parents[node] = parents[parents[node]]
        node = parents[node]
    return node


def _unite(parents: list[int], left: int, right: int) -> None:
    low, high = sorted((_find(parents, left), _find(parents, right)))
    # The smallest stays the root: the name of the whole does not hang on the order of the rows.
    parents[high] = low


def place_groups(groups: Hashes, seed: str) -> Hashes:
    """Return the place of each group on the line from 0 to 2**64, by its name and the seed."""
    names, inverse = np.unique(groups, return_inverse=True)
    places = np.fromiter((hash64(f"{seed}\x1f{name}") for name in names.tolist()), dtype=np.uint64, count=len(names))
    return places[inverse]


def find_borders(places: Hashes, ratios: Ratios) -> tuple[int, int]:
    """Return where valid and test begin on the line, moved where a split would otherwise get no group.

    Args:
        places: The place of each row's group (of the rows that count: the kept ones).
        ratios: The shares asked for.
    """
    borders = [round(ratios.train * 2**64), round((ratios.train + ratios.valid) * 2**64)]
    distinct = np.unique(places)
    cuts = [int(np.searchsorted(distinct, np.uint64(min(border, 2**64 - 1)))) for border in borders]
    if ratios.test == 0:
        cuts[1], borders[1] = len(distinct), 2**64
    if ratios.valid == ratios.test == 0:
        return 2**64, 2**64
    sizes = _fill_empty([cuts[0], cuts[1] - cuts[0], len(distinct) - cuts[1]], ratios.as_list())
    moved = [sizes[0], sizes[0] + sizes[1]]
    return tuple(  # type: ignore[return-value]
        border if cut == old else _border_at(distinct, cut)
        for border, cut, old in zip(borders, moved, cuts, strict=True)
    )


def _border_at(distinct: Hashes, cut: int) -> int:
    return int(distinct[cut]) if cut < len(distinct) else 2**64


def _fill_empty(sizes: list[int], ratios: list[float]) -> list[int]:
    wanted = [index for index in range(len(sizes)) if ratios[index] > 0]
    for index in wanted:
        if sizes[index]:
            continue
        rich = [other for other in wanted if sizes[other] > 1]
        # Too few groups for all: what comes later in the order gives way.
        poor = [other for other in reversed(wanted) if other > index and sizes[other]]
        donor = max(rich, key=lambda other: sizes[other]) if rich else next(iter(poor), None)
        if donor is not None:
            sizes[donor] -= 1
            sizes[index] += 1
    return sizes


def assign_splits(places: Hashes, borders: tuple[int, int]) -> NDArray[np.uint8]:
    """Return the split of each row (0 train, 1 valid, 2 test) from its group's place."""
    result = np.zeros(len(places), dtype=np.uint8)
    for border in borders:
        if border < 2**64:
            result += (places >= np.uint64(border)).astype(np.uint8)
    return result


def read_split(value: Any, where: str) -> int:
    """Return the split that a row names itself (`export.split_field`).

    Raises:
        InputError: If it is none that we know.
    """
    split = SPLIT_NAMES.get(value.strip().lower()) if isinstance(value, str) else None
    if split is None:
        raise InputError(f"{where}: {value!r} is no split; allowed: {', '.join(SPLIT_NAMES)}")
    return split


def choose_limited(keys: Hashes, order: Hashes, limit: int) -> NDArray[np.bool_]:
    """Return which rows stay when each group keeps `limit` rows, those with the smallest hash of their own.

    Args:
        keys: The group of each row.
        order: A hash of the row itself: the choice is the same whatever the order of the rows.
        limit: How many rows a group may have.
    """
    chosen = np.zeros(len(keys), dtype=np.bool_)
    if len(keys) == 0:
        return chosen
    by_group = np.lexsort((order, keys))
    starts = np.flatnonzero(np.concatenate(([True], keys[by_group][1:] != keys[by_group][:-1])))
    ranks = np.arange(len(keys)) - np.repeat(starts, np.diff(np.append(starts, len(keys))))
    chosen[by_group[ranks < limit]] = True
    return chosen


class Leak(NamedTuple):
    """Two written rows that must not be in two splits, by their positions."""

    kind: str
    first: int
    second: int


class SplitLedger:
    """What was really written to each split, by prompt and group; says at the end whether anything leaked.

    It is filled from the prompts as they are written, not from the plan that placed them: a wrong plan shows here.
    17 bytes a row and kind.
    """

    def __init__(self, kinds: Iterable[str]) -> None:
        self._columns = {kind: (array("Q"), array("B"), array("Q")) for kind in kinds}

    def add(self, kind: str, value: int, split: int, position: int) -> None:
        """Note one written row under what must not be in two splits: its prompt, its group.

        Args:
            kind: Which of the kinds.
            value: The hash of the prompt, or of the name of the group.
            split: The split it went to.
            position: The row's number, to find it again.
        """
        hashes, splits, positions = self._columns[kind]
        hashes.append(value)
        splits.append(split)
        positions.append(position)

    def find_leaks(self, kind: str) -> list[Leak]:
        """Return one pair of rows for each value of a kind that stands in two splits or more."""
        hashes, splits, positions = (np.asarray(column) for column in self._columns[kind])
        order = np.lexsort((splits, hashes))
        hashes, splits, positions = hashes[order], splits[order], positions[order]
        # Sorted by value and then split: a leak is where the value stays and the split changes.
        at = np.flatnonzero((hashes[1:] == hashes[:-1]) & (splits[1:] != splits[:-1]))
        return [Leak(kind, int(positions[index]), int(positions[index + 1])) for index in at.tolist()]
