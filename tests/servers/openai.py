"""A fast, deterministic OpenAI-compatible teacher with seeded faults: `python -m tests.servers.openai --port 0 …`.

Its first line on stdout is its base URL. It speaks HTTP/1.1 by hand, on uvloop, so that it serves well beyond what
any client here can ask. The answer depends on the conversation alone; which fault strikes depends on the seed, the
conversation and how often it was asked. What it saw is told by `GET /stats`; `POST /control` changes its behaviour.
"""

# ruff: noqa: D102 - the class is what is explained here; its methods say what they do by their names
from __future__ import annotations

import argparse
import asyncio
import collections
import email.utils
import hashlib
import json
import math
import random
import signal
import socket
import struct
import sys
import time
from typing import Any

import orjson

#: Fault -> what the client sees. Shares are given as `--fault NAME=SHARE`.
FAULTS = (
    "429",
    "500",
    "502",
    "503",
    "529",
    "503_retry_after",
    "400",
    "401",
    "403",
    "404",
    "408",
    "413",
    "402",
    "quota",
    "context",
    "filter400",
    "reset",
    "reset_mid_body",
    "disconnect",
    "blackhole",
    "truncated",
    "garbage",
    "html",
    "empty_body",
    "half_json",
    "error200",
    "error200_code",
    "error_text",
    "no_choices",
    "null_content",
    "empty_content",
    "content_filter",
    "length",
    "length_empty",
    "drip",
    "stream_cut",
    "stream_error",
    "stream_comments",
    "stream_no_usage",
    "echo_key",
)

DEFAULTS: dict[str, Any] = {
    "latency_s": 0.0,
    "sigma": 0.0,
    "answer_bytes": 64,
    "seed": 0,
    "faults": {},
    "rows": {},
    "retry_after": "1",
    "bucket_rate": 0.0,
    "bucket_burst": 1.0,
    "down": None,
    "key": None,
    "usage": True,
    "reasoning": None,
    "extra": False,
    "chunked": False,
    "echo": False,
    "nondeterministic": False,
    "models_status": 200,
    "grace_s": 0.1,
    "content": None,
    "keep_alive_s": None,
    "remember": True,
}


#: How often the server looks whether it runs.
_TICK_S = 0.005


class Gate:
    """What one key was told to wait for, on this server's own clock."""

    def __init__(self) -> None:
        self.fresh: collections.deque[tuple[float, float, float]] = collections.deque()
        self.until = 0.0
        self.told_until = 0.0
        self.slowest = 0.0

    def close(self, now: float, seconds: float, stalled: float) -> None:
        """Note what a reply says that leaves now, and how long this server has been stalled so far."""
        self.told_until = max(self.told_until, now + seconds)
        self.fresh.append((now, now + seconds, stalled))

    def is_early(self, now: float, grace_s: float, stalled: float) -> bool:
        """Return whether a request that arrives now should not have been sent.

        Time in which this server itself did not run, and let requests lie, does not count.

        What was on its way when the word came is not early: each word counts only `grace_s` after it was said. (To
        count from the first of several words would blame a request that left when that one's time was over, just
        before the next word arrived.)
        """
        while self.fresh and self.fresh[0][0] + grace_s + (stalled - self.fresh[0][2]) < now:
            self.until = max(self.until, self.fresh.popleft()[1])
        if now < self.told_until - 0.01 and self.until < now:
            self.slowest = max(self.slowest, now - self.fresh[0][0] - (stalled - self.fresh[0][2]))
        return now < self.until - 0.01


