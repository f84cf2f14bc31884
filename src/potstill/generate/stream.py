"""Answers that come as server-sent events, put together and checked like one that comes whole."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from potstill.generate.faults import Fault, from_error_body, raw_text
from potstill.generate.reply import Reply, read_document
from potstill.generate.wire import Connection
from potstill.generate.wire_json import loads

#: A line longer than this is no event.
_MAX_LINE = 64 << 20


@dataclass(slots=True)
class _Part:
    """One choice while it grows."""

    content: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    refusal: list[str] = field(default_factory=list)
    tool_calls: dict[int, dict[str, Any]] = field(default_factory=dict)
    finish_reason: str | None = None
    logprobs: list[Any] = field(default_factory=list)


class StreamReader:
    """Puts the chunks of one stream together."""

    def __init__(self) -> None:
        self.ended = False
        self.fault: Fault | None = None
        self._parts: dict[int, _Part] = {}
        self._usage: Any = None
        self._model: Any = None
        self._fingerprint: Any = None

    def feed(self, line: bytes) -> bool:
        """Take one line of the stream and return whether it brought content (comments and blanks do not)."""
        line = line.strip().removeprefix(b"\xef\xbb\xbf")
        if self.ended or not line.startswith(b"data:"):
            return False
        data = line[5:].strip()
        if data == b"[DONE]":
            self.ended = True
            return True
        try:
            chunk = loads(data)
        except ValueError:
            self.fault = Fault("invalid_response", "a chunk of the stream is not JSON", 200, raw=raw_text(data))
            return False
        if not isinstance(chunk, dict):
            return False
        if chunk.get("error"):
            self.fault = from_error_body(chunk, data)
            return False
        self._take(chunk)
        return True

    def _take(self, chunk: dict[str, Any]) -> None:
        self._usage = chunk.get("usage") or self._usage
        self._model = chunk.get("model") or self._model
        self._fingerprint = chunk.get("system_fingerprint") or self._fingerprint
        choices = chunk.get("choices")
        for choice in choices if isinstance(choices, list) else []:
            if isinstance(choice, dict):
                self._take_choice(choice)

    def _take_choice(self, choice: dict[str, Any]) -> None:
        part = self._parts.setdefault(_index(choice) or 0, _Part())
        delta = _object(choice.get("delta"))
        for pieces, *names in (
            (part.content, "content"),
            (part.refusal, "refusal"),
            (part.reasoning, "reasoning_content", "reasoning"),
        ):
            pieces.append(next((text for name in names if isinstance(text := delta.get(name), str) and text), ""))
        calls = delta.get("tool_calls")
        for call in calls if isinstance(calls, list) else []:
            _merge_call(part.tool_calls, _object(call))
        if isinstance(reason := choice.get("finish_reason"), str):
            part.finish_reason = reason or part.finish_reason
        logprobs = _object(choice.get("logprobs")).get("content")
        part.logprobs.extend(logprobs if isinstance(logprobs, list) else [])

    def result(self, wanted: int) -> Reply | Fault:
        """Return the reply, or what is wrong with it: a stream without its end is no answer."""
        if self.fault is not None:
            return self.fault
        finished = self._parts and all(part.finish_reason for part in self._parts.values())
        if not finished:
            got = "".join(self._parts[0].content)[:500] if 0 in self._parts else ""
            what = "without a finish_reason" if self.ended else "early"
            return Fault("transport", f"the stream ended {what}", 200, raw=raw_text(got.encode()))
        return read_document(self._document(), b"", wanted)

    def _document(self) -> dict[str, Any]:
        choices = [_choice(index, part) for index, part in sorted(self._parts.items())]
        return {"choices": choices, "usage": self._usage, "model": self._model, "system_fingerprint": self._fingerprint}


def _choice(index: int, part: _Part) -> dict[str, Any]:
    message = {
        "content": "".join(part.content),
        "reasoning_content": "".join(part.reasoning) or None,
        "refusal": "".join(part.refusal) or None,
        "tool_calls": [call for _, call in sorted(part.tool_calls.items())] or None,
    }
    logprobs = {"content": part.logprobs} if part.logprobs else None
    return {"index": index, "message": message, "finish_reason": part.finish_reason, "logprobs": logprobs}


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _index(piece: dict[str, Any]) -> int | None:
    index = piece.get("index")
    return index if isinstance(index, int) else None


def _merge_call(calls: dict[int, dict[str, Any]], piece: dict[str, Any]) -> None:
    """Add a piece of a tool call: the arguments come in bits, the rest once."""
    name = piece.get("id") if isinstance(piece.get("id"), str) else None
    index = _index(piece)
    if index is None:
        # Servers that leave the index out send each call whole: another id is another call.
        index = max(calls, default=0)
        if index in calls and name and calls[index]["id"] not in (None, name):
            index += 1
    call = calls.setdefault(index, {"id": None, "type": "function", "function": {"name": "", "arguments": ""}})
    call["id"] = name or call["id"]
    call["type"] = piece.get("type") or call["type"]
    function = _object(piece.get("function"))
    for part in ("name", "arguments"):
        if isinstance(text := function.get(part), str):
            call["function"][part] += text


class LineBuffer:
    """Cuts pieces into lines; a long line is put together once, when its end is there."""

    def __init__(self) -> None:
        self.size = 0
        self._pieces: list[bytes] = []

    def lines(self, piece: bytes) -> list[bytes]:
        """Return the lines that a piece ends."""
        first, *rest = piece.split(b"\n")
        self._pieces.append(first)
        self.size += len(first)
        if not rest:
            return []
        whole = [self.end(), *rest[:-1]]
        self._pieces, self.size = [rest[-1]], len(rest[-1])
        return whole

    def end(self) -> bytes:
        """Return what came after the last line."""
        return b"".join(self._pieces)


def read_events(body: bytes, wanted: int = 1) -> Reply | Fault:
    """Return the reply of a stream that has come whole, from a server that does not say that it is one."""
    reader = StreamReader()
    for line in body.split(b"\n"):
        if reader.fault is None:
            reader.feed(line)
    return reader.result(wanted)


def looks_like_events(body: bytes) -> bool:
    """Return whether a body that is no JSON is a stream without its name."""
    return body.lstrip(b"\xef\xbb\xbf \r\n").startswith((b"data:", b"event:", b":"))


async def read_stream(content: Connection, idle_s: float, wanted: int = 1) -> Reply | Fault:
    """Read a stream to its end.

    Args:
        content: The connection that brings it.
        idle_s: Seconds without content after which the stream counts as hung; comments are no content.
        wanted: The number of choices that were asked for.
    """
    reader, rest = StreamReader(), LineBuffer()
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(idle_s) as clock:
        while not reader.ended and reader.fault is None:
            piece = await content.readany()
            if not piece:
                break
            if sum(reader.feed(line) for line in rest.lines(piece)):
                clock.reschedule(loop.time() + idle_s)
            if rest.size > _MAX_LINE:
                return Fault("invalid_response", "a line of the stream has no end", 200, raw=raw_text(piece))
    if not reader.ended and reader.fault is None:
        reader.feed(rest.end())
    return reader.result(wanted)
