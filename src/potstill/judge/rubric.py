"""What the judge is asked about a row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from potstill.exports.examples import AnswerForm, ExampleMaker, clean_text, prompt_of, text_of
from potstill.prompts import Prompt
from potstill.records import Row, canonical_json

_FOLDER = Path(__file__).parent


class Rubric:
    """The judge's template with the settings that it needs.

    A template sees the fields of the row, and `judge`: `prompt` (the task: the last user message), `answer` (the SQL,
    else what the cleaner took out, else the generation), `low` and `high` (the scale) and, where two answers are
    compared, `first` and `second`.

    Args:
        settings: The `judge` section of a config.

    Raises:
        ConfigError: If the template is missing or is not valid Jinja2.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.compare_field: str | None = settings.get("compare_field")
        built_in = _FOLDER / ("rubric.jinja" if self.compare_field is None else "compare.jinja")
        self._prompt = Prompt(Path(settings.get("template") or built_in), settings.get("system"))
        scale: list[float] = settings.get("scale") or [0, 10]
        self.low, self.high = scale
        self._passing_only = settings.get("rows", "passing") == "passing"
        self._examples = ExampleMaker(AnswerForm())

    def reason_to_skip(self, row: Row) -> str | None:
        """Return why a row needs no judge, or None."""
        if self._passing_only and row.get("exec_pass") is False:
            return "not_executed"
        if self._examples.make(row) is None:
            return "no_answer"
        if self.compare_field is not None and not self._reference(row):
            return "no_reference"
        return None

    def ask(self, row: Row) -> Iterator[list[Row]]:
        """Yield the conversations for a row: one, or two with the answers in either order.

        Raises:
            PromptError: If the row lacks a field of the template.
        """
        example = self._examples.make(row)
        assert example is not None
        answer = str(example.answer["content"])
        users = [message for message in prompt_of(row) if message.get("role") == "user"]
        facts = {
            "prompt": (text_of(users[-1]) or "") if users else "",
            "answer": answer,
            "low": self.low,
            "high": self.high,
        }
        if self.compare_field is None:
            yield self._prompt.messages({**row, "judge": facts})
            return
        reference = self._reference(row)
        # Judges prefer a place: each pair is asked in both orders (Wang et al. 2023, "not fair evaluators").
        for first, second in ((answer, reference), (reference, answer)):
            yield self._prompt.messages({**row, "judge": {**facts, "first": first, "second": second}})

    def _reference(self, row: Row) -> str:
        value = row.get(self.compare_field or "")
        return clean_text(value) if isinstance(value, str) else "" if value is None else canonical_json(value)
