"""HTTP/1.1 to one server: bytes out, a status, headers and a body back; its clocks, its proxy, its idle connections.

Beneath aiohttp's client on purpose: of the CPU that a request costs there, a third is its bookkeeping
(docs/decisions.md has the measurement). What is hard about the protocol is done by those who keep it: llhttp (the
parser of Node.js) through httptools, TLS by Python, the race between IPv6 and IPv4 by aiohappyeyeballs.
"""

from __future__ import annotations

import asyncio
import base64
import socket
import ssl
import zlib
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar, cast

import aiohappyeyeballs
import httptools
from yarl import URL

from potstill.errors import ConfigError

Result = TypeVar("Result")
HandsOver = Callable[[int, Mapping[str, str]], bool]
Hears = Callable[[int, Mapping[str, str]], None]

#: Shorter than the 5 s after which uvicorn closes an idle connection, so that we rarely send into a closed one.
_KEEPALIVE_S = 4.0
#: How late a clock may be noticed, at most, as a share of the time that it allows, and in seconds.
_SHARE = 0.05
_MOST_S = 0.5
#: What no server of a teacher sends: more is cut off, before it fills the memory.
_MOST_HEADER_BYTES = 1 << 18
_MOST_BODY_BYTES = 1 << 28
_MOST_REFUSAL_BYTES = 1 << 20
_DNS_S = 60.0
#: After so many seconds without a byte the sockets are looked at once more before anything is sent.
_STALE_S = 0.005
_HAPPY_EYEBALLS_S = 0.25


class HeldBackError(Exception):
    """Raised when the gate closed while a request waited for its connection: nothing was sent."""


class ConnectError(OSError):
    """Raised when no connection could be made: name, route, time or proxy."""


class DisconnectedError(OSError):
    """Raised when the connection broke before a byte of the reply: it may have been closed while idle."""


class BrokenReplyError(OSError):
    """Raised when a reply broke off, or is not HTTP."""


class ProxyError(OSError):
    """Raised when the proxy refused to connect us; it carries what the proxy said."""

    def __init__(self, response: Response) -> None:
        super().__init__(f"the proxy said HTTP {response.status}")
        self.response = response


class Clocks(NamedTuple):
    """Seconds that the phases of a request may take: until the first byte (None: no clock), and between two pieces."""

    connect: float
    first_byte: float | None
    idle: float


