"""The cleaning stage and its command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from potstill.cli import main
from potstill.errors import ConfigError, InputError
from potstill.rows import publish_rows, read_rows
from potstill.sql.clean import clean_sql
from potstill.stages.clean import clean_rows, make_cleaner

SQL = {"kind": "sql", "field": "generation", "dialect": "sqlite", "transpile_to": None, "language": None}


def clean(tmp_path: Path, rows: list[Any], **settings: Any) -> list[dict[str, Any]]:
    """Run the stage over some rows and return what it wrote."""
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    publish_rows(source, rows)
    counts = clean_rows(source, target, settings={**SQL, **settings})
    written = list(read_rows(target))
    assert counts.rows == len(rows) == len(written)
    return written


def test_rows_keep_their_order_and_their_fields(tmp_path: Path) -> None:
    """Each row comes out as it went in, with three fields added."""
    rows = [{"id": 7, "generation": "SQL: SELECT a FROM t", "x": {"y": [1]}}, {"id": 3, "generation": "no"}]
    written = clean(tmp_path, rows)
    assert written == [
        {**rows[0], "sql": "SELECT a FROM t", "clean_method": "bare", "clean_note": ""},
        {**rows[1], "sql": "", "clean_method": "none", "clean_note": ""},
    ]


@pytest.mark.parametrize(
    ("value", "sql", "note"),
    [
        (None, "", "not_text"),
        (42, "", "not_text"),
        ({"sql": "SELECT 1"}, "", "not_text"),
        ([], "", "not_text"),
        ("", "", "empty"),
        ([{"type": "text", "text": "SELECT a "}, {"type": "text", "text": "FROM t"}], "SELECT a FROM t", ""),
        (["SELECT 1"], "SELECT 1", ""),
        ("SELECT 'a\ud800b'", "SELECT 'a\ud800b'", ""),
        ("SELECT 'a\x00b' FROM t", "SELECT 'a\x00b' FROM t", ""),
    ],
)
def test_answers_that_are_no_plain_text(tmp_path: Path, value: Any, sql: str, note: str) -> None:
    """Nulls, numbers, lists of parts, lone surrogates and NULs each give a row, never an error."""
    (row,) = clean(tmp_path, [{"generation": value}])
    assert (row["sql"], row["clean_note"]) == (sql, note)


def test_an_unknown_field_is_an_error(tmp_path: Path) -> None:
    """When no row has the field, the message names it and those that there are; nothing is written."""
    source = tmp_path / "in.jsonl"
    publish_rows(source, [{"answer": "SELECT 1"}])
    with pytest.raises(InputError, match=r"no row has the field 'generation' .found: answer"):
        clean_rows(source, tmp_path / "out.jsonl", settings=SQL)
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_no_rows_are_no_error(tmp_path: Path) -> None:
    """An empty chunk gives an empty file."""
    assert clean(tmp_path, []) == []


@pytest.mark.parametrize(
    ("settings", "raw", "value", "method"),
    [
        ({"kind": "none"}, " <think>x</think>as it is ", " <think>x</think>as it is ", "text"),
        ({"kind": "strip_reasoning"}, "<think>x</think>\n\nFour. ", "Four.", "text"),
        ({"kind": "strip_reasoning"}, "<think>x", "", "none"),
        ({"kind": "code", "language": "python"}, "```python\na = 1\n```\n```sh\nls\n```", "a = 1", "fence"),
        ({"kind": "code", "language": "python"}, "<think>```python\nb\n```</think>```python\na\n```", "a", "fence"),
        ({"kind": "code", "language": "python"}, "```sh\nls\n```", "", "none"),
        ({"kind": "code", "language": "python"}, "a = 1", "a = 1", "bare"),
        ({"kind": "code"}, "```python\na\n```\n```sh\nls\n```", "ls", "fence"),
        ({"kind": "json"}, 'Here: {"a": [1, 2]} done', {"a": [1, 2]}, "json"),
        ({"kind": "json"}, '```json\n{"a": 1}\n```', {"a": 1}, "fence"),
        ({"kind": "json"}, "nothing", "", "none"),
    ],
)
def test_other_kinds(tmp_path: Path, settings: dict[str, Any], raw: str, value: Any, method: str) -> None:
    """The other kinds write the field `cleaned`, and leave `sql` alone."""
    (row,) = clean(tmp_path, [{"generation": raw}], **settings)
    assert (row["cleaned"], row["clean_method"]) == (value, method)
    assert "sql" not in row


def test_transpiling_is_done_only_when_asked(tmp_path: Path) -> None:
    """The model's own text stays, unless `transpile_to` names another dialect."""
    rows = [{"generation": "SELECT IFNULL(a, 1)::INT FROM t"}]
    assert clean(tmp_path, rows, dialect="postgres")[0]["sql"] == "SELECT IFNULL(a, 1)::INT FROM t"
    (row,) = clean(tmp_path, rows, dialect="postgres", transpile_to="sqlite")
    assert "::" not in row["sql"]
    assert row["clean_note"] == "transpiled"


