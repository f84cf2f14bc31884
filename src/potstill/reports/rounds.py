"""What each round of questions has brought: rows asked and solved, pass@k, and the cost of a further solved row."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping
from typing import Any

from potstill.adaptive import VERDICT_FIELDS
from potstill.records import Row, sha256_text
from potstill.reports.numbers import ratio


class Rounds:
    """The rounds of one model. A sample takes 16 bytes or fewer until the end of the pass.

    Args:
        settings: The config's `rounds`.
        priced: Whether the model has prices.
    """

    def __init__(self, settings: Mapping[str, Any], *, priced: bool) -> None:
        self._samples: int = settings["samples"]
        self._field = VERDICT_FIELDS[settings["stop_when"]]
        self._priced = priced
        rounds = range(settings["max"])
        self._asked, self._judged, self._solved = ([array("Q") for _ in rounds] for _ in range(3))
        self._money = [0.0 for _ in rounds]

    def add(self, end: str, row: Row, money: float = 0.0) -> None:
        """Add a kept, rejected or failed row with its cost."""
        number = row.get("sample_index", 0) // self._samples
        identity = int(sha256_text(str(row.get("sample_id")))[:16], 16)
        self._asked[number].append(identity)
        self._money[number] += money
        verdict = row.get(self._field)
        if end == "failed" or verdict is not None:
            self._judged[number].append(identity)
        if verdict is True:
            self._solved[number].append(identity)

    def as_list(self) -> list[dict[str, Any]]:
        """Return an entry for each round.

        `pass_at_k` is the share of rows that any of the first k samples solved (k = `samples_per_row`), of those that
        can be judged (rows without usable gold cannot). No estimate over other orders of the samples is made, since
        solved rows have no further ones.
        """
        return list(self._entries())

    def _entries(self) -> Iterator[dict[str, Any]]:
        judged = _distinct(*self._judged)
        so_far = 0
        for number, money in enumerate(self._money):
            solved = _distinct(self._solved[number])
            so_far += solved
            cost = money if self._priced else None
            yield {
                "round": number + 1,
                "samples_per_row": (number + 1) * self._samples,
                "rows_asked": _distinct(self._asked[number]),
                "rows_solved": solved,
                "rows_solved_so_far": so_far,
                "pass_at_k": ratio(so_far, judged),
                "cost": cost,
                "cost_per_solved_row": ratio(cost, solved),
            }


def _distinct(*identities: array[int]) -> int:
    import numpy as np

    return len(
        np.unique(
            np.concatenate(
                [np.frombuffer(part, dtype=np.uint64) if part else np.empty(0, np.uint64) for part in identities]
            )
        )
    )
