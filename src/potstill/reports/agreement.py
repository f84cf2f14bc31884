"""Agreement of several answers to one prompt, and pass@k.

Each answer takes 17 bytes until the end of the pass, so that the answers of one prompt can be brought together
wherever they stand (some kept, some rejected).
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from math import comb
from typing import Any

from potstill.records import Row, sha256_text
from potstill.reports.numbers import ratio

_EXECUTES, _HAS_GOLD, _MATCHES = 1, 2, 4


class Agreement:
    """The answers of every prompt, as two hashes and a verdict each."""

    def __init__(self) -> None:
        self._prompts, self._results, self._verdicts = array("Q"), array("Q"), array("B")
        self._any_gold = False

    def add(self, row: Row) -> None:
        """Add an answered row."""
        signature, match = row.get("result_signature"), row.get("gold_match")
        self._prompts.append(_hash64(str(row.get("sample_id"))))
        self._results.append(_hash64(str(signature)) if signature is not None else 0)
        self._verdicts.append(
            (_EXECUTES if row.get("exec_pass") is True else 0)
            | (_HAS_GOLD if isinstance(match, bool) else 0)
            | (_MATCHES if match is True else 0)
        )
        self._any_gold = self._any_gold or isinstance(match, bool)

    def _count_passed(self, verdicts: Iterable[int]) -> tuple[int, int]:
        """Return how many answers have a verdict, and how many passed: by gold where there is any, else by running."""
        if not self._any_gold:
            passed = [bool(verdict & _EXECUTES) for verdict in verdicts]
        else:
            passed = [bool(verdict & _MATCHES) for verdict in verdicts if verdict & _HAS_GOLD]
        return len(passed), sum(passed)

    def _by_prompt(self) -> Iterator[tuple[list[int], list[int]]]:
        """Yield, for each prompt, the results and the verdicts of its answers."""
        import numpy as np

        if not self._prompts:
            return
        prompts = np.frombuffer(self._prompts, dtype=np.uint64)
        order = np.argsort(prompts, kind="stable")
        ends = np.flatnonzero(np.diff(prompts[order])) + 1
        for rows in np.split(order, ends):
            yield [self._results[i] for i in rows], [self._verdicts[i] for i in rows]

    def as_dict(self) -> dict[str, Any]:
        """Return the report keys.

        `agreement_mean` is the mean share of answers that gave a prompt's most common result (an answer that did
        not execute agrees with none), over prompts with two answers or more. `pass_at_k` is over prompts with usable
        gold; where the run has no gold, an answer passes that executes.
        """
        shares: list[float] = []
        passes: Counter[tuple[int, int]] = Counter()
        for results, verdicts in self._by_prompt():
            passes[self._count_passed(verdicts)] += 1
            if len(results) > 1:
                common = Counter(result for result in results if result).most_common(1)
                shares.append((common[0][1] if common else 0) / len(results))
        return {
            "agreement_prompts": len(shares),
            "agreement_mean": ratio(sum(shares), len(shares)),
            "agreement_unanimous": sum(share == 1 for share in shares),
            "pass_at_k": pass_at_k(passes),
        }


def pass_at_k(passes: Counter[tuple[int, int]]) -> dict[str, float]:
    """Return the unbiased estimate of pass@k for each k, over the prompts with at least k answers.

    The estimator is that of Chen et al. 2021, "Evaluating Large Language Models Trained on Code", section 2.1.

    Args:
        passes: (answers, answers that passed) -> number of prompts.
    """
    estimates = {}
    for k in range(1, max((answers for answers, _ in passes), default=0) + 1):
        fitting = [(n, c, prompts) for (n, c), prompts in passes.items() if n >= k]
        solved = sum((1 - comb(n - c, k) / comb(n, k)) * prompts for n, c, prompts in fitting)
        estimates[str(k)] = solved / sum(prompts for _, _, prompts in fitting)
    return estimates


def _hash64(text: str) -> int:
    return int(sha256_text(text)[:16], 16)
