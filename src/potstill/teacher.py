"""The replay teacher: an OpenAI-compatible server on loopback that gives recorded answers.

Its answers file is JSONL. A line names the prompts that it answers in one of three ways, and the answers:

```
{"messages": [{"role": "user", "content": "…"}], "answers": ["SELECT 1"]}     these messages, role and content
{"user": "…", "answers": ["SELECT 1"]}                                       this text of the last user message
{"match": "How many?", "answers": ["SELECT 1", "SELECT 2"]}                  a text that the last user message holds
```
They are tried in this order. Of several `match` texts that a message holds, the one that ends last in it answers (a
question stands after its schema and its examples), of those the longest. A prompt that nothing answers is an error,
HTTP 404, and a line on stderr.

An answer is its text, or an object: `content`, `reasoning_content` or `reasoning`, `tool_calls`, `finish_reason`,
`usage`, or `error` (`status`, `message`, `type`, `code`, `retry_after`) to answer with an error.

Of several answers, a request with a `seed` gets number seed modulo their count; without one, requests that ask the
same get them in turn, from the first. `n` choices are the next n in the same order.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import json
import re
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from aiohttp import web

from potstill.errors import ConfigError, InputError
from potstill.rows import dumps, loads, read_rows

_KEYS = ("messages", "user", "match")
_ANSWER_FIELDS = frozenset(
    {"content", "reasoning_content", "reasoning", "tool_calls", "finish_reason", "usage", "error", "refusal"}
)
_MESSAGE_FIELDS = ("content", "reasoning_content", "reasoning", "tool_calls", "refusal")
_MAX_BODY = 256 << 20
_PIECE = re.compile(r"\s*\S+\s*|\s+")


class UnknownPromptError(LookupError):
    """Raised when no line of the answers file fits a request."""


class BadRequestError(ValueError):
    """Raised when a request is not one that a chat completions endpoint takes."""


@dataclasses.dataclass
class Entry:
    """One line of the answers file."""

    answers: list[dict[str, Any]]
    turns: dict[bytes, int] = dataclasses.field(default_factory=dict)

    def choose(self, request: Mapping[str, Any], messages_key: str) -> list[dict[str, Any]]:
        """Return the answers for a request, `n` of them, each by the rule of the module's docstring."""
        count = _count_of(request)
        if isinstance(seed := request.get("seed"), int):
            first = seed
        elif len(self.answers) == 1:
            first = 0
        else:
            turn = hashlib.sha256(messages_key.encode("utf-8", "surrogatepass")).digest()
            first = self.turns.get(turn, 0)
            self.turns[turn] = first + count
        return [self.answers[(first + offset) % len(self.answers)] for offset in range(count)]


