"""What an export writes of a row, whatever the format: the example, the table's row, the fields that go along."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from potstill.errors import InputError
from potstill.exports.examples import AnswerForm, Example, ExampleMaker, clean_values
from potstill.exports.formats import JSONL_SHAPES
from potstill.records import VOLATILE_FIELDS, Row

#: Fields that say how a row came through the run; they are the same for each exported row, or only bulk.
_LEFT_OUT_COLUMNS = frozenset({*VOLATILE_FIELDS, "canonical_input", "keep", "reject_reasons", "reject_reason"})


class Shapes:
    """The formats that are asked for, and how a row looks in them.

    Args:
        settings: The `export` section of a config.

    Raises:
        ConfigError: If the answer's template cannot be used.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.formats: list[str] = list(dict.fromkeys(settings.get("formats") or ["messages"]))
        self.make_example = ExampleMaker(AnswerForm.from_settings(settings)).make
        self._score_name: str = settings.get("score_name", "score")
        self._columns: list[str] | None = settings.get("columns")
        self._fields: list[str] = settings.get("fields") or []

    @property
    def lines(self) -> list[str]:
        """The formats with one JSON line per example."""
        return [name for name in self.formats if name in JSONL_SHAPES]

    @property
    def tables(self) -> list[str]:
        """The formats that are Parquet."""
        return [name for name in self.formats if name in {"parquet", "huggingface"}]

    @property
    def preferences(self) -> list[str]:
        """The formats that need what the verifier said of several answers."""
        return [name for name in self.formats if name in {"dpo", "kto"}]

    def make_line(self, name: str, row: Row, example: Example) -> Row | None:
        """Return the line of a row in one of `lines`, or None where that format cannot hold it."""
        shaped = JSONL_SHAPES[name](example)
        return None if shaped is None else self.carry(shaped, row)

    def make_table_row(self, row: Row, example: Example) -> Row:
        """Return the row of a table: the conversation with its answer, and the columns asked for (all by default)."""
        names = self._columns or [name for name in row if name not in _LEFT_OUT_COLUMNS]
        table = {name: clean_values(row.get(name)) for name in names if name != "messages"}
        return {"messages": [*example.prompt, example.answer], **self._rename_score(table, row)}

    def carry(self, shaped: Row, row: Row) -> Row:
        """Return a line with the fields that go along (`export.fields`), null where the row has none.

        A key that the format itself needs stays the format's.
        """
        fields = {name: clean_values(row.get(name)) for name in self._fields}
        return {**shaped, **{key: item for key, item in self._rename_score(fields, row).items() if key not in shaped}}

    def _rename_score(self, fields: Row, row: Row) -> Row:
        if self._score_name == "score" or "score" not in fields:
            return fields
        if self._score_name in fields:
            raise InputError(
                f"row {row.get('sample_id', '?')} has a field {self._score_name!r} of its own: "
                "set export.score_name: score, or name the columns without it (export.columns)"
            )
        return {self._score_name if name == "score" else name: value for name, value in fields.items()}
