"""The HTTP client beneath the engine, against servers that answer byte for byte what a test says."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import zlib
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest
from yarl import URL

from potstill.errors import ConfigError
from potstill.generate.wire import (
    BrokenReplyError,
    Clocks,
    ConnectError,
    DisconnectedError,
    HeldBackError,
    Response,
    Wire,
)

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CLOCKS = Clocks(connect=5.0, first_byte=None, idle=5.0)

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]


async def read_request(reader: asyncio.StreamReader) -> bytes:
    """Return a whole request, or nothing when the client has closed."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return b""
    length = next(int(line[15:]) for line in head.split(b"\r\n") if line.startswith(b"Content-Length:"))
    return head + await reader.readexactly(length)


def saying(*replies: bytes | float | None) -> Talk:
    """Return a server that gives these pieces after each request: bytes, a pause, or None to close."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await read_request(reader):
            for piece in replies:
                if piece is None:
                    return
                if isinstance(piece, float):
                    await asyncio.sleep(piece)
                else:
                    writer.write(piece)
                    await writer.drain()

    return talk


@contextlib.asynccontextmanager
async def serving(talk: Talk) -> AsyncIterator[tuple[URL, list[int]]]:
    """Run a server; yield its address and a list that grows with each connection."""
    connections: list[int] = []
    tasks: set[asyncio.Task[Any]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(1)
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        with contextlib.suppress(ConnectionError, asyncio.CancelledError):
            await talk(reader, writer)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield URL(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1/chat"), connections
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks)


def ask(talk: Talk, times: int = 1, clocks: Clocks = CLOCKS, seconds: float = 5.0) -> tuple[list[Response], int]:
    """Return the responses to some requests, one after another, and the number of connections they took."""

    async def main() -> tuple[list[Response], int]:
        async with serving(talk) as (url, connections):
            wire = Wire(url, clocks, lambda: True)
            wire.open()
            try:
                head = wire.head("POST", url, {"X-Test": "1"})
                return [await wire.send(head, b"body", seconds) for _ in range(times)], len(connections)
            finally:
                wire.close()
                await asyncio.sleep(0)

    return asyncio.run(main())


def framed(body: bytes, *headers: str) -> bytes:
    """Return a reply with its length."""
    lines = ["HTTP/1.1 200 OK", *headers, f"Content-Length: {len(body)}"]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def raw_deflate(body: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(body) + packer.flush()


WHOLE = {
    "a length": (framed(b"text"), None),
    "chunks and trailers": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;x=1\r\nte\r\n2\r\nxt\r\n0\r\nX-Trailer: 1\r\n\r\n",
        None,
    ),
    "100 Continue before it": (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + framed(b"text"),
        None,
    ),
    "gzip": (framed(gzip.compress(b"text"), "Content-Encoding: gzip"), None),
    "deflate": (framed(zlib.compress(b"text"), "Content-Encoding: deflate"), None),
    "raw deflate": (framed(raw_deflate(b"text"), "Content-Encoding: deflate"), None),
    "identity": (framed(b"text", "Content-Encoding: identity"), None),
    "bare line feeds": (b"HTTP/1.1 200 OK\nContent-Length: 4\n\ntext", None),
    "header of odd bytes": (framed(b"text", "X-Odd: \u00e4\u00f6"), None),
    "the end of the connection": (b"HTTP/1.1 200 OK\r\nX: y\r\n\r\ntext", "closes"),
    "HTTP/1.0": (b"HTTP/1.0 200 OK\r\n\r\ntext", "closes"),
    "HTTP/1.0 with a length": (b"HTTP/1.0 200 OK\r\nContent-Length: 4\r\n\r\ntext", "one each"),
    "Connection: close": (framed(b"text", "Connection: close"), "one each"),
}


@pytest.mark.parametrize("name", WHOLE)
def test_every_form_of_a_whole_reply_is_read(name: str) -> None:
    """A body is read however it is framed and packed, and the connection is used again wherever that may be."""
    reply, ending = WHOLE[name]
    responses, connections = ask(saying(reply, None) if ending == "closes" else saying(reply), times=3)
    assert [(response.status, response.body) for response in responses] == [(200, b"text")] * 3
    assert connections == (1 if ending is None else 3)


def test_a_reply_may_come_byte_by_byte() -> None:
    """Headers and body that come in single bytes are put together."""
    pieces: list[bytes | float] = []
    for number in range(len(OK)):
        pieces += [OK[number : number + 1], 0.001]
    responses, connections = ask(saying(*pieces), times=2)
    assert [response.body for response in responses] == [b"ok", b"ok"]
    assert connections == 1


BROKEN = {
    "closed without a word": ((None,), DisconnectedError),
    "headers cut": ((b"HTTP/1.1 200 OK\r\nContent-Le", None), BrokenReplyError),
    "body cut": ((b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort", None), BrokenReplyError),
    "chunks cut": ((b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nshort", None), BrokenReplyError),
    "no HTTP": ((b"<html>", None), BrokenReplyError),
    "two lengths": ((b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok",), BrokenReplyError),
    "another protocol": (
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nabc",),
        BrokenReplyError,
    ),
    "an unknown packing": ((framed(b"text", "Content-Encoding: br"),), BrokenReplyError),
    "no gzip": ((framed(b"text", "Content-Encoding: gzip"),), BrokenReplyError),
    "gzip cut": ((framed(gzip.compress(b"text" * 99)[:-9], "Content-Encoding: gzip"),), BrokenReplyError),
    "gzip cut by the end of the connection": (
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n" + gzip.compress(b"text" * 99)[:-9], None),
        BrokenReplyError,
    ),
    "endless headers": ((b"HTTP/1.1 200 OK\r\n" + b"X: " + b"y" * 300_000 + b"\r\n\r\n",), BrokenReplyError),
}


@pytest.mark.parametrize("name", BROKEN)
def test_every_broken_reply_is_an_error(name: str) -> None:
    """What is not a whole reply never passes for one, and is told apart from a connection closed while idle."""
    pieces, error = BROKEN[name]
    with pytest.raises(error) as caught:
        ask(saying(*pieces))
    assert type(caught.value) is error


@pytest.mark.parametrize("ending", [None, 9.0], ids=["cut", "hung"])
def test_the_status_of_a_refusal_stands_without_its_body(ending: float | None) -> None:
    """A 429 says "later", also when its body breaks off or never comes."""
    start = b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 7\r\nContent-Length: 9\r\n\r\nslow"
    responses, _ = ask(saying(start, ending), seconds=0.3)
    assert [(r.status, r.headers["retry-after"], r.body) for r in responses] == [(429, "7", b"slow")]


@pytest.mark.parametrize(
    ("pieces", "clocks", "seconds", "text"),
    [
        ((9.0,), CLOCKS, 0.1, "no whole reply within 0.1 s"),
        ((9.0,), CLOCKS._replace(first_byte=0.1), 5.0, "no byte of the reply within 0.1 s"),
        ((OK[:-1], 9.0), CLOCKS._replace(idle=0.1), 5.0, "nothing more of the reply for 0.1 s"),
        ((OK[:-2], *[piece for _ in range(50) for piece in (0.02, b"")], 9.0), CLOCKS, 0.3, "no whole reply within"),
    ],
    ids=["attempt", "first byte", "idle", "dribble"],
)
def test_every_clock_ends_a_request(pieces: tuple[Any, ...], clocks: Clocks, seconds: float, text: str) -> None:
    """Each of the clocks ends the request that it is for, and says which it was."""
    with pytest.raises(TimeoutError, match=text):
        ask(saying(*pieces), clocks=clocks, seconds=seconds)


def test_what_nobody_asked_for_is_not_taken_for_the_next_reply() -> None:
    """Bytes behind a whole reply close the connection: they must not answer the next request."""
    responses, connections = ask(saying(OK + framed(b"not yours")), times=2)
    assert [response.body for response in responses] == [b"ok", b"ok"]
    assert connections == 2


def test_a_connection_that_the_gate_holds_back_is_kept() -> None:
    """A request that may not leave any more sends nothing; its connection serves the next one."""
    seen: list[bytes] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while request := await read_request(reader):
            seen.append(request)
            writer.write(OK)

    async def main() -> int:
        open_gate = False
        async with serving(talk) as (url, connections):
            wire = Wire(url, CLOCKS, lambda: open_gate)
            wire.open()
            head = wire.head("POST", url, {})
            with pytest.raises(HeldBackError):
                await wire.send(head, b"1", 5.0)
            open_gate = True
            await wire.send(head, b"2", 5.0)
            wire.close()
            await asyncio.sleep(0)
            return len(connections)

    assert asyncio.run(main()) == 1
    assert [request[-1:] for request in seen] == [b"2"]


def test_the_head_is_what_was_asked_for_and_cannot_be_broken() -> None:
    """The head names host, path and query as the address has them; a value with a line break is refused."""
    url = URL("http://[::1]:8080/v1/chat?api-version=2&x=%26")
    head = Wire(url, CLOCKS, lambda: True).head("POST", url, {"Api-Key": "s3cret"})
    assert head == b"POST /v1/chat?api-version=2&x=%26 HTTP/1.1\r\nHost: [::1]:8080\r\nApi-Key: s3cret\r\n"
    with pytest.raises(ConfigError, match="Api-Key") as caught:
        Wire(url, CLOCKS, lambda: True).head("POST", url, {"Api-Key": "s3cret\r\nX: y"})
    assert "s3cret" not in str(caught.value)


def test_no_server_is_an_error_of_connecting() -> None:
    """A port that nobody listens on, and a name that does not exist, are told apart from broken replies."""

    async def main(url: URL) -> None:
        wire = Wire(url, CLOCKS, lambda: True)
        wire.open()
        await wire.send(wire.head("POST", url, {}), b"", 5.0)

    for address in ("http://127.0.0.1:9/v1", "http://no-such-host.invalid/v1"):
        with pytest.raises(ConnectError):
            asyncio.run(main(URL(address)))
