"""The judge stage, over the engine and a judge on loopback."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from potstill.config.model import load_model
from potstill.errors import ConfigError, PotstillError
from potstill.judge.scores import combine_votes, join_score, pair_votes
from potstill.judge.votes import Vote, read_preference, read_score
from potstill.records import Row
from potstill.stages.judge import JudgeCounts, judge_rows
from tests.servers.judge import Judge, running_judge
from tests.unit.export_rows import make_error, make_row, read, write

DEFAULTS = {"scale": [0, 10], "votes": 1}


def _say(score: Any) -> str:
    return json.dumps({"reason": "because", "score": score})


def _judge(folder: Path, given: list[Row], judge: Judge, **settings: Any) -> tuple[list[Row], JudgeCounts]:
    folder.mkdir(exist_ok=True)
    model_file = folder / "judge.yaml"
    model_file.write_text(
        f"client_config: {{base_url: '{judge.url}', api_key: EMPTY, max_retries: 1, timeout: 10}}\n"
        "chat_config: {model: judge, temperature: 0.5}\n"
    )
    counts = judge_rows(
        write(folder / "in.jsonl", given),
        folder / "out.jsonl",
        settings={**DEFAULTS, **settings},
        model=load_model(model_file, env={}),
        concurrency=4,
        answers_dir=folder / "answers",
    )
    return read(folder / "out.jsonl"), counts


def _number_of(messages: list[dict[str, Any]]) -> int:
    found = re.search(r"of group (\d+) are", messages[-1]["content"])
    assert found is not None
    return int(found[1])


def test_each_row_gets_its_own_score_in_input_order(tmp_path: Path) -> None:
    """The score on the judge's scale becomes 0 to 1; the row passes through otherwise untouched."""
    rows = [make_row(number) for number in range(9)]
    with running_judge(lambda messages, _: _say(_number_of(messages))) as judge:
        judged, counts = _judge(tmp_path, rows, judge)
    assert [row["judge_score"] for row in judged] == [number / 10 for number in range(9)]
    assert [{key: row[key] for key in rows[0]} for row in judged] == rows
    assert judged[3]["judge_reason"] == "because"
    assert judged[3]["judge_usage"]["completion_tokens"] == 2
    assert (counts.rows, counts.judged, counts.null, counts.skipped) == (9, 9, 0, 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["answers", "in.jsonl", "judge.yaml", "out.jsonl"]


def test_the_rubric_shows_task_and_answer(tmp_path: Path) -> None:
    """The judge reads the last user message and the statement, not the think block."""
    with running_judge(lambda *_: _say(5)) as judge:
        _judge(tmp_path, [make_row(4)], judge, system="Be fair.")
    system, user = judge.asked[0]
    assert system == {"role": "system", "content": "Be fair."}
    assert make_row(4)["sql"] in user["content"]
    assert "group 4 are older" in user["content"]
    assert "I count." not in user["content"]


BAD_REPLIES: dict[str, str | int] = {
    "no JSON": "I would say 7 out of 10",
    "another key": '{"points": 7}',
    "out of range": _say(11),
    "a text": _say("seven"),
    "a truth": _say(True),
    "not a number": '{"score": NaN}',
    "a refusal": 400,
    "an answer of nothing": "",
    "half an object": '{"score": 7',
}


@pytest.mark.parametrize("reply", BAD_REPLIES.values(), ids=BAD_REPLIES.keys())
def test_a_judge_that_fails_on_a_row_leaves_null(tmp_path: Path, reply: str | int) -> None:
    """Garbage, numbers off the scale and refused requests give null and a reason, never zero; other rows go on."""
    with running_judge(lambda messages, _: reply if _number_of(messages) == 1 else _say(10)) as judge:
        judged, counts = _judge(tmp_path, [make_row(0), make_row(1), make_row(2)], judge)
    assert [row["judge_score"] for row in judged] == [1.0, None, 1.0]
    assert judged[1]["judge_error"]
    assert (counts.judged, counts.null) == (2, 1)


def test_votes_are_asked_one_by_one_and_combined(tmp_path: Path) -> None:
    """Three votes give their median; an invalid one does not count."""
    said = [_say(2), "nonsense", _say(8), _say(4)]
    with running_judge(lambda _, before: said[before]) as judge:
        judged, _ = _judge(tmp_path, [make_row(1)], judge, votes=4)
    assert judged[0]["judge_score"] == 0.4
    assert sorted(judged[0]["judge_votes"], key=str) == [0.2, 0.4, 0.8, None]
    assert judged[0]["judge_usage"]["completion_tokens"] == 8


def test_answers_of_the_judge_are_bought_once(tmp_path: Path) -> None:
    """A second run finds every answer in the store, and asks nothing."""
    rows = [make_row(number) for number in range(5)]
    with running_judge(lambda messages, _: _say(_number_of(messages))) as judge:
        first, _ = _judge(tmp_path, rows, judge, votes=2)
        again, _ = _judge(tmp_path, rows, judge, votes=2)
    assert first == again
    assert len(judge.asked) == 10


def test_rows_that_do_not_execute_are_not_asked(tmp_path: Path) -> None:
    """By default money goes to rows that run; `rows: all` asks them too."""
    rows = [make_error(1), make_row(2, sql="")]
    with running_judge(lambda *_: _say(1)) as judge:
        judged, counts = _judge(tmp_path, rows, judge)
        assert [row["judge_error"] for row in judged] == ["not asked: not_executed", "not asked: no_answer"]
        assert (counts.skipped, counts.null, judge.asked) == (2, 0, [])
        judged, _ = _judge(tmp_path, rows, judge, rows="all")
    assert [row["judge_score"] for row in judged] == [0.1, None]


def test_a_comparison_is_asked_in_both_orders(tmp_path: Path) -> None:
    """A judge that always prefers the first place says nothing; one that prefers an answer is heard."""
    rows = [make_row(1, gold_sql="SELECT 'gold'")]
    with running_judge(lambda *_: '{"better": "A"}') as judge:
        judged, _ = _judge(tmp_path / "a", rows, judge, compare_field="gold_sql")
    assert judged[0]["judge_score"] == 0.5
    assert len(judge.asked) == 2

    def prefer_gold(messages: list[dict[str, Any]], _: int) -> str:
        text = messages[-1]["content"]
        return json.dumps({"better": "A" if text.index("'gold'") < text.index("Answer B") else "B"})

    with running_judge(prefer_gold) as judge:
        judged, _ = _judge(tmp_path / "b", rows, judge, compare_field="gold_sql")
    assert judged[0]["judge_score"] == 0.0


def test_a_template_of_the_users_sees_the_row(tmp_path: Path) -> None:
    """Fields of the row and the judge's own are filled in; a row that lacks one gets null and says so."""
    template = tmp_path / "rubric.jinja"
    template.write_text("{{ db_id }} {{ hint }} {{ judge.answer }} {{ judge.high }}")
    rows = [make_row(1, hint="H"), make_row(2)]
    with running_judge(lambda *_: _say(5)) as judge:
        judged, counts = _judge(tmp_path, rows, judge, template=str(template), scale=[1, 5])
    assert judge.asked == [[{"role": "user", "content": f"db_1 H {make_row(1)['sql']} 5"}]]
    assert [row["judge_score"] for row in judged] == [1.0, None]
    assert "template misses a field" in judged[1]["judge_error"]
    assert (counts.judged, counts.null, counts.skipped) == (1, 1, 0)


def test_a_missing_template_is_a_config_error(tmp_path: Path) -> None:
    """Nothing is asked."""
    with running_judge(lambda *_: _say(5)) as judge:
        with pytest.raises(ConfigError, match="cannot be found"):
            _judge(tmp_path, [make_row(1)], judge, template="no/such.jinja")
        assert judge.asked == []


def test_a_refused_key_ends_the_stage_and_leaves_no_output(tmp_path: Path) -> None:
    """A key that the judge refuses is for a person to mend, not a null for each row."""
    with running_judge(lambda *_: 401) as judge, pytest.raises(PotstillError):
        _judge(tmp_path, [make_row(1)], judge)
    assert not (tmp_path / "out.jsonl").exists()


def test_no_rows_give_no_rows(tmp_path: Path) -> None:
    """An empty chunk is judged without a request."""
    with running_judge(lambda *_: _say(5)) as judge:
        assert _judge(tmp_path, [], judge) == ([], JudgeCounts())


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ('{"score": 7}', 0.7),
        ('Let me think. {"score": 1} no: {"reason": "ok", "score": 9}', 0.9),
        ('```json\n{"score": 7.5, "more": {"a": [1]}}\n```', 0.75),
        ('<think>{"score": 1}</think>{"score": 2}', 0.2),
        ('{"result": {"score": 3}}', None),
        ("{" * 5000, None),
        ('{"a":' * 5000, None),
    ],
)
def test_the_last_object_with_the_key_counts(text: str, score: float | None) -> None:
    """Thinking aloud before it does not matter; what is nested in something else is not the vote."""
    assert read_score({"generation": text}, 0, 10).score == score


