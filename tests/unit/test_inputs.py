"""Input rows in the shapes of training files."""

from __future__ import annotations

from typing import Any

import pytest

from potstill.errors import ConfigError, InputError
from potstill.inputs import convert_row

ASKED = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]


@pytest.mark.parametrize(
    ("input_format", "row"),
    [
        ("messages", {"messages": [*ASKED, {"role": "assistant", "content": "a"}]}),
        (
            "sharegpt",
            {
                "conversations": [
                    {"from": "system", "value": "s"},
                    {"from": "human", "value": "q"},
                    {"from": "gpt", "value": "a"},
                ]
            },
        ),
        (
            "sharegpt",
            {"system": "s", "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        ),
        (
            "sharegpt",
            {
                "conversation": [
                    {"role": "system", "content": "s"},
                    {"role": "user", "content": "q"},
                    {"role": "assistant", "content": "a"},
                ]
            },
        ),
        ("alpaca", {"instruction": "q", "input": "", "output": "a", "system": "s"}),
    ],
)
def test_each_format_gives_the_same_question_and_reference(input_format: str, row: dict[str, Any]) -> None:
    """The conversation is asked up to its last question; the answer that followed is kept, not sent."""
    found = convert_row({"id": 7, **row}, input_format)
    assert (found["messages"], found["reference_answer"], found["id"]) == (ASKED, "a", 7)


def test_rows_pass_as_they_are() -> None:
    """The default format changes nothing."""
    row = {"question": "q"}
    assert convert_row(row, "rows") is row


def test_alpaca_joins_instruction_and_input_and_keeps_its_history() -> None:
    """The input follows the instruction on a new line; earlier turns come first."""
    found = convert_row({"instruction": "do", "input": "this", "history": [["a", "b"]]}, "alpaca")
    assert [message["content"] for message in found["messages"]] == ["a", "b", "do\nthis"]
    assert "reference_answer" not in found


def test_a_conversation_that_ends_with_a_question_has_no_reference() -> None:
    """Without a last answer there is nothing to keep aside, and earlier turns stay."""
    messages = [
        {"role": "user", "content": "1"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "3"},
    ]
    assert convert_row({"messages": messages}, "messages") == {"messages": messages}


def test_a_row_is_not_changed_in_place() -> None:
    """The converter is a pure function."""
    row = {"messages": [*ASKED, {"role": "assistant", "content": "a"}]}
    convert_row(row, "messages")
    assert len(row["messages"]) == 3


@pytest.mark.parametrize(
    ("input_format", "row", "message"),
    [
        ("messages", {"text": "x"}, "`messages` must be a list of messages; the row has: text"),
        (
            "messages",
            {"messages": [{"role": "human", "content": "q"}]},
            r"messages\[0\]: no role that we know: 'human'",
        ),
        ("messages", {"messages": ["q"]}, r"messages\[0\]"),
        ("messages", {"messages": [{"role": "assistant", "content": "a"}]}, "no question"),
        ("messages", {"messages": []}, "no question"),
        (
            "messages",
            {"messages": [*ASKED, {"role": "assistant", "content": "a"}], "reference_answer": 1},
            "of its own",
        ),
        ("sharegpt", {"conversations": {}}, "must be a list of turns"),
        ("sharegpt", {"conversations": [{"from": "alien", "value": "q"}]}, r"conversations\[0\]: a turn needs `from`"),
        ("sharegpt", {"conversations": [{"from": "human", "value": None}]}, "a text in `value`"),
        ("alpaca", {"instruction": " "}, "`instruction` must be a text"),
        ("alpaca", {"instruction": "q", "history": ["x"]}, "history: pairs"),
    ],
)
def test_a_row_of_another_shape_is_named(input_format: str, row: dict[str, Any], message: str) -> None:
    """What is missing or wrong is said, so that the rejected row explains itself."""
    with pytest.raises(InputError, match=message):
        convert_row(row, input_format)


def test_an_unknown_format_is_a_config_error() -> None:
    """The allowed formats are named."""
    with pytest.raises(ConfigError, match="allowed: rows, messages, sharegpt, alpaca"):
        convert_row({}, "chatml")
