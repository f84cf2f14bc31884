"""Agreement of a student with its teacher."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pandas as pd
import pytest

from potstill.cli import main
from potstill.errors import InputError
from potstill.stages.export import export_dataset
from potstill.student import held_out, read_scores, score_agreement, write_agreement
from tests.unit.export_rows import make_row, make_wrong, read, write


def test_the_numbers_are_those_of_another_program() -> None:
    """Means, errors and both correlations agree with pandas on 500 random rows with many ties."""
    random.seed(7)
    teacher = {str(at): random.choice([0.0, 0.5, 1.0]) for at in range(500)}
    student = {key: random.choice([value, 0.45, random.random()]) for key, value in teacher.items()}
    found = score_agreement(teacher, student)
    frame = pd.DataFrame({"teacher": teacher, "student": student})
    difference = frame["student"] - frame["teacher"]
    assert found["mae"] == pytest.approx(difference.abs().mean())
    assert found["rmse"] == pytest.approx((difference**2).mean() ** 0.5)
    assert found["pearson"] == pytest.approx(frame.corr().iloc[0, 1])
    assert found["spearman"] == pytest.approx(frame.rank().corr().iloc[0, 1])
    assert found["agreement"]["0.1"] == pytest.approx((difference.abs() <= 0.1 + 1e-9).mean())
    assert found["pass_agreement"] == pytest.approx(((frame["student"] >= 1) == (frame["teacher"] >= 1)).mean())


def test_tolerances_include_their_border() -> None:
    """A difference of 0.1 agrees at 0.1, whatever binary fractions make of it."""
    found = score_agreement({"a": 0.3, "b": 0.0, "c": 1.0}, {"a": 0.2, "b": 0.05, "c": 0.8})
    assert found["agreement"] == {"0": 0.0, "0.05": pytest.approx(1 / 3), "0.1": pytest.approx(2 / 3), "0.2": 1.0}


def test_missing_rows_are_counted_and_not_compared() -> None:
    """Rows that only one of the two has do not count as wrong."""
    found = score_agreement({"a": 1.0, "b": 1.0, "c": None}, {"a": 1.0, "c": 1.0, "d": 0.0})
    assert (found["rows"], found["compared"], found["missing"], found["extra"]) == (3, 1, 1, 2)
    assert found["mae"] == 0.0


def test_what_is_not_defined_is_null() -> None:
    """Nothing to compare, or scores that are all the same, give null, not an error and not a zero."""
    empty = score_agreement({}, {})
    assert {empty[name] for name in ("mae", "rmse", "pearson", "spearman", "pass_agreement")} == {None}
    same = score_agreement({"a": 0.1, "b": 0.1, "c": 0.1}, {"a": 0.0, "b": 0.5, "c": 1.0})
    assert same["pearson"] is same["spearman"] is None
    assert same["mae"] == pytest.approx(1.4 / 3)


def test_the_file_compares_before_and_after(tmp_path: Path) -> None:
    """Two students named give their change; kept and rejected rows count alike."""
    teacher = [
        write(tmp_path / "merged.jsonl", [make_row(1), make_row(2)]),
        write(tmp_path / "rejected.jsonl", [make_row(3, score=0.0)]),
    ]
    before = [write(tmp_path / "before.jsonl", [make_row(number, score=0.0) for number in (1, 2, 3)])]
    after = [write(tmp_path / "after.jsonl", [make_row(1), make_row(2, score=0.5), make_row(3, score=0.0)])]
    report = write_agreement(
        tmp_path / "score_agreement.json", teacher=teacher, students={"before": before, "after": after}
    )
    assert report == json.loads((tmp_path / "score_agreement.json").read_text())
    assert report["students"]["before"]["mae"] == pytest.approx(2 / 3)
    assert report["change"]["mae"] == pytest.approx(1 / 6 - 2 / 3)
    assert report["students"]["after"]["pass_agreement"] == pytest.approx(2 / 3)
    assert report["change"]["pearson"] is None


def test_a_score_that_is_no_number_is_named(tmp_path: Path) -> None:
    """File, row and what was found."""
    path = write(tmp_path / "rows.jsonl", [make_row(1, score="high")])
    with pytest.raises(InputError, match=r"rows.jsonl: row [0-9a-f]+: score is 'high', no number"):
        read_scores([path])


def test_a_student_is_asked_about_the_held_out_split_alone(tmp_path: Path) -> None:
    """Rows of the teacher's test split, kept or rejected, are asked; all others say why not."""
    kept = write(tmp_path / "merged.jsonl", [make_row(number) for number in range(40)])
    rejected = write(tmp_path / "rejected.jsonl", [make_wrong(number) for number in range(30, 50)])
    settings = {
        "formats": ["messages"],
        "train_ratio": 0.6,
        "valid_ratio": 0.0,
        "test_ratio": 0.4,
        "fields": ["sample_id"],
    }
    export_dataset([kept], [rejected], tmp_path / "out", settings=settings)
    skip = held_out(tmp_path / "out/splits.jsonl")
    exported = {row["sample_id"] for row in read(tmp_path / "out/messages/test.jsonl")}
    asked = {make_row(number)["sample_id"] for number in range(60) if skip(make_row(number)) is None}
    assert exported < asked
    assert len(read(tmp_path / "out/splits.jsonl")) == 60
    assert skip(make_row(99)) == "not_held_out"
    with pytest.raises(InputError, match=r"no row is in the split 'valid'"):
        held_out(tmp_path / "out/splits.jsonl", "valid")


def test_the_command_compares_before_and_after(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two students named are before and after training; each gets a line, the file holds all."""
    rows = [make_row(number) for number in range(4)]
    teacher = write(tmp_path / "teacher.jsonl", rows)
    before = write(tmp_path / "before.jsonl", [{**row, "student_score": 0.5} for row in rows[:3]])
    after = write(tmp_path / "after.jsonl", [{**row, "student_score": 1.0} for row in rows])
    words = ["agreement", "--teacher", str(teacher), "--student", str(before), "--student", str(after)]
    assert main([*words, "--student-field", "student_score", "--output", str(tmp_path / "out.json")]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "before: 3 rows compared, 1 missing; mae 0.5000, rmse 0.5000, pearson -, pass_agreement 0.0000",
        "after: 4 rows compared, 0 missing; mae 0.0000, rmse 0.0000, pearson -, pass_agreement 1.0000",
    ]
    assert json.loads((tmp_path / "out.json").read_text())["change"]["mae"] == -0.5


def test_what_a_student_was_not_asked_is_not_missing(tmp_path: Path) -> None:
    """Rows outside the held-out split are left out of the comparison; a failed row is missing."""
    teacher = write(tmp_path / "teacher.jsonl", [make_row(number) for number in range(5)])
    student = [
        write(tmp_path / "merged.jsonl", [make_row(0)]),
        write(tmp_path / "failed.jsonl", [make_row(1, score=None)]),
        write(tmp_path / "not_asked.jsonl", [make_row(at, not_asked_reason="not_held_out") for at in (2, 3, 4, 9)]),
    ]
    report = write_agreement(tmp_path / "out.json", teacher=[teacher], students={"s": student})["students"]["s"]
    assert {name: report[name] for name in ("rows", "compared", "missing", "not_asked")} == {
        "rows": 2,
        "compared": 1,
        "missing": 1,
        "not_asked": 3,
    }