def test_a_preference_is_turned_back_when_it_was_swapped() -> None:
    """B is the row's own answer when it stood second."""
    row = {"generation": '{"better": "b"}'}
    assert (read_preference(row, swapped=False).score, read_preference(row, swapped=True).score) == (0.0, 1.0)
    assert read_preference({"generation": '{"better": "C"}'}, swapped=False).problem


def test_too_few_valid_votes_are_no_score() -> None:
    """Below `min_votes` the score is null, with the first problem as the reason."""
    votes = [Vote(0.5), Vote(None, problem="p1"), Vote(None, problem="p2")]
    assert combine_votes(votes, {"min_votes": 2})["judge_error"] == "p1"
    assert combine_votes(votes, {"min_votes": 2})["judge_score"] is None
    assert combine_votes(votes, {"min_votes": 1})["judge_score"] == 0.5


def test_mean_and_median() -> None:
    """Both ways to combine votes."""
    votes = [Vote(0.0), Vote(0.1), Vote(0.8)]
    assert combine_votes(votes, {"combine": "median"})["judge_score"] == 0.1
    assert combine_votes(votes, {"combine": "mean"})["judge_score"] == 0.3


def test_half_a_pair_is_no_vote() -> None:
    """Where one order has no valid answer, the other alone would carry the bias of its place."""
    assert pair_votes([Vote(1.0)], [Vote(None, problem="p")]) == [Vote(None, problem="p")]


def test_the_judge_joins_the_score_by_its_weight() -> None:
    """A null leaves the score as it was; it is never taken for a zero."""
    assert join_score(1.0, 0.5, 0.4) == 0.8
    assert join_score(1.0, None, 0.4) == 1.0
    assert join_score(0.5, 0.0, 1.0) == 0.0
