"""A provider's batch API on the wire (OpenAI's `/v1/files` and `/v1/batches`), waiting out limits and outages."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
from yarl import URL

from potstill.config.model import Model
from potstill.errors import ConfigError, PotstillError, TryAgainError
from potstill.generate.client import headers_of, ssl_context
from potstill.generate.faults import Action, Fault, from_status
from potstill.generate.gateway import proxy_for
from potstill.generate.limits import backoff
from potstill.rows import disk_errors, dumps, loads
from potstill.secrets import redact

#: What every line of a batch is sent to, in the provider's own terms.
ENDPOINT = "/v1/chat/completions"
#: The name under which a batch carries ours.
MARK = "potstill_batch"

_PIECE_BYTES = 1 << 18
_PAGE = 100
#: Seconds for a file to travel; nothing else takes longer than the model file's `timeout`.
_TRANSFER_S = 3600.0


class BatchApi:
    """Files and batches of one server, one request at a time.

    Args:
        model: How the server is asked.
        base: Its address.
        patience_s: How long an outage or a rate limit is waited out.
    """

    def __init__(self, model: Model, base: str, patience_s: float) -> None:
        self.base = base
        self._model = model
        self._patience = patience_s
        self._proxy = proxy_for(model, URL(base))
        self._key: str | None = None

    async def __aenter__(self) -> Self:
        self._key = self._model.key.read()
        clocks = self._model.timeouts
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=clocks.connect, sock_read=clocks.attempt)
        connector = aiohttp.TCPConnector(ssl=ssl_context(self._model) or True, force_close=True)
        self._session = aiohttp.ClientSession(connector=connector, timeout=timeout, cookie_jar=aiohttp.DummyCookieJar())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    # -- what there is to do ----------------------------------------------------------------------------------

    async def upload(self, path: Path, name: str) -> str:
        """Send a file of requests and return its id."""

        async def send() -> Any:
            with path.open("rb") as stream:
                form = aiohttp.FormData()
                form.add_field("purpose", "batch")
                form.add_field("file", stream, filename=name, content_type="application/jsonl")
                return await self._exchange("POST", "files", form)

        return _id_of(await self._patiently(send, f"the upload of {path}"))

    async def create(self, file_id: str, name: str) -> dict[str, Any] | Fault:
        """Try once to create a batch; after a fault nobody knows yet whether there is one.

        Raises:
            ConfigError: If the server refuses it, in words that leave no doubt.
            TryAgainError: Without credit.
        """
        body = {
            "input_file_id": file_id,
            "endpoint": ENDPOINT,
            "completion_window": "24h",
            "metadata": {MARK: name},
        }
        outcome = await self._exchange("POST", "batches", dumps(body))
        if isinstance(outcome, Fault):
            self._check(outcome, "creating a batch")
            return outcome
        return _batch(outcome)

    async def retrieve(self, batch_id: str) -> dict[str, Any]:
        """Return a batch as it is now."""
        return _batch(await self._patiently(lambda: self._exchange("GET", f"batches/{batch_id}"), f"batch {batch_id}"))

    async def find(self, name: str, file_id: str) -> dict[str, Any] | None:
        """Return the batch that carries our name or was made of our file, or None if there is none."""
        async for batch in self._batches():
            metadata = batch.get("metadata")
            if (isinstance(metadata, dict) and metadata.get(MARK) == name) or batch.get("input_file_id") == file_id:
                return _batch(batch)
        return None

    async def _batches(self) -> AsyncIterator[dict[str, Any]]:
        after = ""
        while True:
            path = f"batches?limit={_PAGE}{after}"
            page = await self._patiently(lambda path=path: self._exchange("GET", path), "the list of batches")  # type: ignore[misc]
            batches = [batch for batch in page.get("data") or [] if isinstance(batch, dict)]
            for batch in batches:
                yield batch
            if not batches or not page.get("has_more"):
                return
            after = f"&after={batches[-1]['id']}"

    async def cancel(self, batch_id: str) -> dict[str, Any]:
        """Cancel a batch and return it as it is then; one that has ended already stays as it is."""

        async def send() -> Any:
            outcome = await self._exchange("POST", f"batches/{batch_id}/cancel", b"{}")
            if isinstance(outcome, Fault) and outcome.status in {400, 409}:
                return await self._exchange("GET", f"batches/{batch_id}")
            return outcome

        return _batch(await self._patiently(send, f"cancelling batch {batch_id}"))

    async def download(self, file_id: str, path: Path) -> None:
        """Bring a file here, piece by piece."""
        await self._patiently(lambda: self._exchange("GET", f"files/{file_id}/content", into=path), f"file {file_id}")

    # -- how it is done ---------------------------------------------------------------------------------------

    async def _exchange(self, method: str, path: str, data: Any = None, into: Path | None = None) -> Any:
        """Send one request and return the JSON that came back, or what went wrong."""
        headers = headers_of(self._model, self._key)
        if not isinstance(data, bytes):
            headers.popall("Content-Type", None)
        seconds = (
            _TRANSFER_S if into is not None or isinstance(data, aiohttp.FormData) else self._model.timeouts.attempt
        )
        url = URL(f"{self.base}/{path}").update_query(self._model.query)
        try:
            async with (
                asyncio.timeout(seconds),
                self._session.request(
                    method, url, data=data, headers=headers, allow_redirects=False, proxy=self._proxy
                ) as response,
            ):
                if response.status != 200:
                    return from_status(response.status, response.headers, await response.read())
                if into is not None:
                    return await _save(response, into)
                return _object(await response.read())
        except PotstillError:
            raise
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            return _fault_of(error)

    async def _patiently(self, exchange: Callable[[], Awaitable[Any]], what: str) -> Any:
        """Repeat an exchange that may be repeated until it succeeds."""
        since, attempt = time.monotonic(), 0
        while isinstance(outcome := await exchange(), Fault):
            self._check(outcome, what)
            await self.pause(outcome, attempt, since, what)
            attempt += 1
        return outcome

    async def pause(self, fault: Fault, attempt: int, since: float, what: str) -> None:
        """Wait before the next attempt, as told or longer and longer.

        Raises:
            TryAgainError: If that would take more than the patience that there is.
        """
        seconds = backoff(attempt, first=1.0, most=60.0) if fault.retry_after is None else fault.retry_after
        if time.monotonic() - since + seconds > self._patience:
            raise TryAgainError(
                f"{self.base}: {what}: no success for {time.monotonic() - since:.0f} s (last: {fault.message}); nothing "
                "is lost: give the same command again later"
            )
        await asyncio.sleep(seconds)

    def _check(self, fault: Fault, what: str) -> None:
        """Stop for what no waiting mends."""
        if fault.kind == "auth" and self._reload_key():
            return
        if fault.kind == "quota":
            raise TryAgainError(
                f"{self.base} has no credit left ({fault.message}); nothing is lost: add credit, then give the same "
                "command again"
            )
        if fault.action not in {Action.STOP, Action.FAIL}:
            return
        advice = {
            "auth": f"put a valid key into {self._model.key.describe()}",
            "tls": f"look at client_config in {self._model.file}",
            "proxy": "check address and login of the proxy (client_config.proxy, HTTPS_PROXY), or put the server into NO_PROXY",
            "context_too_long": "set a smaller generate.batch_max_bytes",
        }.get(
            fault.kind,
            "if this server has no batch API, set generate.mode: online; else check client_config.base_url in "
            f"{self._model.file}",
        )
        raise ConfigError(
            f"{self.base}: {what} is refused ({fault.message}); {advice}, then give the same command again"
        )

    def _reload_key(self) -> bool:
        old, self._key = self._key, self._model.key.read()
        return old != self._key


def _fault_of(error: Exception) -> Fault:
    """Return the fault of an exception of aiohttp's; its text is that of `str`: `repr` shows the headers of some."""
    text = redact(f"{type(error).__name__}: {error}".rstrip(": "))
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return Fault("tls", f"its certificate is not trusted ({text}); name its CA as client_config.ca_file")
    if isinstance(error, aiohttp.ClientConnectorSSLError) and not isinstance(error.os_error, ssl.SSLEOFError):
        return Fault("tls", f"no TLS connection can be made ({text}); a server without TLS has an address with http://")
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return Fault("server" if error.status >= 500 else "proxy", redact(f"the proxy said HTTP {error.status}"))
    if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError):
        return Fault("connect", text)
    return Fault("timeout" if isinstance(error, TimeoutError) else "transport", text)


async def _save(response: aiohttp.ClientResponse, path: Path) -> dict[str, Any]:
    """Write a body to a file as it comes; the disk's errors are no errors of the wire."""
    with disk_errors(path):
        stream = path.open("wb")
    with stream:
        async for piece in response.content.iter_chunked(_PIECE_BYTES):
            with disk_errors(path):
                stream.write(piece)
        with disk_errors(path):
            stream.flush()
    return {}


def _object(body: bytes) -> Any:
    try:
        document = loads(body)
    except ValueError:
        document = None
    return (
        document if isinstance(document, dict) else Fault("invalid_response", "HTTP 200 with a body that is no object")
    )


def _id_of(document: dict[str, Any]) -> str:
    found = document.get("id")
    if not isinstance(found, str) or not found:
        raise ConfigError(f"the server's reply has no id: {str(document)[:200]}; does it have OpenAI's batch API?")
    return found


def _batch(document: dict[str, Any]) -> dict[str, Any]:
    _id_of(document)
    return document
