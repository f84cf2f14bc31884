"""The engine against a teacher that misbehaves."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from potstill.errors import ConfigError, InputError, TryAgainError
from potstill.generate import endpoints, engine, limits
from tests.servers.handle import Server, running
from tests.unit.generate_work import Work


@pytest.fixture(scope="module")
def teacher() -> Iterator[Server]:
    with running() as server:
        yield server


@pytest.fixture
def work(teacher: Server, tmp_path: Path) -> Work:
    from tests.servers.openai import DEFAULTS

    teacher.control(**DEFAULTS, reset=True)
    return Work(tmp_path, teacher)


def _names(count: int) -> list[str]:
    return [f"row {number}" for number in range(count)]


def test_answers_come_out_in_input_order(work: Work) -> None:
    """Rows whose answers come back in any order stand in the output in the order of the input."""
    work.server.control(latency_s=0.02, sigma=1.0)
    work.rows(*_names(60))
    counts = work.run(concurrency=20)
    assert counts.answered == 60
    assert [row["sample_id"] for row in work.read("answered")] == [f"id-row {number}" for number in range(60)]
    assert work.read("failed") == work.read("not_asked") == []


def test_a_row_carries_what_the_server_said(work: Work) -> None:
    """An answered row holds text, reasoning, usage, model and the times, beside the user's own fields."""
    work.server.control(extra=True, reasoning="reasoning_content")
    work.rows("a", mine=[1, None])
    work.run()
    (row,) = work.read("answered")
    assert row["mine"] == [1, None]
    assert row["generation"].startswith("SELECT")
    assert row["reasoning"] == "thinking about a"
    assert row["usage"] == {
        "prompt_tokens": 20,
        "completion_tokens": 16,
        "reasoning_tokens": None,
        "cached_tokens": None,
    }
    assert (row["model"], row["served_model"], row["system_fingerprint"]) == ("fake", "fake-served", "fp_fake")
    assert (row["finish_reason"], row["sample_index"], row["attempts"]) == ("stop", 0, 1)
    assert row["endpoint"] == work.server.url
    assert row["latency_s"] >= 0


def test_a_second_run_sends_nothing_and_writes_the_same_bytes(work: Work) -> None:
    """Everything is found in the store, whatever the file is called and however it is cut."""
    work.server.control(nondeterministic=True)
    work.rows(*_names(30))
    work.run()
    first = (work.folder / "answered.jsonl").read_bytes()
    (work.folder / "answered.jsonl").unlink()
    counts = work.run()
    assert (work.folder / "answered.jsonl").read_bytes() == first
    assert (counts.requests, counts.reused, work.server.stats()["requests"]) == (0, 30, 30)


def test_only_new_and_changed_rows_are_asked(work: Work) -> None:
    """After rows were added and one prompt has changed, only those are sent."""
    work.rows("a", "b", "c")
    work.run()
    work.rows("a", "b changed", "c", "d")
    assert work.run().requests == 2


@pytest.mark.parametrize(
    ("chat", "requests"),
    [
        ({"temperature": 0.7}, 1),
        ({"seed": 1}, 1),
        ({"extra_body": {"top_k": 5}}, 1),
        ({"stream": True}, 0),
        ({"user": "somebody"}, 0),
        ({"max_tokens": 200}, 0),
        ({"max_tokens": 2}, 1),
    ],
)
def test_what_changes_an_answer_asks_again(work: Work, chat: dict[str, Any], requests: int) -> None:
    """What changes the answer is part of its identity; how it travels, and a limit that it fits, are not."""
    work.rows("a")
    work.run()
    work.chat = chat
    assert work.run().requests == requests


def test_equal_rows_are_asked_once(work: Work) -> None:
    """Rows with the same conversation share one answer, also while it is in flight."""
    work.server.control(latency_s=0.05)
    work.rows("same", "same", "other", "same")
    counts = work.run()
    assert (counts.requests, counts.answered) == (2, 4)
    assert len({row["generation"] for row in work.read("answered")}) == 2


