"""What can go wrong with a request: each trouble has one class, told by type and status, and each class one action.

| class | when | what is done |
|---|---|---|
| `rate_limit` | 429, 503 with Retry-After, 529 | wait as told; costs no attempt |
| `connect` | no connection could be made | an outage is looked for; costs no attempt |
| `server` | any other 5xx, 409, 425 | asked again, later and later |
| `transport` | the connection broke, the body was cut, a stream ended early | asked again |
| `timeout` | a clock of the model file ran out, 408 | asked again |
| `invalid_response` | 200 without an answer in it: garbage, an error body, no choices | asked again |
| `truncated` | cut off by `max_tokens` before any text | the next rung of the ladder, else the row fails |
| `empty_answer` | finished without text or tool call | the row fails; its tokens were paid |
| `content_filter` | the server's filter held it back | the row fails |
| `schema_invalid` | not what `response_format` asked for, also after one repair | the row fails |
| `context_too_long` | more than the model reads, 413 | the row fails |
| `bad_request` | any other 4xx | the row fails |
| `bad_row` | the row cannot be made a request | the row fails, nothing is sent |
| `auth` | 401, 403 | the key is read again; unchanged: the job stops, exit 78 |
| `not_found` | 404, 405, a redirect | the job stops, exit 78; after a first answer: as `server` |
| `tls` | the certificate is not trusted, or the server speaks no TLS | the job stops, exit 78 |
| `proxy` | 407, or the proxy forbids the tunnel | the job stops, exit 78 |
| `quota` | 402, 429 with code `insufficient_quota` | the job stops, exit 75 |
"""

from __future__ import annotations

import email.utils
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from potstill.generate.wire import ConnectError, DisconnectedError, ProxyError
from potstill.rows import loads
from potstill.secrets import redact

#: What is kept of a body that could not be used.
RAW_LIMIT = 4096

_CONTEXT_CODES = frozenset({"context_length_exceeded", "exceed_context_size_error", "string_above_max_length"})
_FILTER_CODES = frozenset(
    {"content_filter", "content_policy_violation", "moderation_blocked", "data_inspection_failed"}
)
_QUOTA_CODES = frozenset({"insufficient_quota", "insufficient_balance", "billing_hard_limit_reached"})


class Action(Enum):
    """What the engine does about a fault."""

    WAIT = "wait"
    RETRY = "retry"
    FAIL = "fail"
    OUTAGE = "outage"
    STOP = "stop"


#: Class -> action: the whole table.
ACTIONS: dict[str, Action] = {
    "rate_limit": Action.WAIT,
    "connect": Action.OUTAGE,
    "server": Action.RETRY,
    "transport": Action.RETRY,
    "timeout": Action.RETRY,
    "invalid_response": Action.RETRY,
    "truncated": Action.FAIL,
    "empty_answer": Action.FAIL,
    "content_filter": Action.FAIL,
    "schema_invalid": Action.FAIL,
    "context_too_long": Action.FAIL,
    "bad_request": Action.FAIL,
    "bad_row": Action.FAIL,
    "auth": Action.STOP,
    "not_found": Action.STOP,
    "tls": Action.STOP,
    "proxy": Action.STOP,
    "quota": Action.STOP,
}


@dataclass(slots=True)
class Fault:
    """One trouble with one request.

    Attributes:
        kind: Its class.
        message: For people, without secrets.
        status: The HTTP status, if there was one.
        retry_after: Seconds that the server told us to wait, if it did.
        raw: The body as it came, cut short, without secrets.
        usage: Tokens that were paid all the same.
        unsent: Whether nothing had come back on the connection: it may have been closed while idle.
    """

    kind: str
    message: str
    status: int | None = None
    retry_after: float | None = None
    raw: str | None = None
    usage: dict[str, Any] | None = None
    unsent: bool = False

    @property
    def is_away(self) -> bool:
        """Whether a gateway says that there is no server behind it: an outage by definition, unless one row has it."""
        return self.status in {502, 503, 504}

    @property
    def action(self) -> Action:
        """What to do about it."""
        return ACTIONS[self.kind]


def from_status(status: int, headers: Mapping[str, str], body: bytes) -> Fault:
    """Return the fault of a reply whose status is not 200."""
    error = error_of(body)
    code = str(error.get("code") or error.get("type") or "")
    wait = retry_after(headers)
    kind = _kind_of_status(status, {str(error.get("code")), str(error.get("type"))}, error, wait)
    text = str(error.get("message") or "") or body[:300].decode("utf-8", "replace")
    detail = f" ({code})" if code and code not in text else ""
    return Fault(kind, redact(f"HTTP {status}{detail}: {text.strip()[:500]}"), status, wait, raw_text(body))


