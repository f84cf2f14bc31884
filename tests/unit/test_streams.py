"""Answers that come as streams: put together whatever their pieces are, and never taken for whole when they are not."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from potstill.generate import engine
from potstill.generate.faults import Fault
from potstill.generate.reply import Reply
from potstill.generate.stream import LineBuffer, StreamReader
from tests.servers.handle import Server
from tests.servers.raw import Request, serving
from tests.unit.generate_work import Work

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
DONE = "data: [DONE]\n\n"
STOP: dict[str, Any] = {"index": 0, "delta": {}, "finish_reason": "stop"}


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "backoff", lambda *_, **__: 0.01)


def event(*choices: Any, **more: Any) -> str:
    """Return one event."""
    return "data: " + json.dumps({"model": "fake-served", "choices": list(choices), **more}) + "\n\n"


def delta(index: int = 0, **fields: Any) -> dict[str, Any]:
    """Return a choice that brings a piece."""
    return {"index": index, "delta": fields, "finish_reason": None}


def say(*pieces: str) -> Callable[[Request], None]:
    """Return a server that streams these pieces and ends the stream well."""

    def talk(request: Request) -> None:
        request.send(HEAD)
        for piece in pieces:
            data = piece.encode()
            request.send(b"%x\r\n%s\r\n" % (len(data), data))
        request.send(b"0\r\n\r\n")

    return talk


def run(folder: Path, talk: Callable[[Request], None], *texts: str, **settings: Any) -> Work:
    """Ask a few rows as streams, and return the job."""
    with serving(talk) as server:
        client = {"max_retries": 1, **settings.pop("client", {})}
        work = Work(folder, Server(server.url, None), client=client, chat={"stream": True})  # type: ignore[arg-type]
        work.rows(*(texts or ("a",)))
        work.run(**settings)
        work.bodies = [json.loads(request.body) for request in server.asked]  # type: ignore[attr-defined]
    return work


def test_tool_calls_are_put_together(tmp_path: Path) -> None:
    """Calls come in bits, several at once and in any order; arguments are joined, ids and names kept."""

    def call(index: int, **fields: Any) -> dict[str, Any]:
        return delta(tool_calls=[{"index": index, **fields}])

    talk = say(
        event(delta(role="assistant", content=None)),
        event(call(0, id="call_a", type="function", function={"name": "look_up", "arguments": ""})),
        event(call(1, id="call_b", type="function", function={"name": "add", "arguments": '{"x":'})),
        event(call(0, function={"arguments": '{"table": "t'})),
        event(call(1, function={"arguments": " 1}"})),
        event(call(0, function={"arguments": '"}'})),
        event({**STOP, "finish_reason": "tool_calls"}),
        event(usage={"prompt_tokens": 5, "completion_tokens": 9, "completion_tokens_details": {"reasoning_tokens": 4}}),
        DONE,
    )
    work = run(tmp_path, talk)
    (row,) = work.read("answered")
    assert row["tool_calls"] == [
        {"id": "call_a", "type": "function", "function": {"name": "look_up", "arguments": '{"table": "t"}'}},
        {"id": "call_b", "type": "function", "function": {"name": "add", "arguments": '{"x": 1}'}},
    ]
    assert (row["generation"], row["finish_reason"]) == ("", "tool_calls")
    assert row["usage"]["reasoning_tokens"] == 4


def test_calls_without_an_index(tmp_path: Path) -> None:
    """Some servers send each call whole and leave its index out: two ids are two calls."""
    talk = say(
        event(delta(tool_calls=[{"id": "a", "function": {"name": "f", "arguments": "{}"}}])),
        event(delta(tool_calls=[{"id": "b", "function": {"name": "g", "arguments": '{"x":1}'}}])),
        event({**STOP, "finish_reason": "tool_calls"}),
        DONE,
    )
    (row,) = run(tmp_path, talk).read("answered")
    assert [(call["id"], call["function"]["name"]) for call in row["tool_calls"]] == [("a", "f"), ("b", "g")]


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_reasoning_and_usage(tmp_path: Path, field: str) -> None:
    """Reasoning is kept beside the answer, usage is asked for and booked, names and fingerprint are the stream's."""
    talk = say(
        ": connected\n\n",
        event(delta(role="assistant", content="")),
        event(delta(**{field: "two "})),
        ": OPENROUTER PROCESSING\n\n",
        event(delta(**{field: "tables"})),
        event(delta(content="SELECT ")),
        event(delta(content="1")),
        event(STOP, system_fingerprint="fp"),
        event(usage={"prompt_tokens": 5, "completion_tokens": 9}),
        DONE,
    )
    work = run(tmp_path, talk)
    (row,) = work.read("answered")
    assert (row["generation"], row["reasoning"]) == ("SELECT 1", "two tables")
    assert (row["usage"]["prompt_tokens"], row["usage"]["completion_tokens"]) == (5, 9)
    assert (row["served_model"], row["system_fingerprint"], row["finish_reason"]) == ("fake-served", "fp", "stop")
    assert work.bodies[0]["stream_options"] == {"include_usage": True}  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "pieces",
    [
        [event(delta(content="SELECT 1")), event(STOP)],  # no [DONE]
        [event(delta(content="SELECT 1")).replace("\n", "\r\n"), event(STOP).replace("\n", "\r\n"), DONE],
        [event(delta(content="SELECT 1")).replace("data: ", "data:"), event(STOP), "data:[DONE]\n\n"],
        ["id: 1\nevent: message\nretry: 5\n" + event(delta(content="SELECT 1")), event(STOP), DONE],
        list("".join([event(delta(content="SELECT 1")), event(STOP), DONE])),  # a byte at a time
        [event(delta(content="SELECT 1")) + event(STOP).rstrip("\n")],  # no line end behind the last event
        [event({**delta(content="SELECT 1"), "finish_reason": "stop"}), DONE, event(delta(content="after the end"))],
        [event(delta(content="SELECT 1")), event(STOP), event(delta(content="")), DONE],
        ["\ufeff" + event(delta(content="SELECT 1")), event(STOP), DONE],
        [
            event(delta(content="SELECT 1"), usage=None),
            event(STOP, usage=None),
            event(usage={"prompt_tokens": 1}),
            DONE,
        ],
        [event(delta(content=None)), event({"index": 0, "delta": None}), event(delta(content="SELECT 1")), event(STOP)],
    ],
)
def test_however_a_stream_is_cut(tmp_path: Path, pieces: list[str]) -> None:
    """Line ends, blanks, other fields, single bytes and a missing [DONE] change nothing."""
    (row,) = run(tmp_path, say(*pieces)).read("answered")
    assert (row["generation"], row["attempts"]) == ("SELECT 1", 1)


