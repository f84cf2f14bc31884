"""Splits, limits per group, and the check on leaks."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill.errors import ConfigError, InputError
from potstill.exports import split as splits
from potstill.exports.normalise import normalise_sql
from potstill.exports.ratios import Ratios
from potstill.stages.export import export_dataset
from tests.unit.export_rows import make_row, make_wrong, read, write

HALVES = {"formats": ["messages"], "train_ratio": 0.5, "test_ratio": 0.25, "fields": ["db_id", "sample_id", "gold_sql"]}


def _export(folder: Path, rows: list[Any], **settings: Any) -> dict[str, list[Any]]:
    kept = write(folder / "merged.jsonl", rows)
    export_dataset([kept], [], folder / "export", settings={**HALVES, **settings})
    return {name: read(folder / f"export/messages/{name}.jsonl") for name in ("train", "valid", "test")}


def _hashes(values: list[int]) -> splits.Hashes:
    return np.array(values, dtype=np.uint64)


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 8)), max_size=80), st.randoms())
def test_joined_groups_part_no_prompt_and_do_not_hang_on_the_order(rows: list[tuple[int, int]], random: Any) -> None:
    """Rows that share a prompt or a group get one joint group, whatever the order of the rows."""
    joined = splits.join_groups(_hashes([row[0] for row in rows]), _hashes([row[1] for row in rows])).tolist()
    for column in (0, 1):
        for value in {row[column] for row in rows}:
            assert len({group for row, group in zip(rows, joined, strict=True) if row[column] == value}) == 1
    order = list(range(len(rows)))
    random.shuffle(order)
    again = splits.join_groups(_hashes([rows[at][0] for at in order]), _hashes([rows[at][1] for at in order])).tolist()
    assert again == [joined[at] for at in order]


@given(
    st.sets(st.integers(0, 2**64 - 1), max_size=12), st.sampled_from([(0.9, 0.1, 0), (0.5, 0.25, 0.25), (0.8, 0, 0.2)])
)
def test_each_split_gets_a_group_as_long_as_there_are_enough(places: set[int], shares: tuple[float, ...]) -> None:
    """With as many groups as splits none is empty; with fewer, train comes before valid before test."""
    ratios = Ratios(*shares)
    line = _hashes(sorted(places))
    assigned = splits.assign_splits(line, splits.find_borders(line, ratios)).tolist()
    wanted = [number for number, share in enumerate(shares) if share > 0]
    assert set(assigned) == set(wanted[: len(places)])


@given(st.lists(st.integers(0, 5), max_size=60), st.integers(1, 4))
def test_a_limit_keeps_so_many_rows_of_each_group(keys: list[int], limit: int) -> None:
    """Each group keeps its rows up to the limit."""
    chosen = splits.choose_limited(_hashes(keys), _hashes([splits.hash64(str(at)) for at in range(len(keys))]), limit)
    for key in set(keys):
        assert sum(chosen[at] for at in range(len(keys)) if keys[at] == key) == min(limit, keys.count(key))


def test_a_database_is_in_one_split_only(tmp_path: Path) -> None:
    """Grouped by database, no database is in two splits, and every row is in one."""
    found = _export(tmp_path, [make_row(number) for number in range(70)], split_by="field:db_id")
    databases = {name: {row["db_id"] for row in rows} for name, rows in found.items()}
    assert sum(len(names) for names in databases.values()) == 7
    assert all(databases.values())
    assert sum(len(rows) for rows in found.values()) == 70


def test_a_template_is_in_one_split_only(tmp_path: Path) -> None:
    """Grouped by SQL template, statements that differ in a literal or in blanks stay together."""
    rows = [
        make_row(number, gold_sql=f"SELECT c{number % 9} FROM  t  WHERE x = {number} -- {number}")
        for number in range(90)
    ]
    found = _export(tmp_path, rows, split_by="sql_template")
    columns = {name: {row["gold_sql"].split()[1] for row in rows} for name, rows in found.items()}
    assert sum(len(names) for names in columns.values()) == 9


def test_samples_of_one_prompt_stay_together_whatever_the_group(tmp_path: Path) -> None:
    """Two answers to one prompt with different SQL are in one split, also when grouped by SQL template."""
    rows = [
        make_row(number, sample_index=at, sql=f"SELECT c{at} FROM t{number}", gold_sql=None)
        for number in range(40)
        for at in range(3)
    ]
    found = _export(tmp_path, rows, split_by="sql_template")
    samples = {name: {row["sample_id"] for row in rows} for name, rows in found.items()}
    assert sum(len(names) for names in samples.values()) == 40


def test_more_rows_move_no_group(tmp_path: Path) -> None:
    """A group stays in its split when rows are added, so a test set stays a test set."""
    few = _export(tmp_path / "few", [make_row(number) for number in range(200)])
    many = _export(tmp_path / "many", [make_row(number) for number in reversed(range(600))])
    for name, rows in few.items():
        assert {row["sample_id"] for row in rows} <= {row["sample_id"] for row in many[name]}
    assert abs(len(many["train"]) / 600 - 0.5) < 0.08


def test_another_seed_gives_another_split(tmp_path: Path) -> None:
    """The seed is part of the hash."""
    rows = [make_row(number) for number in range(60)]
    assert _export(tmp_path / "a", rows, split_seed="one") != _export(tmp_path / "b", rows, split_seed="two")


def test_limits_balance_groups_and_choose_the_same_rows_in_any_order(tmp_path: Path) -> None:
    """At most so many rows per database, chosen by the rows' own hash; what was left out is counted."""
    rows = [make_row(number, db_id="big" if number < 80 else "small") for number in range(90)]
    limits = {"field:db_id": 20}
    found = _export(tmp_path / "a", rows, limits=limits)
    again = _export(tmp_path / "b", rows[::-1], limits=limits)
    every = [row for split in found.values() for row in split]
    assert [sum(row["db_id"] == name for row in every) for name in ("big", "small")] == [20, 10]
    assert {row["sample_id"] for row in every} == {row["sample_id"] for split in again.values() for row in split}
    assert json.loads((tmp_path / "a/export/summary.json").read_text())["left_out"] == {"over_limit": 60}