@dataclass(slots=True)
class Response:
    """What came back.

    Attributes:
        status: The HTTP status.
        headers: By their names in lower case.
        body: The whole of it, unpacked; empty while `stream` is being read.
        stream: The connection, if the body is read in pieces.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    stream: Connection | None = None


class _Pulse:
    """When bytes were last read from a server."""

    __slots__ = ("at",)

    def __init__(self) -> None:
        self.at = 0.0


class Connection(asyncio.Protocol):
    """One connection, and the one exchange that is on it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, pulse: _Pulse, hears: Hears | None = None) -> None:
        self.transport: asyncio.Transport | None = None
        self.deadline = 0.0
        self.idle_since = 0.0
        self.heard_at = 0.0
        self.sent_at = 0.0
        self._loop = loop
        self._hears = hears
        self._pulse = pulse
        self._parser = self._new_parser()
        self._waiter: asyncio.Future[Response] | None = None
        self._woken: asyncio.Future[None] | None = None
        self._begin(None)
        self._complete = self._reusable = True

    def _begin(self, hands_over: HandsOver | None) -> None:
        self._hands_over = hands_over
        self._status = 0
        self._headers: dict[str, str] = {}
        self._pieces: list[bytes] = []
        self._size = 0
        self._unpack: _Unpacker | None = None
        self._error: OSError | None = None
        self._complete = self._reusable = False

    def _new_parser(self) -> httptools.HttpResponseParser:
        parser = httptools.HttpResponseParser(self)
        # "Dangerous" where requests pass through; a client may read what curl reads.
        parser.set_dangerous_leniencies(lenient_optional_cr_before_lf=True, lenient_spaces_after_chunk_size=True)
        return parser

    # -- the exchange -----------------------------------------------------------------------------------------

    async def exchange(
        self, request: bytes, now: float, seconds: float, hands_over: HandsOver | None = None
    ) -> Response:
        """Send a request and return its response.

        Args:
            request: Head and body.
            now: The loop's time.
            seconds: When the whole of it must have come.
            hands_over: Tells by status and headers whether the response is returned before its body is there.

        Raises:
            OSError: What broke; TimeoutError if a clock ran out.
        """
        self._begin(hands_over)
        self.sent_at, self.heard_at, self.deadline = now, 0.0, now + seconds
        self._waiter = self._loop.create_future()
        if self.transport is None or self.transport.is_closing():
            raise DisconnectedError("the server has closed the connection")
        self.transport.write(request)
        return await self._waiter

    async def open_tunnel(self, authority: str, proxy: URL, now: float, seconds: float) -> None:
        """Have a proxy connect this connection to another host.

        Raises:
            ProxyError: If it refuses.
            OSError: What broke.
        """
        lines = [f"CONNECT {authority} HTTP/1.1", f"Host: {authority}"]
        lines += [f"{name}: {value}" for name, value in _proxy_headers(proxy).items()]
        request = ("\r\n".join(lines) + "\r\n\r\n").encode()
        response = await self.exchange(request, now, seconds, lambda status, headers: True)
        if response.status != 200:
            raise ProxyError(response)
        self._begin(None)
        self._complete = self._reusable = True
        self._parser = self._new_parser()

    async def readany(self) -> bytes:
        """Return what has come of a streamed body since the last call, at least a byte; nothing at its end.

        Raises:
            OSError: What broke.
        """
        while not self._pieces:
            if self._error is not None:
                raise self._error
            if self._complete:
                return b""
            self._woken = self._loop.create_future()
            try:
                await self._woken
            finally:
                self._woken = None
        piece = b"".join(self._pieces)
        self._pieces.clear()
        return piece

    def is_late(self, now: float, clocks: Clocks) -> str | None:
        """Return which clock has run out, or None."""
        if now >= self.deadline:
            return f"no whole reply within {round(self.deadline - self.sent_at, 1):g} s"
        if not self.heard_at:
            if clocks.first_byte is not None and now - self.sent_at >= clocks.first_byte:
                return f"no byte of the reply within {clocks.first_byte:g} s"
        elif now - self.heard_at >= clocks.idle:
            return f"nothing more of the reply for {clocks.idle:g} s"
        return None

    def fail(self, error: OSError) -> None:
        """End the exchange with an error; the connection is of no use any more.

        Of a refusal the status says enough: it stands, also with a body that breaks off.
        """
        self._error = self._error or error
        if self._status not in {0, 200} and self._hands_over is not None:
            self._resolve(Response(self._status, self._headers, b"".join(self._pieces)))
        elif self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(error)
        self._wake()
        self.abort()

    def abort(self) -> None:
        """Close at once."""
        if self.transport is not None:
            self.transport.abort()

    @property
    def is_free(self) -> bool:
        """Whether the last exchange has ended in a way that lets another one follow."""
        return self._complete and self._reusable and self.transport is not None and not self.transport.is_closing()

    def _wake(self) -> None:
        if self._woken is not None and not self._woken.done():
            self._woken.set_result(None)

    def _resolve(self, response: Response) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(response)

    # -- called by the loop -----------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport; a second time when TLS was put on it."""
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Parse what came."""
        if self._waiter is None or self._complete:
            self.abort()  # nobody has asked for this
            return
        self.heard_at = self._pulse.at = self._loop.time()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self.fail(BrokenReplyError("the server wants another protocol (HTTP 101)"))
        except httptools.HttpParserCallbackError as error:
            self.fail(BrokenReplyError(str(error.__context__ or error)))
        except httptools.HttpParserError as error:
            self.fail(BrokenReplyError(f"the reply is not HTTP: {error}"))

    def connection_lost(self, exc: Exception | None) -> None:
        """End what is open: a body without a length ends so, everything else is broken off by it."""
        self.transport = None
        if self._complete or self._waiter is None:
            return
        if self._status >= 200 and exc is None and not self._has_length:
            self._end_without_length()
        elif not self.heard_at:
            self.fail(DisconnectedError(f"the server has closed the connection ({exc or 'without a reply'})"))
        else:
            self.fail(BrokenReplyError(f"the reply broke off after {self._size} bytes of its body"))

    def _end_without_length(self) -> None:
        try:
            self.on_message_complete()
        except ValueError as error:  # called by the loop here: no parser is above it that would take the error
            self.fail(BrokenReplyError(str(error)))

    @property
    def _has_length(self) -> bool:
        return "content-length" in self._headers or "transfer-encoding" in self._headers

    # -- called by the parser ---------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Refuse a second reply: nobody has asked for it, and it must not answer the next request."""
        if self._complete:
            raise ValueError("more than one reply")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take one header; what stands behind the body is none."""
        if self._status:
            return
        self._size += len(name) + len(value)
        if self._size > _MOST_HEADER_BYTES:
            raise ValueError(f"the headers of the reply have more than {_MOST_HEADER_BYTES} bytes")
        self._headers[name.decode("latin-1").lower()] = value.decode("utf-8", "replace").strip()

    def on_headers_complete(self) -> None:
        """Take the status, and hand an event stream over."""
        status = self._parser.get_status_code()
        if status < 200:
            self._headers.clear()
            return
        self._status, self._size = status, 0
        if status != 200 and self._hears is not None:
            self._hears(status, self._headers)
        if "content-encoding" in self._headers:
            self._unpack = _unpacker(self._headers["content-encoding"])
        if self._hands_over is not None and self._hands_over(status, self._headers):
            self._resolve(Response(status, self._headers, b"", self))

    def on_body(self, piece: bytes) -> None:
        """Take a piece of the body."""
        most = _MOST_BODY_BYTES if self._status == 200 else _MOST_REFUSAL_BYTES
        if self._unpack is not None:
            piece = self._unpack.decompress(piece, most - self._size + 1)
        self._size += len(piece)
        if self._size > most:
            raise ValueError(f"the body of the reply has more than {most} bytes")
        self._pieces.append(piece)
        self._wake()

    def on_message_complete(self) -> None:
        """End the exchange."""
        if not self._status:
            return  # 100 Continue and the like: the reply is still to come
        if self._unpack is not None and not self._unpack.eof:
            raise ValueError("the packed body of the reply breaks off")
        self._complete = True
        self._reusable = self.transport is not None and self._parser.should_keep_alive()
        if self._waiter is not None and not self._waiter.done():
            body = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
            self._waiter.set_result(Response(self._status, self._headers, body))
        self._wake()


class _Unpacker:
    """Unpacks `gzip` and `deflate`, which some servers send raw."""

    def __init__(self) -> None:
        self._inner: Any = zlib.decompressobj(zlib.MAX_WBITS | 32)
        self._begun = False

    @property
    def eof(self) -> bool:
        return bool(self._inner.eof) or not self._begun

    def decompress(self, data: bytes, most: int) -> bytes:
        begun, self._begun = self._begun, True
        try:
            return cast("bytes", self._inner.decompress(data, most))
        except zlib.error as error:
            if begun:
                raise ValueError(f"the body of the reply cannot be unpacked: {error}") from error
        self._inner = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            return cast("bytes", self._inner.decompress(data, most))
        except zlib.error as error:
            raise ValueError(f"the body of the reply cannot be unpacked: {error}") from error


def _unpacker(encoding: str) -> _Unpacker | None:
    encoding = encoding.lower().strip()
    if encoding in {"gzip", "x-gzip", "deflate"}:
        return _Unpacker()
    if encoding in {"", "identity"}:
        return None
    raise ValueError(f"the body of the reply is packed as {encoding!r}, which we did not ask for")


class Wire:
    """The connections to one server.

    Args:
        url: An address of the server; only its scheme, host and port matter.
        clocks: How long the phases may take.
        may_send: Asked once more before a request leaves on a connection that had to be made first.
        tls: The certificates to trust; None for the system's.
        proxy: The address of the HTTP proxy to go through.
        hears: Told status and headers of a refusal the moment they come, before any task can send another request.
    """

    def __init__(
        self,
        url: URL,
        clocks: Clocks,
        may_send: Callable[[], bool],
        *,
        tls: ssl.SSLContext | None = None,
        proxy: str | None = None,
        hears: Hears | None = None,
    ) -> None:
        self._url = url
        self._clocks = clocks
        self._may_send = may_send
        self._hears = hears
        self._pulse = _Pulse()
        self._tls = (tls or ssl.create_default_context()) if url.scheme == "https" else None
        self._proxy = None if proxy is None else URL(proxy)
        self._idle: list[Connection] = []
        self._busy: set[Connection] = set()
        self._addresses: list[Any] = []
        self._addresses_until = 0.0
        self._resolving = asyncio.Lock()
        self._timer: asyncio.TimerHandle | None = None
        self._period = _MOST_S

    def open(self) -> None:
        """Belong to the running loop; the connections come as they are needed."""
        self._loop = asyncio.get_running_loop()

    def head(self, method: str, url: URL, headers: Mapping[str, str]) -> bytes:
        """Return the head of a request up to what changes from one to the next (`Content-Length` and the blank line).

        Raises:
            ConfigError: If a header would break the head.
        """
        target = url.raw_path_qs
        headers = {"Host": _authority(url), **headers}
        if self._proxy is not None and self._tls is None:
            target = f"{url.scheme}://{_authority(url)}{target}"
            headers.update(_proxy_headers(self._proxy))
        for name, value in headers.items():
            if any(character in name + value for character in "\r\n\0"):
                raise ConfigError(
                    f"the header {name!r} holds a line break or a NUL; look at where its value comes from"
                )
        lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
        return ("\r\n".join(lines) + "\r\n").encode()

    async def send(self, head: bytes, body: bytes, seconds: float, *, fresh: bool = False) -> Response:
        """Send one request and return its response; one that comes as events is still to be read, and then `end`ed.

        Args:
            head: What `head` made.
            body: The body.
            seconds: How long all of it may take.
            fresh: Use a connection of its own, and close it then.

        Raises:
            HeldBackError: If sending was forbidden before the request left.
            OSError: What broke; TimeoutError if a clock ran out.
        """
        now = self._loop.time()
        if self._timer is None or seconds * _SHARE < self._period:
            self._watch(seconds)
        connection = None if fresh else self._take()
        if connection is None:
            connection = await self._connect(seconds)
            passed = self._loop.time() - now
            now, seconds = now + passed, max(0.001, seconds - passed)
        if now - self._pulse.at > _STALE_S:
            await _look_at_sockets(connection)
        if not self._may_send():
            self._keep(connection)
            raise HeldBackError
        self._busy.add(connection)
        response = None
        try:
            request = b"%bContent-Length: %d\r\n\r\n%b" % (head, len(body), body)
            response = await connection.exchange(request, now, seconds, _is_event_stream)
            return response
        finally:
            if response is None or response.stream is None:
                self._end(connection, keep=not fresh)

    def end(self, response: Response) -> None:
        """Give the connection of a streamed response back."""
        if response.stream is not None:
            self._end(response.stream, keep=True)

    def _end(self, connection: Connection, *, keep: bool) -> None:
        self._busy.discard(connection)
        if keep and connection.is_free:
            self._keep(connection)
        else:
            connection.abort()

    def _keep(self, connection: Connection) -> None:
        connection.idle_since = self._loop.time()
        self._idle.append(connection)

    def close(self) -> None:
        """Close all connections."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for connection in (*self._busy, *self._idle):
            connection.abort()
        self._busy.clear()
        self._idle.clear()

    # -- clocks -----------------------------------------------------------------------------------------------

    def _watch(self, seconds: float) -> None:
        self._period = max(0.001, min(self._period, seconds * _SHARE))
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(self._period, self._look)

    def _look(self) -> None:
        """One clock for all: a timer for each request would cost more CPU than the checks of its answer."""
        now = self._loop.time()
        for connection in [*self._busy]:
            if late := connection.is_late(now, self._clocks):
                connection.fail(TimeoutError(late))
        while self._idle and not self._is_usable(self._idle[0], now):
            self._idle.pop(0).abort()
        busy = self._busy or self._idle
        self._timer = self._loop.call_later(self._period, self._look) if busy else None

    # -- connections ------------------------------------------------------------------------------------------

    def _is_usable(self, connection: Connection, now: float) -> bool:
        return connection.is_free and now - connection.idle_since < _KEEPALIVE_S

    def _take(self) -> Connection | None:
        now = self._loop.time()
        while self._idle:
            connection = self._idle.pop()
            if self._is_usable(connection, now):
                return connection
            connection.abort()
        return None

    async def _connect(self, seconds: float) -> Connection:
        limit = min(self._clocks.connect, seconds)
        try:
            async with asyncio.timeout(limit):
                if self._proxy is None:
                    return await self._open(self._url, self._tls)
                return await self._open_by_proxy(self._proxy, limit)
        except TimeoutError:
            raise ConnectError(f"no connection to {_authority(self._url)} within {limit:g} s") from None

    async def _open_by_proxy(self, proxy: URL, seconds: float) -> Connection:
        connection = await self._open(proxy, ssl.create_default_context() if proxy.scheme == "https" else None)
        if self._tls is None:
            return connection
        try:
            await connection.open_tunnel(f"{_host(self._url)}:{self._url.port}", proxy, self._loop.time(), seconds)
            assert connection.transport is not None
            work = self._loop.start_tls(connection.transport, connection, self._tls, server_hostname=self._url.raw_host)
            transport = await _connecting(work)
            assert transport is not None
            connection.connection_made(transport)
        except BaseException:
            connection.abort()
            raise
        return connection

    async def _open(self, url: URL, tls: ssl.SSLContext | None) -> Connection:
        infos = await self._resolve(url)
        route = await _connecting(
            aiohappyeyeballs.start_connection(infos, happy_eyeballs_delay=_HAPPY_EYEBALLS_S, interleave=1)
        )
        name = url.raw_host if tls is not None else None
        try:
            _, connection = await _connecting(
                self._loop.create_connection(
                    lambda: Connection(self._loop, self._pulse, self._hears), sock=route, ssl=tls, server_hostname=name
                )
            )
        except BaseException:
            route.close()
            raise
        return connection

    async def _resolve(self, url: URL) -> list[Any]:
        async with self._resolving:
            if self._loop.time() >= self._addresses_until:
                self._addresses = await _connecting(
                    self._loop.getaddrinfo(url.raw_host, url.port, type=socket.SOCK_STREAM)
                )
                self._addresses_until = self._loop.time() + _DNS_S
            return self._addresses


