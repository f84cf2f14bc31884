"""What stands in the assistant's turn of an exported row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from potstill.errors import ConfigError, InputError
from potstill.exports.examples import strip_reasoning
from potstill.records import Row
from potstill.stages.export import export_dataset
from tests.unit.export_rows import make_row, read, write


def _export(folder: Path, row: Row, **settings: Any) -> Row:
    kept = write(folder / "merged.jsonl", [row])
    export_dataset([kept], [], folder / "out", settings={"formats": ["messages"], "train_ratio": 1.0, **settings})
    (found,) = read(folder / "out/messages/train.jsonl")
    return found


def _answer(folder: Path, row: Row, **settings: Any) -> Row:
    return dict(_export(folder, row, **settings)["messages"][-1])


def test_the_answer_is_the_checked_statement_by_default(tmp_path: Path) -> None:
    """A cleaned row teaches its SQL, without reasoning and fences."""
    assert _answer(tmp_path, make_row(1)) == {"role": "assistant", "content": make_row(1)["sql"]}


def test_the_answer_is_the_generation_where_nothing_was_cleaned(tmp_path: Path) -> None:
    """Rows without `sql` teach their generation, the think block left out."""
    row = make_row(1)
    del row["sql"]
    assert _answer(tmp_path, row)["content"] == f"```sql\n{make_row(1)['sql']}\n```"


def test_what_another_cleaner_took_out_is_the_answer(tmp_path: Path) -> None:
    """Rows of another kind of cleaning teach `cleaned`, a JSON value as its text."""
    row = make_row(1, cleaned={"b": [1, "é"], "a": None})
    del row["sql"]
    assert _answer(tmp_path, row)["content"] == '{"a":null,"b":[1,"é"]}'
    assert _answer(tmp_path, {**row, "cleaned": "print(1)"})["content"] == "print(1)"


def test_an_answer_that_rows_lack_is_named(tmp_path: Path) -> None:
    """`answer: sql` over rows that were not cleaned says so and names the cure."""
    row = make_row(1)
    del row["sql"]
    with pytest.raises(InputError, match=r"has no `sql` \(export.answer\): set export.answer: auto"):
        _answer(tmp_path, row, answer="sql")


def test_reasoning_goes_into_a_think_block_or_a_field(tmp_path: Path) -> None:
    """`think` puts it before the answer, `field` beside it, for either answer, and only once."""
    row = make_row(1)
    block = "<think>\nI count.\n</think>\n\n"
    assert _answer(tmp_path, row, reasoning="think")["content"] == block + row["sql"]
    assert _answer(tmp_path, row, reasoning="think", answer="generation")["content"] == row["generation"]
    field = _answer(tmp_path, row, reasoning="field", reasoning_field="thinking")
    assert (field["thinking"], field["content"]) == ("I count.", row["sql"])
    assert _answer(tmp_path, {**row, "reasoning": None}, reasoning="think")["content"] == row["sql"]


def test_a_template_makes_the_answer(tmp_path: Path) -> None:
    """A Jinja file sees the row."""
    template = tmp_path / "answer.jinja"
    template.write_text("```sql\n{{ sql }}\n```")
    settings = {"answer": "template", "answer_template": str(template)}
    assert _answer(tmp_path, make_row(1), **settings)["content"] == f"```sql\n{make_row(1)['sql']}\n```"


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("{{ sqll }}", InputError, r"row [0-9a-f]+: 'sqll' is undefined"),
        ("{% if %}", ConfigError, "export.answer_template: line 1"),
        ("{{ sql.__class__.__mro__ }}", InputError, "unsafe"),
        (None, ConfigError, "cannot be read"),
    ],
)
def test_a_template_that_fails_is_named(tmp_path: Path, text: str | None, error: type[Exception], message: str) -> None:
    """A missing field, a mistake in the template and a missing file are errors that say so."""
    template = tmp_path / "answer.jinja"
    if text is not None:
        template.write_text(text)
    with pytest.raises(error, match=message):
        _answer(tmp_path, make_row(1), answer="template", answer_template=str(template))


def test_a_row_without_an_answer_is_left_out_and_counted(tmp_path: Path) -> None:
    """An empty statement is no training example."""
    kept = write(tmp_path / "merged.jsonl", [make_row(1), make_row(2, sql="  ")])
    counts = export_dataset([kept], [], tmp_path / "out", settings={"formats": ["messages"], "train_ratio": 1.0})
    assert (counts.exported, counts.left_out["no_answer"]) == (1, 1)


def test_a_prefill_belongs_to_the_generation(tmp_path: Path) -> None:
    """An assistant's turn that was sent is the opening of the answer, not a turn of its own."""
    messages = [{"role": "user", "content": "count"}, {"role": "assistant", "content": "SELECT "}]
    row = make_row(1, messages=messages, generation="count(*) FROM t", reasoning=None)
    found = _export(tmp_path, row, answer="generation")["messages"]
    assert found == [messages[0], {"role": "assistant", "content": "SELECT count(*) FROM t"}]


