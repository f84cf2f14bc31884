"""One server on the wire: send a body, get a checked reply or a fault. No retries, no waiting, no limits here.

Beneath the openai package on purpose: its conveniences cost 0.7 ms of CPU a request where this costs 0.1
(docs/decisions.md has the measurement).
"""

from __future__ import annotations

import asyncio
import io
import ssl
from collections.abc import Callable
from typing import Any

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from potstill.config.model import Address, Model
from potstill.errors import ConfigError
from potstill.generate.deadlines import Deadlines
from potstill.generate.faults import BodyTooLongError, Fault, from_exception, from_status
from potstill.generate.gateway import proxy_for
from potstill.generate.reply import Reply, read_reply
from potstill.generate.stream import read_stream

#: aiohttp warns of bodies beyond a megabyte that are handed over as bytes.
_BIG_BODY = 1 << 20
#: No answer is longer.
_MOST_BYTES = 64 << 20
#: Gateways' cookies and policies grow beyond the 8 kB that aiohttp takes.
_LONGEST_HEADER = 1 << 16
#: Shorter than the 5 s after which uvicorn closes an idle connection, so that we rarely send into a closed one.
_KEEPALIVE_S = 4.0


class HeldBackError(Exception):
    """Raised when the gate closed while a request waited for its connection: nothing was sent."""


class _GatedConnector(aiohttp.TCPConnector):
    """Connections that are handed out only while sending is allowed.

    A request may wait seconds for its connection; "not before" may have come in the meantime.
    """

    def __init__(self, may_send: Callable[[], bool], **options: Any) -> None:
        super().__init__(**options)
        self._may_send = may_send

    async def connect(self, *args: Any, **options: Any) -> Any:
        """Return a connection, or raise if nothing may be sent any more."""
        connection = await super().connect(*args, **options)
        if not self._may_send():
            connection.release()
            raise HeldBackError
        return connection


class Client:
    """The connections to one server of a model.

    Args:
        model: How the server is asked.
        address: Where it listens.
        may_send: Asked once more just before a request leaves.
    """

    def __init__(self, model: Model, address: Address, may_send: Callable[[], bool]) -> None:
        self._model = model
        self._url = URL(address.chat_url).update_query(model.query)
        self._models_url = URL(address.models_url).update_query(model.query)
        self.proxy = proxy_for(model, self._url)
        self._may_send = may_send
        self._deadlines = Deadlines()
        self._session: aiohttp.ClientSession | None = None
        self._fresh_session: aiohttp.ClientSession | None = None
        self._headers: CIMultiDict[str] = CIMultiDict()
        self._key: str | None = None

    async def open(self) -> None:
        """Make the sessions; the connections come as they are needed."""
        self._session = self._make_session(keepalive_timeout=_KEEPALIVE_S)
        self._fresh_session = self._make_session(force_close=True)

    def _make_session(self, **options: Any) -> aiohttp.ClientSession:
        connector = _GatedConnector(self._may_send, limit=0, ttl_dns_cache=60, ssl=ssl_context(self._model), **options)
        clocks = self._model.timeouts
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=clocks.connect, sock_read=clocks.first_byte)
        return aiohttp.ClientSession(
            connector=connector,
            timeout=timeout,
            cookie_jar=aiohttp.DummyCookieJar(),
            max_line_size=_LONGEST_HEADER,
            max_field_size=_LONGEST_HEADER,
        )

    async def close(self) -> None:
        """Close all connections."""
        self._deadlines.close()
        for session in (self._session, self._fresh_session):
            if session is not None:
                await session.close()

    def use_key(self, key: str | None) -> None:
        """Send this key from now on."""
        self._headers, self._key = headers_of(self._model, key), key

    async def ask(self, body: bytes, seconds: float, wanted: int = 1, *, fresh: bool = False) -> Reply | Fault:
        """Send one request and return its reply or what went wrong.

        Args:
            body: The JSON of the request.
            seconds: The attempt's time.
            wanted: The number of choices that the body asks for.
            fresh: Use a connection of its own: the last one may have been closed by the server while it was idle.

        Raises:
            HeldBackError: If sending was forbidden before the request left.
        """
        try:
            return await self._deadlines.within(seconds, self._exchange(body, wanted, fresh))
        except (aiohttp.ClientError, OSError, TimeoutError, asyncio.IncompleteReadError) as error:
            return from_exception(error)
        except ValueError as error:
            # aiohttp's parser raises plain ValueErrors for some broken headers.
            return from_exception(error)

    async def _exchange(self, body: bytes, wanted: int, fresh: bool) -> Reply | Fault:
        session = self._fresh_session if fresh else self._session
        assert session is not None
        data: Any = body if len(body) < _BIG_BODY else io.BytesIO(body)
        response = await session.post(
            self._url, data=data, headers=self._headers, allow_redirects=False, proxy=self.proxy
        )
        try:
            if response.status != 200:
                return await self._read_refusal(response)
            if "event-stream" in response.headers.get("Content-Type", ""):
                return await read_stream(response.content, self._model.timeouts.idle, wanted)
            return read_reply(await self._read(response), wanted)
        finally:
            response.close() if not response.content.is_eof() else response.release()

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        """Return a body, with a clock on each piece of it if it did not come at once with its headers."""
        content = response.content
        if content.is_eof():
            return await response.read()
        pieces, size = [], 0
        if (response.content_length or 0) > _MOST_BYTES:
            raise BodyTooLongError(f"a body of {response.content_length} bytes")
        while not content.at_eof():
            async with asyncio.timeout(self._model.timeouts.idle):
                pieces.append(await content.readany())
            size += len(pieces[-1])
            if size > _MOST_BYTES:
                raise BodyTooLongError(f"the body has no end: more than {_MOST_BYTES >> 20} MB")
        return b"".join(pieces)

    async def _read_refusal(self, response: aiohttp.ClientResponse) -> Fault:
        try:
            body = await self._read(response)
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError):
            body = b""  # the status says enough
        fault = from_status(response.status, response.headers, body)
        if 300 <= response.status < 400:
            fault.message += f" (redirected to {response.headers.get('Location', '?')})"
        return fault

    async def is_alive(self) -> bool:
        """Return whether the server answers GET /models with 200: the sign of life that costs nothing."""
        assert self._session is not None
        try:
            async with asyncio.timeout(self._model.timeouts.connect):
                async with self._session.get(self._models_url, headers=self._headers, proxy=self.proxy) as response:
                    await response.read()
                    return response.status == 200
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError, HeldBackError):
            return False


def headers_of(model: Model, key: str | None) -> CIMultiDict[str]:
    """Return the headers of each request: the model file's own, and the key."""
    headers = CIMultiDict(model.headers)
    headers.update({name: source.read() or "" for name, source in model.secret_headers.items()})
    headers["Content-Type"] = "application/json"
    headers.setdefault("User-Agent", "potstill")
    name = model.key_header
    if key is not None:
        headers[name] = f"Bearer {key}" if name.lower() == "authorization" else key
    return headers


def ssl_context(model: Model) -> ssl.SSLContext | bool:
    """Return the certificates to trust: the system's, and those of the model file.

    Raises:
        ConfigError: If its file cannot be used.
    """
    if model.ca_file is None:
        return True
    context = ssl.create_default_context()
    try:
        context.load_verify_locations(model.ca_file)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"{model.file}: client_config.ca_file: {model.ca_file} cannot be used: {error}") from error
    return context
