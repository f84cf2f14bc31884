"""Preference data made by the verifier."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from potstill.errors import ConfigError
from potstill.exports.index import Verdict, judge_row
from potstill.records import Row
from potstill.stages.export import export_dataset
from tests.unit.export_rows import make_error, make_row, make_wrong, read, write

WHOLE = {"formats": ["dpo", "kto"], "train_ratio": 1.0}


def _export(folder: Path, kept: list[Row], rejected: list[Row], **settings: Any) -> dict[str, list[Row]]:
    files = write(folder / "merged.jsonl", kept), write(folder / "rejected.jsonl", rejected)
    export_dataset([files[0]], [files[1]], folder / "out", settings={**WHOLE, **settings})
    return {name: read(folder / f"out/{name}/train.jsonl") for name in ("dpo", "kto")}


def test_hard_negatives_come_first(tmp_path: Path) -> None:
    """What executes and is wrong comes before what fails, and among the former the nearest result first."""
    rejected = [
        make_error(1, sample_index=1),
        make_wrong(1, sample_index=2, sql="SELECT a, b FROM far", column_count=2),
        make_wrong(1, sample_index=3, sql="SELECT a FROM many", row_count=50),
        make_wrong(1, sample_index=4, sql="SELECT count(*) FROM singer WHERE grp = 1 AND age >= 30"),
        make_wrong(1, sample_index=5, sql="SELECT max(x) FROM other"),
    ]
    pairs = _export(tmp_path, [make_row(1)], rejected, dpo={"max_pairs": 9})["dpo"]
    assert [pair["rejected"][0]["content"] for pair in pairs] == [
        "SELECT count(*) FROM singer WHERE grp = 1 AND age >= 30",
        "SELECT max(x) FROM other",
        "SELECT a FROM many",
        "SELECT a, b FROM far",
        make_error(1)["sql"],
    ]
    assert [pair["rejected_reason"] for pair in pairs] == ["wrong_result"] * 4 + ["no_such_table"]
    distances = [pair["distance"] for pair in pairs]
    assert distances == sorted(distances)
    assert {pair["chosen"][0]["content"] for pair in pairs} == {make_row(1)["sql"]}


def test_a_prompt_gives_no_more_pairs_than_asked(tmp_path: Path) -> None:
    """`dpo.max_pairs` bounds the pairs of a prompt and keeps the hardest."""
    rejected = [make_error(1), *(make_wrong(1, sample_index=at, sql=f"SELECT {at} FROM t") for at in range(3, 9))]
    pairs = _export(tmp_path, [make_row(1)], rejected, dpo={"max_pairs": 2})["dpo"]
    assert len(pairs) == 2
    assert {pair["rejected_reason"] for pair in pairs} == {"wrong_result"}


def test_answers_of_several_models_make_pairs(tmp_path: Path) -> None:
    """Given the files of two models, the right answer of one stands against the wrong one of the other."""
    good = write(tmp_path / "a/merged.jsonl", [make_row(1, model="a")])
    none = write(tmp_path / "b/merged.jsonl", [])
    bad = write(tmp_path / "b/rejected.jsonl", [make_wrong(1, sample_index=0, model="b")])
    export_dataset([good, none], [bad], tmp_path / "out", settings=WHOLE)
    (pair,) = read(tmp_path / "out/dpo/train.jsonl")
    assert (pair["chosen_model"], pair["rejected_model"]) == ("a", "b")


def test_rows_of_one_sample_that_were_asked_otherwise_make_no_pair(tmp_path: Path) -> None:
    """Another system prompt is another prompt: its answer is not set against ours."""
    other = make_wrong(1, messages=[{"role": "user", "content": "In other words"}])
    assert _export(tmp_path, [make_row(1)], [other])["dpo"] == []


def test_the_same_words_are_never_chosen_and_rejected(tmp_path: Path) -> None:
    """A statement that was right once and wrong once (a clock) makes no pair."""
    assert _export(tmp_path, [make_row(1)], [make_wrong(1, sql=make_row(1)["sql"])])["dpo"] == []


def test_kto_labels_each_judged_answer(tmp_path: Path) -> None:
    """Right answers are labelled true, wrong and failing ones false, unproved ones not at all."""
    rows = _export(tmp_path, [make_row(1)], [make_wrong(1), make_error(2), make_error(3, exec_error_class="timeout")])[
        "kto"
    ]
    assert [(row["label"], row["reason"]) for row in rows] == [
        (True, "match"),
        (False, "wrong_result"),
        (False, "no_such_table"),
    ]


@pytest.mark.parametrize(
    ("changes", "kept", "verdict"),
    [
        ({}, True, Verdict.GOOD),
        ({}, False, Verdict.UNKNOWN),
        ({"gold_match": False}, True, Verdict.WRONG),
        ({"gold_match": None}, True, Verdict.GOOD),
        ({"variant_match": True}, True, Verdict.GOOD),
        ({"variant_match": False}, True, Verdict.WRONG),
        ({"exec_pass": False, "exec_error_class": "no_such_database", "gold_match": None}, False, Verdict.UNKNOWN),
        ({"gold_match": None}, False, Verdict.UNKNOWN),
        ({"exec_pass": False, "exec_error_class": "syntax", "gold_match": None}, False, Verdict.ERROR),
        ({"exec_pass": False, "exec_error_class": "timeout", "gold_match": False}, False, Verdict.UNKNOWN),
        ({"exec_pass": None, "gold_match": None}, True, Verdict.UNKNOWN),
    ],
)
def test_the_verifiers_word_on_a_row(changes: Row, kept: bool, verdict: Verdict) -> None:
    """A row is good, wrong or an error only by what the verifier proved; our limits prove nothing."""
    assert judge_row(make_row(1, **changes), kept) is verdict


def test_contaminated_prompts_make_no_pairs(tmp_path: Path) -> None:
    """A prompt that repeats a benchmark is in no format, its wrong answers included."""
    reference = write(tmp_path / "dev.jsonl", [{"question": make_row(1)["question"]}])
    contamination = {"files": [str(reference)], "fields": ["question"]}
    found = _export(tmp_path, [make_row(1), make_row(2)], [make_wrong(1), make_wrong(2)], decontaminate=contamination)
    ids = {row["sample_id"] for rows in found.values() for row in rows}
    assert ids == {make_row(2)["sample_id"]}


def test_packed_files_cannot_make_pairs(tmp_path: Path) -> None:
    """A packed file is refused for formats that read out of order, with the cure."""
    kept = write(tmp_path / "merged.jsonl.gz", [make_row(1)])
    with pytest.raises(ConfigError, match="a packed file must be unpacked first"):
        export_dataset([kept], [], tmp_path / "out", settings=WHOLE)
    counts = export_dataset([kept], [], tmp_path / "out", settings={"formats": ["messages"], "train_ratio": 1.0})
    assert counts.formats == {"messages": {"train": 1}}
    assert json.loads((tmp_path / "out/summary.json").read_text())["exported"] == 1