def test_a_lone_surrogate_becomes_the_replacement_sign(tmp_path: Path) -> None:
    """Half a sign, which a teacher may send, gives a file that every reader takes as UTF-8."""
    row = make_row(1, sql="SELECT '\ud83d' || '\ud83d\ude00'")
    assert _answer(tmp_path, row)["content"] == "SELECT '\ufffd' || '\U0001f600'"
    (tmp_path / "out/messages/train.jsonl").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("text", "reasoning", "left"),
    [
        ("<think>a</think>\nb", None, "b"),
        (" <Thinking>a</Thinking> b", None, "b"),
        ("a</think>b", "a", "b"),
        ("a</think>b", None, "a</think>b"),
        ("see <think>x</think> y", None, "see <think>x</think> y"),
        ("b", "a", "b"),
    ],
)
def test_only_an_opening_think_block_is_removed(text: str, reasoning: str | None, left: str) -> None:
    """A block counts where the answer opens with it; tags inside the text stay."""
    assert strip_reasoning(text, reasoning) == left


def test_formats_leave_out_what_they_cannot_hold(tmp_path: Path) -> None:
    """An image has no place in ShareGPT or Alpaca: the row is left out there, counted, and stays in messages."""
    image = [{"type": "text", "text": "what?"}, {"type": "image_url", "image_url": {"url": "data:,"}}]
    rows = [make_row(1, messages=[{"role": "user", "content": image}]), make_row(2)]
    kept = write(tmp_path / "merged.jsonl", rows)
    settings = {"formats": ["messages", "sharegpt", "alpaca"], "train_ratio": 1.0}
    counts = export_dataset([kept], [], tmp_path / "out", settings=settings)
    assert {name: split["train"] for name, split in counts.formats.items()} == {
        "messages": 2,
        "sharegpt": 1,
        "alpaca": 1,
    }
    assert counts.not_held == {"sharegpt": 1, "alpaca": 1}


def test_alpaca_holds_a_conversation_of_several_turns(tmp_path: Path) -> None:
    """Earlier turns stand in `history`, the system prompt in `system`."""
    texts = [("system", "s"), ("user", "one"), ("assistant", "1"), ("user", "two")]
    row = make_row(1, messages=[{"role": role, "content": text} for role, text in texts], sql="2")
    kept = write(tmp_path / "merged.jsonl", [row])
    export_dataset([kept], [], tmp_path / "out", settings={"formats": ["alpaca"], "train_ratio": 1.0})
    assert read(tmp_path / "out/alpaca/train.jsonl") == [
        {"instruction": "two", "input": "", "output": "2", "system": "s", "history": [["one", "1"]]}
    ]


def test_fields_go_along_and_never_replace_the_formats_own(tmp_path: Path) -> None:
    """A carried field that the format needs itself stays the format's; the score takes the name asked for."""
    row = make_row(1, output="mine", extra=None)
    kept = write(tmp_path / "merged.jsonl", [row])
    settings = {
        "formats": ["alpaca"],
        "train_ratio": 1.0,
        "fields": ["output", "score", "extra", "absent"],
        "score_name": "teacher_score",
    }
    export_dataset([kept], [], tmp_path / "out", settings=settings)
    (line,) = read(tmp_path / "out/alpaca/train.jsonl")
    assert line["output"] == row["sql"]
    assert (line["teacher_score"], line["extra"], line["absent"]) == (1.0, None, None)


def test_a_field_with_the_name_of_the_score_is_not_lost(tmp_path: Path) -> None:
    """Two columns of one name are an error, not a silent choice."""
    kept = write(tmp_path / "merged.jsonl", [make_row(1, teacher_score=7)])
    settings = {"formats": ["parquet"], "train_ratio": 1.0, "score_name": "teacher_score"}
    with pytest.raises(InputError, match=r"has a field 'teacher_score' of its own: set export.score_name: score"):
        export_dataset([kept], [], tmp_path / "out", settings=settings)