def test_samples_never_collapse(work: Work) -> None:
    """So many samples are as many requests and answers, and more samples later ask only for the new ones."""
    work.server.control(nondeterministic=True)
    work.rows("a", "b")
    assert work.run(samples=3).requests == 6
    rows = work.read("answered")
    assert [(row["sample_id"], row["sample_index"]) for row in rows] == [(f"id-{t}", k) for t in "ab" for k in range(3)]
    assert len({row["generation"] for row in rows}) == 6
    assert work.run(samples=4).requests == 2


def test_samples_of_one_request(work: Work) -> None:
    """With the server's `n`, one request brings all samples of a row, and its tokens are booked once."""
    work.rows("a")
    assert work.run(samples=3, samples_mode="n").requests == 1
    rows = work.read("answered")
    assert len({row["generation"] for row in rows}) == 3
    assert [row["usage"] is not None for row in rows] == [True, False, False]


def test_each_sample_has_its_seed(work: Work) -> None:
    """A seed in the model file does not make all samples the same: each sends its own."""
    work.chat = {"seed": 7}
    work.rows("a")
    work.run(samples=2)
    assert sorted(body["seed"] for body in work.server.get("/bodies")) == [7, 8]


def test_the_body_is_what_the_model_file_says(work: Work) -> None:
    """`chat_config` goes into the body as it stands, `extra_body` merged into it."""
    work.chat = {
        "temperature": 0.25,
        "stop": ["\n\n"],
        "extra_body": {"chat_template_kwargs": {"enable_thinking": False}},
    }
    work.rows("a")
    work.run()
    (body,) = work.server.get("/bodies")
    assert body == {
        "model": "fake",
        "temperature": 0.25,
        "stop": ["\n\n"],
        "chat_template_kwargs": {"enable_thinking": False},
        "max_tokens": 100,
        "messages": [{"role": "user", "content": "a"}],
    }


def test_overrides_of_a_row(work: Work) -> None:
    """A row's `decode_profile` changes parameters for it alone; an unknown profile fails the row, unsent."""
    work.more = {"decode_profiles": {"hot": {"temperature": 1.5, "max_tokens": 50}}}
    path = work.folder / "rows.jsonl"
    profiles = [None, "hot", {"top_p": 0.5}, "cold", {"model": "other"}]
    path.write_text(
        "".join(
            json.dumps(
                {"sample_id": str(n), "messages": [{"role": "user", "content": f"r{n}"}], "decode_profile": profile}
            )
            + "\n"
            for n, profile in enumerate(profiles)
        )
    )
    counts = work.run(concurrency=1)
    bodies = work.server.get("/bodies")
    assert [(body.get("temperature"), body.get("top_p"), body["max_tokens"]) for body in bodies] == [
        (None, None, 100),
        (1.5, None, 50),
        (None, 0.5, 100),
    ]
    assert (counts.answered, counts.failed) == (3, 2)
    failed = work.read("failed")
    assert {row["error_class"] for row in failed} == {"bad_row"}
    assert "unknown profile 'cold'; known are hot" in failed[0]["error"]


@pytest.mark.parametrize(
    ("fault", "kind", "sends"),
    [
        ("400", "bad_request", 1),
        ("413", "context_too_long", 1),
        ("context", "context_too_long", 1),
        ("filter400", "content_filter", 1),
        ("error_text", "bad_request", 1),
        ("null_content", "empty_answer", 1),
        ("empty_content", "empty_answer", 1),
        ("content_filter", "content_filter", 1),
        ("length_empty", "truncated", 1),
        ("500", "server", 3),
        ("408", "timeout", 3),
        ("truncated", "transport", 3),
        ("reset_mid_body", "transport", 3),
        ("garbage", "invalid_response", 3),
        ("html", "invalid_response", 3),
        ("empty_body", "invalid_response", 3),
        ("half_json", "invalid_response", 3),
        ("error200", "invalid_response", 3),
        ("error200_code", "server", 3),
        ("no_choices", "invalid_response", 3),
        ("blackhole", "timeout", 3),
        ("drip", "timeout", 3),
    ],
)
def test_each_trouble_has_its_class(
    work: Work, monkeypatch: pytest.MonkeyPatch, fault: str, kind: str, sends: int
) -> None:
    """A row that never gets an answer fails with the class of its trouble after the attempts that the class allows."""
    monkeypatch.setattr(engine, "backoff", lambda *_, **__: 0.01)
    work.client = {"timeout": 0.4, "max_retries": 2}
    work.server.control(rows={"bad": fault})
    work.rows("good", "bad", "fine")
    counts = work.run()
    (row,) = work.read("failed")
    assert (row["error_class"], row["sample_id"], counts.answered) == (kind, "id-bad", 2)
    assert work.server.get("/rows")["sends"]["bad"] == sends
    assert row["error"]