class Teacher:
    """What the server knows and has seen."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = {**DEFAULTS, **settings}
        self.reset()

    def reset(self) -> None:
        self.sends: collections.Counter[str] = collections.Counter()
        self.answered: collections.Counter[str] = collections.Counter()
        self.statuses: collections.Counter[str] = collections.Counter()
        self.in_flight = 0
        self.most_in_flight = 0
        self.early = 0
        self.cut = 0
        self.requests = 0
        self.other: collections.Counter[str] = collections.Counter()
        self.gates: dict[str, Gate] = collections.defaultdict(Gate)
        self.bodies: collections.deque[Any] = collections.deque(maxlen=200)
        self.level = float(self.settings["bucket_burst"])
        self.level_at = time.monotonic()
        self.stalled = 0.0
        self.turn_at: float | None = None
        self.arrivals: collections.deque[float] = collections.deque(maxlen=200_000)

    def say_later(self, key: str, until: float) -> None:
        """Note that a key was told to wait."""
        now = time.monotonic()
        self.gates[key].close(now, max(0.0, until - now), self.stalled)

    def looked_at(self) -> float:
        """Return when the loop last looked at its sockets: what is read now had come by then, whatever was said since."""
        if self.turn_at is None:
            self.turn_at = time.monotonic()
            asyncio.get_running_loop().call_soon(self.end_turn)
        return self.turn_at

    def end_turn(self) -> None:
        self.turn_at = None

    async def watch_itself(self) -> None:
        """Count the seconds in which this server should have run and did not."""
        while True:
            asleep = time.monotonic()
            await asyncio.sleep(_TICK_S)
            self.stalled += max(0.0, time.monotonic() - asleep - 2 * _TICK_S)

    def stats(self) -> dict[str, Any]:
        counts = sorted(self.sends.values())
        return {
            "requests": self.requests,
            "rows": len(self.sends),
            "answered_rows": len(self.answered),
            "answers": sum(self.answered.values()),
            "most_sends": counts[-1] if counts else 0,
            "statuses": dict(self.statuses),
            "in_flight": self.in_flight,
            "most_in_flight": self.most_in_flight,
            "early": self.early,
            "stalled_s": round(self.stalled, 3),
            "slowest_reaction_s": round(max((gate.slowest for gate in self.gates.values()), default=0.0), 4),
            "cut": self.cut,
            "other": dict(self.other),
        }

    def take_token(self) -> float:
        """Return 0 if the bucket had a token, else the seconds until it has one."""
        rate, now = self.settings["bucket_rate"], time.monotonic()
        if not rate:
            return 0.0
        self.level = min(float(self.settings["bucket_burst"]), self.level + (now - self.level_at) * rate)
        self.level_at = now
        if self.level >= 1.0:
            self.level -= 1.0
            return 0.0
        return (1.0 - self.level) / rate

    def draw(self, row: str, number: int) -> str | None:
        """Return the fault of one request, or None."""
        planned = self.settings["rows"].get(row)
        if planned is not None:
            return planned if isinstance(planned, str) else (planned[number] if number < len(planned) else None)
        faults = self.settings["faults"]
        if not faults:
            return None
        digest = hashlib.blake2b(f"{self.settings['seed']}/{row}/{number}".encode(), digest_size=8).digest()
        point = int.from_bytes(digest, "big") / 2**64
        for name, share in faults.items():
            if point < share:
                return str(name)
            point -= share
        return None

    def latency(self, row: str, number: int) -> float:
        median, sigma = self.settings["latency_s"], self.settings["sigma"]
        if not median or not sigma:
            return float(median)
        return median * math.exp(random.Random(f"{self.settings['seed']}/{row}/{number}").gauss(0.0, sigma))


def row_of(body: dict[str, Any]) -> str:
    """Return the name under which a conversation is counted: its last user text, or a hash of it."""
    text = ""
    for message in body.get("messages") or []:
        if isinstance(message, dict) and message.get("role") == "user" and isinstance(message.get("content"), str):
            text = message["content"]
    return text[:80] if len(text) <= 80 else hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:24]


class Connection(asyncio.Protocol):
    """One client's connection."""

    def __init__(self, teacher: Teacher) -> None:
        self.teacher = teacher
        self.buffer = b""
        self.busy: asyncio.Task[None] | None = None
        self.transport: Any = None
        self.idle: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        if self.busy is not None:
            self.teacher.cut += 1
            self.busy.cancel()
        if self.idle is not None:
            self.idle.cancel()

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        if self.busy is None:
            self.next_request()

    def next_request(self) -> None:
        head_end = self.buffer.find(b"\r\n\r\n")
        if head_end < 0:
            return
        lines = self.buffer[:head_end].split(b"\r\n")
        headers = {}
        for line in lines[1:]:
            name, _, value = line.partition(b":")
            headers[name.strip().lower()] = value.strip()
        length = int(headers.get(b"content-length", b"0"))
        if len(self.buffer) < head_end + 4 + length:
            return
        body = self.buffer[head_end + 4 : head_end + 4 + length]
        self.buffer = self.buffer[head_end + 4 + length :]
        method, target, _ = lines[0].decode().split(" ", 2)
        if self.idle is not None:
            self.idle.cancel()
        self.serve(method, target, headers, body)

    def serve(self, method: str, target: str, headers: dict[bytes, bytes], body: bytes) -> None:
        path = target.partition("?")[0]
        teacher = self.teacher
        if method == "POST" and path.endswith("/chat/completions"):
            work = self.prepare_chat(headers, body)
            if work is not None:
                self.busy = asyncio.get_running_loop().create_task(work)
                self.busy.add_done_callback(self.done)
                return
        elif path == "/stats":
            self.reply(200, orjson.dumps(teacher.stats()))
        elif path == "/rows":
            self.reply(200, orjson.dumps({"sends": teacher.sends, "answered": teacher.answered}))
        elif path == "/bodies":
            self.reply(200, orjson.dumps(list(teacher.bodies)))
        elif path == "/arrivals":
            self.reply(200, orjson.dumps(list(teacher.arrivals)))
        elif path == "/control":
            changes = json.loads(body)
            if changes.pop("reset", False):
                teacher.settings.update(changes)
                teacher.reset()
            teacher.settings.update(changes)
            self.reply(200, b"{}")
        elif path.endswith("/models"):
            teacher.other["models"] += 1
            if teacher.settings["down"] in {"refuse", "blackhole"}:
                if teacher.settings["down"] == "refuse":
                    self.abort()
                return
            status = int(teacher.settings["down"]) if teacher.settings["down"] else teacher.settings["models_status"]
            self.reply(status, orjson.dumps({"object": "list", "data": [{"id": "fake", "object": "model"}]}))
        else:
            teacher.other[f"{method} {path}"] += 1
            self.reply(404, b'{"error":{"message":"no such path","code":null}}')
        if self.buffer and self.busy is None:
            self.next_request()

    def done(self, task: asyncio.Task[None]) -> None:
        self.teacher.in_flight -= 1
        self.busy = None
        if not task.cancelled() and task.exception() is not None:
            print(f"teacher: {task.exception()!r}", file=sys.stderr)
            self.transport.abort()
        if self.buffer and not self.transport.is_closing():
            self.next_request()

    def prepare_chat(self, headers: dict[bytes, bytes], raw: bytes) -> Any:
        """Count a request and return what serves it, or None if it was served at once."""
        teacher, settings = self.teacher, self.teacher.settings
        teacher.requests += 1
        now = teacher.looked_at()
        teacher.arrivals.append(now)
        body = orjson.loads(raw)
        row = row_of(body)
        number = teacher.sends[row]
        teacher.sends[row] += 1
        if settings["remember"]:
            teacher.bodies.append(body)
        key = headers.get(b"authorization", b"").decode("latin-1")
        teacher.early += teacher.gates[key].is_early(now, settings["grace_s"], teacher.stalled)
        fault = teacher.draw(row, number)
        if settings["down"]:
            fault = {"refuse": "disconnect", "blackhole": "blackhole"}.get(settings["down"], settings["down"])
        elif settings["key"] is not None and key.removeprefix("Bearer ") != settings["key"]:
            fault = "401"
        elif (wait := teacher.take_token()) > 0:
            fault = "429"
            settings = {**settings, "retry_after": f"{wait:.3f}"}
        seconds = teacher.latency(row, number)
        if fault is None and not seconds and not body.get("stream") and not settings["chunked"]:
            self.answer(body, row, number)
            return None
        teacher.in_flight += 1
        teacher.most_in_flight = max(teacher.most_in_flight, teacher.in_flight)
        return self.chat(body, row, number, fault, seconds, key, settings)

    async def chat(
        self, body: Any, row: str, number: int, fault: str | None, seconds: float, key: str, settings: dict[str, Any]
    ) -> None:
        if seconds:
            await asyncio.sleep(seconds)
        if fault is not None:
            self.teacher.statuses[fault] += 1
            await self.fail(fault, body, row, number, key, settings)
        elif body.get("stream"):
            await self.stream(body, row, number, None)
        elif settings["chunked"]:
            await self.answer_chunked(body, row, number)
        else:
            self.answer(body, row, number)

    # -- answers ----------------------------------------------------------------------------------------------

    def text(self, body: Any, row: str, number: int, choice: int = 0) -> str:
        settings = self.teacher.settings
        if settings["content"] is not None:
            content = settings["content"]
            # A list is for what is asked again, be it the same conversation or one with the answer in it.
            number += sum(message.get("role") == "assistant" for message in body["messages"])
            return content[min(number, len(content) - 1)] if isinstance(content, list) else str(content)
        if settings["echo"]:
            return row
        salt = f"{number}" if settings["nondeterministic"] else ""
        digest = hashlib.blake2b(f"{row}/{salt}/{choice}".encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
        text = f"SELECT '{digest}'"
        size = settings["answer_bytes"]
        return (text + " -- " + digest * (size // 32 + 1))[:size] if size > len(text) else text

    def document(self, body: Any, row: str, number: int) -> dict[str, Any]:
        settings = self.teacher.settings
        choices = []
        for index in range(body.get("n") or 1):
            message: dict[str, Any] = {"role": "assistant", "content": self.text(body, row, number, index)}
            if settings["reasoning"]:
                message[settings["reasoning"]] = f"thinking about {row}"
            choices.append({"index": index, "message": message, "finish_reason": "stop"})
        document: dict[str, Any] = {
            "id": "chatcmpl-fake",
            "object": "chat.completion",
            "created": 1,
            "model": f"{body.get('model')}-served",
            "choices": choices,
        }
        if settings["usage"]:
            tokens = len(choices[0]["message"]["content"]) // 4
            document["usage"] = {"prompt_tokens": 20, "completion_tokens": tokens, "total_tokens": 20 + tokens}
        if settings["extra"]:
            document |= {"x_extra": {"a": [1, None]}, "service_tier": "default", "system_fingerprint": "fp_fake"}
        return document

    def answer(self, body: Any, row: str, number: int) -> None:
        document = self.document(body, row, number)
        try:
            self.reply(200, orjson.dumps(document))
        except TypeError:
            self.reply(200, json.dumps(document).encode())  # a lone surrogate, as its escape
        self.count_answer(row)

    def count_answer(self, row: str) -> None:
        if not self.transport.is_closing():
            self.teacher.answered[row] += 1
            self.teacher.statuses["200"] += 1

    async def answer_chunked(self, body: Any, row: str, number: int) -> None:
        data = orjson.dumps(self.document(body, row, number))
        self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
        for at in range(0, len(data), 50):
            piece = data[at : at + 50]
            self.transport.write(b"%x\r\n" % len(piece) + piece + b"\r\n")
            await asyncio.sleep(0)
        self.transport.write(b"0\r\n\r\n")
        self.count_answer(row)

    async def stream(self, body: Any, row: str, number: int, fault: str | None) -> None:
        self.transport.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        text = self.text(body, row, number)
        pieces = [text[at : at + 16] for at in range(0, len(text), 16)]
        base = {
            "id": "chatcmpl-fake",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": f"{body.get('model')}-served",
        }
        if fault == "stream_comments":
            while not self.transport.is_closing():
                self.chunk(b": keep-alive\n\n")
                await asyncio.sleep(0.05)
        if self.teacher.settings["reasoning"]:
            self.event(
                {
                    **base,
                    "choices": [{"index": 0, "delta": {self.teacher.settings["reasoning"]: f"thinking about {row}"}}],
                }
            )
        for place, piece in enumerate(pieces):
            if fault == "stream_cut" and place == len(pieces) // 2:
                self.transport.write(b"0\r\n\r\n")
                return
            if fault == "stream_error" and place == 1:
                self.event({"error": {"message": "engine died", "code": 500}})
                break
            self.event({**base, "choices": [{"index": 0, "delta": {"content": piece}, "finish_reason": None}]})
            await asyncio.sleep(0)
        else:
            self.event({**base, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
            if fault != "stream_no_usage" and (body.get("stream_options") or {}).get("include_usage"):
                self.event({**base, "choices": [], "usage": {"prompt_tokens": 20, "completion_tokens": len(text) // 4}})
        self.chunk(b"data: [DONE]\n\n")
        self.transport.write(b"0\r\n\r\n")
        if fault is None or fault == "stream_no_usage":
            self.count_answer(row)

    def event(self, value: Any) -> None:
        self.chunk(b"data: " + orjson.dumps(value) + b"\n\n")

    def chunk(self, data: bytes) -> None:
        if not self.transport.is_closing():
            self.transport.write(b"%x\r\n" % len(data) + data + b"\r\n")

    # -- faults -----------------------------------------------------------------------------------------------

    async def fail(self, fault: str, body: Any, row: str, number: int, key: str, settings: dict[str, Any]) -> None:
        if fault.startswith("stream_"):
            await self.stream(body, row, number, fault)
        elif fault in {"reset", "reset_mid_body", "disconnect", "blackhole", "truncated", "drip"}:
            await self.break_connection(fault, body, row, number)
        elif fault.split("_")[0].isdigit() or fault in {"quota", "context", "filter400", "echo_key", "error_text"}:
            self.refuse(fault, key, settings)
        else:
            self.reply_oddly(fault, body, row, number)

    def refuse(self, fault: str, key: str, settings: dict[str, Any]) -> None:
        codes: dict[str, tuple[int, Any]] = {
            "quota": (
                429,
                {
                    "message": "You exceeded your current quota",
                    "code": "insufficient_quota",
                    "type": "insufficient_quota",
                },
            ),
            "context": (400, {"message": "maximum context length is 4096 tokens", "code": "context_length_exceeded"}),
            "filter400": (400, {"message": "filtered", "code": "content_filter"}),
            "echo_key": (400, {"message": f"bad header Authorization: {key}", "code": "x"}),
            "error_text": (400, "plain words"),
        }
        status, error = codes.get(fault) or (
            int(fault.split("_")[0]),
            {"message": f"fault {fault}", "type": "fault", "code": None},
        )
        headers = ""
        if (status in {429, 529} and fault != "quota") or fault == "503_retry_after":
            headers = self.retry_after(str(settings["retry_after"]), key)
        self.reply(status, orjson.dumps({"error": error}), headers)

    def retry_after(self, value: str, key: str) -> str:
        if not value or value == "None":
            return ""
        now = time.monotonic()
        if value.startswith("ms:"):
            seconds, header = float(value[3:]) / 1000, f"retry-after-ms: {value[3:]}\r\n"
        elif value.startswith("date:"):
            # Whole seconds: what the date says is what counts.
            date = math.ceil(time.time() + float(value[5:]))
            seconds, header = date - time.time(), f"Retry-After: {email.utils.formatdate(date, usegmt=True)}\r\n"
        else:
            seconds, header = float(value), f"Retry-After: {value}\r\n"
        # The loop writes the reply at the end of its turn, after all that it reads in this one.
        asyncio.get_running_loop().call_soon(self.teacher.say_later, key, now + seconds)
        return header

    async def break_connection(self, fault: str, body: Any, row: str, number: int) -> None:
        data = orjson.dumps(self.document(body, row, number))
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(data)
        if fault == "reset":
            self.abort()
        elif fault == "disconnect":
            self.transport.close()
        elif fault == "blackhole":
            await asyncio.sleep(3600)
        elif fault == "drip":
            self.transport.write(head)
            for byte in data:
                self.transport.write(bytes([byte]))
                await asyncio.sleep(0.2)
        else:
            self.transport.write(head + data[: len(data) // 2])
            if fault == "reset_mid_body":
                await asyncio.sleep(0.01)
                self.abort()
            else:
                self.transport.close()

    def abort(self) -> None:
        """Send RST, not FIN."""
        raw = self.transport.get_extra_info("socket")
        if raw is not None:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def reply_oddly(self, fault: str, body: Any, row: str, number: int) -> None:
        document = self.document(body, row, number)
        message = document["choices"][0]["message"]
        if fault == "null_content":
            message["content"] = None
        elif fault == "empty_content":
            message["content"] = ""
        elif fault == "content_filter":
            message["content"] = None
            document["choices"][0]["finish_reason"] = "content_filter"
        elif fault in {"length", "length_empty"}:
            message["content"] = message["content"][:10] if fault == "length" else None
            document["choices"][0]["finish_reason"] = "length"
        elif fault == "no_choices":
            document["choices"] = []
        data = orjson.dumps(document)
        odd = {
            "garbage": b"\x00\xff<<garbage>>" * 20,
            "html": b"<html><body>502 Bad Gateway</body></html>",
            "empty_body": b"",
            "half_json": data[: len(data) // 2],
            "error200": b'{"error":{"message":"upstream failed","type":"server_error"}}',
            "error200_code": b'{"error":{"message":"upstream failed","code":502}}',
        }
        self.reply(200, odd.get(fault, data))

    def reply(self, status: int, body: bytes, headers: str = "") -> None:
        self.transport.write(
            b"HTTP/1.1 %d X\r\nContent-Type: application/json\r\nContent-Length: %d\r\n%s\r\n"
            % (status, len(body), headers.encode())
            + body
        )
        keep = self.teacher.settings["keep_alive_s"]
        if keep is not None:
            self.idle = asyncio.get_running_loop().call_later(keep, self.transport.close)


def read_arguments(argv: list[str] | None) -> tuple[int, dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument(
        "--fault", action="append", default=[], metavar="NAME=SHARE", help=f"one of {', '.join(FAULTS)}"
    )
    parser.add_argument("--settings", type=json.loads, default={}, metavar="JSON", help=f"any of {', '.join(DEFAULTS)}")
    for name in ("latency_s", "sigma", "bucket_rate", "bucket_burst"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=float)
    for name in ("answer_bytes", "seed"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int)
    for name in ("retry_after", "down", "key"):
        parser.add_argument(f"--{name.replace('_', '-')}")
    args = parser.parse_args(argv)
    faults = {name: float(share) for name, _, share in (item.partition("=") for item in args.fault)}
    if unknown := sorted(set(faults) - set(FAULTS)):
        parser.error(f"unknown fault {unknown[0]}; known are {', '.join(FAULTS)}")
    given = {name: value for name, value in vars(args).items() if name in DEFAULTS and value is not None}
    settings = {**args.settings, **given}
    if faults:
        settings["faults"] = faults
    if unknown := sorted(set(settings) - set(DEFAULTS)):
        parser.error(f"unknown setting {unknown[0]}")
    return args.port, settings


async def serve(port: int, settings: dict[str, Any]) -> None:
    loop = asyncio.get_running_loop()
    teacher = Teacher(settings)
    server = await loop.create_server(lambda: Connection(teacher), "127.0.0.1", port, backlog=4096)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", flush=True)
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    watch = asyncio.create_task(teacher.watch_itself())
    await stopped.wait()
    watch.cancel()
    server.close()


def main(argv: list[str] | None = None) -> None:
    port, settings = read_arguments(argv)
    try:
        import uvloop

        factory = uvloop.new_event_loop
    except ImportError:
        factory = asyncio.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(serve(port, settings))


if __name__ == "__main__":
    main()
