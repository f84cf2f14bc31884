"""`potstill answers`, on stores that `generate_chunk` has filled."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from potstill.answers.store import AnswerStore
from potstill.cli import main
from tests.servers.handle import Server, running
from tests.unit.generate_work import Work


@pytest.fixture(scope="module")
def teacher() -> Iterator[Server]:
    with running(rows={"bad": "400"}) as server:
        yield server


@pytest.fixture
def work(teacher: Server, tmp_path: Path) -> Work:
    work = Work(tmp_path, teacher)
    work.rows("a", "b", "bad")
    work.run()
    return work


def _answers(work: Work, *words: str) -> int:
    return main(["answers", words[0], "--answers-dir", str(work.folder / "answers"), *words[1:]])


def test_list(work: Work, capsys: pytest.CaptureFixture[str]) -> None:
    """`list` counts answers, failures and tokens."""
    assert _answers(work, "list") == 0
    assert "fake: 2 answers (finish_reason: stop 2), failures: bad_request 1, tokens: 40 in" in capsys.readouterr().out


def test_verify_names_all_damage(work: Work, capsys: pytest.CaptureFixture[str]) -> None:
    """`verify` is content with a torn end, and names each damaged record by file and byte."""
    (path,) = (work.folder / "answers/fake/journals").glob("*.jsonl")
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:30])
    assert _answers(work, "verify") == 0
    assert "3 records whole, 0 damaged, 1 torn" in capsys.readouterr().out
    path.write_bytes(whole.replace(b"SELECT", b"select"))
    assert _answers(work, "verify") == 1
    assert capsys.readouterr().out.count("are damaged") == 2


def test_export(work: Work, tmp_path: Path) -> None:
    """`export` writes all records as JSONL."""
    assert _answers(work, "export", "--output", str(tmp_path / "all.jsonl")) == 0
    records = [json.loads(line) for line in (tmp_path / "all.jsonl").read_text().splitlines()]
    assert sorted(bool(record.get("error_class")) for record in records) == [False, False, True]
    assert "crc" not in records[0]


def test_prune_says_what_it_would_do_and_does_it_when_told(work: Work, capsys: pytest.CaptureFixture[str]) -> None:
    """Without --yes nothing changes; with it the failures are gone and asked again, the answers stay."""
    assert _answers(work, "prune", "--failures") == 0
    assert work.run().requests == 0
    assert _answers(work, "prune", "--failures", "--yes") == 0
    assert "1 records taken out, 2 stay" in capsys.readouterr().out
    assert work.run().requests == 1


def test_prune_takes_damage_out(work: Work) -> None:
    """After `prune --damaged` the store works again and only the damaged answers are asked for."""
    (path,) = (work.folder / "answers/fake/journals").glob("*.jsonl")
    path.write_bytes(path.read_bytes().replace(b"SELECT", b"select", 1))
    assert _answers(work, "prune", "--damaged", "--yes") == 0
    assert work.run().requests == 1


def test_prune_leaves_a_store_in_use_alone(work: Work, capsys: pytest.CaptureFixture[str]) -> None:
    """While a job writes to the store, prune says to try again later."""
    with AnswerStore(work.folder / "answers", "fake") as store:
        store.append(b"x" * 32, {"sample_index": 0, "finish_reason": "stop", "content": "y", "answered_at": 1.0})
        assert _answers(work, "prune", "--failures", "--yes") == 75
    assert "a job is writing" in capsys.readouterr().err


def test_import_takes_over_paid_rows(work: Work, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rows of another tool (`response`, `final_messages`) are found by the next run, which asks nothing."""
    user = {"role": "user", "content": "old"}
    reply = {
        "choices": [{"message": {"content": "whole reply"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 3},
    }
    rows = [
        {"final_messages": [user], "response": "text"},
        {"messages": [{**user, "content": "old 2"}, {"role": "assistant", "content": "at the end"}]},
        {"messages": [{**user, "content": "old 3"}], "response": reply},
        {"messages": [{**user, "content": "old 4"}]},
    ]
    source = tmp_path / "old.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = str(work.folder / "model.yaml")
    assert _answers(work, "import", str(source), "--model-config", model) == 0
    assert "3 answers taken over, 0 were there already, 1 rows cannot be used" in capsys.readouterr().out
    assert _answers(work, "import", str(source), "--model-config", model) == 1
    work.rows("old", "old 2", "old 3")
    assert work.run().requests == 0
    assert [row["generation"] for row in work.read("answered")] == ["text", "at the end", "whole reply"]


def test_a_store_that_is_not_there(work: Work, capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong folder or model name is said in one line."""
    assert _answers(work, "verify", "--model", "other") == 1
    assert "no answers of other there" in capsys.readouterr().err