def test_the_ledger_sees_a_value_in_two_splits() -> None:
    """One leak per value that changes its split; the same value twice in one split is none."""
    ledger = splits.SplitLedger(("prompt",))
    for position, (value, split) in enumerate([(7, 0), (8, 0), (7, 0), (8, 2), (9, 1)]):
        ledger.add("prompt", value, split, position)
    assert ledger.find_leaks("prompt") == [splits.Leak("prompt", 1, 3)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train_ratio": 0.9, "test_ratio": 0.2}, r"train_ratio 0.9 \+ valid_ratio -0.1 \+ test_ratio 0.2 must be 1"),
        ({"train_ratio": 0.5, "valid_ratio": 0.1, "test_ratio": 0.1}, "must be 1"),
        ({"split_by": "database"}, r"export.split_by: 'database' is no group; allowed: prompt, sql_template"),
        ({"split_by": "field:"}, "is no group"),
        ({"limits": {"db_id": 3}}, r"export.limits.db_id: 'db_id' is no group"),
        ({"answer": "template"}, r"export.answer is 'template' and export.answer_template is None"),
    ],
)
def test_settings_that_contradict_are_named(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    """A wrong setting is a config error that says the key and what is allowed."""
    with pytest.raises(ConfigError, match=message):
        _export(tmp_path, [make_row(1)], **settings)


def test_a_field_that_rows_lack_is_named(tmp_path: Path) -> None:
    """A group by a field that a row does not have names row, key and the fields that there are."""
    with pytest.raises(InputError, match=r"export.split_by: row [0-9a-f]+ has no field 'database'; it has: "):
        _export(tmp_path, [make_row(1)], split_by="field:database")


def test_rejected_rows_of_a_prompt_share_its_split(tmp_path: Path) -> None:
    """KTO's negatives of a prompt are in the split of its positives, and of prompts without any too."""
    kept = write(tmp_path / "merged.jsonl", [make_row(number) for number in range(0, 60, 2)])
    wrong = [make_wrong(number, sample_index=at) for number in range(60) for at in (1, 2)]
    rejected = write(tmp_path / "rejected.jsonl", wrong)
    export_dataset([kept], [rejected], tmp_path / "out", settings={**HALVES, "formats": ["kto", "messages"]})
    samples = [
        {row["sample_id"] for row in read(tmp_path / f"out/kto/{name}.jsonl")} for name in ("train", "valid", "test")
    ]
    assert sum(map(len, samples)) == 60
    assert {row["sample_id"] for row in read(tmp_path / "out/messages/train.jsonl")} <= samples[0]


@pytest.mark.parametrize(
    ("left", "right", "form"),
    [
        ("select A from T where b = 'X' ;", "SELECT a\nFROM t -- c\nWHERE b='X'", "ast"),
        ('SELECT u."name" FROM users AS u', "SELECT x.name FROM Users x", "ast"),
        ("SELECT u.name FROM users AS u", "SELECT name FROM users", "ast"),
        ("SELECT users.a FROM users, k", "SELECT x.a FROM users AS x, k AS y", "ast"),
        ("SELECT n.a FROM (SELECT a FROM t) AS n", "SELECT m.a FROM (SELECT a FROM t) m", "ast"),
        ("WITH k AS (SELECT 1 AS n) SELECT n FROM k", "WITH z AS (SELECT 1 AS n) SELECT n FROM z", "ast"),
        ("SELECT a FROM t WHERE b = 1 LIMIT 3", "SELECT a FROM t WHERE b = 'two' LIMIT 5", "template"),
        ("SELECT a FROM t WHERE b = 1", "SELECT name FROM people WHERE age = 30", "skeleton"),
    ],
)
def test_statements_that_are_one_in_a_form(left: str, right: str, form: Any) -> None:
    """Spelling, aliases, comments, literals, names: each form folds what it says."""
    assert normalise_sql(left, form) == normalise_sql(right, form) is not None


@pytest.mark.parametrize(
    ("left", "right", "form"),
    [
        ("SELECT a FROM t WHERE b = 'X'", "SELECT a FROM t WHERE b = 'x'", "ast"),
        ("SELECT a FROM t", "SELECT a FROM u", "template"),
        ("SELECT DISTINCT a FROM t", "SELECT a FROM t", "skeleton"),
        ("SELECT a.x FROM t a, u b", "SELECT b.x FROM t a, u b", "ast"),
        ("SELECT 1 FROM a AS b JOIN b AS c", "SELECT 1 FROM a AS x JOIN x AS c", "ast"),
        ("SELECT a FROM t", "SELECT a FROM u", "ast"),
    ],
)
def test_statements_that_differ_in_a_form(left: str, right: str, form: Any) -> None:
    """What a form does not fold stays apart."""
    assert normalise_sql(left, form) != normalise_sql(right, form)


@pytest.mark.parametrize("text", ["Here is the query", "DROP TABLE t", "SELECT FROM WHERE", "", "SELECT 1; SELECT 2"])
def test_what_is_no_single_query_has_no_normal_form(text: str) -> None:
    """Prose, other kinds of statements and several statements give None."""
    assert normalise_sql(text, "ast") is None


_ROW = st.tuples(st.integers(0, 9), st.integers(0, 4), st.integers(0, 3), st.booleans(), st.booleans())


@settings(max_examples=40, deadline=None)
@given(st.lists(_ROW, max_size=30), st.sampled_from(["prompt", "field:db_id", "sql_template"]))
def test_nothing_leaks_whatever_the_rows(rows: list[tuple[int, int, int, bool, bool]], split_by: str) -> None:
    """Over random rows, prompts, databases, statements and verdicts, no prompt of any format is in two splits."""
    made = [
        (make_row if good else make_wrong)(
            prompt, db_id=f"d{database}", sample_index=at, gold_sql=None, sql=f"SELECT c{sql}"
        )
        for at, (prompt, database, sql, good, _) in enumerate(rows)
    ]
    formats = ["messages", "dpo", "kto"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        kept = write(folder / "m.jsonl", [row for row, spec in zip(made, rows, strict=True) if spec[3] and spec[4]])
        bad = write(
            folder / "r.jsonl", [row for row, spec in zip(made, rows, strict=True) if not (spec[3] and spec[4])]
        )
        export_dataset([kept], [bad], folder / "o", settings={**HALVES, "formats": formats, "split_by": split_by})
        found: dict[str, set[str]] = {}
        for split in ("train", "valid", "test"):
            for kind in formats:
                for row in read(folder / f"o/{kind}/{split}.jsonl"):
                    messages = row["prompt"] if "prompt" in row else row["messages"][:-1]
                    found.setdefault(json.dumps(messages), set()).add(split)
        assert all(len(splits) == 1 for splits in found.values())
        assert sum(len(read(folder / f"o/messages/{split}.jsonl")) for split in ("train", "valid", "test")) == len(
            read(kept)
        )
