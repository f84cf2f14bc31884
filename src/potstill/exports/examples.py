"""One merged row as a training example: the prompt as it was sent, and the answer that is to be learnt."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from potstill.errors import ConfigError, InputError
from potstill.records import Row, canonical_json

Message = dict[str, Any]

#: A think block counts only where the answer opens with it; a lone closing tag ends one that the template opened.
_THINK_BLOCK = re.compile(r"\A\s*<(think|thinking|reasoning)>.*</\1>\s*", re.DOTALL | re.IGNORECASE)
_THINK_TAIL = re.compile(r"\A(?:(?!<think>).)*</think>\s*", re.DOTALL | re.IGNORECASE)


class Example(NamedTuple):
    """A prompt and its answer, ready for any format."""

    prompt: list[Message]
    answer: Message


@dataclass(frozen=True)
class AnswerForm:
    """How the assistant's text is made from a row.

    Attributes:
        answer: `sql`, `cleaned`, `generation`, `template`, or `auto`: what the cleaner took out (`sql`, else
            `cleaned`), else the generation.
        template: The text of the Jinja template for `template`; it sees the row.
        reasoning: `none`, `think` (a block before the answer) or `field` (a key of the assistant's message).
        reasoning_field: The name of that key.
    """

    answer: str = "auto"
    template: str | None = None
    reasoning: str = "none"
    reasoning_field: str = "reasoning_content"

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> AnswerForm:
        """Read the form from the `export` section of a config.

        Raises:
            ConfigError: If a template is asked for and none is named, or it cannot be read.
        """
        answer, path = settings.get("answer", "auto"), settings.get("answer_template")
        if (answer == "template") != (path is not None):
            raise ConfigError(
                f"export.answer is {answer!r} and export.answer_template is {path!r}: "
                "a template needs both, `answer: template` and the file in `answer_template`"
            )
        return cls(
            answer=answer,
            template=None if path is None else _read_template(Path(path)),
            reasoning=settings.get("reasoning", "none"),
            reasoning_field=settings.get("reasoning_field", "reasoning_content"),
        )


def _read_template(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"export.answer_template: {path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"export.answer_template: {path}: byte {error.start} is not UTF-8") from error
    _compile(text)
    return text


def _compile(text: str) -> Any:
    import jinja2
    import jinja2.sandbox

    environment = jinja2.sandbox.SandboxedEnvironment(undefined=jinja2.StrictUndefined, keep_trailing_newline=False)
    try:
        return environment.from_string(text)
    except jinja2.TemplateSyntaxError as error:
        raise ConfigError(f"export.answer_template: line {error.lineno}: {error.message}") from error


class ExampleMaker:
    """Makes the example of a row; one object per export, so that a template is compiled once."""

    def __init__(self, form: AnswerForm) -> None:
        self._form = form
        self._template = None if form.template is None else _compile(form.template)

    def make(self, row: Row) -> Example | None:
        """Return the row's example, or None where it has no answer to learn from.

        Raises:
            InputError: If the row carries no `messages`, or a template misses a field of it.
        """
        prompt = prompt_of(row)
        text = self._answer_text(row)
        calls = row.get("tool_calls") if self._uses_generation(row) else None
        if not text.strip() and not calls:
            return None
        answer: Message = {"role": "assistant", "content": self._with_reasoning(row, text)}
        if self._form.reasoning == "field":
            # On each message, also when it is empty: a column that comes and goes breaks typed loaders.
            answer[self._form.reasoning_field] = clean_text(row.get("reasoning") or "")
        if calls:
            answer["tool_calls"] = clean_values(calls)
        return Example(prompt, answer)

    def _uses_generation(self, row: Row) -> bool:
        return self._source(row) == "generation"

    def _source(self, row: Row) -> str:
        if self._form.answer != "auto":
            return self._form.answer
        return next((name for name in ("sql", "cleaned") if name in row), "generation")

    def _answer_text(self, row: Row) -> str:
        if self._template is not None:
            return clean_text(self._render(row))
        if self._uses_generation(row):
            text = strip_reasoning(row.get("generation") or "", row.get("reasoning"))
            return clean_text(_prefill_of(row) + text)
        name = self._source(row)
        if name not in row:
            raise InputError(
                f"row {row.get('sample_id', '?')} has no `{name}` (export.answer): set export.answer: auto, which "
                "takes what the cleaner took out, or the generation where nothing was cleaned"
            )
        value = row[name]
        return clean_text(value if isinstance(value, str) else "" if value is None else canonical_json(value))

    def _render(self, row: Row) -> str:
        import jinja2

        assert self._template is not None
        try:
            return str(self._template.render(row))
        except jinja2.TemplateError as error:
            raise InputError(
                f"export.answer_template: row {row.get('sample_id', '?')}: {error}; "
                "the template sees the fields of the row, use `x | default('')` for one that may be missing"
            ) from error

    def _with_reasoning(self, row: Row, text: str) -> str:
        reasoning = clean_text(row.get("reasoning") or "").strip()
        if self._form.reasoning != "think" or not reasoning:
            return text
        return f"<think>\n{reasoning}\n</think>\n\n{text}"


def prompt_of(row: Row) -> list[Message]:
    """Return the conversation that was sent, without a last assistant turn (a prefill is part of the answer).

    Raises:
        InputError: If the row has no conversation.
    """
    messages = row.get("messages")
    if not isinstance(messages, list) or not messages:
        raise InputError(f"row {row.get('sample_id', '?')} has no `messages`: is this a merged file of potstill?")
    end = len(messages) - 1 if messages[-1].get("role") == "assistant" else len(messages)
    return [clean_values(message) for message in messages[:end]]


def _prefill_of(row: Row) -> str:
    """Return the opening of the answer that was sent with the prompt: the teacher only went on from there."""
    last = row["messages"][-1]
    return (text_of(last) or "") if last.get("role") == "assistant" else ""


def strip_reasoning(text: str, reasoning: str | None = None) -> str:
    """Return an answer without the think block that opens it; tags inside the answer's own text stay.

    Args:
        text: The answer as it was sent.
        reasoning: The row's copy of the reasoning; with it a block that has no opening tag is found safely.
    """
    stripped = _THINK_BLOCK.sub("", text, count=1)
    if stripped != text or not reasoning:
        return stripped
    return _THINK_TAIL.sub("", text, count=1)


def clean_text(text: str) -> str:
    """Return a text that is UTF-8: a lone surrogate, which a teacher may send, becomes the replacement sign."""
    try:
        text.encode()
    except UnicodeEncodeError:
        # Two halves sent apart are one sign again after the round trip; what is still alone is replaced.
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def clean_values(value: Any) -> Any:
    """Return a JSON value with each text in it as `clean_text` gives it."""
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, dict):
        return {clean_text(key): clean_values(item) for key, item in value.items()}
    if isinstance(value, list):
        return [clean_values(item) for item in value]
    return value


def text_of(message: Message) -> str | None:
    """Return the text of a message, its text parts joined; None where a part is no text (an image, a sound)."""
    content = message.get("content")
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        return None
    parts = [part.get("text") if isinstance(part, dict) else part for part in content]
    texts = [part for part in parts if isinstance(part, str)]
    return "".join(texts) if len(texts) == len(parts) else None


def prompt_key(prompt: list[Message]) -> str:
    """Return the one text that stands for a prompt: equal texts, equal prompts."""
    try:
        return orjson.dumps(prompt, option=orjson.OPT_SORT_KEYS).decode()
    except TypeError:
        # An integer beyond 64 bits in a tool call.
        return canonical_json(prompt)
