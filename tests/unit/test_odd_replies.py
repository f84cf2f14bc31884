"""Replies as odd servers send them, byte for byte: how they travel, and what stands in them."""

from __future__ import annotations

import gzip
import json
import os
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from potstill.generate import engine
from potstill.generate.faults import Fault
from potstill.generate.reply import Reply, fault_of, read_reply
from tests.servers.handle import Server
from tests.servers.raw import ANSWER, Request, serving
from tests.unit.generate_work import Work

BODY = json.dumps(ANSWER).encode()
Talk = Callable[[Request], None]


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "backoff", lambda *_, **__: 0.01)


def work_over(folder: Path, url: str, **client: Any) -> Work:
    """Return a job over a server."""
    return Work(folder, Server(url, None), client={"max_retries": 1, **client})  # type: ignore[arg-type]


def _chunked(data: bytes, size: int = 7, end: bytes = b"0\r\n\r\n") -> bytes:
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + end


def _http_1_0(request: Request) -> None:
    request.send(b"HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n" + BODY)
    request.hang_up()


def _close_each_time(request: Request) -> None:
    request.answer("Connection: close")
    request.hang_up()


def _close_without_a_word(request: Request) -> None:
    request.answer()
    request.hang_up()


def _continue_first(request: Request) -> None:
    request.send(b"HTTP/1.1 100 Continue\r\n\r\n")
    request.send(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n")
    request.answer()


def _chunks(request: Request) -> None:
    request.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", _chunked(BODY))


def _chunks_with_trailers(request: Request) -> None:
    head = b"HTTP/1.1 200 OK\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n"
    request.send(head, _chunked(BODY, end=b"0\r\nX-Sum: 1\r\nX-More: 2\r\n\r\n"))


def _chunks_with_extensions(request: Request) -> None:
    request.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    request.send(b"%x;name=value\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY))


def _byte_by_byte(request: Request) -> None:
    whole = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY
    for at in range(len(whole)):
        request.send(whole[at : at + 1])


def _blanks_in_front(request: Request) -> None:
    # Some gateways send white space to keep the connection alive while the model thinks.
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    request.send(head, _chunked(b"\n \n " * 5 + BODY))


def _gzip(request: Request) -> None:
    request.reply(gzip.compress(BODY), "Content-Encoding: gzip")


def _gzip_in_chunks(request: Request) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n"
    request.send(head, _chunked(gzip.compress(BODY)))


def _deflate(request: Request) -> None:
    request.reply(zlib.compress(BODY), "Content-Encoding: deflate")


def _utf8_with_a_mark(request: Request) -> None:
    request.reply(b"\xef\xbb\xbf" + BODY)


def _many_headers(request: Request) -> None:
    request.answer(*(f"X-Header-{number}: {'v' * 60}" for number in range(90)))


def _long_header(request: Request) -> None:
    # Beyond the 8190 bytes that aiohttp takes by default; policies and cookies of gateways grow like that.
    request.answer(f"Set-Cookie: a={'x' * 12000}", f"Content-Security-Policy: {'y' * 12000}")


def _other_content_type(request: Request) -> None:
    request.reply(BODY, "Content-Type: text/plain; charset=latin-1")


@pytest.mark.parametrize(
    "talk",
    [
        _http_1_0,
        _close_each_time,
        _close_without_a_word,
        _continue_first,
        _chunks,
        _chunks_with_trailers,
        _chunks_with_extensions,
        _byte_by_byte,
        _blanks_in_front,
        _gzip,
        _gzip_in_chunks,
        _deflate,
        _utf8_with_a_mark,
        _many_headers,
        _long_header,
        _other_content_type,
    ],
)
def test_however_an_answer_travels(tmp_path: Path, talk: Talk) -> None:
    """A whole answer is read however the server sends it, and costs one attempt."""
    with serving(talk) as server:
        work = work_over(tmp_path, server.url, max_retries=0)
        work.rows(*"abcdef")
        counts = work.run(concurrency=2)
    assert (counts.answered, counts.failed) == (6, 0), work.read("failed")[:1]
    assert {row["generation"] for row in work.read("answered")} == {"SELECT 1"}
    assert {row["attempts"] for row in work.read("answered")} == {1} or talk is _close_without_a_word


def _br(request: Request) -> None:
    request.reply(b"\x0b\x02\x80hello\x03", "Content-Encoding: br")


def _bad_gzip(request: Request) -> None:
    request.reply(gzip.compress(BODY)[:-12], "Content-Encoding: gzip")


def _unknown_encoding(request: Request) -> None:
    request.reply(BODY[::-1], "Content-Encoding: rot13")


def _half_a_chunk(request: Request) -> None:
    request.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", _chunked(BODY)[:60])
    request.hang_up()


def _bad_chunk_size(request: Request) -> None:
    request.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", BODY)


def _too_little(request: Request) -> None:
    request.send(b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n", BODY)
    request.hang_up()


def _no_http(request: Request) -> None:
    request.send(b"SSH-2.0-OpenSSH_9.7\r\n")
    request.hang_up()


def _bad_status(request: Request) -> None:
    request.send(b"HTTP/1.1 two hundred\r\n\r\n")
    request.hang_up()


def _bad_length(request: Request) -> None:
    request.send(b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n", BODY)
    request.hang_up()


def _two_lengths(request: Request) -> None:
    request.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 7\r\n\r\n", BODY)
    request.hang_up()


def _nul_in_a_header(request: Request) -> None:
    request.send(b"HTTP/1.1 200 OK\r\nX-A: \0\r\nContent-Length: 2\r\n\r\n{}")
    request.hang_up()


def _deep(request: Request) -> None:
    request.reply(b"[" * 200_000)


def _deep_object(request: Request) -> None:
    request.reply(b'{"choices":' * 100_000 + b"1" + b"}" * 100_000)


def _latin_1(request: Request) -> None:
    request.reply(BODY.replace(b"SELECT 1", b"caf\xe9"))


def _not_a_number(request: Request) -> None:
    request.reply(BODY.replace(b'"prompt_tokens": 3', b'"prompt_tokens": NaN'))


@pytest.mark.parametrize(
    ("talk", "kinds"),
    [
        (_br, {"transport", "invalid_response"}),
        (_bad_gzip, {"transport", "invalid_response"}),
        (_unknown_encoding, {"transport", "invalid_response"}),
        (_half_a_chunk, {"transport"}),
        (_bad_chunk_size, {"transport"}),
        (_too_little, {"transport"}),
        (_no_http, {"transport"}),
        (_bad_status, {"transport"}),
        (_bad_length, {"transport"}),
        (_two_lengths, {"transport"}),
        (_nul_in_a_header, {"transport", "invalid_response"}),
        (_deep, {"invalid_response"}),
        (_deep_object, {"invalid_response"}),
        (_latin_1, {"invalid_response"}),
        (_not_a_number, {"invalid_response"}),
    ],
)
def test_what_is_no_whole_answer(tmp_path: Path, talk: Talk, kinds: set[str]) -> None:
    """What is broken on the wire fails its row, with a class and a reason, and no other row."""

    def sometimes(request: Request) -> None:
        talk(request) if request.text == "bad" else request.answer()

    with serving(sometimes) as server:
        work = work_over(tmp_path, server.url)
        work.rows("a", "bad", "b", "c")
        counts = work.run(concurrency=1)
    (row,) = work.read("failed")
    assert (counts.answered, row["sample_id"]) == (3, "id-bad")
    assert row["error_class"] in kinds
    assert row["error"] and row["attempts"] >= 2


# -- what stands in an answer -----------------------------------------------------------------------------------


def _answer_with(**changes: Any) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(BODY)
    document["choices"][0].update(changes.pop("choice", {}))
    document["choices"][0]["message"].update(changes.pop("message", {}))
    document.update(changes)
    return document


@pytest.mark.parametrize(
    ("body", "generation"),
    [
        (json.dumps(_answer_with(message={"content": "\ud800 x"})).encode(), "\ud800 x"),
        (json.dumps(_answer_with(message={"content": "\ud83d\ude00"})).encode(), "\U0001f600"),
        (json.dumps(_answer_with(message={"content": "a\u0000b\u2028c\x7f\r\n"})).encode(), "a\0b\u2028c\x7f\r\n"),
        (json.dumps(_answer_with(created=10**40, usage={"prompt_tokens": 10**30})).encode(), "SELECT 1"),
        (json.dumps(_answer_with(usage={"prompt_tokens": 1.5, "completion_tokens": "7"})).encode(), "SELECT 1"),
        (BODY.replace(b'"content": "SELECT 1"', b'"content": "first", "content": "second"'), "second"),
        (json.dumps(_answer_with(choice={"finish_reason": None})).encode(), "SELECT 1"),
        (json.dumps(_answer_with(choice={"finish_reason": 7, "logprobs": "odd"})).encode(), "SELECT 1"),
        (BODY.replace(b', "finish_reason": "stop"', b""), "SELECT 1"),
        (
            json.dumps(
                _answer_with(
                    message={"content": [{"type": "text", "text": "a"}, {"text": 5}, {"type": "text", "text": 5}, 3]}
                )
            ).encode(),
            "a",
        ),
        (json.dumps(_answer_with(message={"reasoning": {"a": 1}, "tool_calls": []})).encode(), "SELECT 1"),
        (json.dumps(_answer_with(model=["x"], system_fingerprint=3, usage=[1])).encode(), "SELECT 1"),
        (json.dumps(_answer_with(error=None)).encode(), "SELECT 1"),
    ],
)
def test_odd_but_whole_answers(tmp_path: Path, body: bytes, generation: str) -> None:
    """Odd text, numbers and forms are kept as they came, stored, and found again."""
    with serving(lambda request: request.reply(body)) as server:
        work = work_over(tmp_path, server.url)
        work.rows("a")
        assert work.run().answered == 1
        assert work.read("answered")[0]["generation"] == generation
        first = (tmp_path / "answered.jsonl").read_bytes()
        assert work.run().requests == 0
        assert (tmp_path / "answered.jsonl").read_bytes() == first


JSON = some.recursive(
    some.none() | some.booleans() | some.integers(-3, 3) | some.floats(allow_nan=False) | some.text(max_size=4),
    lambda inner: some.lists(inner, max_size=3) | some.dictionaries(some.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@some.composite
def _mutated(draw: some.DrawFn) -> Any:
    """Return an answer of which some parts are replaced by anything."""
    document = _answer_with(
        message={
            "reasoning_content": "r",
            "refusal": None,
            "tool_calls": [{"index": 0, "id": "c", "function": {"name": "f", "arguments": "{}"}}],
        },
        choice={"logprobs": {"content": [{"token": "a"}]}},
        error=None,
        usage={"prompt_tokens": 3, "prompt_tokens_details": {"cached_tokens": 1}},
    )
    for _ in range(draw(some.integers(1, 3))):
        _replace_one(draw, document)
    return document


def _replace_one(draw: some.DrawFn, document: Any) -> None:
    while True:
        keys = list(document) if isinstance(document, dict) else list(range(len(document)))
        if not keys:
            return
        key = draw(some.sampled_from(keys))
        if isinstance(document[key], dict | list) and document[key] and draw(some.booleans()):
            document = document[key]
            continue
        document[key] = draw(JSON)
        return


@settings(max_examples=400, deadline=None)
@given(_mutated())
def test_any_json_is_an_answer_or_a_fault(document: Any) -> None:
    """Whatever JSON comes, it is a reply or a fault with a class; nothing raises."""
    outcome = read_reply(json.dumps(document).encode(), 2)
    if isinstance(outcome, Reply):
        for choice in outcome.choices:
            assert isinstance(choice.content, str)
            fault_of(choice, outcome.usage)
    else:
        assert isinstance(outcome, Fault) and outcome.action


# -- time and size ----------------------------------------------------------------------------------------------


def test_a_dribbling_server_ends_by_the_deadline(tmp_path: Path) -> None:
    """A byte now and then keeps no row beyond its deadline, however long its attempts might be."""
    over = threading.Event()

    def dribble(request: Request) -> None:
        if request.text != "slow":
            request.answer()
            return
        request.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n{")
        while not over.wait(0.05):
            request.send(b" ")

    with serving(dribble) as server:
        work = work_over(tmp_path, server.url, timeout=30, row_deadline_s=1.0, max_retries=5)
        work.rows("a", "slow", *"bcdef")
        started = time.monotonic()
        counts = work.run(concurrency=4)
        assert time.monotonic() - started < 20
        over.set()
    assert (counts.answered, counts.failed) == (6, 1)
    assert work.read("failed")[0]["error_class"] == "timeout"


def test_headers_that_never_end(tmp_path: Path) -> None:
    """A server that dribbles headers is given up by the row's deadline as well."""
    over = threading.Event()

    def dribble(request: Request) -> None:
        if request.text != "slow":
            request.answer()
            return
        request.send(b"HTTP/1.1 200 OK\r\n")
        while not over.wait(0.05):
            request.send(b"X-A: b\r\n")

    with serving(dribble) as server:
        work = work_over(tmp_path, server.url, timeout=30, row_deadline_s=1.0)
        work.rows("a", "slow", "b")
        started = time.monotonic()
        counts = work.run(concurrency=4)
        assert time.monotonic() - started < 20
        over.set()
    assert (counts.answered, counts.failed) == (2, 1)


def _endless(request: Request) -> None:
    request.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    for _ in range(4000):
        request.send(b"100000\r\n", b" " * 0x100000, b"\r\n")


def _endless_stream_line(request: Request) -> None:
    request.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
    for _ in range(4000):
        request.send(b"100000\r\n", b"x" * 0x100000, b"\r\n")


def _endless_stream(request: Request) -> None:
    event = json.dumps({"choices": [{"index": 0, "delta": {"content": "x" * 100_000}}]}).encode()
    data = b"data: " + event + b"\n\n"
    request.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
    for _ in range(20_000):
        request.send(b"%x\r\n" % len(data), data, b"\r\n")


def _bomb(request: Request) -> None:
    packer = zlib.compressobj(9, wbits=zlib.MAX_WBITS | 16)
    packed = b"".join(packer.compress(b" " * (1 << 20)) for _ in range(512)) + packer.flush()
    request.reply(packed, "Content-Encoding: gzip")


def _refusal_without_end(request: Request) -> None:
    request.send(b"HTTP/1.1 400 Bad\r\nTransfer-Encoding: chunked\r\n\r\n")
    for _ in range(4000):
        request.send(b"100000\r\n", b" " * 0x100000, b"\r\n")


@pytest.mark.parametrize(
    ("talk", "kind"),
    [
        (_endless, "transport"),
        (_endless_stream_line, "invalid_response"),
        (_endless_stream, "transport"),
        (_bomb, "transport"),
        (_refusal_without_end, "bad_request"),
    ],
)
def test_giant_bodies_are_cut_off(tmp_path: Path, talk: Talk, kind: str) -> None:
    """A body without end is given up at a limit; memory does not follow it."""

    def sometimes(request: Request) -> None:
        talk(request) if request.text == "bad" else request.answer()

    with serving(sometimes) as server:
        work = work_over(tmp_path, server.url, timeout=60, max_retries=0)
        work.rows("a", "bad", "b")
        before = _peak()
        counts = work.run(concurrency=1)
    (row,) = work.read("failed")
    assert (counts.answered, row["error_class"]) == (2, kind), row["error"]
    assert _peak() - before < 600_000


def _peak() -> int:
    """The most memory that this process ever had, in kB."""
    (line,) = [line for line in Path(f"/proc/{os.getpid()}/status").read_text().splitlines() if line[:5] == "VmHWM"]
    return int(line.split()[1])


# -- what is sent ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "a\r\nX-Injected: 1",
        "../../../etc/x",
        "org/model:tag@1",
        "模型-七",
        "x" * 600,
        ".",
        'quote"and\\slash',
        "nul\0",
    ],
)
def test_any_model_name(tmp_path: Path, name: str) -> None:
    """A model's name goes into the body as it is, and nowhere else: no header, no path outside the store."""
    with serving(lambda request: request.answer()) as server:
        work = work_over(tmp_path, server.url)
        work.chat = {"model": name}
        work.rows("a", "b")
        assert work.run().answered == 2
        assert work.run().requests == 0
        (request, _) = server.asked
    assert json.loads(request.body)["model"] == name
    assert "x-injected" not in request.headers
    assert {path.name for path in tmp_path.iterdir()} == {
        *("rows.jsonl", "model.yaml", "answers", "answered.jsonl", "failed.jsonl", "not_asked.jsonl")
    }
    assert len(list((tmp_path / "answers").iterdir())) == 1


@pytest.mark.parametrize("text", ["\ud800 half", "nul \0 and \u2028", "\U0001f600" * 3, "x" * 3_000_000])
def test_any_prompt(tmp_path: Path, text: str) -> None:
    """A prompt reaches the server as it is, be it odd or large."""
    with serving(lambda request: request.answer()) as server:
        work = work_over(tmp_path, server.url)
        work.rows(text)
        assert work.run().answered == 1
        (request,) = server.asked
    assert request.text == text