class Answers:
    """All recorded answers, found by the messages of a request."""

    def __init__(self) -> None:
        self._by_messages: dict[str, Entry] = {}
        self._by_user: dict[str, Entry] = {}
        self._by_match: dict[str, Entry] = {}

    @classmethod
    def load(cls, path: Path) -> Answers:
        """Read an answers file.

        Raises:
            InputError: For a line that is not as the module's docstring says; it names file and line.
        """
        answers = cls()
        for number, row in enumerate(read_rows(path), start=1):
            try:
                answers.add(row)
            except ValueError as error:
                raise InputError(f"{path}: entry {number}: {error}") from error
        return answers

    def __len__(self) -> int:
        return len(self._by_messages) + len(self._by_user) + len(self._by_match)

    def add(self, row: Mapping[str, Any]) -> None:
        """Add one line of an answers file.

        Raises:
            ValueError: When it does not name its prompts in one way, or has no answers, or repeats an earlier line.
        """
        named = [key for key in _KEYS if key in row]
        if len(named) != 1 or set(row) - {*_KEYS, "answers"}:
            raise ValueError(f"one of {', '.join(_KEYS)}, and answers, were expected; found {', '.join(map(str, row))}")
        given = row.get("answers")
        if not isinstance(given, list) or not given:
            raise ValueError("answers must be a list with at least one answer")
        entry = Entry([_read_answer(answer) for answer in given])
        value = row[named[0]]
        if named[0] == "messages":
            table, key = self._by_messages, _messages_key(value)
        else:
            if not isinstance(value, str) or not value:
                raise ValueError(f"{named[0]} must be a text that is not empty")
            table, key = (self._by_user if named[0] == "user" else self._by_match), value
        if table.setdefault(key, entry) is not entry:
            raise ValueError(f"this {named[0]} was given before: {key[:80]!r}")

    def find(self, request: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the recorded answers to one request.

        Raises:
            UnknownPromptError: When none fits.
            BadRequestError: When the request has no messages, or a wrong `n`.
        """
        count = _count_of(request)
        if type(count) is not int or not 1 <= count <= 128:
            raise BadRequestError(f"n must be a whole number from 1 to 128, found {count!r}")
        messages = request.get("messages")
        try:
            key = _messages_key(messages)
        except ValueError as error:
            raise BadRequestError(str(error)) from error
        user = last_user_text(messages or [])
        entry = self._by_messages.get(key) or self._by_user.get(user) or self._match(user)
        if entry is None:
            raise UnknownPromptError(user)
        return entry.choose(request, key)

    def _match(self, user: str) -> Entry | None:
        ends = ((user.rfind(text), text) for text in self._by_match)
        found = max(((at + len(text), len(text), text) for at, text in ends if at >= 0), default=None)
        return self._by_match[found[2]] if found else None


def _count_of(request: Mapping[str, Any]) -> Any:
    return 1 if request.get("n") is None else request["n"]


def _read_answer(answer: Any) -> dict[str, Any]:
    if isinstance(answer, str):
        return {"content": answer}
    if not isinstance(answer, dict):
        raise ValueError(f"an answer is a text or an object, found {type(answer).__name__}")  # noqa: TRY004 (one error)
    if unknown := sorted(set(answer) - _ANSWER_FIELDS):
        raise ValueError(f"an answer has no field {unknown[0]!r}; its fields are {', '.join(sorted(_ANSWER_FIELDS))}")
    return answer


def _messages_key(messages: Any) -> str:
    """Return one text for a conversation: roles and contents, whatever else the messages carry."""
    if not isinstance(messages, list) or not messages or not all(isinstance(item, dict) for item in messages):
        raise ValueError("messages must be a list of objects that is not empty")
    return json.dumps([[item.get("role"), text_of(item.get("content"))] for item in messages], ensure_ascii=False)


def text_of(content: Any) -> str:
    """Return the text of a message's content, which is a text or a list of parts."""
    if isinstance(content, list):
        return "".join(part.get("text") or "" for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def last_user_text(messages: Sequence[Mapping[str, Any]]) -> str:
    """Return the text of the last user message; empty when there is none."""
    return next((text_of(item.get("content")) for item in reversed(messages) if item.get("role") == "user"), "")


def count_tokens(text: str) -> int:
    """Return a plausible number of tokens: four ASCII characters each, other characters one each."""
    ascii_count = len(text.encode("ascii", "ignore"))
    return -(-ascii_count // 4) + len(text) - ascii_count


def usage_of(messages: Sequence[Mapping[str, Any]], answers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what a real server would bill, made up but always the same for the same request."""
    prompt = sum(4 + count_tokens(text_of(item.get("content"))) for item in messages)
    reasoning = sum(count_tokens(_reasoning_of(answer)) for answer in answers)
    completion = reasoning + sum(count_tokens(answer.get("content") or "") for answer in answers)
    usage: dict[str, Any] = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        # As if the first half were a prefix that was seen before; servers cache in blocks.
        "prompt_tokens_details": {"cached_tokens": prompt // 2 // 64 * 64},
        "completion_tokens_details": {"reasoning_tokens": reasoning},
    }
    return usage | (answers[0].get("usage") or {})


def _reasoning_of(answer: Mapping[str, Any]) -> str:
    return answer.get("reasoning_content") or answer.get("reasoning") or ""


def _finish_reason(answer: Mapping[str, Any]) -> str:
    return str(answer.get("finish_reason") or ("tool_calls" if answer.get("tool_calls") else "stop"))


class Teacher:
    """The HTTP side: endpoints over a set of answers."""

    def __init__(self, answers: Answers, *, model: str = "replay", latency_s: float = 0.0, seed: int = 0) -> None:
        self._answers = answers
        self._model = model
        self._latency_s = latency_s
        self._seed = seed

    def app(self) -> web.Application:
        """Return the application."""
        app = web.Application(client_max_size=_MAX_BODY)
        app.router.add_post("/v1/chat/completions", self._complete)
        app.router.add_get("/v1/models", self._list_models)
        app.router.add_get("/health", self._health)
        return app

    async def _health(self, _: web.Request) -> web.Response:
        return _json({"status": "ok", "answers": len(self._answers)})

    async def _list_models(self, _: web.Request) -> web.Response:
        model = {"id": self._model, "object": "model", "created": 0, "owned_by": "potstill"}
        return _json({"object": "list", "data": [model]})

    async def _complete(self, http: web.Request) -> web.StreamResponse:
        try:
            request = _read_request(await http.read())
            answers = self._answers.find(request)
            if self._latency_s:
                await asyncio.sleep(self._delay(request))
        except BadRequestError as error:
            return _error(400, str(error), "invalid_request_error")
        except UnknownPromptError as error:
            print(f"potstill teacher: no recorded answer for: {str(error)[-300:]!r}", file=sys.stderr, flush=True)
            message = f"no recorded answer for this prompt; its last user message ends with: {str(error)[-300:]}"
            return _error(404, message, "invalid_request_error", "no_recorded_answer")
        if recorded := next((answer["error"] for answer in answers if "error" in answer), None):
            return _recorded_error(recorded)
        reply = Reply(request, answers, request.get("model") or self._model)
        if request.get("stream"):
            return await _stream(http, reply)
        return _json(reply.whole())

    def _delay(self, request: Mapping[str, Any]) -> float:
        """Half to one and a half times the latency, by chance that is the same for the same request and seed."""
        digest = hashlib.sha256(f"{self._seed} {json.dumps(request, sort_keys=True)}".encode()).digest()
        return self._latency_s * (0.5 + int.from_bytes(digest[:4], "big") / 2**32)


class Reply:
    """One reply, as a whole or in pieces."""

    def __init__(self, request: Mapping[str, Any], answers: Sequence[Mapping[str, Any]], model: str) -> None:
        options = request.get("stream_options")
        self._include_usage = isinstance(options, dict) and bool(options.get("include_usage"))
        self._answers = answers
        self._usage = usage_of(request["messages"], answers)
        digest = hashlib.sha256(dumps([answers, self._usage])).hexdigest()
        self._head = {"id": f"chatcmpl-{digest[:24]}", "created": int(time.time()), "model": model}
        self._tail = {"system_fingerprint": "fp_replay"}

    def whole(self) -> dict[str, Any]:
        """Return the reply as one object."""
        choices = [
            {
                "index": index,
                "message": {"role": "assistant"}
                | {name: answer.get(name) for name in _MESSAGE_FIELDS if name in answer},
                "finish_reason": _finish_reason(answer),
                "logprobs": None,
            }
            for index, answer in enumerate(self._answers)
        ]
        return self._head | {"object": "chat.completion", "choices": choices, "usage": self._usage} | self._tail

    def pieces(self) -> Iterator[dict[str, Any]]:
        """Yield the reply as the objects of a stream."""
        for index, answer in enumerate(self._answers):
            yield self._chunk(index, {"role": "assistant", "content": ""})
            for name in ("reasoning_content", "reasoning", "content"):
                for text in _cut(answer.get(name) or ""):
                    yield self._chunk(index, {name: text})
            if calls := answer.get("tool_calls"):
                yield self._chunk(index, {"tool_calls": [{"index": at, **call} for at, call in enumerate(calls)]})
            yield self._chunk(index, {}, _finish_reason(answer))
        if self._include_usage:
            yield self._head | {"object": "chat.completion.chunk", "choices": [], "usage": self._usage} | self._tail

    def _chunk(self, index: int, delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "finish_reason": finish_reason, "logprobs": None}
        usage = {"usage": None} if self._include_usage else {}
        return self._head | {"object": "chat.completion.chunk", "choices": [choice]} | usage | self._tail


def _cut(text: str) -> Iterable[str]:
    return _PIECE.findall(text)


def _read_request(body: bytes) -> dict[str, Any]:
    try:
        request = loads(body)
    except ValueError as error:
        raise BadRequestError(f"the body is not JSON: {error}") from error
    if not isinstance(request, dict):
        raise BadRequestError("the body must be a JSON object")
    return request


def _json(value: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    return web.Response(body=dumps(value), status=status, content_type="application/json", headers=headers)


def _error(
    status: int, message: str, kind: str, code: str | None = None, headers: Mapping[str, str] | None = None
) -> web.Response:
    error = {"message": message, "type": kind, "param": None, "code": code}
    return _json({"error": error}, status=status, headers=headers)


def _recorded_error(error: Mapping[str, Any]) -> web.Response:
    headers = {"Retry-After": str(error["retry_after"])} if "retry_after" in error else None
    kind = str(error.get("type") or "server_error")
    return _error(int(error.get("status", 500)), str(error.get("message", "")), kind, error.get("code"), headers)


async def _stream(http: web.Request, reply: Reply) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
    await response.prepare(http)
    for piece in reply.pieces():
        await response.write(b"data: " + dumps(piece) + b"\n")
    await response.write(b"data: [DONE]\n\n")
    await response.write_eof()
    return response


async def serve(teacher: Teacher, port: int) -> None:
    """Serve on loopback until SIGTERM or SIGINT; the first line on stdout is the base URL.

    Raises:
        ConfigError: When the port cannot be had.
    """
    runner = web.AppRunner(teacher.app(), access_log=None, shutdown_timeout=0.2)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", port, backlog=4096)
        try:
            await site.start()
        except OSError as error:
            raise ConfigError(f"port {port}: {error.strerror}; choose another, or 0 for a free one") from error
        print(f"http://127.0.0.1:{runner.addresses[0][1]}/v1", flush=True)
        await _wait_for_signal()
    finally:
        await runner.cleanup()


async def _wait_for_signal() -> None:
    over = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, over.set)
    await over.wait()
