"""What a run will take before it is begun: tokens and money, from a sample of its rows."""

from __future__ import annotations

import contextlib
import re
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from potstill.answers.key import slug
from potstill.answers.reuse import ReusePolicy
from potstill.answers.store import AnswerStore
from potstill.config.model import Model
from potstill.generate.costs import by_batch, cost_of
from potstill.generate.requests import BadRowError, RequestMaker
from potstill.records import Row

#: Fewer stored answers say nothing about the length of the others.
_LEAST_ANSWERS = 5
#: Tokens of an answer where nothing is known: a short statement, and a page with some reasoning.
_UNKNOWN = (50.0, 2000.0)
#: How far off the mean of a sample may be.
_SPREAD = 0.2
_WIDE = re.compile(r"[\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff]")


@dataclass
class Estimate:
    """The estimate for one model.

    Attributes:
        model: Its name.
        requests: How many answers are not in the store.
        reused: How many are.
        tokens_in: Tokens of all prompts, low and high.
        tokens_out: Tokens of all answers, low and high.
        cost: Money, low and high; None without prices.
        currency: Of the money.
        basis: What the numbers rest on.
    """

    model: str
    requests: int
    reused: int
    tokens_in: tuple[float, float]
    tokens_out: tuple[float, float]
    cost: tuple[float, float] | None
    currency: str
    basis: str

    def text(self) -> str:
        """Return it in two lines for people."""
        money = "no prices in the model file"
        if self.cost is not None:
            money = f"{self.cost[0]:,.2f} to {self.cost[1]:,.2f} {self.currency}"
        return (
            f"{self.model}: {self.requests:,} requests ({self.reused:,} answers are in the store), "
            f"tokens in {_span(self.tokens_in)}, tokens out {_span(self.tokens_out)}: {money}\n  {self.basis}"
        )


def _span(numbers: tuple[float, float]) -> str:
    low, high = (f"{round(number, -2 if number > 1000 else 0):,.0f}" for number in numbers)
    return low if low == high else f"{low} to {high}"


@dataclass
class _Sample:
    """What a sample of rows says."""

    rows: int = 0
    missing: int = 0
    asked: int = 0
    guessed: list[int] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)


def estimate(
    model: Model, rows: Iterable[Row], total: int, answers_dir: Path, samples: int = 1, *, batch: bool = False
) -> Estimate:
    """Estimate a run of one model.

    Tokens are counted by the length of the text, and corrected by what the server counted for rows of the sample whose
    answers are in the store: after a pilot (`generate.max_rows`) the numbers rest on the model itself.

    Args:
        model: The teacher, with its prices.
        rows: Some prepared rows.
        total: How many rows the whole input has.
        answers_dir: The folder of all stores.
        samples: Answers per row.
        batch: Whether they are asked for in batches, at the price that these have.
    """
    found = _look(model, rows, answers_dir, samples)
    share = found.missing / max(found.asked, 1)
    requests = round(total * samples * share)
    ratio = statistics.fmean(found.ratios) if found.ratios else 1.0
    prompt = ratio * statistics.fmean(found.guessed) if found.guessed else 0.0
    spread = 0.05 if found.ratios else _SPREAD
    one_in = (prompt * (1 - spread), prompt * (1 + spread))
    one_out = _answer_length(found.answers, model.max_tokens)
    costs = [
        requests * cost_of(by_batch(tokens) if batch else tokens, model.prices) for tokens in _tokens(one_in, one_out)
    ]
    basis = f"from {found.rows:,} of {total:,} rows; " + (
        f"lengths as the server counted them for {len(found.answers):,} stored answers"
        if len(found.answers) >= _LEAST_ANSWERS
        else "lengths by the number of characters; a pilot (generate.max_rows: 20) makes them exact"
    )
    return Estimate(
        model=model.name,
        requests=requests,
        reused=total * samples - requests,
        tokens_in=(requests * one_in[0], requests * one_in[1]),
        tokens_out=(requests * one_out[0], requests * one_out[1]),
        cost=(costs[0], costs[1]) if model.prices else None,
        currency=model.prices.currency if model.prices else "",
        basis=basis,
    )


def _tokens(*spans: tuple[float, float]) -> list[dict[str, Any]]:
    """Return the tokens of one request at the low and at the high end."""
    return [
        dict(zip(("prompt_tokens", "completion_tokens"), map(int, end), strict=True))
        for end in zip(*spans, strict=True)
    ]


def _look(model: Model, rows: Iterable[Row], answers_dir: Path, samples: int) -> _Sample:
    maker, policy, found = RequestMaker(model), ReusePolicy(), _Sample()
    with _opened(answers_dir, model.name) as store:
        for row in rows:
            found.rows += 1
            try:
                job = maker.job(row, tuple(range(samples)), 0)
            except BadRowError:
                continue
            guess = guess_tokens(row["messages"])
            found.guessed.append(guess)
            for key in job.keys:
                found.asked += 1
                record = policy.choose(store.find(key), job.recipe.limits) if store is not None else None
                found.missing += record is None
                _learn(record, guess, found)
    return found


def _opened(answers_dir: Path, model: str) -> contextlib.AbstractContextManager[AnswerStore | None]:
    """Open a store if there is one: an estimate makes no folders."""
    if (answers_dir / slug(model)).is_dir():
        return AnswerStore(answers_dir, model)
    return contextlib.nullcontext()


def _learn(record: dict[str, Any] | None, guess: int, found: _Sample) -> None:
    usage = (record or {}).get("usage") or {}
    if usage.get("prompt_tokens"):
        found.ratios.append(usage["prompt_tokens"] / guess)
    if usage.get("completion_tokens"):
        found.answers.append(usage["completion_tokens"])


def _answer_length(answers: list[int], limit: int | None) -> tuple[float, float]:
    """Return the mean length of an answer, low and high."""
    if len(answers) >= _LEAST_ANSWERS:
        mean = statistics.fmean(answers)
        error = 2 * statistics.stdev(answers) / len(answers) ** 0.5
        return max(1.0, mean - error), mean + error
    low, high = _UNKNOWN
    return (min(low, limit), min(high, limit)) if limit else (low, high)


def guess_tokens(messages: Any) -> int:
    """Return about how many tokens a conversation has: four bytes each, one for each Chinese, Japanese or Korean sign.

    >>> guess_tokens([{"role": "user", "content": "x" * 400}])
    105
    """
    text = "".join(str(message.get("content") or "") for message in messages)
    wide = len(_WIDE.findall(text))
    extra = len(orjson.dumps([message.get("tool_calls") for message in messages if message.get("tool_calls")])) - 2
    return 1 + 4 * len(messages) + wide + (len(text) - wide + extra) // 4