def _kind_of_status(status: int, codes: set[str], error: dict[str, Any], wait: float | None) -> str:
    if status == 402 or codes & _QUOTA_CODES:
        return "quota"
    if status in {429, 529} or (status == 503 and wait is not None):
        return "rate_limit"
    if codes & _FILTER_CODES or (status == 403 and _is_flagged(error)):
        return "content_filter"
    if status == 413 or codes & _CONTEXT_CODES:
        return "context_too_long"
    if status in {401, 403}:
        return "auth"
    if status == 407:
        return "proxy"
    if status in {404, 405} or 300 <= status < 400:
        return "not_found"
    if status == 408:
        return "timeout"
    if status >= 500 or status in {409, 425}:
        return "server"
    return "bad_request"


def _is_flagged(error: dict[str, Any]) -> bool:
    """Return whether a 403 is about the text and not about the key (OpenRouter's moderation says so in `metadata`)."""
    metadata = error.get("metadata")
    return isinstance(metadata, dict) and ("flagged_input" in metadata or "reasons" in metadata)


def error_of(body: bytes | Any) -> dict[str, Any]:
    """Return the error object of a body, in whichever of the usual forms it came; empty if there is none."""
    try:
        document = loads(body) if isinstance(body, bytes) else body
    except ValueError:
        return {}
    if not isinstance(document, dict):
        return {}
    error = document.get("error")
    if isinstance(error, dict):
        return error
    if isinstance(error, str):
        return {"message": error}
    if document.get("object") == "error":  # older vLLM
        return document
    detail = document.get("detail") or document.get("message")
    return {"message": detail if isinstance(detail, str) else str(detail)} if detail else {}


def from_error_body(document: dict[str, Any], raw: bytes) -> Fault:
    """Return the fault of a 200 whose body is an error; a status inside the body counts as one (OpenRouter)."""
    error = error_of(document)
    code = error.get("code")
    if isinstance(code, int) and not isinstance(code, bool) and 400 <= code < 600:
        fault = from_status(code, {}, raw)
        fault.status = 200
        return fault
    kind = "invalid_response"
    codes = {str(code), str(error.get("type"))}
    if codes & _FILTER_CODES:
        kind = "content_filter"
    elif codes & _QUOTA_CODES:
        kind = "quota"
    elif codes & _CONTEXT_CODES:
        kind = "context_too_long"
    return Fault(
        kind, redact(f"HTTP 200 with an error: {str(error.get('message') or error)[:500]}"), 200, raw=raw_text(raw)
    )


def raw_text(body: bytes) -> str:
    """Return what is kept of a body: without secrets first, cut short then."""
    return redact(body[: 4 * RAW_LIMIT].decode("utf-8", "replace"))[:RAW_LIMIT]


def from_exception(error: OSError) -> Fault:
    """Return the fault of an exception that `wire` raised."""
    text = redact(f"{type(error).__name__}: {error}".rstrip(": "))
    if isinstance(error, ssl.SSLCertVerificationError):
        return Fault("tls", f"its certificate is not trusted ({text}); name its CA as client_config.ca_file")
    if isinstance(error, ssl.SSLError):
        return Fault("tls", f"no TLS connection can be made ({text}); a server without TLS has an address with http://")
    if isinstance(error, ProxyError):
        # Its word about a tunnel; a 5xx says that there is no server behind it.
        status = error.response.status
        return Fault("server" if status >= 500 else "proxy", text, status)
    if isinstance(error, ConnectError):
        return Fault("connect", text)
    if isinstance(error, TimeoutError):
        return Fault("timeout", text)
    return Fault("transport", text, unsent=isinstance(error, DisconnectedError))


def retry_after(headers: Mapping[str, str], now: float | None = None) -> float | None:
    """Return the seconds that a reply tells us to wait: from `retry-after-ms` or `Retry-After` (seconds or a date)."""
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    text = headers.get("Retry-After") or headers.get("retry-after")
    if not text:
        return None
    text = text.strip()
    seconds = _number(text[:-2]) if text.endswith("ms") else _number(text.removesuffix("s"))
    if seconds is not None:
        return seconds / 1000 if text.endswith("ms") else seconds
    try:
        date = email.utils.parsedate_to_datetime(text).timestamp()
    except (TypeError, ValueError):
        return None
    return max(0.0, date - (time.time() if now is None else now))


def _number(text: str | None) -> float | None:
    try:
        value = float(text) if text else None
    except ValueError:
        return None
    return value if value is not None and 0 <= value < float("inf") else None
