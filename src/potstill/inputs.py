"""Rows in the shapes of training files, turned into rows that can be asked: `input.format`.

Each function takes one input row and returns a new one with `messages`; the user's other fields pass through. An answer
that the row already carries (the last assistant turn, Alpaca's `output`) is not sent: it stands in `reference_answer`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from potstill.errors import ConfigError, InputError
from potstill.records import Row

#: Where an answer that the input carries is kept.
REFERENCE_FIELD = "reference_answer"

#: Roles of ShareGPT files (FastChat, Axolotl, LLaMA-Factory) -> those of the chat API.
_SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bard": "assistant",
    "bing": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "tool": "tool",
    "function_response": "tool",
}
_CHAT_ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})


def convert_row(row: Row, input_format: str) -> Row:
    """Return an input row in our shape.

    Args:
        row: One row of the user's file.
        input_format: `rows` (as it is), `messages`, `sharegpt` or `alpaca`.

    Raises:
        ConfigError: If the format is none of these.
        InputError: If the row is not of that format; the message says what is missing, the caller adds file and line.
    """
    converter = _CONVERTERS.get(input_format)
    if converter is None:
        raise ConfigError(f"input.format: {input_format!r} is not known; allowed: {', '.join(_CONVERTERS)}")
    return converter(row)


def _from_rows(row: Row) -> Row:
    return row


def _from_messages(row: Row) -> Row:
    messages = row.get("messages")
    if not isinstance(messages, list):
        raise InputError(_missing("messages", "a list of messages", "messages", row))
    for number, message in enumerate(messages):
        if not isinstance(message, dict) or message.get("role") not in _CHAT_ROLES:
            found = message.get("role") if isinstance(message, dict) else message
            raise InputError(
                f"messages[{number}]: no role that we know: {found!r}; allowed: {', '.join(sorted(_CHAT_ROLES))}"
            )
    return _part_answer(row, messages)


def _from_sharegpt(row: Row) -> Row:
    name = "conversations" if "conversations" in row else "conversation"
    turns = row.get(name)
    if not isinstance(turns, list):
        raise InputError(_missing("conversations", "a list of turns", "sharegpt", row))
    messages = [_from_turn(turn, f"{name}[{number}]") for number, turn in enumerate(turns)]
    system = row.get("system")
    if isinstance(system, str) and system and (not messages or messages[0]["role"] != "system"):
        messages.insert(0, {"role": "system", "content": system})
    return _part_answer({key: value for key, value in row.items() if key != name}, messages)


def _from_turn(turn: Any, where: str) -> Row:
    role = _SHAREGPT_ROLES.get(str(turn.get("from", turn.get("role")))) if isinstance(turn, dict) else None
    text = turn.get("value", turn.get("content")) if isinstance(turn, dict) else None
    if role is None or not isinstance(text, str):
        raise InputError(
            f"{where}: a turn needs `from` ({', '.join(_SHAREGPT_ROLES)}) and a text in `value`, found {str(turn)[:80]}"
        )
    return {"role": role, "content": text}


def _from_alpaca(row: Row) -> Row:
    instruction = row.get("instruction")
    if not isinstance(instruction, str) or not instruction.strip():
        raise InputError(_missing("instruction", "a text", "alpaca", row))
    parts = [instruction, *([row["input"]] if isinstance(row.get("input"), str) and row["input"].strip() else [])]
    system = row.get("system")
    messages = [{"role": "system", "content": system}] if isinstance(system, str) and system.strip() else []
    messages += [message for turn in row.get("history") or [] for message in _from_history(turn)]
    messages.append({"role": "user", "content": "\n".join(parts)})
    if isinstance(row.get("output"), str) and row["output"]:
        messages.append({"role": "assistant", "content": row["output"]})
    return _part_answer(row, messages)


def _from_history(turn: Any) -> list[Row]:
    if not isinstance(turn, list) or len(turn) != 2 or not all(isinstance(text, str) for text in turn):
        raise InputError(f"history: pairs of question and answer were expected, found {str(turn)[:80]}")
    return [{"role": "user", "content": turn[0]}, {"role": "assistant", "content": turn[1]}]


def _part_answer(row: Mapping[str, Any], messages: list[Row]) -> Row:
    """Return the row with the conversation up to the last question, and the answer that followed beside it."""
    end = len(messages)
    while end and messages[end - 1].get("role") == "assistant":
        end -= 1
    if end == 0:
        raise InputError("the conversation has no question: nothing before the assistant's first turn")
    answers = [message.get("content") for message in messages[end:]]
    texts = [text for text in answers if isinstance(text, str)]
    reference = {REFERENCE_FIELD: "\n\n".join(texts)} if texts else {}
    if reference and REFERENCE_FIELD in row:
        raise InputError(f"the row has a field {REFERENCE_FIELD!r} of its own; name it otherwise (input.rename)")
    return {**row, "messages": messages[:end], **reference}


def _missing(field: str, kind: str, input_format: str, row: Row) -> str:
    found = ", ".join(sorted(row)[:12]) or "nothing"
    return f"input.format {input_format}: `{field}` must be {kind}; the row has: {found}"


_CONVERTERS: dict[str, Callable[[Row], Row]] = {
    "rows": _from_rows,
    "messages": _from_messages,
    "sharegpt": _from_sharegpt,
    "alpaca": _from_alpaca,
}
