"""The platform's HTTP API: signed calls, paced, each error classified once. The only module that knows HTTP.

`requests`, which Snakemake itself brings, in threads: a call here costs a millisecond of CPU and there are some ten a
second, so an asynchronous client would gain nothing, and the executor interface calls us from threads anyway.

A call is made once. What may be repeated at once without harm (a new signature after 401, a get or list after a broken
answer) is repeated here; a create never is: only the dispatcher knows how to find out whether it was accepted.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple
from urllib.parse import quote

import requests

from .settings import ExecutorSettings, Keys

TASKS = "/task-service/v1/tasks"
#: A server closes idle connections; a create on such a one would end in doubt, so we close them first.
IDLE_LIMIT = 4.0
LARGEST_ANSWER = 64 * 1024 * 1024


class ApiError(Exception):
    """The base of all errors of a call.

    ```
    ApiError
    ├── Unreachable   no connection was made: nothing was sent
    ├── Doubtful      sent, but the answer is missing or none of the API (5xx, HTML, cut): may be carried out
    ├── Throttled     429: not carried out, try again later
    ├── Unauthorized  401: not carried out, the signature was refused
    ├── NotFound      404
    └── Rejected      any other 4xx, or `status: false`: not carried out
    ```
    """


class Unreachable(ApiError):
    """Raised when no connection could be made."""


class Doubtful(ApiError):
    """Raised when a call may or may not have been carried out."""


class Throttled(ApiError):
    """Raised for 429."""

    def __init__(self, message: str, wait: float) -> None:
        super().__init__(message)
        self.wait = wait


class Unauthorized(ApiError):
    """Raised for 401."""


class NotFound(ApiError):
    """Raised for 404."""


class Rejected(ApiError):
    """Raised when the platform says no."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class TaskInfo(NamedTuple):
    """What we read of a task; what the platform leaves out is empty."""

    uuid: str
    name: str
    status: str
    message: str
    labels: dict[str, str]
    rank: int | None
    create_time: str


class Page(NamedTuple):
    """One page of a list."""

    tasks: list[TaskInfo]
    total: int | None


def read_task(row: Any) -> TaskInfo | None:
    """Read one row; None where it is not a task."""
    if not isinstance(row, dict) or not isinstance(row.get("uuid"), str) or not isinstance(row.get("status"), str):
        return None
    labels = row.get("labels")
    queue = row.get("queueInfo")
    rank = queue.get("rankInPool") if isinstance(queue, dict) else None
    return TaskInfo(
        uuid=row["uuid"],
        name=str(row.get("name") or ""),
        status=row["status"],
        message=str(row.get("statusMsg") or ""),
        labels={str(k): str(v) for k, v in labels.items()} if isinstance(labels, dict) else {},
        rank=int(str(rank)) if str(rank).isdecimal() else None,
        create_time=str(row.get("createTime") or ""),
    )


def parse_retry_after(text: str | None) -> float:
    """Seconds from a Retry-After header: a number, also a fraction, or a date; 1 where there is none."""
    if not text:
        return 1.0
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return 1.0
    return min(max(seconds, 0.0), 300.0) if seconds == seconds else 1.0


class Pacer:
    """A token bucket for all calls, and the gate that a Retry-After closes."""

    def __init__(self, per_second: float, clock: Callable[[], float], sleep: Callable[[float], None]) -> None:
        self._rate = per_second
        self._burst = max(1.0, per_second)
        self._tokens = self._burst
        self._clock = clock
        self._sleep = sleep
        self._filled = clock()
        self._closed_until = 0.0
        self._lock = threading.Lock()

    def wait(self) -> None:
        """Wait for the right to make one call."""
        while (pause := self._take()) > 0:
            self._sleep(pause)

    def _take(self) -> float:
        """Take a token and return 0, or return how long to wait before asking again."""
        with self._lock:
            now = self._clock()
            if now < self._closed_until:
                return self._closed_until - now
            self._tokens = min(self._burst, self._tokens + (now - self._filled) * self._rate)
            self._filled = now
            if self._tokens >= 1:
                self._tokens -= 1
                return 0.0
            # Not less than a millisecond: a wait too small for the clock to notice would never end.
            return max(0.001, (1 - self._tokens) / self._rate)

    def close_for(self, seconds: float) -> None:
        """Make no call for so long."""
        with self._lock:
            self._closed_until = max(self._closed_until, self._clock() + seconds)


