"""Agreement of several answers to one prompt, and pass@k.

Each answer takes 17 bytes until the end of the pass, so that the answers of one prompt can be brought together
wherever they stand (some kept, some rejected).
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator
from math import comb
from typing import Any

from potstill.records import Row, sha256_text
from potstill.reports.numbers import ratio


class Agreement:
    """The answers of every prompt, as two hashes and a verdict each."""

    def __init__(self) -> None:
        self._prompts, self._results, self._passed = array("Q"), array("Q"), array("B")

    def add(self, row: Row) -> None:
        """Add an answered row; the verdict is the match with gold, where there is none, that it executes."""
        signature = row.get("result_signature")
        verdict = row.get("gold_match")
        self._prompts.append(_hash64(str(row.get("sample_id"))))
        self._results.append(_hash64(str(signature)) if signature is not None else 0)
        self._passed.append((row.get("exec_pass") if verdict is None else verdict) is True)

    def _by_prompt(self) -> Iterator[tuple[list[int], int]]:
        """Yield, for each prompt, the results of its answers and how many of them passed."""
        import numpy as np

        if not self._prompts:
            return
        prompts = np.frombuffer(self._prompts, dtype=np.uint64)
        order = np.argsort(prompts, kind="stable")
        ends = np.flatnonzero(np.diff(prompts[order])) + 1
        for rows in np.split(order, ends):
            yield [self._results[i] for i in rows], sum(self._passed[i] for i in rows)

    def as_dict(self) -> dict[str, Any]:
        """Return the report keys.

        `agreement_mean` is the mean share of answers that gave a prompt's most common result (an answer that did
        not execute agrees with none), over prompts with two answers or more.
        """
        shares: list[float] = []
        passes: Counter[tuple[int, int]] = Counter()
        for results, passed in self._by_prompt():
            passes[len(results), passed] += 1
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