def test_a_failed_row_keeps_the_raw_body_and_the_paid_tokens(work: Work) -> None:
    """What came instead of an answer is kept, cut short; an empty answer keeps the tokens that it cost."""
    work.client = {"max_retries": 0}
    work.server.control(rows={"bad": "html", "empty": "empty_content"})
    work.rows("bad", "good", "empty")
    work.run()
    bad, empty = work.read("failed")
    assert "502 Bad Gateway" in bad["raw_response"]
    assert empty["usage"]["prompt_tokens"] == 20


def test_failed_rows_are_asked_again_only_when_told(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second run leaves failed rows alone; `retry_failed` asks them, and nothing else, and merges them in."""
    monkeypatch.setattr(engine, "backoff", lambda *_, **__: 0.01)
    work.client = {"max_retries": 1}
    work.server.control(rows={"b": "500", "c": "empty_content"})
    work.rows("a", "b", "c", "d")
    assert work.run().failed == 2
    work.server.control(rows={}, reset=True)
    assert work.run().requests == 0
    counts = work.run(retry_failed=True)
    assert (counts.requests, counts.answered, counts.failed) == (2, 4, 0)
    assert [row["sample_id"] for row in work.read("answered")] == ["id-a", "id-b", "id-c", "id-d"]
    assert work.run().requests == 0


def test_retry_failed_by_class(work: Work) -> None:
    """`retry_failed` may name the classes to ask again."""
    work.client = {"max_retries": 0}
    work.server.control(rows={"b": "400", "c": "empty_content"})
    work.rows("a", "b", "c")
    work.run()
    work.server.control(rows={}, reset=True)
    assert work.run(retry_failed=["empty_answer"]).requests == 1


def test_refresh_asks_all_again_but_not_twice_after_a_kill(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    """`refresh` ignores old answers; when it is interrupted, what it has asked already is not asked again."""
    work.server.control(nondeterministic=True)
    work.rows(*_names(4))
    work.run()
    first = [row["generation"] for row in work.read("answered")]
    work.server.control(rows={"row 3": "402"}, reset=True)
    with pytest.raises(TryAgainError, match="credit"):
        work.run(concurrency=1, refresh=True)
    work.server.control(rows={})
    assert work.run(concurrency=1, refresh=True).requests == 1
    assert work.server.get("/rows")["sends"] == {"row 0": 1, "row 1": 1, "row 2": 1, "row 3": 2}
    assert work.run(refresh=True).requests == 4
    assert all(old != row["generation"] for old, row in zip(first, work.read("answered"), strict=True))


def test_offline_replays_and_misses_loudly(work: Work) -> None:
    """`offline` rebuilds the output without a network; a missing answer is an error that counts and names them."""
    work.rows("a", "b")
    work.run()
    before = (work.folder / "answered.jsonl").read_bytes()
    work.client = {"base_url": "http://127.0.0.1:9/v1", "api_key_env": "A_KEY_THAT_NOBODY_HAS_SET"}
    assert work.run(offline=True).requests == 0
    assert (work.folder / "answered.jsonl").read_bytes() == before
    work.rows("a", "b", "c")
    with pytest.raises(InputError, match=r"1 answers are not in .*id-c"):
        work.run(offline=True)


def test_a_pilot_is_not_paid_twice(work: Work) -> None:
    """With `max_rows` later rows are not asked; the full run finds the pilot's answers."""
    work.rows(*_names(5))
    counts = work.run(max_rows=12, first_row=10)
    assert (counts.answered, counts.not_asked) == (2, 3)
    assert {row["not_asked_reason"] for row in work.read("not_asked")} == {"pilot"}
    assert work.run().requests == 3


def test_rows_that_are_not_to_be_asked(work: Work) -> None:
    """A reason from outside keeps a row from being sent."""
    work.rows("a", "b")
    counts = work.run(samples=2, skip=lambda row: "bad_gold" if row["sample_id"] == "id-b" else None)
    assert (counts.answered, counts.not_asked) == (2, 2)
    assert [(row["sample_index"], row["not_asked_reason"]) for row in work.read("not_asked")] == [
        (0, "bad_gold"),
        (1, "bad_gold"),
    ]


def test_the_ladder_raises_the_limit(work: Work) -> None:
    """A truncated answer is asked again with the next limit; the rung below is neither lost nor asked again."""
    work.server.control(rows={"a": ["length", "length_empty"], "b": "length"})
    work.rows("a", "b", "c")
    counts = work.run(max_tokens_ladder=[200, 400], concurrency=1)
    assert [row["finish_reason"] for row in work.read("answered")] == ["stop", "length", "stop"]
    limits = [(body["messages"][0]["content"], body["max_tokens"]) for body in work.server.get("/bodies")]
    assert sorted(limits) == [("a", 100), ("a", 200), ("a", 400), ("b", 100), ("b", 200), ("b", 400), ("c", 100)]
    assert counts.failed == 0
    assert work.run(max_tokens_ladder=[200, 400]).requests == 0
    work.server.control(rows={}, reset=True)
    assert work.run(max_tokens_ladder=[200, 400, 800]).requests == 1
    assert work.server.get("/bodies")[0]["max_tokens"] == 800


def test_a_raised_limit_asks_only_truncated_rows(work: Work) -> None:
    """With a greater max_tokens only the answers that were cut off are asked again."""
    work.server.control(rows={"a": "length"})
    work.rows("a", "b")
    work.run()
    work.server.control(rows={}, reset=True)
    work.chat = {"max_tokens": 300}
    assert work.run().requests == 1
    assert [row["finish_reason"] for row in work.read("answered")] == ["stop", "stop"]


@pytest.mark.parametrize("extra", [{}, {"reasoning": "reasoning"}, {"usage": False}])
def test_streams(work: Work, extra: dict[str, Any]) -> None:
    """A streamed answer is the same as one that comes whole, with its usage."""
    work.server.control(**extra)
    work.rows("a")
    work.run()
    (whole,) = work.read("answered")
    work.chat = {"stream": True}
    work.run(refresh=True)
    (streamed,) = work.read("answered")
    for name in ("generation", "reasoning", "finish_reason", "served_model"):
        assert streamed[name] == whole[name]
    assert streamed["usage"]["prompt_tokens"] == 20
    assert "stream_options" in work.server.get("/bodies")[-1]


@pytest.mark.parametrize("fault", ["stream_cut", "stream_error", "stream_comments"])
def test_broken_streams_are_no_answers(work: Work, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    """A stream that ends early, carries an error or sends only keep-alive comments is asked again."""
    monkeypatch.setattr(engine, "backoff", lambda *_, **__: 0.01)
    work.chat = {"stream": True}
    work.client = {"idle_timeout_s": 0.3}
    work.server.control(rows={"a": [fault]})
    work.rows("a", "b")
    counts = work.run()
    assert (counts.answered, counts.requests) == (2, 3)


def test_chunked_bodies_and_odd_replies(work: Work) -> None:
    """A body in many pieces, without usage and with fields that nobody knows, is an answer."""
    work.server.control(chunked=True, usage=False, extra=True)
    work.rows("a")
    work.run()
    (row,) = work.read("answered")
    assert row["usage"] is None
    assert row["generation"].startswith("SELECT")


def test_rate_limits_cost_no_attempt(work: Work) -> None:
    """A row may meet any number of rate limits without failing, and nothing is sent before Retry-After."""
    work.client = {"max_retries": 0}
    work.server.control(rows={"a": ["429"] * 6, "b": ["529"], "c": ["503_retry_after"]}, retry_after="0.2", grace_s=0.0)
    work.rows("a", "b", "c", "d")
    started = time.monotonic()
    counts = work.run(concurrency=1)
    assert (counts.answered, counts.failed) == (4, 0)
    assert time.monotonic() - started >= 8 * 0.2
    assert work.server.stats()["early"] == 0


@pytest.mark.parametrize("form", ["0.3", "ms:300", "date:0.5"])
def test_retry_after_holds_back_every_request(work: Work, form: str) -> None:
    """Each form of Retry-After holds back all requests with that key, not only the row that was refused."""
    work.server.control(rows={"row 5": ["429"]}, retry_after=form, grace_s=0.1, latency_s=0.01)
    work.rows(*_names(200))
    assert work.run(concurrency=4).answered == 200
    assert work.server.stats()["early"] == 0


def test_a_client_that_waits_too_little_is_noticed(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fake's count of early requests is not blind: a gate that opens at half time is caught."""
    whole = limits.Gate.close
    monkeypatch.setattr(limits.Gate, "close", lambda gate, now, seconds: whole(gate, now, seconds / 2))
    work.server.control(rows={"row 5": ["429"]}, retry_after="0.6", grace_s=0.1, latency_s=0.01)
    work.rows(*_names(100))
    assert work.run(concurrency=4).answered == 100
    assert work.server.stats()["early"] > 0


def test_a_server_that_says_now_and_means_later(work: Work) -> None:
    """`Retry-After: 0` to every request does not make us send as fast as we can."""
    work.server.control(faults={"429": 1.0}, retry_after="0")
    work.rows(*_names(40))
    timer = threading.Timer(1.5, lambda: work.server.control(faults={}))
    timer.start()
    counts = work.run(concurrency=8)
    timer.join()
    assert (counts.answered, counts.failed) == (40, 0)
    assert work.server.stats()["requests"] < 300


def test_random_rate_limits_do_not_collapse_the_window(work: Work) -> None:
    """At 20 % random 429s every row is answered and no attempt is spent on them."""
    work.client = {"max_retries": 0}
    work.server.control(faults={"429": 0.2}, retry_after="0.02", latency_s=0.01)
    work.rows(*_names(400))
    counts = work.run(concurrency=32)
    assert (counts.answered, counts.failed) == (400, 0)
    assert work.server.stats()["early"] == 0


def test_mixed_faults(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under mixed faults every row ends, none fails by a rate limit, and few more attempts are made than they force."""
    monkeypatch.setattr(engine, "backoff", lambda *_, **__: 0.02)
    work.client = {"timeout": 1.0}
    faults = {"429": 0.2, "500": 0.05, "reset": 0.02, "blackhole": 0.01, "truncated": 0.01, "garbage": 0.01}
    work.server.control(faults=faults, retry_after="0.05", latency_s=0.005)
    work.rows(*_names(800))
    counts = work.run(concurrency=64)
    stats = work.server.stats()
    assert counts.answered + counts.failed == 800
    assert counts.failed <= 2
    assert (stats["requests"] - stats["statuses"]["429"]) / 800 <= 1.2


def test_an_outage_is_nobodys_fault(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the server is away nothing fails; when it is back, the rest is asked."""
    monkeypatch.setattr(endpoints, "PROBE_EVERY_S", 0.1)
    monkeypatch.setattr(engine, "PROBE_EVERY_S", 0.1)
    monkeypatch.setattr(engine, "backoff", lambda *_, **__: 0.01)
    work.client = {"max_retries": 1}
    work.server.control(latency_s=0.01, down="500")
    work.rows(*_names(100))
    timer = threading.Timer(1.0, lambda: work.server.control(down=None))
    timer.start()
    counts = work.run(concurrency=16)
    timer.join()
    assert (counts.answered, counts.failed) == (100, 0)
    assert work.server.stats()["requests"] < 100 + 120


def test_a_long_outage_stops_the_job_and_keeps_everything(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    """After `outage_timeout_s` the job stops with "try again later"; the next start asks only for the rest."""
    monkeypatch.setattr(endpoints, "PROBE_EVERY_S", 0.1)
    monkeypatch.setattr(engine, "PROBE_EVERY_S", 0.1)
    work.rows("a", "b")
    work.run()
    work.rows("a", "b", "c")
    url = work.server.url
    work.client = {"base_url": "http://127.0.0.1:9/v1"}
    with pytest.raises(TryAgainError, match=r"127.0.0.1:9.*has not answered for .*give the same command again"):
        work.run(outage_timeout_s=0.5)
    work.client = {"base_url": url}
    assert work.run().requests == 1


def test_a_wrong_key_stops_the_job_once(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    """401 with an unchanged key stops the job and names the variable; the next jobs do not try the same key again."""
    monkeypatch.setenv("TEST_TEACHER_KEY", "wrong-key-1234")
    work.client = {"api_key_env": "TEST_TEACHER_KEY"}
    work.server.control(key="right-key-1234")
    work.rows("a")
    with pytest.raises(ConfigError, match="TEST_TEACHER_KEY") as stopped:
        work.run()
    assert "wrong-key" not in str(stopped.value)
    with pytest.raises(ConfigError, match="this one has not asked"):
        work.run()
    assert work.server.stats()["requests"] == 1
    monkeypatch.setenv("TEST_TEACHER_KEY", "right-key-1234")
    assert work.run().answered == 1


def test_a_renewed_key_is_read_again(work: Work) -> None:
    """401 makes the job read the key file once more; a new key there is used and nothing fails."""
    key = work.folder / "key"
    key.write_text("first-key-1234\n")
    work.client = {"api_key_file": str(key)}
    work.server.control(key="first-key-1234", latency_s=0.02)
    work.rows(*_names(60))

    def rotate() -> None:
        key.write_text("second-key-1234\n")
        work.server.control(key="second-key-1234")

    timer = threading.Timer(0.1, rotate)
    timer.start()
    counts = work.run(concurrency=4)
    timer.join()
    assert (counts.answered, counts.failed) == (60, 0)


@pytest.mark.parametrize(
    ("fault", "error", "text"),
    [("402", TryAgainError, "credit"), ("quota", TryAgainError, "credit"), ("404", ConfigError, "does not serve fake")],
)
def test_what_stops_a_job(work: Work, fault: str, error: type[Exception], text: str) -> None:
    """No credit and an unknown model stop the job at once, with a message; no row is blamed."""
    work.server.control(rows={"a": fault})
    work.rows("a")
    with pytest.raises(error, match=text):
        work.run()
    assert not (work.folder / "failed.jsonl").exists()


def test_several_servers_share_the_load_and_a_sick_one_is_set_aside(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests go to the server with the most room for its weight; one that is away takes none of the rows down."""
    monkeypatch.setattr(endpoints, "PROBE_EVERY_S", 0.1)
    work.server.control(latency_s=0.02)
    with running(latency_s=0.02) as second:
        work.client = {"base_urls": [{"url": work.server.url, "weight": 3}, second.url, "http://127.0.0.1:9/v1"]}
        work.rows(*_names(200))
        counts = work.run(concurrency=16)
        assert (counts.answered, counts.failed) == (200, 0)
        assert work.server.stats()["requests"] > 1.5 * second.stats()["requests"] > 0
        assert {row["endpoint"] for row in work.read("answered")} == {work.server.url, second.url}


def test_a_hung_row_does_not_hold_up_the_end(work: Work) -> None:
    """A row that never gets an answer ends at its deadline, and its attempts before it."""
    work.client = {"timeout": 0.5, "row_deadline_s": 0.8}
    work.server.control(rows={"hung": "blackhole"})
    work.rows("hung", *_names(20))
    started = time.monotonic()
    counts = work.run()
    assert (counts.answered, counts.failed) == (20, 1)
    assert time.monotonic() - started < 5


def test_structured_answers_are_checked_and_mended_once(work: Work) -> None:
    """An answer that is not the JSON that was asked for gets one repair; a second misfit fails the row."""
    schema = {
        "type": "object",
        "properties": {"sql": {"type": "string"}},
        "required": ["sql"],
        "additionalProperties": False,
    }
    work.chat = {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}
    work.server.control(content=['{"sql": 1}', '{"sql": "SELECT 1"}'])
    work.rows("a")
    counts = work.run(concurrency=1)
    (row,) = work.read("answered")
    assert (counts.requests, row["generation"]) == (2, '{"sql": "SELECT 1"}')
    assert row["usage"]["prompt_tokens"] == 40
    mended = work.server.get("/bodies")[-1]["messages"]
    assert [message["role"] for message in mended] == ["user", "assistant", "user"]
    work.server.control(content="no json")
    work.rows("b")
    assert work.run().failed == 1
    assert work.read("failed")[0]["error_class"] == "schema_invalid"


def test_prices_and_budget(work: Work) -> None:
    """A row carries its cost; when the budget is spent the rest is not asked, and a greater one goes on."""
    work.more = {"prices": {"input": 1000000, "output": 0}}
    work.rows(*_names(10))
    counts = work.run(concurrency=1, budget=90)
    assert (counts.answered, counts.not_asked, counts.cost) == (5, 5, 100.0)
    assert work.read("answered")[0]["usage"]["cost"] == 20.0
    assert {row["not_asked_reason"] for row in work.read("not_asked")} == {"budget"}
    assert work.run(concurrency=1, budget=90).requests == 0
    counts = work.run(concurrency=1, budget=1000)
    assert (counts.requests, counts.answered) == (5, 10)


def test_rates_per_minute(work: Work) -> None:
    """`requests_per_minute` spaces the requests evenly."""
    work.rows(*_names(40))
    work.run(requests_per_minute=1200)
    arrivals = work.server.get("/arrivals")
    # A second's worth may go at once, the other 20 follow one by one.
    assert arrivals[-1] - arrivals[0] >= 0.9


def test_the_store_is_shared_by_processes_and_files(work: Work) -> None:
    """A reader that opens the store while a writer has it open finds what was written so far."""
    from potstill.answers.store import AnswerStore

    with AnswerStore(work.folder / "answers", "fake") as writer:
        writer.append(b"k" * 32, {"sample_index": 0, "finish_reason": "stop", "answered_at": 1.0, "content": "x"})
        with AnswerStore(work.folder / "answers", "fake") as reader:
            assert [record["content"] for record in reader.find(b"k" * 32)] == ["x"]


def test_idle_connections_that_the_server_closes_cost_nothing(work: Work) -> None:
    """A request that met a connection closed while it was idle is sent again on a new one; no row fails by it."""
    work.client = {"max_retries": 0}
    work.server.control(keep_alive_s=0.002)
    work.rows(*_names(1000))
    counts = work.run(concurrency=16)
    assert (counts.answered, counts.failed) == (1000, 0)
    assert work.server.stats()["requests"] == 1000


def test_text_that_is_no_utf8(work: Work) -> None:
    """A lone surrogate or a NUL in an answer is kept, stored and found again as it came."""
    work.server.control(content="\ud83d half \u0000 nul")
    work.rows("a")
    work.run()
    assert work.run().requests == 0
    assert work.read("answered")[0]["generation"] == "\ud83d half \u0000 nul"


def test_a_gateway_without_a_server_is_an_outage(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few rows that all meet 503 wait, also when GET /models answers; one row alone that meets it fails."""
    monkeypatch.setattr(endpoints, "PROBE_EVERY_S", 0.1)
    monkeypatch.setattr(engine, "PROBE_EVERY_S", 0.1)
    monkeypatch.setattr(engine, "backoff", lambda *_, **__: 0.01)
    work.client = {"max_retries": 1}
    work.server.control(faults={"503": 1.0})
    work.rows(*_names(8))
    timer = threading.Timer(0.7, lambda: work.server.control(faults={}, rows={"row 3": "503"}))
    timer.start()
    counts = work.run(concurrency=2)
    timer.join()
    assert (counts.answered, counts.failed) == (7, 1)


def test_nothing_is_sent_after_an_interrupt(work: Work) -> None:
    """When the run is cancelled, requests in flight are dropped and no new ones leave."""
    work.server.control(latency_s=0.2)
    work.rows(*_names(500))
    signalled = threading.Timer(0.5, lambda: signal.raise_signal(signal.SIGINT))
    signalled.start()
    with pytest.raises(KeyboardInterrupt):
        work.run(concurrency=20)
    signalled.join()
    sent = work.server.stats()["requests"]
    time.sleep(0.3)
    assert work.server.stats()["requests"] == sent < 200
    assert work.run().answered == 500


def test_no_socket_is_left(work: Work) -> None:
    """After a run no connection of ours is open."""
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - a count of descriptors
    work.server.control(latency_s=0.01)
    work.rows(*_names(50))
    work.run(concurrency=25)
    assert len(os.listdir("/proc/self/fd")) <= before + 1  # noqa: PTH208
