"""Loopback servers that say byte for byte what a test wants, one thread per connection; with TLS where asked, or as a proxy."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import ssl
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

#: A whole answer, as OpenAI's servers give it.
ANSWER: dict[str, Any] = {
    "id": "1",
    "object": "chat.completion",
    "model": "fake-served",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "SELECT 1"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 2},
}


@dataclass
class Request:
    """One request as it came, and the connection that it came on.

    Attributes:
        method: The method.
        target: The target, as sent.
        headers: Names in small letters.
        body: The bytes.
        connection: For the reply.
        number: Which request of the server's this is, from 0 on.
    """

    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    connection: socket.socket
    number: int = 0

    @property
    def text(self) -> str:
        """The last user text."""
        return str(json.loads(self.body)["messages"][-1]["content"])

    def send(self, *pieces: bytes) -> None:
        """Write bytes."""
        for piece in pieces:
            self.connection.sendall(piece)

    def reply(self, body: bytes, *headers: str, status: int = 200, length: bool = True) -> None:
        """Write a reply with the usual headers and more."""
        lines = [f"HTTP/1.1 {status} X", *headers]
        if not any(line.lower().startswith("content-type") for line in headers):
            lines.append("Content-Type: application/json")
        if length:
            lines.append(f"Content-Length: {len(body)}")
        self.send(("\r\n".join(lines) + "\r\n\r\n").encode(), body)

    def answer(self, *headers: str, document: Any = None) -> None:
        """Write a whole answer."""
        self.reply(json.dumps(ANSWER if document is None else document).encode(), *headers)

    def hang_up(self, *, reset: bool = False) -> None:
        """Close the connection, by RST if asked."""
        if reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR) if not reset else self.connection.close()


Handler = Callable[[Request], None]


@dataclass
class RawServer:
    """A running server: what it was asked, and where it listens."""

    url: str
    port: int
    requests: list[Request] = field(default_factory=list)
    handshakes_failed: int = 0

    @property
    def asked(self) -> list[Request]:
        """The requests that are no signs of life."""
        return [request for request in self.requests if not request.target.partition("?")[0].endswith("/models")]


class Certificates(NamedTuple):
    """Files of a private CA and of a server that it vouches for."""

    ca: Path
    server: Path


@contextlib.contextmanager
def serving(handler: Handler, certificate: Path | None = None) -> Iterator[RawServer]:
    """Run a server for the length of a block.

    Args:
        handler: Called for each POST; when it returns, the next request is read from the connection.
        certificate: Speak TLS, with this certificate and key.
    """
    listener = socket.create_server(("127.0.0.1", 0), backlog=512)
    port = listener.getsockname()[1]
    context = None
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
    server = RawServer(f"{'https' if context else 'http'}://127.0.0.1:{port}/v1", port)
    open_sockets: set[socket.socket] = set()
    threads: list[threading.Thread] = []

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            open_sockets.add(connection)
            threads.append(threading.Thread(target=_talk, args=(server, handler, connection, context), daemon=True))
            threads[-1].start()

    accepting = threading.Thread(target=accept, daemon=True)
    accepting.start()
    try:
        yield server
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        accepting.join(5)
        for connection in open_sockets:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join(5)
        for connection in open_sockets:
            connection.close()


def _talk(server: RawServer, handler: Handler, raw: socket.socket, context: ssl.SSLContext | None) -> None:
    try:
        connection = raw if context is None else context.wrap_socket(raw, server_side=True)
    except OSError:
        server.handshakes_failed += 1
        raw.close()
        return
    with connection, contextlib.suppress(OSError):
        while (request := _read_request(connection)) is not None:
            request.number = len(server.asked)
            server.requests.append(request)
            if request.target.partition("?")[0].endswith("/models"):
                request.reply(b'{"data":[]}')
            else:
                handler(request)
            if request.connection.fileno() < 0:
                return


def _read_request(connection: socket.socket) -> Request | None:
    data = b""
    while b"\r\n\r\n" not in data:
        piece = connection.recv(1 << 16)
        if not piece:
            return None
        data += piece
        if data[0] == 0x16:  # TLS, to a server that speaks none
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
            return None
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    method, target, _ = first.split(" ", 2)
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    length = int(headers.get("content-length", 0))
    while len(body) < length:
        body += connection.recv(1 << 16)
    return Request(method, target, headers, body, connection)


# -- TLS ------------------------------------------------------------------------------------------------------


def make_certificates(folder: Path, name: str = "IP:127.0.0.1", days: int = 2) -> Certificates:
    """Make a private CA and a certificate of a server on loopback, by openssl's command."""
    _openssl(
        folder,
        *[
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-keyout",
            "ca.key",
            "-out",
            "ca.pem",
            "-days",
            "2",
            "-subj",
            "/CN=test-CA",
        ],
        *("-addext", "keyUsage=critical,keyCertSign"),
    )
    _openssl(
        folder,
        *["req", "-newkey", "rsa:2048", "-nodes", "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=server"],
    )
    (folder / "names").write_text(f"subjectAltName={name}\nauthorityKeyIdentifier=keyid\n")
    words = (
        f"x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days {days} -extfile names -out server.crt"
    )
    _openssl(folder, *words.split())
    whole = folder / "server.pem"
    whole.write_bytes((folder / "server.key").read_bytes() + (folder / "server.crt").read_bytes())
    return Certificates(folder / "ca.pem", whole)


def has_openssl() -> bool:
    """Say whether openssl's command is there."""
    return shutil.which("openssl") is not None


def _openssl(folder: Path, *words: str) -> None:
    subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True, timeout=60)


# -- proxies --------------------------------------------------------------------------------------------------


@dataclass
class Proxy:
    """A proxy's behaviour; `serving(proxy)` runs it.

    Attributes:
        login: The value that `Proxy-Authorization` must have, or None.
        refuse: A status by which every CONNECT is refused, or None.
        seen: The first line of each request, and its login.
    """

    login: str | None = None
    refuse: int | None = None
    seen: list[tuple[str, str, str]] = field(default_factory=list)

    def __call__(self, request: Request) -> None:
        """Forward one request."""
        login = request.headers.get("proxy-authorization", "")
        self.seen.append((request.method, request.target, login))
        if self.login is not None and login != self.login:
            request.reply(b"who are you", 'Proxy-Authenticate: Basic realm="x"', status=407)
        elif request.method == "CONNECT" and self.refuse is not None:
            request.reply(b"", status=self.refuse)
        elif request.method == "CONNECT":
            self._tunnel(request)
        else:
            self._forward(request)

    def _tunnel(self, request: Request) -> None:
        host, _, port = request.target.rpartition(":")
        with socket.create_connection((host, int(port))) as upstream:
            request.send(b"HTTP/1.1 200 Connection established\r\n\r\n")
            back = threading.Thread(target=_pump, args=(upstream, request.connection), daemon=True)
            back.start()
            _pump(request.connection, upstream)
            back.join(5)

    def _forward(self, request: Request) -> None:
        authority, _, path = request.target.removeprefix("http://").partition("/")
        host, _, port = authority.rpartition(":")
        with socket.create_connection((host, int(port))) as upstream:
            lines = [f"{request.method} /{path} HTTP/1.1", "Connection: close"]
            lines += [f"{name}: {value}" for name, value in request.headers.items() if not name.startswith("proxy-")]
            upstream.sendall(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + request.body)
            data = b""
            while piece := upstream.recv(1 << 16):
                data += piece
                head, end, body = data.partition(b"\r\n\r\n")
                if end and b"content-length" in head.lower():
                    length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
                    if len(body) >= length:
                        break
            request.send(data)


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)