@dataclass
class Wire:
    """How calls travel; tests put their own clock and sleep here."""

    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    now: Callable[[], float] = time.time


class SiflowClient:
    """The calls of the task service.

    Args:
        settings: Where to send calls and how fast.
        keys: Returns the access key; asked again after a 401.
        wire: Clock and sleep.
    """

    def __init__(self, settings: ExecutorSettings, keys: Callable[[], Keys], wire: Wire | None = None) -> None:
        self._settings = settings
        self._base = settings.effective_base_url + TASKS
        self._keys = keys
        self._wire = wire or Wire()
        self._local = threading.local()
        self._timeout = settings.request_timeout
        self.pacer = Pacer(settings.max_calls_per_second, self._wire.clock, self._wire.sleep)

    # -- the calls ---------------------------------------------------------------------------------------------------

    def create(self, body: dict[str, Any]) -> str:
        """Create a task and return its uuid. Never repeated here."""
        self._drop_idle_connection()
        headers = {"X-Labels": json.dumps(body.get("labels") or {})}
        answer = self._signed("POST", "", body=body, headers=headers)
        uuid = answer.get("data")
        if not isinstance(uuid, str) or not uuid:
            raise Doubtful("the answer to a create has no uuid")
        return uuid

    def get(self, uuid: str) -> TaskInfo:
        """One task."""
        task = read_task(self._repeated("GET", f"/{quote(uuid, safe='')}").get("data"))
        if task is None:
            raise Doubtful("the answer to a get is no task")
        return task

    def list_page(self, page: int, labels: str = "", name: str = "") -> Page:
        """One page of the list of tasks."""
        wanted = {"page": str(page), "pageSize": str(self._settings.page_size), "labels": labels, "name": name}
        query = "&".join(f"{key}={quote(value, safe='')}" for key, value in wanted.items() if value)
        answer = self._repeated("GET", f"?{query}")
        # An empty list may come as null.
        rows = answer.get("rows", ...) or []
        if not isinstance(rows, list):
            raise Doubtful("the answer to a list has no rows")
        total = str(answer.get("total"))
        return Page([task for row in rows if (task := read_task(row))], int(total) if total.isdecimal() else None)

    def pages(self, labels: str = "", name: str = "", most: int = 10_000) -> Iterator[Page]:
        """All pages of a list; a server may cut pages shorter than asked."""
        seen = 0
        for number in range(1, most + 1):
            page = self.list_page(number, labels, name)
            yield page
            seen += len(page.tasks)
            full = len(page.tasks) >= self._settings.page_size
            if not page.tasks or (seen >= page.total if page.total is not None else not full):
                return

    def list_all(self, labels: str = "", name: str = "", most: int = 10_000) -> list[TaskInfo]:
        """All tasks that pass the filters, each once, though pages may shift while we read."""
        found = {task.uuid: task for page in self.pages(labels, name, most) for task in page.tasks}
        return list(found.values())

    def stop(self, uuids: list[str]) -> None:
        """Stop several tasks with one call."""
        self._signed("POST", "/stop", body={"uuids": uuids})

    def stop_one(self, uuid: str) -> None:
        """Stop one task."""
        self._signed("GET", f"/stop/{quote(uuid, safe='')}")

    def pods(self, uuid: str) -> list[dict[str, Any]]:
        """The pods of a task."""
        data = self._repeated("GET", f"/{quote(uuid, safe='')}/pods").get("data")
        return [pod for pod in data if isinstance(pod, dict)] if isinstance(data, list) else []

    def hurry(self, timeout: float) -> None:
        """Give calls up sooner from now on: a person waits for the end."""
        self._timeout = min(self._timeout, timeout)

    # -- how they travel ---------------------------------------------------------------------------------------------

    def _repeated(self, method: str, path: str) -> dict[str, Any]:
        """Make a call that changes nothing; again after a broken answer, but not after a long wait for none."""
        started = self._wire.clock()
        for pause in (0.2, 0.4, 0.8):
            try:
                return self._signed(method, path)
            except (Doubtful, Unreachable):
                if self._wire.clock() > started + self._timeout / 2:
                    raise
                self._wire.sleep(pause)
        return self._signed(method, path)

    def _signed(
        self, method: str, path: str, body: dict[str, Any] | None = None, headers: dict[str, str] | None = None
    ) -> dict[str, Any]:
        """Make a call; once more with a fresh signature if the first was refused."""
        try:
            return self._once(method, path, body, headers or {})
        except Unauthorized:
            return self._once(method, path, body, headers or {})

    def _once(self, method: str, path: str, body: dict[str, Any] | None, headers: dict[str, str]) -> dict[str, Any]:
        """Make a call exactly once."""
        self.pacer.wait()
        data = None if body is None else json.dumps(body, ensure_ascii=False).encode("utf-8", "surrogateescape")
        content = {} if data is None else {"Content-Type": "application/json"}
        try:
            status, text, retry_after = self._send(method, path, data, {**content, **headers, **self._signature()})
        except (requests.ConnectTimeout, requests.exceptions.ProxyError) as error:
            raise Unreachable(describe(error)) from None
        except requests.ConnectionError as error:
            kind = Unreachable if is_connect_error(error) else Doubtful
            raise kind(describe(error)) from None
        except (requests.RequestException, TimeoutError) as error:
            raise Doubtful(describe(error)) from None
        if status == 429:
            self.pacer.close_for(parse_retry_after(retry_after))
        return open_envelope(status, text, retry_after)

    def _send(
        self, method: str, path: str, data: bytes | None, headers: dict[str, str]
    ) -> tuple[int, bytes, str | None]:
        """Send the bytes and read the answer within the time allowed; a trickle of bytes does not extend it."""
        deadline = self._wire.clock() + self._timeout
        limits = (min(5.0, self._timeout), self._timeout)
        with self._session().request(
            method, self._base + path, data=data, headers=headers, timeout=limits, stream=True, allow_redirects=False
        ) as response:
            content = b""
            for part in response.iter_content(65536):
                content += part
                if self._wire.clock() > deadline or len(content) > LARGEST_ANSWER:
                    raise TimeoutError("the answer does not end")
            return response.status_code, content, response.headers.get("Retry-After")

    def _signature(self) -> dict[str, str]:
        """The headers that say who calls."""
        keys = self._keys()
        nonce = "".join(secrets.choice("0123456789") for _ in range(10))
        timestamp = str(int(self._wire.now()))
        return {
            "Randstr": nonce,
            "Timestamp": timestamp,
            "AppID": keys.key_id,
            "X-Region": self._settings.region,
            "X-Cluster": self._settings.effective_cluster,
            "Signature": hashlib.sha256(f"{keys.secret}{nonce}{timestamp}".encode()).hexdigest(),
        }

    def _session(self) -> requests.Session:
        """This thread's connections."""
        if not hasattr(self._local, "session"):
            self._local.session = requests.Session()
            # Without this, `requests` would add a login from ~/.netrc to our headers.
            self._local.session.auth = lambda request: request
        self._local.used = self._wire.clock()
        session: requests.Session = self._local.session
        return session

    def _drop_idle_connection(self) -> None:
        """Close this thread's connection if the server may be about to close it too."""
        if hasattr(self._local, "session") and self._wire.clock() > self._local.used + IDLE_LIMIT:
            self._local.session.close()

    def close(self) -> None:
        """Close this thread's connections."""
        if hasattr(self._local, "session"):
            self._local.session.close()