def test_what_cannot_be_transpiled_stays(tmp_path: Path) -> None:
    """A statement that sqlglot cannot read is kept as it is, with a note."""
    (row,) = clean(tmp_path, [{"generation": "SELECT FROM WHERE;"}], transpile_to="duckdb")
    assert row["sql"] == "SELECT FROM WHERE"
    assert "not_transpiled" in row["clean_note"]


def test_a_wrong_dialect_names_the_nearest() -> None:
    """A misspelled dialect is a configuration error with a hint."""
    with pytest.raises(ConfigError, match="did you mean 'postgres'"):
        make_cleaner({"kind": "sql", "dialect": "postgress"})


def test_a_wrong_kind_names_the_allowed() -> None:
    """A kind that is unknown is a configuration error."""
    with pytest.raises(ConfigError, match="allowed are sql, none, strip_reasoning, code, json"):
        make_cleaner({"kind": "yaml"})


def test_prose_in_another_dialect_is_cut_too() -> None:
    """Where SQLite cannot read a statement, sqlglot tells where it ends, if the dialect is named."""
    text = "SELECT day::date FROM log\n\nThis casts the day to a date."
    assert clean_sql(text, dialect="postgres").sql == "SELECT day::date FROM log"


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`potstill clean` writes the rows, says what it found, and touches nothing else."""
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    publish_rows(source, [{"text": "```sql\nSELECT 1;\n```"}, {"text": "no"}])
    assert main(["clean", "--input", str(source), "--output", str(target), "--field", "text"]) == 0
    assert [json.loads(line)["sql"] for line in target.read_text().splitlines()] == ["SELECT 1", ""]
    assert "2 rows, sql found in 1" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


def test_the_command_can_run_again_over_its_own_output(tmp_path: Path) -> None:
    """Cleaning a cleaned file gives the same file."""
    source, first, second = (tmp_path / name for name in ("a.jsonl", "b.jsonl", "c.jsonl"))
    publish_rows(source, [{"generation": "SELECT 1; -- x"}])
    main(["clean", "--input", str(source), "--output", str(first)])
    main(["clean", "--input", str(first), "--output", str(second)])
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize(
    "piece",
    [
        "select ",
        "SELECT a FROM t\n\n",
        "```sql\n",
        "<think>",
        "<answer>no ",
        "'",
        "(",
        '{"sql": "',
        "&lt;",
        "“",
        "\n- a",
        "/* ",
        '""--',
        "\\boxed{SELECT 1 ",
        "x, -- <think> a\nFROM ",
        "sql: |\n  SELECT a\n",
    ],
)
@pytest.mark.parametrize("before", ["", "SELECT a FROM t WHERE ", "```sql\n"])
def test_hostile_texts_end(piece: str, before: str) -> None:
    """A text of 100,000 characters of one kind is cleaned (a quadratic cleaner would meet the test's time limit)."""
    assert isinstance(clean_sql(before + piece * (100_000 // len(piece))).sql, str)
