"""The table of error classes, the waiting times, the limits."""

from __future__ import annotations

import random
import ssl
from typing import Any

import pytest

from potstill.generate.faults import ACTIONS, Action, from_error_body, from_exception, from_status, retry_after
from potstill.generate.limits import Bucket, Window
from potstill.generate.reply import Reply, inline_reasoning, read_reply
from potstill.generate.wire import BrokenReplyError, ConnectError, DisconnectedError, ProxyError, Response


@pytest.mark.parametrize(
    ("status", "headers", "body", "kind"),
    [
        (429, {}, b"", "rate_limit"),
        (429, {}, b'{"error":{"code":"insufficient_quota"}}', "quota"),
        (529, {}, b"", "rate_limit"),
        (503, {"Retry-After": "3"}, b"", "rate_limit"),
        (503, {}, b"", "server"),
        (500, {}, b"<html>", "server"),
        (502, {}, b"", "server"),
        (504, {}, b"", "server"),
        (409, {}, b"", "server"),
        (408, {}, b"", "timeout"),
        (401, {}, b"", "auth"),
        (403, {}, b'{"error":"forbidden"}', "auth"),
        (
            403,
            {},
            b'{"error":{"message":"flagged","metadata":{"reasons":["x"],"flagged_input":"y"}}}',
            "content_filter",
        ),
        (402, {}, b"", "quota"),
        (404, {}, b"", "not_found"),
        (407, {}, b"", "proxy"),
        (405, {}, b"", "not_found"),
        (307, {}, b"", "not_found"),
        (413, {}, b"", "context_too_long"),
        (400, {}, b'{"error":{"code":"context_length_exceeded"}}', "context_too_long"),
        (400, {}, b'{"error":{"type":"exceed_context_size_error","code":400}}', "context_too_long"),
        (400, {}, b'{"error":{"code":"content_filter"}}', "content_filter"),
        (400, {}, b'{"error":"plain text"}', "bad_request"),
        (400, {}, b'{"object":"error","message":"old vLLM","type":"BadRequestError"}', "bad_request"),
        (422, {}, b'{"detail":[{"loc":["body"]}]}', "bad_request"),
        (418, {}, b"\xff\xfe", "bad_request"),
    ],
)
def test_a_status_has_one_class(status: int, headers: dict[str, str], body: bytes, kind: str) -> None:
    """Status and code decide; a message is never searched."""
    fault = from_status(status, headers, body)
    assert fault.kind == kind
    assert fault.message.startswith(f"HTTP {status}")


def test_every_class_has_an_action() -> None:
    """The table is complete, and only rate limits and lost connections are free of charge."""
    assert {kind for kind, action in ACTIONS.items() if action is Action.RETRY} == {
        "server",
        "transport",
        "timeout",
        "invalid_response",
    }
    assert {kind for kind, action in ACTIONS.items() if action is Action.STOP} == {
        "auth",
        "not_found",
        "tls",
        "proxy",
        "quota",
    }
    assert ACTIONS["rate_limit"] is Action.WAIT and ACTIONS["connect"] is Action.OUTAGE


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (DisconnectedError("closed"), "transport"),
        (ConnectionResetError(104, "reset"), "transport"),
        (BrokenReplyError("cut"), "transport"),
        (TimeoutError("late"), "timeout"),
        (ConnectError("late"), "connect"),
        (ProxyError(Response(407, {}, b"")), "proxy"),
        (ProxyError(Response(502, {}, b"")), "server"),
        (ssl.SSLCertVerificationError("self-signed"), "tls"),
    ],
)
def test_an_exception_has_one_class(error: OSError, kind: str) -> None:
    """Broken connections, clocks and connections that could not be made are told apart by type."""
    assert from_exception(error).kind == kind


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "7"}, 7.0),
        ({"Retry-After": "0.25"}, 0.25),
        ({"Retry-After": "1500ms"}, 1.5),
        ({"retry-after-ms": "40"}, 0.04),
        ({"Retry-After": "Thu, 01 Jan 1970 00:01:40 GMT"}, 90.0),
        ({"Retry-After": "Thu, 01 Jan 1970 00:00:01 GMT"}, 0.0),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "-3"}, None),
        ({"Retry-After": "inf"}, None),
        ({}, None),
    ],
)
def test_retry_after(headers: dict[str, str], seconds: float | None) -> None:
    """Seconds, fractions, milliseconds and dates are understood; nonsense is no waiting time."""
    assert retry_after(headers, now=10.0) == seconds