def open_envelope(status: int, text: bytes, retry_after: str | None) -> dict[str, Any]:
    """Take the answer out of its envelope, or raise what it stands for."""
    try:
        answer = json.loads(text)
    except ValueError:
        answer = None
    good = isinstance(answer, dict) and isinstance(answer.get("status"), bool)
    message = (
        f"HTTP {status}: {answer.get('msg') or 'no reason given'}"
        if good
        else f"HTTP {status}: not an answer of the API"
    )
    if status == 429:
        raise Throttled(message, parse_retry_after(retry_after))
    if status == 401:
        raise Unauthorized(message)
    if status == 404 and good:
        raise NotFound(message)
    if 400 <= status < 500 and good:
        raise Rejected(message, status)
    if not 200 <= status < 300 or not good:
        raise Doubtful(message)
    if not answer["status"]:
        raise Rejected(message, status)
    return dict(answer)


def is_connect_error(error: requests.ConnectionError) -> bool:
    """Whether the connection itself failed, so that nothing can have been sent."""
    from urllib3.exceptions import NewConnectionError

    reason = getattr(error.args[0], "reason", None) if error.args else None
    return isinstance(reason, NewConnectionError)


def describe(error: Exception) -> str:
    """An error in one line, without addresses of objects and without headers."""
    return f"{type(error).__name__}: {str(error)[:200]}"
