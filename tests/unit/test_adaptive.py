"""Why a row is not asked because of the answers that are there already; the order of rows of several files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from potstill.adaptive import solved_by, solved_in_round, target_reached
from potstill.errors import ConservationError
from potstill.reports.rounds import Rounds
from potstill.rows import publish_rows
from potstill.stages.order import rows_in_order


def rows(*ids: str, **fields: object) -> list[dict[str, object]]:
    """Return rows with these ids and the same other fields."""
    return [{"sample_id": name, **fields} for name in ids]


def test_the_first_model_that_kept_a_row_has_solved_it(tmp_path: Path) -> None:
    """A later round of it counts for it too; rows that nobody solved are asked."""
    small, again, large = (
        tmp_path / name / "0001.kept.jsonl" for name in ("small/filtered", "small/rounds/2/filtered", "large/filtered")
    )
    publish_rows(small, rows("a"))
    publish_rows(again, rows("b"))
    publish_rows(large, rows("a", "c"))
    reason = solved_by([small, again, large], tmp_path)
    assert [reason(row) for row in rows("a", "b", "c", "d")] == [
        "solved_by:small",
        "solved_by:small",
        "solved_by:large",
        None,
    ]


@pytest.mark.parametrize(
    ("stop_when", "expected"),
    [
        ("gold_match", ["solved", None, "bad_gold", "solved", "bad_gold", None]),
        ("exec_pass", ["solved", "solved", "solved", "solved", "bad_gold", None]),
        ("kept", [None, None, "solved", "solved", "bad_gold", None]),
    ],
)
def test_a_round_asks_what_the_rounds_before_have_not_solved(
    tmp_path: Path, stop_when: str, expected: list[str | None]
) -> None:
    """One solved sample is enough; what earlier rounds solved is handed on; a row out of budget may be asked again."""
    kept, rejected, not_asked = (tmp_path / f"0001.{end}.jsonl" for end in ("kept", "rejected", "not_asked"))
    publish_rows(kept, rows("c", gold_match=None, exec_pass=True, keep=True))
    publish_rows(
        rejected,
        [
            *rows("a", gold_match=False, exec_pass=False, keep=False),
            *rows("a", gold_match=True, exec_pass=True, keep=False),
            *rows("b", gold_match=False, exec_pass=True, keep=False),
        ],
    )
    publish_rows(
        not_asked,
        [
            *rows("d", not_asked_reason="solved"),
            *rows("e", not_asked_reason="bad_gold"),
            *rows("f", not_asked_reason="budget"),
        ],
    )
    reason = solved_in_round([kept, rejected, not_asked], stop_when)
    assert [reason(row) for row in rows("a", "b", "c", "d", "e", "f")] == expected


def test_a_target_counts_the_kept_rows_of_all_rounds_since_they_were_decided(tmp_path: Path) -> None:
    """Files older than the marker do not count, and a chunk that has kept rows of its own is never given up."""
    marker = tmp_path / "target.json"
    marker.write_text("{}")
    publish_rows(tmp_path / "filtered/0001.kept.jsonl", rows("a", "b"))
    publish_rows(tmp_path / "rounds/2/filtered/0001.kept.jsonl", rows("c"))
    publish_rows(tmp_path / "filtered/0002.kept.jsonl", rows("d"))
    publish_rows(tmp_path / "filtered/0003.kept.jsonl", [])
    os.utime(tmp_path / "filtered/0002.kept.jsonl", (0, 0))
    generated = tmp_path / "generated"
    found = {name: target_reached(marker, 3, generated / f"{name}.jsonl") for name in ("0001", "0002", "0003", "0004")}
    assert found == {"0001": False, "0002": True, "0003": True, "0004": True}
    assert not target_reached(marker, 4, generated / "0004.jsonl")
    assert target_reached(marker, 3, tmp_path / "rounds/3/generated/0001.jsonl")
    # Packed files are those of a run with packed files, and of no other.
    assert not target_reached(marker, 1, generated / "0004.jsonl.zst")
    publish_rows(tmp_path / "filtered/0001.kept.jsonl.zst", rows("a"))
    assert target_reached(marker, 1, generated / "0004.jsonl.zst")


def test_files_side_by_side_keep_the_order_of_the_input(tmp_path: Path) -> None:
    """Each prepared row comes with its rows in each file; one that no file has does not come."""
    prepared, first, second = (tmp_path / name for name in ("prepared.jsonl", "first.jsonl", "second.jsonl"))
    publish_rows(prepared, rows("z", "a", "m", "b"))
    publish_rows(first, rows("z", "m", "m"))
    publish_rows(second, rows("m", "b"))
    found = [
        [[row["sample_id"] for row in part] for part in parts] for parts in rows_in_order([prepared], [first, second])
    ]
    assert found == [[["z"], []], [["m", "m"], ["m"]], [[], ["b"]]]


def test_a_file_of_another_run_is_refused(tmp_path: Path) -> None:
    """A row that was not prepared, or does not stand in order, is an error that names file and row."""
    prepared, file = tmp_path / "prepared.jsonl", tmp_path / "file.jsonl"
    publish_rows(prepared, rows("a", "b"))
    publish_rows(file, rows("b", "a"))
    with pytest.raises(ConservationError, match=r"file\.jsonl: the row a was not prepared"):
        list(rows_in_order([prepared], [file]))


def test_rounds_are_counted_by_rows_not_by_samples() -> None:
    """Two right samples of a row solve it once; a row without usable gold is asked, and not in pass@k; failures are."""
    counted = Rounds({"max": 2, "samples": 2, "stop_when": "gold_match"}, priced=True)
    for index in (0, 1):
        counted.add("kept", {"sample_id": "a", "sample_index": index, "gold_match": True}, 1.0)
        counted.add("rejected", {"sample_id": "b", "sample_index": index, "gold_match": False}, 1.0)
        counted.add("rejected", {"sample_id": "c", "sample_index": index, "gold_match": None}, 1.0)
        counted.add("failed", {"sample_id": "d", "sample_index": index})
        counted.add("rejected", {"sample_id": "d", "sample_index": 2 + index, "gold_match": False}, 1.0)
    counted.add("kept", {"sample_id": "b", "sample_index": 2, "gold_match": True}, 1.0)
    first, second = counted.as_list()
    assert (first["rows_asked"], first["rows_solved"], first["cost_per_solved_row"]) == (4, 1, 6.0)
    assert (second["rows_asked"], second["rows_solved"], second["cost_per_solved_row"]) == (2, 1, 3.0)
    assert (first["pass_at_k"], second["pass_at_k"]) == (pytest.approx(1 / 3), pytest.approx(2 / 3))
