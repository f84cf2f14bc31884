"""Money: what tokens cost, and how much a run has spent."""

from __future__ import annotations

from typing import Any

from potstill.config.model import Prices

_MILLION = 1_000_000


def cost_of(usage: dict[str, Any] | None, prices: Prices | None) -> float:
    """Return what a request's tokens cost; unknown numbers cost nothing.

    Cached tokens are a part of the prompt's, reasoning tokens a part of the completion's, as in OpenAI's usage. What
    was bought in batches stands once more under `batch`, and costs `batch_discount` less.
    """
    if not usage or prices is None:
        return 0.0
    batch = usage.get("batch")
    discount = prices.batch_discount * _money(batch, prices) if isinstance(batch, dict) else 0.0
    return round((_money(usage, prices) - discount) / _MILLION, 10)


def by_batch(usage: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return tokens marked as bought in a batch."""
    return None if usage is None else {**usage, "batch": usage}


def _money(usage: dict[str, Any], prices: Prices) -> float:
    """Return the money of some tokens, times a million, without any discount."""
    prompt, completion = usage.get("prompt_tokens") or 0, usage.get("completion_tokens") or 0
    cached = min(usage.get("cached_tokens") or 0, prompt)
    reasoning = min(usage.get("reasoning_tokens") or 0, completion)
    return (
        (prompt - cached) * prices.input
        + cached * (prices.input if prices.cached_input is None else prices.cached_input)
        + (completion - reasoning) * prices.output
        + reasoning * (prices.output if prices.reasoning is None else prices.reasoning)
    )
