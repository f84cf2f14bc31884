"""From a checked choice to the stored record, and from the record to the row in the output."""

from __future__ import annotations

import time
from typing import Any

from potstill.config.model import Prices
from potstill.generate.costs import cost_of
from potstill.generate.faults import Fault
from potstill.generate.reply import Choice, Reply, add_usage, inline_reasoning
from potstill.generate.requests import Job
from potstill.records import Row


def answer_record(job: Job, place: int, choice: Choice, reply: Reply, endpoint: str, seconds: float) -> dict[str, Any]:
    """Return the record of one answer.

    Args:
        job: What was asked.
        place: Which of the job's samples it answers.
        choice: The answer.
        reply: What came with it; its usage is booked on the first choice of a reply.
        endpoint: The server's address.
        seconds: The time of the attempt that brought it.
    """
    record = {
        "sample_index": job.samples[place],
        "max_tokens": job.limit,
        "finish_reason": choice.finish_reason,
        "content": choice.content,
        "reasoning": choice.reasoning,
        "tool_calls": choice.tool_calls,
        "usage": add_usage(reply.usage, job.usage) if place == 0 else None,
        "served_model": reply.served_model,
        "system_fingerprint": reply.system_fingerprint,
        "endpoint": endpoint,
        "latency_s": round(seconds, 4),
        "attempts": job.sends,
        "answered_at": round(time.time(), 3),
    }
    if choice.logprobs is not None:
        record["logprobs"] = choice.logprobs
    if job.repair is not None:
        record["repaired"] = True
    return record


def failure_record(job: Job, place: int, fault: Fault, endpoint: str, choice: Choice | None = None) -> dict[str, Any]:
    """Return the record of a sample that failed for good: it is not asked, nor paid, again unless the user says so."""
    record: dict[str, Any] = {
        "sample_index": job.samples[place],
        "max_tokens": job.limit,
        "error_class": fault.kind,
        "error": fault.message,
        "finish_reason": choice.finish_reason if choice else None,
        "status": fault.status,
        "raw_response": fault.raw,
        "usage": add_usage(fault.usage, job.usage) if place == 0 else None,
        "endpoint": endpoint,
        "attempts": job.sends,
        "answered_at": round(time.time(), 3),
    }
    if choice is not None and (choice.reasoning or choice.content):
        record["reasoning"], record["content"] = choice.reasoning, choice.content
    return record


def answered_row(row: Row, record: dict[str, Any], model: str, prices: Prices | None) -> Row:
    """Return the output row of an answer."""
    content = record["content"]
    out = {
        **row,
        "generation": content,
        "reasoning": record["reasoning"] or inline_reasoning(content),
        "tool_calls": record["tool_calls"],
        "finish_reason": record["finish_reason"],
        "usage": usage_of(record, prices),
        "model": model,
        "sample_index": record["sample_index"],
        "endpoint": record.get("endpoint"),
        "latency_s": record.get("latency_s"),
        "attempts": record.get("attempts"),
        "answered_at": record["answered_at"],
        "served_model": record.get("served_model"),
        "system_fingerprint": record.get("system_fingerprint"),
    }
    if "logprobs" in record:
        out["logprobs"] = record["logprobs"]
    return out


def failed_row(row: Row, record: dict[str, Any], model: str, prices: Prices | None) -> Row:
    """Return the output row of a failure."""
    return {
        **row,
        "generation": record.get("content"),
        "reasoning": record.get("reasoning"),
        "finish_reason": record.get("finish_reason"),
        "usage": usage_of(record, prices),
        "model": model,
        "sample_index": record["sample_index"],
        "error_class": record["error_class"],
        "error": record["error"],
        "raw_response": record.get("raw_response"),
        "endpoint": record.get("endpoint"),
        "attempts": record.get("attempts", 0),
        "answered_at": record.get("answered_at"),
    }


def usage_of(record: dict[str, Any], prices: Prices | None) -> dict[str, Any] | None:
    """Return the tokens of a record, with their cost where prices are known."""
    usage: dict[str, Any] | None = record.get("usage")
    if usage is None or prices is None:
        return usage
    return {**usage, "cost": cost_of(usage, prices)}