def test_a_server_that_does_not_stream(tmp_path: Path) -> None:
    """A whole answer to a request for a stream is an answer; so is a stream that says it is plain text."""

    def talk(request: Request) -> None:
        if request.text == "whole":
            request.answer()
        else:
            data = (event(delta(content="SELECT 1")) + event(STOP) + DONE).encode()
            request.reply(data, "Content-Type: text/plain")

    work = run(tmp_path, talk, "whole", "mislabelled")
    assert [row["generation"] for row in work.read("answered")] == ["SELECT 1", "SELECT 1"]


@pytest.mark.parametrize(
    ("pieces", "kind"),
    [
        ([event(delta(content="SEL"))], "transport"),
        ([event(delta(content="SEL")), DONE], "transport"),
        ([], "transport"),
        ([": only comments\n\n", DONE], "transport"),
        (["data: {half a js\n\n", DONE], "invalid_response"),
        ([event(delta(content="SEL")), 'data: {"error":{"message":"died","code":500}}\n\n'], "server"),
        ([event(delta(content="SEL")), 'data: {"error":{"message":"slow down","code":429}}\n\n'], "invalid"),
        ([event({**STOP, "finish_reason": "content_filter"}), DONE], "content_filter"),
        ([event({**STOP, "finish_reason": "length"}), DONE], "truncated"),
        ([event(STOP), DONE], "empty_answer"),
        (["event: error\n" + 'data: {"message":"upstream died"}\n\n'], "transport"),
    ],
)
def test_a_stream_that_is_no_answer(tmp_path: Path, pieces: list[str], kind: str) -> None:
    """A stream that ends early, holds an error or nothing fails with its class; part of a text is never an answer."""

    def talk(request: Request) -> None:
        if request.text == "bad" and not (kind == "invalid" and request.number > 3):
            say(*pieces)(request)
        else:
            say(event(delta(content="SELECT 1")), event(STOP), DONE)(request)

    work = run(tmp_path, talk, "bad", "good", concurrency=1)
    answered = {row["sample_id"] for row in work.read("answered")}
    if kind == "invalid":  # a rate limit in mid-stream is waited out
        assert answered == {"id-good", "id-bad"}
        return
    assert answered == {"id-good"}
    assert [row["error_class"] for row in work.read("failed")] == [kind]


