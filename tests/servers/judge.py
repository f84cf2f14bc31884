"""A judge on loopback: an OpenAI-compatible server whose replies a test makes from the conversation.

A reply is a text, or a whole number: the status to answer with instead.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

#: The conversation, and how often it was asked before -> the reply.
Replies = Callable[[list[dict[str, Any]], int], str | int]


@dataclass
class Judge:
    """What the server knows: its address, its replies, and the conversations that it was asked."""

    replies: Replies
    url: str = ""
    asked: list[list[dict[str, Any]]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: tests look at `Judge.asked`."""

    def do_GET(self) -> None:
        self._send(200, {"object": "list", "data": [{"id": "judge", "object": "model"}]})

    def do_POST(self) -> None:
        messages = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"]
        judge = self.server.judge
        with judge.lock:
            before = judge.asked.count(messages)
            judge.asked.append(messages)
        reply = judge.replies(messages, before)
        if isinstance(reply, int):
            self._send(reply, {"error": {"message": "no", "type": "test"}})
            return
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": reply}}
        usage = {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12}
        self._send(200, {"id": "x", "object": "chat.completion", "model": "judge", "choices": [choice], "usage": usage})

    def _send(self, status: int, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, replies: Replies) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.judge = Judge(replies, f"http://127.0.0.1:{self.server_address[1]}/v1")


@contextmanager
def running_judge(replies: Replies) -> Iterator[Judge]:
    """Run a judge on a free port of loopback for the time of a `with` block."""
    with _Server(replies) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server.judge
        finally:
            server.shutdown()
            thread.join()
