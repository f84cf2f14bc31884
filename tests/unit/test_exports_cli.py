"""`potstill export` and `potstill push` as a person calls them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from potstill.cli import main
from tests.unit.export_rows import make_row, make_wrong, read, write


def test_export_writes_the_formats_that_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One file in, folders out, the counts on stdout; nothing else is written."""
    kept = write(tmp_path / "merged.jsonl", [make_row(number) for number in range(20)])
    rejected = write(tmp_path / "rejected.jsonl", [make_wrong(number) for number in range(20)])
    words = ["export", "--input", str(kept), "--rejected", str(rejected), "--output-dir", str(tmp_path / "out")]
    words += ["--format", "messages", "--format", "dpo", "--train-ratio", "0.5", "--limit", "field:db_id=2"]
    words += ["--field", "db_id", "--split-by", "field:db_id", "--reasoning", "think"]
    assert main(words) == 0
    counts = json.loads(capsys.readouterr().out)
    assert (counts["rows"], counts["exported"]) == (20, 14)
    rows = read(tmp_path / "out/messages/train.jsonl")
    assert {sum(row["db_id"] == other["db_id"] for other in rows) for row in rows} == {2}
    assert rows[0]["messages"][-1]["content"].startswith("<think>\nI count.\n</think>")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["merged.jsonl", "out", "rejected.jsonl"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "dpo",
        "messages",
        "splits.jsonl",
        "summary.json",
    ]


def test_decontamination_by_flags(tmp_path: Path) -> None:
    """A benchmark and the field to compare are named on the command line."""
    kept = write(tmp_path / "merged.jsonl", [make_row(number) for number in range(5)])
    reference = write(tmp_path / "dev.jsonl", [{"question": make_row(3)["question"]}])
    words = ["export", "--input", str(kept), "--output-dir", str(tmp_path / "out"), "--train-ratio", "1"]
    assert main([*words, "--decontaminate", str(reference), "--decontaminate-field", "question"]) == 0
    assert len(read(tmp_path / "out/messages/train.jsonl")) == 4


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["--format", "huggingface"], 78, "export.huggingface.license is missing"),
        (["--limit", "db_id"], 78, "GROUP=N was expected"),
        (["--limit", "field:db_id=0"], 78, "N at least 1"),
        (["--train-ratio", "2"], 78, "must be 1"),
        (["--answer-template", "no.jinja"], 78, "export.answer is 'auto'"),
        (["--split-by", "field:nothing"], 1, "has no field 'nothing'"),
        (["--decontaminate", "no/such.json"], 78, "no such file"),
    ],
)
def test_a_mistake_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], status: int, said: str
) -> None:
    """The exit status says what kind of mistake, the line what and where."""
    kept = write(tmp_path / "merged.jsonl", [make_row(1)])
    assert main(["export", "--input", str(kept), "--output-dir", str(tmp_path / "out"), *words]) == status
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{\n", "line 1: not JSON"),
        ("[]\n", "a JSON object was expected"),
        ('{"messages": []}\n', "a row without `sample_id`"),
    ],
)
def test_a_file_that_is_no_merged_file_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, said: str
) -> None:
    """File and place of the first thing that is wrong."""
    (tmp_path / "in.jsonl").write_text(text)
    assert main(["export", "--input", str(tmp_path / "in.jsonl"), "--output-dir", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert said in error
    assert "in.jsonl" in error


def test_push_without_the_package_says_what_to_install(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The package for uploads is optional; its absence is no traceback."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data/train.parquet").write_bytes(b"")
    (tmp_path / "README.md").write_text("")
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    monkeypatch.setenv("HF_TOKEN", "t")
    assert main(["push", str(tmp_path), "--repo-id", "me/x"]) == 78
    assert "pip install 'potstill[hub]'" in capsys.readouterr().err