def test_a_connection_cut_in_a_stream(tmp_path: Path) -> None:
    """A connection that breaks in mid-stream costs an attempt, and the next one answers."""

    def talk(request: Request) -> None:
        if request.number == 0:
            data = event(delta(content="SEL")).encode()
            request.send(HEAD, b"%x\r\n%s\r\n" % (len(data), data))
            request.hang_up(reset=True)
        else:
            say(event(delta(content="SELECT 1")), event(STOP), DONE)(request)

    (row,) = run(tmp_path, talk).read("answered")
    assert (row["generation"], row["attempts"]) == ("SELECT 1", 2)


def test_keep_alive_comments_are_no_content(tmp_path: Path) -> None:
    """Comments that go on for ever do not keep a row alive beyond the idle time; content that is slow does."""
    over = threading.Event()

    def talk(request: Request) -> None:
        request.send(HEAD)
        if request.text == "hung":
            while not over.wait(0.02):
                request.send(b"e\r\n: keep-alive\n\n\r\n")
        for piece in (*(event(delta(content=letter)) for letter in "SELECT 1"), event(STOP), DONE):
            time.sleep(0.15)
            request.send(b"%x\r\n%s\r\n" % (len(piece), piece.encode()))
        request.send(b"0\r\n\r\n")

    started = time.monotonic()
    client = {"idle_timeout_s": 0.6, "timeout": 30, "max_retries": 0}
    work = run(tmp_path, talk, "hung", "slow", client=client)
    over.set()
    assert time.monotonic() - started < 20
    assert [row["generation"] for row in work.read("answered")] == ["SELECT 1"]
    assert [row["error_class"] for row in work.read("failed")] == ["timeout"]


def test_samples_of_one_stream(tmp_path: Path) -> None:
    """With the server's `n`, the choices of one stream come interleaved; each sample gets its own."""
    talk = say(
        event(delta(2, content="c"), delta(0, content="a")),
        event(delta(1, content="b", reasoning_content="why b")),
        event(delta(0, content="A")),
        event(delta(2, content="C")),
        event({**STOP, "index": 1}),
        event({**STOP, "index": 2, "finish_reason": "length"}, {**STOP, "index": 0}),
        event(usage={"prompt_tokens": 5, "completion_tokens": 9}),
        DONE,
    )
    work = run(tmp_path, talk, samples=3, samples_mode="n")
    rows = work.read("answered")
    assert [(row["sample_index"], row["generation"], row["reasoning"], row["finish_reason"]) for row in rows] == [
        (0, "aA", None, "stop"),
        (1, "b", "why b", "stop"),
        (2, "cC", None, "length"),
    ]
    assert [row["usage"] is not None for row in rows] == [True, False, False]
    assert work.bodies[0]["n"] == 3  # type: ignore[attr-defined]


def test_one_sample_of_a_stream_that_is_cut(tmp_path: Path) -> None:
    """When one choice of several has no end, none of the stream is taken."""

    def talk(request: Request) -> None:
        end = [event({**STOP, "index": 1}), DONE] if request.number == 0 else []
        ends = end or [event(STOP, {**STOP, "index": 1}), DONE]
        say(event(delta(0, content="a"), delta(1, content="b")), *ends)(request)

    work = run(tmp_path, talk, samples=2, samples_mode="n")
    assert [(row["generation"], row["attempts"]) for row in work.read("answered")] == [("a", 2), ("b", 2)]