def test_an_error_in_a_200_counts_by_its_own_status() -> None:
    """OpenRouter puts the status into the body of a 200."""
    assert from_error_body({"error": {"code": 429, "message": "slow"}}, b'{"error":{"code":429}}').kind == "rate_limit"
    assert from_error_body({"error": "odd"}, b"").kind == "invalid_response"


@pytest.mark.parametrize(
    ("message", "content", "reasoning"),
    [
        ({"content": "x"}, "x", None),
        ({"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}, "ab", None),
        (
            {
                "content": [
                    {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]},
                    {"type": "text", "text": "b"},
                ]
            },
            "b",
            "hm",
        ),
        ({"content": "x", "reasoning_content": "r"}, "x", "r"),
        ({"content": "x", "reasoning": "r"}, "x", "r"),
        ({"content": None, "refusal": "I can't"}, "I can't", None),
    ],
)
def test_forms_of_a_message(message: dict[str, Any], content: str, reasoning: str | None) -> None:
    """Text, parts, thinking and refusals are read from wherever servers put them."""
    import json

    reply = read_reply(json.dumps({"choices": [{"message": message, "finish_reason": "stop"}]}).encode())
    assert isinstance(reply, Reply)
    assert (reply.choices[0].content, reply.choices[0].reasoning) == (content, reasoning)


@pytest.mark.parametrize(
    ("text", "reasoning"),
    [
        ("<think>\na\nb\n</think>\n\nSELECT 1", "a\nb"),
        ("  <thinking>x</thinking>y", "x"),
        ("no tag here", None),
        ("weighing\n</think>\n\nSELECT 1", "weighing"),
        ("<think>never closed", "never closed"),
        ("[THINK]m[/THINK]SELECT 1", "m"),
        ("<|channel|>analysis<|message|>deep<|end|><|start|>assistant<|channel|>final<|message|>SELECT 1", "deep"),
        ("SELECT '</think>x'", None),
        ("<think></think>SELECT 1", None),
        ("SELECT a < b FROM t", None),
    ],
)
def test_inline_think_blocks(text: str, reasoning: str | None) -> None:
    """The think block is the one at the beginning of the text; a tag inside an answer is none."""
    assert inline_reasoning(text) == reasoning


def _simulate(
    window: Window, capacity: float | None, refusal: float, seconds: float, latency: float = 0.1
) -> tuple[float, float]:
    """Send in rounds of one latency; return answers a second and the share refused over the last half."""
    rng, now, level, answered, refused = random.Random(1), 0.0, 0.0, 0, 0
    while now < seconds:
        level = level if capacity is None else min(capacity * 0.5, level + capacity * latency)
        for place in range(window.limit):
            no = rng.random() < refusal or (capacity is not None and level < 1)
            level -= not no
            window.note(now + latency * place / window.limit, refused=no)
            if now > seconds / 2:
                answered, refused = answered + (not no), refused + no
        now += latency
    return answered / (seconds / 2), refused / max(answered + refused, 1)


def test_random_refusals_keep_the_window_open() -> None:
    """With 20 % random refusals the window stays near its greatest size: sending less would only bring less."""
    rate, _ = _simulate(Window(256), None, 0.2, 120)
    assert rate >= 0.9 * 0.8 * 256 / 0.1


def test_a_server_at_its_limit_is_not_flooded() -> None:
    """Where the load is the cause, the window shrinks until few are refused, and the server still is kept busy."""
    rate, share = _simulate(Window(256), 200.0, 0.0, 120)
    assert rate >= 0.85 * 200
    assert share <= 0.25


def test_a_bucket_spends_evenly() -> None:
    """Over a minute no more is spent than a minute's worth and the first second's."""
    bucket, now, spent = Bucket(600), 0.0, 0
    while now < 60:
        wait = bucket.wait(now)
        if wait:
            now += wait
        else:
            bucket.spend(1)
            spent += 1
    assert 595 <= spent <= 611
