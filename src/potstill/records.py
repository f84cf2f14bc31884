"""The record: which fields potstill adds to a row, and the identity of a row.

A row is one JSON object a line. The user's own fields pass through untouched; `ADDED_FIELDS` are ours.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

Row = dict[str, Any]

#: Fields that differ between two runs over the same answers. Stage files carry them, merged files do not.
VOLATILE_FIELDS = (
    "endpoint",
    "latency_s",
    "attempts",
    "answered_at",
    "served_model",
    "system_fingerprint",
    "exec_s",
)

#: Field name -> the stage that adds it.
ADDED_FIELDS: dict[str, str] = {
    **dict.fromkeys(("sample_id", "duplicate_of", "duplicate_similarity", "canonical_input", "messages"), "prepare"),
    **dict.fromkeys(
        ("generation", "reasoning", "tool_calls", "finish_reason", "usage", "model", "sample_index"), "generate"
    ),
    **dict.fromkeys(
        ("endpoint", "latency_s", "attempts", "answered_at", "served_model", "system_fingerprint"), "generate"
    ),
    **dict.fromkeys(("error_class", "error", "raw_response", "logprobs"), "generate"),
    **dict.fromkeys(("sql", "cleaned", "clean_method", "clean_note"), "clean"),
    **dict.fromkeys(
        (
            "exec_pass",
            "exec_error_class",
            "exec_error",
            "gold_match",
            "result_signature",
            "row_count",
            "column_count",
            "empty_result",
            "used_clock",
            "used_random",
            "exec_s",
            "gold_error",
            "gold_unstable",
            "truncated",
            "variant_match",
            "variant_count",
        ),
        "execute",
    ),
    "gold_status": "audit_gold",
    **dict.fromkeys(("judge_score", "judge_votes", "judge_reason", "judge_error", "judge_usage"), "judge"),
    **dict.fromkeys(("score", "sql_quality"), "score"),
    **dict.fromkeys(("keep", "reject_reasons", "reject_reason", "agreement"), "filter"),
    "not_asked_reason": "generate",
    "solved_by": "cascade",
}

#: The one name of ours that a user's row may carry in: the conversation to send, as it is.
GIVEN_FIELDS = frozenset({"messages"})


def canonical_json(value: Any) -> str:
    """Return the one JSON text for a value: sorted keys, no blanks, plain unicode, stable numbers.

    Integral floats are written as integers, so that `1` and `1.0` (the same number read from JSONL, CSV or
    Parquet) have one identity.

    Args:
        value: Anything that JSON can hold.

    Raises:
        ValueError: For NaN, infinity or a type that JSON has not.
    """
    return json.dumps(_stable(value), sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def _stable(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    if isinstance(value, Mapping):
        return {str(key): _stable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_stable(item) for item in value]
    return value


def sha256_text(text: str) -> str:
    """Return the sha256 of a text's UTF-8 bytes, in hex; lone surrogates are kept apart, not lost."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def find_collisions(row: Mapping[str, Any], allowed: Iterable[str] = GIVEN_FIELDS) -> list[str]:
    """Return the fields of a user's row that carry one of our names, sorted; empty when there are none."""
    return sorted((row.keys() & ADDED_FIELDS.keys()) - set(allowed))