async def _look_at_sockets(connection: Connection) -> None:
    """Let the loop read before a request leaves: a slow disk or a busy machine may have held us up since it last did."""
    try:
        await asyncio.sleep(0)
    except asyncio.CancelledError:
        connection.abort()
        raise


async def _connecting(work: Coroutine[Any, Any, Result]) -> Result:
    """Return what a step towards a connection returns; its errors are errors of connecting.

    What TLS refuses (a certificate that is not trusted, a server that does not speak it) stays what it is.
    """
    try:
        return await work
    except ssl.SSLEOFError as error:
        raise ConnectError(str(error)) from error
    except (ssl.SSLError, TimeoutError):
        raise
    except (OSError, RuntimeError) as error:
        raise ConnectError(str(error)) from error


def _is_event_stream(status: int, headers: Mapping[str, str]) -> bool:
    return status == 200 and "event-stream" in headers.get("content-type", "")


def _host(url: URL) -> str:
    host = url.raw_host or ""
    return f"[{host}]" if ":" in host else host


def _authority(url: URL) -> str:
    return _host(url) if url.is_default_port() else f"{_host(url)}:{url.port}"


def _proxy_headers(proxy: URL) -> dict[str, str]:
    if proxy.user is None:
        return {}
    login = base64.b64encode(f"{proxy.user}:{proxy.password or ''}".encode()).decode()
    return {"Proxy-Authorization": f"Basic {login}"}
