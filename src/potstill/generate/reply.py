"""What a server sent, checked: an answer is an answer only if it is whole."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from potstill.generate.faults import Fault, from_error_body, raw_text
from potstill.generate.wire_json import loads

#: Finish reasons by which servers say that their filter held an answer back.
_FILTERED = frozenset({"content_filter", "refusal", "safety", "SAFETY", "sensitive"})

#: The think block of the answer text: opened at its very beginning, or opened by the prompt and only closed here.
_THINK_OPEN = re.compile(
    r"\s*<(think|thinking|thought|reasoning|seed:think|\|begin_of_thought\|)>|\s*\[THINK\]", re.IGNORECASE
)
_THINK_CLOSE = re.compile(
    r"</(?:think|thinking|thought|reasoning|seed:think)>|<\|end_of_thought\|>|\[/THINK\]", re.IGNORECASE
)
_HARMONY = re.compile(r"\s*<\|channel\|>analysis<\|message\|>(.*?)(?:<\|end\|>|$)", re.DOTALL)


@dataclass(slots=True)
class Choice:
    """One answer of a reply."""

    content: str
    reasoning: str | None
    tool_calls: list[Any] | None
    finish_reason: str | None
    logprobs: Any = None


@dataclass(slots=True)
class Reply:
    """A whole, checked reply."""

    choices: list[Choice]
    usage: dict[str, Any] | None
    served_model: str | None
    system_fingerprint: str | None


def read_reply(body: bytes, wanted: int = 1) -> Reply | Fault:
    """Return the reply of a body that came with status 200, or what is wrong with it.

    Args:
        body: The bytes.
        wanted: The number of choices that were asked for; fewer are let pass, none is a fault.
    """
    try:
        document = loads(body)
    except ValueError:
        what = "an empty body" if not body.strip() else "a body that is not JSON"
        return Fault("invalid_response", f"HTTP 200 with {what}", 200, raw=raw_text(body))
    if not isinstance(document, dict):
        return Fault("invalid_response", "HTTP 200 with JSON that is no object", 200, raw=raw_text(body))
    return read_document(document, body, wanted)


def read_document(document: dict[str, Any], body: bytes, wanted: int = 1) -> Reply | Fault:
    """Return the reply of a parsed document, or what is wrong with it."""
    usage = read_usage(document.get("usage"))
    choices = document.get("choices")
    if document.get("error") and not choices:
        fault = from_error_body(document, body)
        fault.usage = usage
        return fault
    if not isinstance(choices, list) or not choices:
        return Fault("invalid_response", "HTTP 200 without choices", 200, raw=raw_text(body), usage=usage)
    read = [_read_choice(choice) for choice in choices[:wanted]]
    good = [choice for choice in read if choice is not None]
    if len(good) < len(read):
        error = next((item["error"] for item in choices if isinstance(item, dict) and item.get("error")), None)
        if error:
            fault = from_error_body({"error": error}, body)
            fault.usage = usage
            return fault
        return Fault(
            "invalid_response", "HTTP 200 with a choice that holds no message", 200, raw=raw_text(body), usage=usage
        )
    return Reply(good, usage, _text(document.get("model")), _text(document.get("system_fingerprint")))


def _read_choice(choice: Any) -> Choice | None:
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(message, dict) or (choice.get("error") and not message.get("content")):
        return None
    content, thinking = _join_parts(message.get("content"))
    reasoning = message.get("reasoning_content") or message.get("reasoning") or thinking
    return Choice(
        content=content or _text(message.get("refusal")) or "",
        reasoning=reasoning if isinstance(reasoning, str) and reasoning else None,
        tool_calls=message.get("tool_calls") or None,
        finish_reason=_text(choice.get("finish_reason")),
        logprobs=choice.get("logprobs"),
    )


def _join_parts(content: Any) -> tuple[str | None, str | None]:
    """Return text and thinking of a content that may come in parts (Mistral and some gateways)."""
    if isinstance(content, str) or content is None:
        return content, None
    if not isinstance(content, list):
        return None, None
    texts = [
        part["text"]
        for part in content
        if isinstance(part, dict) and part.get("type") in ("text", "output_text") and isinstance(part.get("text"), str)
    ]
    thoughts = [part.get("thinking") for part in content if isinstance(part, dict) and part.get("type") == "thinking"]
    thinking = "".join(t if isinstance(t, str) else _join_parts(t)[0] or "" for t in thoughts)
    return "".join(texts), thinking or None


def fault_of(choice: Choice, usage: dict[str, Any] | None) -> Fault | None:
    """Return why a whole choice is no answer, or None if it is one."""
    if choice.finish_reason in _FILTERED:
        return Fault(
            "content_filter",
            f"the server held the answer back (finish_reason {choice.finish_reason})",
            200,
            usage=usage,
        )
    if choice.content.strip() or choice.tool_calls:
        return None
    if choice.finish_reason == "length":
        return Fault("truncated", "max_tokens was reached before any text of the answer", 200, usage=usage)
    return Fault("empty_answer", f"the answer is empty (finish_reason {choice.finish_reason})", 200, usage=usage)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def read_usage(usage: Any) -> dict[str, Any] | None:
    """Return the tokens of a reply under our four names, or None if the server does not count."""
    if not isinstance(usage, dict):
        return None
    prompt_details = usage.get("prompt_tokens_details")
    completion_details = usage.get("completion_tokens_details")
    cached = _count(prompt_details, "cached_tokens")
    if cached is None:
        cached = _count(usage, "prompt_cache_hit_tokens")  # DeepSeek
    reasoning = _count(completion_details, "reasoning_tokens")
    return {
        "prompt_tokens": _count(usage, "prompt_tokens"),
        "completion_tokens": _count(usage, "completion_tokens"),
        "reasoning_tokens": reasoning if reasoning is not None else _count(usage, "reasoning_tokens"),
        "cached_tokens": cached,
    }


def _count(part: Any, name: str) -> int | None:
    value = part.get(name) if isinstance(part, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def add_usage(one: dict[str, Any] | None, other: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return the sum of two counts of tokens; an unknown number adds nothing."""
    if one is None or other is None:
        return one or other
    return {name: _add(one.get(name), other.get(name)) for name in {**one, **other}}


def _add(one: Any, other: Any) -> Any:
    if isinstance(one or other, dict):
        return add_usage(one, other)  # what of it was bought in batches
    return None if one is None and other is None else (one or 0) + (other or 0)


def inline_reasoning(content: str) -> str | None:
    """Return the think block at the beginning of an answer's text, or None.

    >>> inline_reasoning("<think>two tables</think>SELECT 1")
    'two tables'
    >>> inline_reasoning("SELECT '<think>'")
    """
    if "</" not in content and "<|" not in content and "<" not in content[:40] and "THINK]" not in content:
        return None  # by far the most answers; the patterns below cost more
    harmony = _HARMONY.match(content)
    if harmony:
        return harmony.group(1).strip() or None
    opened = _THINK_OPEN.match(content)
    start = opened.end() if opened else 0
    closed = _THINK_CLOSE.search(content, start)
    if not opened and (closed is None or not _stands_alone(content, closed)):
        return None
    return content[start : closed.start() if closed else None].strip() or None


def _stands_alone(content: str, closed: re.Match[str]) -> bool:
    """Return whether a closing tag without an opening one ends its line: the prompt's template opened the block."""
    return content[: closed.start()].endswith("\n") or content[closed.end() : closed.end() + 1] in {"\n", ""}
