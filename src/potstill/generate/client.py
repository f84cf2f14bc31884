"""One server of a model: send a body, get a checked reply or a fault. No retries, no waiting, no limits here.

Beneath the openai package on purpose: its conveniences cost 0.7 ms of CPU a request where this costs less than a
tenth (docs/decisions.md has the measurement).
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable

from multidict import CIMultiDict
from yarl import URL

from potstill.config.model import Address, Model
from potstill.errors import ConfigError
from potstill.generate.faults import Fault, from_exception, from_status
from potstill.generate.gateway import proxy_for
from potstill.generate.reply import Reply, read_reply
from potstill.generate.stream import looks_like_events, read_events, read_stream
from potstill.generate.wire import Clocks, Hears, HeldBackError, Response, Wire


class Client:
    """One server of a model.

    Args:
        model: How the server is asked.
        address: Where it listens.
        may_send: Asked once more just before a request leaves.
        hears: Told status and headers of a refusal the moment they come.

    Raises:
        ConfigError: If the file of its certificates or its proxy cannot be used.
    """

    def __init__(
        self, model: Model, address: Address, may_send: Callable[[], bool], hears: Hears | None = None
    ) -> None:
        self._model = model
        self._url = URL(address.chat_url).update_query(model.query)
        self._models_url = URL(address.models_url).update_query(model.query)
        self.proxy = proxy_for(model, self._url)
        clocks = model.timeouts
        self._wire = Wire(
            self._url,
            Clocks(clocks.connect, clocks.first_byte, clocks.idle),
            may_send,
            tls=ssl_context(model),
            proxy=self.proxy,
            hears=hears,
        )
        self._head = self._models_head = b""

    async def open(self) -> None:
        """Get ready; the connections come as they are needed."""
        self._wire.open()

    async def close(self) -> None:
        """Close all connections."""
        self._wire.close()
        await asyncio.sleep(0)  # the loop closes their sockets at its next turn

    def use_key(self, key: str | None) -> None:
        """Send this key from now on."""
        headers = headers_of(self._model, key)
        self._head = self._wire.head("POST", self._url, headers)
        self._models_head = self._wire.head("GET", self._models_url, headers)

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
            response = await self._wire.send(self._head, body, seconds, fresh=fresh)
            if response.status != 200:
                return _refusal(response)
            if response.stream is None:
                return _read_whole(response.body, wanted)
            try:
                return await read_stream(response.stream, self._model.timeouts.idle, wanted)
            finally:
                self._wire.end(response)
        except OSError as error:
            return from_exception(error)

    async def is_alive(self) -> bool:
        """Return whether the server answers GET /models with 200: the sign of life that costs nothing."""
        try:
            response = await self._wire.send(self._models_head, b"", self._model.timeouts.connect)
        except (OSError, HeldBackError):
            return False
        self._wire.end(response)
        return response.status == 200


def _read_whole(body: bytes, wanted: int) -> Reply | Fault:
    outcome = read_reply(body, wanted)
    return read_events(body, wanted) if isinstance(outcome, Fault) and looks_like_events(body) else outcome


def _refusal(response: Response) -> Fault:
    fault = from_status(response.status, response.headers, response.body)
    if 300 <= response.status < 400:
        fault.message += f" (redirected to {response.headers.get('location', '?')})"
    return fault


def headers_of(model: Model, key: str | None) -> CIMultiDict[str]:
    """Return the headers of each request: the model file's own, and the key."""
    headers = CIMultiDict(model.headers)
    headers.update({name: source.read() or "" for name, source in model.secret_headers.items()})
    headers["Content-Type"] = "application/json"
    headers.setdefault("Accept", "application/json")
    headers.setdefault("Accept-Encoding", "gzip, deflate")
    headers.setdefault("User-Agent", "potstill")
    name = model.key_header
    if key is not None:
        headers[name] = f"Bearer {key}" if name.lower() == "authorization" else key
    return headers


def ssl_context(model: Model) -> ssl.SSLContext | None:
    """Return the certificates to trust: the system's, and those of the model file.

    Raises:
        ConfigError: If its file cannot be used.
    """
    if model.ca_file is None:
        return None
    context = ssl.create_default_context()
    try:
        context.load_verify_locations(model.ca_file)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"{model.file}: client_config.ca_file: {model.ca_file} cannot be used: {error}") from error
    return context
