"""The shapes of training files: one example in, one row of a format out; None where the format cannot hold it."""

from __future__ import annotations

from collections.abc import Callable

from potstill.exports.examples import Example, Message, text_of
from potstill.records import Row
from potstill.rows import dumps

Shape = Callable[[Example], Row | None]

#: The names of the roles in ShareGPT files.
_SHAREGPT_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "human",
    "assistant": "gpt",
    "tool": "observation",
}


def to_messages(example: Example) -> Row:
    """Return a chat row: what OpenAI, TRL, Axolotl, LLaMA-Factory and MLX call `messages`."""
    return {"messages": [*example.prompt, example.answer]}


def to_sharegpt(example: Example) -> Row | None:
    """Return a ShareGPT row: `conversations` of `from` and `value`."""
    turns = [_sharegpt_turn(message) for message in (*example.prompt, example.answer)]
    return None if None in turns else {"conversations": turns}


def _sharegpt_turn(message: Message) -> Row | None:
    role = _SHAREGPT_ROLES.get(str(message.get("role")))
    if role is None:
        return None
    calls = message.get("tool_calls")
    if calls:
        return {"from": "function_call", "value": dumps(calls).decode().rstrip("\n")}
    text = text_of(message)
    return None if text is None else {"from": role, "value": text}


def to_alpaca(example: Example) -> Row | None:
    """Return an Alpaca row, with `system` and `history` as LLaMA-Factory reads them.

    The keys are the same in each row: loaders that take the types from the first rows refuse a key that comes later.
    """
    if example.answer.get("tool_calls"):
        return None
    texts = [(message.get("role"), text_of(message)) for message in example.prompt]
    system = [text for role, text in texts if role in {"system", "developer"}]
    turns = [(role, text) for role, text in texts if role not in {"system", "developer"}]
    roles = [role for role, _ in turns]
    if None in [text for _, text in texts] or roles != ["user", "assistant"] * (len(turns) // 2) + ["user"]:
        return None
    history = [[turns[at][1], turns[at + 1][1]] for at in range(0, len(turns) - 1, 2)]
    return {
        "instruction": turns[-1][1],
        "input": "",
        "output": example.answer["content"],
        "system": "\n\n".join(text for text in system if text),
        "history": history,
    }


#: Formats with one row per example, as JSONL. `mlx` is the chat form under the file names that mlx-lm looks for.
JSONL_SHAPES: dict[str, Shape] = {
    "messages": to_messages,
    "sharegpt": to_sharegpt,
    "alpaca": to_alpaca,
    "mlx": to_messages,
}
