"""Rows that repeat a benchmark are found, reported and left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from potstill.errors import ConfigError, InputError
from potstill.exports.normalise import split_words
from potstill.stages.export import export_dataset
from tests.unit.export_rows import make_row, read, write

LONG = "Which of the singers of the first group that are older than thirty have never won a prize?"


def _export(folder: Path, rows: list[Any], **settings: Any) -> tuple[Any, list[Any], int]:
    kept = write(folder / "merged.jsonl", rows)
    counts = export_dataset(
        [kept],
        [],
        folder / "out",
        settings={"formats": ["messages"], "train_ratio": 1.0, "decontaminate": settings},
    )
    report = json.loads((folder / "out/decontamination.json").read_text())
    return report, read(folder / "out/decontamination.jsonl"), counts.exported


def test_equal_text_is_found_whatever_its_spelling(tmp_path: Path) -> None:
    """Case, blanks, punctuation and full-width forms do not hide a repeated question."""
    reference = write(tmp_path / "dev.jsonl", [{"question": "how many SINGERS of group １ are older than 30"}])
    report, hits, exported = _export(
        tmp_path, [make_row(1), make_row(2)], files=[str(reference)], fields=["question"], methods=["exact"]
    )
    assert exported == 1
    assert [(hit["method"], hit["sample_id"], hit["line"]) for hit in hits] == [("exact", make_row(1)["sample_id"], 1)]
    assert (report["checked"], report["contaminated"], report["dropped"]) == (2, 1, 1)
    assert report["by_file"][str(reference)] == {"rows": 1, "texts": 1, "statements": 0, "contaminated": 1}


def test_a_question_inside_a_long_prompt_is_found_by_its_ngrams(tmp_path: Path) -> None:
    """The share counts over the reference, so the schema around the question does not dilute it."""
    reference = write(
        tmp_path / "dev.jsonl", [{"q": LONG}, {"q": "Another question about quite different things here"}]
    )
    long_prompt = f"{'CREATE TABLE x (y); ' * 200}\n{LONG.replace('never won', 'not won')}\nAnswer in SQL."
    rows = [make_row(1, messages=[{"role": "user", "content": long_prompt}]), make_row(2)]
    _, hits, exported = _export(tmp_path, rows, files=[str(reference)], methods=["ngram"], ngram=5, ngram_share=0.5)
    assert exported == 1
    assert [(hit["method"], hit["line"]) for hit in hits] == [("ngram", 1)]
    assert 0.5 <= hits[0]["share"] < 1.0


def test_a_share_below_the_limit_is_no_hit(tmp_path: Path) -> None:
    """Some words in common are no contamination."""
    reference = write(tmp_path / "dev.jsonl", [{"q": LONG}])
    row = make_row(1, question="Which of the singers of the first group that came by train can swim?")
    report, hits, exported = _export(
        tmp_path, [row], files=[str(reference)], methods=["ngram"], ngram=5, ngram_share=0.5
    )
    assert (hits, exported, report["contaminated"]) == ([], 1, 0)


def test_equal_sql_is_found_by_its_tree(tmp_path: Path) -> None:
    """A statement in another spelling repeats the reference; another literal does not."""
    path = tmp_path / "dev_gold.sql"
    path.write_text("select COUNT(*) from Singer as s where S.grp=1 and s.age>30\tconcert_singer\n")
    rows = [make_row(1, gold_sql=None, sql="SELECT count(*) FROM singer x WHERE x.grp = 1 AND x.age > 30"), make_row(2)]
    report, hits, exported = _export(tmp_path, rows, files=[str(path)], methods=["sql"])
    assert exported == 1
    assert hits[0]["reference"].startswith("select COUNT")
    assert report["by_method"] == {"sql": 1}


def test_a_statement_that_does_not_parse_is_compared_by_its_words(tmp_path: Path) -> None:
    """What the parser does not know still counts as a repeat when it is the same text."""
    path = tmp_path / "dev.sql"
    path.write_text("SELECT a FROM t WHERE ((( b = 1\n")
    row = make_row(1, gold_sql=None, sql="select a from t where ((( b=1")
    _, hits, _ = _export(tmp_path, [row, make_row(2)], files=[str(path)], methods=["sql"])
    assert [hit["sample_id"] for hit in hits] == [row["sample_id"]]


def test_a_report_alone_drops_nothing(tmp_path: Path) -> None:
    """`action: report` writes the same hits and keeps the rows."""
    reference = write(tmp_path / "dev.jsonl", [{"question": make_row(1)["question"]}])
    report, hits, exported = _export(
        tmp_path, [make_row(1)], files=[str(reference)], fields=["question"], action="report"
    )
    assert (exported, len(hits), hits[0]["dropped"], report["dropped"]) == (1, 1, False, 0)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("dev.json", json.dumps([{"question": LONG}])),
        ("dev.json", json.dumps({"version": 1, "data": [{"question": LONG}]})),
        ("dev.csv", f'id,question\n7,"{LONG}"\n'),
        ("dev.tsv", f"id\tquestion\n7\t{LONG}\n"),
        ("dev.txt", f"{LONG}\n"),
        ("dev.jsonl", json.dumps({"messages": [{"role": "user", "content": LONG}]}) + "\n"),
        ("dev.jsonl", json.dumps({"conversations": [{"from": "human", "value": LONG}]}) + "\n"),
    ],
)
def test_references_are_read_in_the_forms_they_are_published_in(tmp_path: Path, name: str, text: str) -> None:
    """JSON lists, tables, chat files and plain lines give the same hit."""
    (tmp_path / name).write_text(text, encoding="utf-8")
    _, hits, _ = _export(tmp_path, [make_row(1, question=LONG)], files=[str(tmp_path / name)], fields=["question"])
    assert [hit["method"] for hit in hits] == ["exact"]


def test_parquet_references_are_read(tmp_path: Path) -> None:
    """A Parquet reference gives the hit too."""
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"question": LONG}]), tmp_path / "dev.parquet")
    _, hits, _ = _export(
        tmp_path, [make_row(1, question=LONG)], files=[str(tmp_path / "dev.parquet")], fields=["question"]
    )
    assert len(hits) == 1


@pytest.mark.parametrize(
    ("name", "text", "error", "message"),
    [
        ("dev.jsonl", None, ConfigError, "no such file"),
        ("dev.xlsx", "x", ConfigError, r"cannot read '.xlsx'; allowed: .jsonl"),
        ("dev.json", "{} {}", InputError, "must end in .jsonl"),
        ("dev.json", "7", InputError, "neither a list of objects"),
        ("dev.jsonl", "{\n", InputError, "line 1: not JSON"),
        ("dev.parquet", "no", InputError, "not Parquet"),
    ],
)
def test_a_reference_that_cannot_be_read_is_named(
    tmp_path: Path, name: str, text: str | None, error: type[Exception], message: str
) -> None:
    """A missing or broken reference stops the export: a check that saw nothing must not pass."""
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(error, match=message):
        _export(tmp_path, [make_row(1)], files=[str(tmp_path / name)])


def test_signs_of_scripts_without_blanks_are_words() -> None:
    """Chinese text has n-grams too."""
    assert split_words("有多少歌手older than 30？") == ["有", "多", "少", "歌", "手", "older", "than", "30"]
