"""cost_report.json: the tokens of one model's answers by kind, and what they cost by the model file's price table.

Failed rows that were paid for count too. Without prices the tokens are counted and every sum of money is null.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from potstill.records import Row
from potstill.reports.files import ModelFiles
from potstill.reports.numbers import as_number, ratio
from potstill.rows import publish_json, read_rows

#: No answer has more tokens; a larger number is a fault of the server.
MOST_TOKENS = 1 << 40
TOKENS = ("prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens")


class _Spent:
    """Tokens and money of the rows of one end."""

    def __init__(self) -> None:
        self.rows = self.without_usage = 0
        self.tokens = dict.fromkeys(TOKENS, 0)
        self.money = 0.0

    def add(self, row: Row, prices: Mapping[str, Any] | None) -> None:
        usage = row.get("usage")
        self.rows += 1
        if not isinstance(usage, dict):
            self.without_usage += 1
            return
        for kind in TOKENS:
            self.tokens[kind] += count_tokens(usage, kind)
        if prices:
            self.money += price_usage(usage, prices)


def count_tokens(usage: Mapping[str, Any], kind: str) -> int:
    """Return the tokens of one kind; 0 where the server did not count them, or said something impossible."""
    number = as_number(usage.get(kind))
    return int(number) if number is not None and 0 <= number < MOST_TOKENS else 0


def price_usage(usage: Mapping[str, Any], prices: Mapping[str, Any]) -> float:
    """Return what one answer cost."""
    prompt, cached, completion, reasoning = (count_tokens(usage, kind) for kind in TOKENS)
    per_input, per_output = as_number(prices.get("input")) or 0, as_number(prices.get("output")) or 0
    per_cached = as_number(prices.get("cached_input"))
    per_reasoning = as_number(prices.get("reasoning"))
    money = (prompt - cached) * per_input + cached * (per_input if per_cached is None else per_cached)
    money += (completion - reasoning) * per_output
    money += reasoning * (per_output if per_reasoning is None else per_reasoning)
    return money / 1_000_000


def write_cost_report(
    output: Path, *, model: str, files: ModelFiles, prices: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Write cost_report.json of one model and return it.

    Args:
        output: The report.
        model: The model's alias.
        files: The model's merged files.
        prices: The model file's `prices`, money per million tokens; None where it has none.
    """
    spent = {end: _Spent() for end in ("kept", "rejected", "failed")}
    for kept, row in files.answered():
        spent["kept" if kept else "rejected"].add(row, prices)
    for row in read_rows(files.failed):
        spent["failed"].add(row, prices)
    report = {"model": model, "prices": dict(prices) if prices else None, **_sums(spent, bool(prices))}
    publish_json(output, report)
    return report


def _sums(spent: Mapping[str, _Spent], priced: bool) -> dict[str, Any]:
    total = sum(end.money for end in spent.values()) if priced else None
    answered = spent["kept"].rows + spent["rejected"].rows
    return {
        **{kind: sum(end.tokens[kind] for end in spent.values()) for kind in TOKENS},
        "answered": answered,
        "kept": spent["kept"].rows,
        "rows_without_usage": spent["kept"].without_usage + spent["rejected"].without_usage,
        "cost_total": total,
        "cost_kept": spent["kept"].money if priced else None,
        "cost_rejected": spent["rejected"].money if priced else None,
        "cost_failed": spent["failed"].money if priced else None,
        "cost_per_row": ratio(total, answered),
        "cost_per_accepted_row": ratio(total, spent["kept"].rows),
        "completion_tokens_per_accepted_row": ratio(
            sum(end.tokens["completion_tokens"] for end in spent.values()), spent["kept"].rows
        ),
    }