def test_a_server_that_ignores_n_in_a_stream(tmp_path: Path) -> None:
    """Where a stream brings one choice for several samples, the others are asked for."""

    def talk(request: Request) -> None:
        say(event(delta(content=f"answer {request.number}")), event(STOP), DONE)(request)

    work = run(tmp_path, talk, samples=3, samples_mode="n")
    rows = work.read("answered")
    assert sorted(row["generation"] for row in rows) == ["answer 0", "answer 1", "answer 2"]
    assert [row["sample_index"] for row in rows] == [0, 1, 2]


def test_a_server_that_refuses_n(tmp_path: Path) -> None:
    """Where the server calls `n` a bad request, the samples are asked for one by one."""

    def talk(request: Request) -> None:
        if json.loads(request.body).get("n", 1) > 1:
            request.reply(b'{"error":{"code":400,"message":"n: must be 1","type":"invalid_request_error"}}', status=400)
        else:
            say(event(delta(content=f"answer {request.number}")), event(STOP), DONE)(request)

    work = run(tmp_path, talk, samples=3, samples_mode="n")
    assert [row["sample_index"] for row in work.read("answered")] == [0, 1, 2]
    assert work.read("failed") == []


def test_log_probabilities(tmp_path: Path) -> None:
    """Log probabilities of all pieces are joined."""
    piece = {**delta(content="a"), "logprobs": {"content": [{"token": "a", "logprob": -0.5}]}}
    last = {**STOP, "logprobs": {"content": [{"token": "b", "logprob": -1.0}]}}
    (row,) = run(tmp_path, say(event(piece), event(last), DONE)).read("answered")
    assert [entry["token"] for entry in row["logprobs"]["content"]] == ["a", "b"]


ANY = some.sampled_from(
    [
        None,
        True,
        0,
        1,
        -1,
        1.5,
        "",
        "a",
        [],
        ["a"],
        [1, None],
        {},
        {"a": 1},
        {"content": "x"},
        {"content": [3]},
        [[]],
        [{}],
    ]
)


@some.composite
def _events(draw: some.DrawFn) -> Any:
    """Return events of which some parts may be anything."""
    function = {"name": draw(ANY), "arguments": draw(ANY)} if draw(some.booleans()) else draw(ANY)
    call = {"index": draw(ANY), "id": draw(ANY), "function": function} if draw(some.booleans()) else draw(ANY)
    calls = [call, call] if draw(some.booleans()) else draw(ANY)
    inner = {"content": draw(ANY), "reasoning": draw(ANY), "tool_calls": calls} if draw(some.booleans()) else draw(ANY)
    choice = {"index": draw(ANY), "delta": inner, "finish_reason": draw(ANY), "logprobs": draw(ANY)}
    choices = [choice if draw(some.booleans()) else draw(ANY)] if draw(some.booleans()) else draw(ANY)
    return {"choices": choices, "usage": draw(ANY), "model": draw(ANY), "error": draw(some.none() | ANY)}


@settings(max_examples=500, deadline=None)
@given(some.lists(_events(), max_size=4))
def test_any_events_are_an_answer_or_a_fault(events: list[Any]) -> None:
    """Whatever JSON the events hold, the stream is a reply or a fault; nothing raises."""
    reader = StreamReader()
    for item in [*events, {"choices": [STOP]}]:
        if reader.fault is None:
            reader.feed(b"data: " + json.dumps(item).encode())
    outcome = reader.result(2)
    assert isinstance(outcome, Reply | Fault)
    if isinstance(outcome, Reply):
        assert all(isinstance(choice.content, str) for choice in outcome.choices)


@given(some.binary(max_size=60), some.lists(some.integers(0, 60), max_size=6))
def test_lines_are_the_same_however_they_are_cut(data: bytes, cuts: list[int]) -> None:
    """Pieces of any length give the lines of the whole."""
    buffer, lines = LineBuffer(), []
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    for start, end in itertools.pairwise(edges):
        lines += buffer.lines(data[start:end])
    assert [*lines, buffer.end()] == data.split(b"\n")
