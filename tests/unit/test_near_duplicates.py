"""Near-duplicates of prompts: found, recorded with what they repeat, never lost; the same rows every time."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rensa", reason="the package rensa is not installed")

from potstill import near_duplicates
from potstill.errors import ConfigError
from potstill.near_duplicates import NearDuplicateFinder, prompt_text, shingles
from potstill.stages.prepare import Outputs, PrepareCounts
from tests.unit.test_prepare import read_jsonl, rows_of, run

LONG = "Which cinemas in the north of the city sold more than two hundred tickets on a rainy Monday in March"


def _prepare(
    folder: Path, questions: list[str], near: dict[str, Any] | None = None, **settings: Any
) -> tuple[PrepareCounts, Outputs]:
    rows = [{"id": number, "question": question} for number, question in enumerate(questions)]
    source = folder / "in.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run(
        folder, source, near_duplicates={"threshold": 0.8, "fields": None, "action": "drop", **(near or {})}, **settings
    )


def _exact(one: str, other: str) -> float:
    a, b = set(shingles(one)), set(shingles(other))
    return len(a & b) / len(a | b)


def test_a_near_duplicate_is_taken_out_and_written_down(tmp_path: Path) -> None:
    """It stands in duplicates.jsonl with the row it repeats and how alike they are, and is counted."""
    counts, outputs = _prepare(
        tmp_path, [LONG, "Something else entirely, about shops", LONG.replace("Monday", "Friday")]
    )
    kept, (dropped,) = rows_of(outputs), read_jsonl(outputs.duplicates)
    assert [row["question"][:5] for row in kept] == ["Which", "Somet"]
    assert dropped["duplicate_of"] == kept[0]["sample_id"]
    assert dropped["sample_id"] != kept[0]["sample_id"]
    assert dropped["duplicate_similarity"] == pytest.approx(_exact(kept[0]["question"], dropped["question"]), abs=0.1)
    assert (counts.lines, counts.rows, counts.duplicates, counts.near_duplicates) == (3, 2, 1, 1)


def test_mark_keeps_them(tmp_path: Path) -> None:
    """With `mark` all rows stay, the near-duplicates with the same two fields."""
    counts, outputs = _prepare(tmp_path, [LONG, LONG + "?"], {"action": "mark"})
    first, second = rows_of(outputs)
    assert second["duplicate_of"] == first["sample_id"]
    assert second["duplicate_similarity"] > 0.9
    assert "duplicate_of" not in first
    assert (counts.rows, counts.duplicates, counts.near_duplicates) == (2, 0, 1)
    assert read_jsonl(outputs.duplicates) == [second]


@pytest.mark.parametrize("exact", [True, "mark", False])
def test_exact_repeats_stay_the_business_of_deduplicate(tmp_path: Path, exact: object) -> None:
    """A row that repeats another exactly is no near-duplicate, whatever becomes of it."""
    counts, outputs = _prepare(tmp_path, [LONG, LONG, LONG + "?"], deduplicate=exact, canonical_fields=["question"])
    kept, written = rows_of(outputs), read_jsonl(outputs.duplicates)
    assert counts.near_duplicates == 1
    assert len(kept) == (1 if exact is True else 2)
    assert [row["duplicate_of"] for row in written if "duplicate_similarity" in row] == [kept[0]["sample_id"]]
    assert len(written) == (1 if exact is False else 2)


def test_there_are_no_chains(tmp_path: Path) -> None:
    """What a row repeats is a row that stays, and is alike enough itself: a row unlike all that stay, stays."""
    words = LONG.split()
    chain = [" ".join(["changed"] * number + words[number:]) for number in range(len(words))]
    _, outputs = _prepare(tmp_path, chain, {"threshold": 0.7})
    kept = {row["sample_id"]: row["question"] for row in rows_of(outputs)}
    dropped = read_jsonl(outputs.duplicates)
    assert 2 <= len(kept) < len(chain)
    assert len(kept) + len(dropped) == len(chain)
    for row in dropped:
        assert _exact(kept[row["duplicate_of"]], row["question"]) > 0.6


def test_fields_say_what_is_compared(tmp_path: Path) -> None:
    """Rows that share a long schema differ by their question; a field that a row does not have stops the run."""
    row = {"sample_id": "ab", "messages": [{"role": "user", "content": "u"}], "question": "q", "schema": "s"}
    assert prompt_text(row, ["question", "schema"]) == "q\ns"
    assert prompt_text(row, None) == "u"
    assert prompt_text({**row, "question": " "}, ["question"]) == "ab"
    with pytest.raises(ConfigError, match="questoin: a row has no such field; it has"):
        prompt_text(row, ["questoin"])


def test_any_text_can_be_compared(tmp_path: Path) -> None:
    """Short texts, Chinese, half an emoji: all are rows as any other."""
    texts = [
        "",
        "a",
        "ab",
        "北京市海淀区有多少家电影院卖出了超过两百张票",
        "北京市海淀区有多少家电影院卖出了超过三百张票",
        "\ud83d x",
        "\ud83d x y z",
    ]
    counts, outputs = _prepare(tmp_path, texts, {"threshold": 0.5, "fields": ["question"]})
    assert counts.rows + counts.duplicates == len(texts)
    (dropped,) = read_jsonl(outputs.duplicates)
    assert dropped["question"] == texts[4]


def _texts(count: int) -> list[str]:
    """Return texts of which every second one repeats an earlier one but for a few words."""
    rng = random.Random(7)
    words = ["".join(rng.choices("abcdefghij", k=6)) for _ in range(2000)]
    texts: list[str] = []
    for number in range(count):
        parts = rng.choices(words, k=60) if number % 2 == 0 else rng.choice(texts).split()
        for _ in range(rng.randrange(6) if number % 2 else 0):
            parts[rng.randrange(len(parts))] = rng.choice(words)
        texts.append(" ".join(parts))
    return texts


def _find(folder: Path, texts: list[str], threshold: float) -> list[tuple[int, float] | None]:
    folder.mkdir()
    finder = NearDuplicateFinder(folder, threshold)
    for number, text in enumerate(texts):
        finder.add(text, number.to_bytes(32, "big"))
    count = finder.resolve(iter([0] * len(texts)))
    found = [None if near is None else (int(near.sample_id, 16), near.similarity) for near in finder.repeats()]
    assert count == sum(near is not None for near in found)
    return found


@pytest.mark.parametrize("threshold", [0.6, 0.8, 0.9])
def test_what_is_found_is_what_comparing_all_pairs_finds(tmp_path: Path, threshold: float) -> None:
    """Of the rows that are clearly alike at least 98 % are found, and none that is clearly not."""
    texts = _texts(400)
    found = _find(tmp_path / "f", texts, threshold)
    kept = [number for number, near in enumerate(found) if near is None]
    sets = [set(shingles(text)) for text in texts]
    missed = clear = 0
    for number, near in enumerate(found):
        best = max((len(sets[number] & sets[k]) / len(sets[number] | sets[k]) for k in kept if k < number), default=0.0)
        clear += best > threshold + 0.08
        missed += near is None and best > threshold + 0.08
        if near is not None:
            assert found[near[0]] is None
            assert len(sets[number] & sets[near[0]]) / len(sets[number] | sets[near[0]]) > threshold - 0.12
    assert clear > 20
    assert missed <= 0.02 * clear


def test_parts_and_batches_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The result is the same whatever the pieces are in which the work is done, and every time."""
    texts = _texts(300)
    expected = _find(tmp_path / "one", texts, 0.8)
    monkeypatch.setattr(near_duplicates, "_SORTED_ROWS", 64)
    monkeypatch.setattr(near_duplicates, "_BATCH", 7)
    monkeypatch.setattr(near_duplicates, "_PAIRS", 5)
    assert _find(tmp_path / "two", texts, 0.8) == expected
