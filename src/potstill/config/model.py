"""The model file: one teacher, where it listens and how it is asked."""

from __future__ import annotations

import os
import re
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from potstill.config.schema import complete, load_yaml
from potstill.errors import ConfigError
from potstill.secrets import NO_KEY_WORDS, KeySource, looks_like_key, remember

#: Parameters that say how an answer travels, is booked or is labelled: no part of what is answered.
TRANSPORT_PARAMETERS = frozenset(
    {"stream", "stream_options", "user", "metadata", "store", "service_tier", "prompt_cache_key", "safety_identifier"}
)
#: The two names of the longest answer; it stands beside the identity of a request.
LIMIT_NAMES = ("max_completion_tokens", "max_tokens")

_OPENAI_HOST = "api.openai.com"
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")


@dataclass(frozen=True)
class Address:
    """One server of a model.

    Attributes:
        base: The address up to and with `/v1`, as rows name it.
        weight: Its share of the requests.
    """

    base: str
    weight: float = 1.0

    @property
    def chat_url(self) -> str:
        """Where conversations are posted."""
        return f"{self.base}/chat/completions"

    @property
    def models_url(self) -> str:
        """Where the server says what it serves; the sign of life that costs nothing."""
        return f"{self.base}/models"


@dataclass(frozen=True)
class Timeouts:
    """The clocks of a request, in seconds."""

    attempt: float = 600.0
    connect: float = 10.0
    first_byte: float | None = None
    idle: float = 120.0
    row: float = 3600.0


@dataclass(frozen=True)
class Prices:
    """Money per million tokens."""

    input: float
    output: float
    cached_input: float | None = None
    reasoning: float | None = None
    batch_discount: float = 0.0
    currency: str = "USD"
    as_of: str | None = None


@dataclass(frozen=True)
class Model:
    """A teacher, checked and ready to be asked.

    Attributes:
        file: The file it was read from.
        name: The model's name as sent.
        parameters: The body of a request, without messages and without the longest answer.
        max_tokens: The longest answer, or None.
        limit_name: The parameter that carries it.
        addresses: Its servers.
        key: Where the key is read from.
        key_header: The header that carries the key.
        headers: Further headers; those whose value is a secret stand in `secret_headers`.
        secret_headers: Header name -> variable.
        query: Query parameters of each request.
        proxy: The proxy by name, or None for the environment's.
        ca_file: Certificates to trust beside the system's.
        timeouts: The clocks.
        max_retries: Attempts after the first.
        decode_profiles: Named sets of parameters.
        prices: What it costs, or None.
        server: The block that starts a server, or None.
    """

    file: Path
    name: str
    parameters: dict[str, Any]
    max_tokens: int | None
    limit_name: str
    addresses: tuple[Address, ...]
    key: KeySource
    key_header: str = "Authorization"
    headers: dict[str, str] = field(default_factory=dict)
    secret_headers: dict[str, KeySource] = field(default_factory=dict)
    query: dict[str, str] = field(default_factory=dict)
    proxy: str | None = None
    ca_file: Path | None = None
    timeouts: Timeouts = field(default_factory=Timeouts)
    max_retries: int = 5
    decode_profiles: dict[str, dict[str, Any]] = field(default_factory=dict)
    prices: Prices | None = None
    server: dict[str, Any] | None = None

    @property
    def stream(self) -> bool:
        """Whether answers are asked for as streams."""
        return bool(self.parameters.get("stream"))

    def at(self, base_url: str) -> Model:
        """Return the same model at one other address: that of a server which was started for it."""
        return replace(self, addresses=(Address(clean_base(base_url)),))


def load_model(path: Path, *, env: Mapping[str, str] = os.environ) -> Model:
    """Read and check a model file.

    The key itself is read later, by the process that sends the requests.

    Args:
        path: The YAML file.
        env: The environment that keys are read from.

    Returns:
        The model.

    Raises:
        ConfigError: If the file is missing, is not YAML, has an unknown key or holds a secret.
    """
    given = load_yaml(path, "model file")
    _refuse_inline_keys(given, path)
    document = complete(given, "model", f"model file {path}")
    client = document["client_config"]
    # The body holds what the user wrote, not the schema's defaults.
    parameters, headers, query = _split_chat(given["chat_config"], client)
    _check_headers(headers, path)
    limit_name, max_tokens = _take_limit(parameters, path)
    timeout = float(client["timeout"] or 600)
    retries = int(client["max_retries"])
    prices = document["prices"]
    return Model(
        file=path,
        name=str(parameters["model"]),
        parameters=parameters,
        max_tokens=max_tokens,
        limit_name=limit_name,
        addresses=_addresses(client),
        key=_key_source(client, env),
        key_header=client["api_key_header"],
        headers=headers,
        secret_headers={name: KeySource(env=variable, environ=env) for name, variable in client["headers_env"].items()},
        query=query,
        proxy=_checked_proxy(client["proxy"], path),
        ca_file=Path(client["ca_file"]) if client["ca_file"] else None,
        timeouts=Timeouts(
            attempt=timeout,
            connect=float(client["connect_timeout_s"]),
            first_byte=client["first_byte_timeout_s"],
            idle=float(client["idle_timeout_s"]),
            row=float(client["row_deadline_s"] or timeout * (retries + 1)),
        ),
        max_retries=retries,
        decode_profiles=document["decode_profiles"],
        prices=Prices(**prices) if prices else None,
        server=document["server"],
    )


def _refuse_inline_keys(document: dict[str, Any], path: Path) -> None:
    """Refuse secrets before anything else looks at the values, so that no later message can show one."""
    client = document.get("client_config")
    client = client if isinstance(client, dict) else {}
    key = client.get("api_key")
    if key is not None and str(key).strip().lower() not in NO_KEY_WORDS:
        remember(str(key))
        raise ConfigError(
            f"{path}: client_config.api_key holds a key; keys never stand in a file of the project. Put it into a "
            "variable (export TEACHER_KEY=…) and write `api_key_env: TEACHER_KEY` instead, or into "
            "a file of its own and write `api_key_file: FILE`. (EMPTY, none and dummy may stand, for servers that need no key.)"
        )
    for name, value in _texts(client, "client_config"):
        if looks_like_key(value) or name.rpartition(".")[2].lower() in {"authorization", "api-key", "x-api-key"}:
            remember(value)
            raise ConfigError(
                f"{path}: {name} looks like a secret; write the name of a variable instead: `api_key_env: NAME` "
                "for the key, `headers_env: {Header-Name: NAME}` for a header"
            )


def _texts(value: Any, name: str) -> list[tuple[str, str]]:
    if isinstance(value, dict):
        return [pair for key, item in value.items() for pair in _texts(item, f"{name}.{key}")]
    if isinstance(value, list):
        return [pair for index, item in enumerate(value) for pair in _texts(item, f"{name}[{index}]")]
    return [(name, value)] if isinstance(value, str) else []


def _split_chat(chat: dict[str, Any], client: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str], dict[str, str]]:
    """Return body, headers and query; the openai package's `extra_*` arguments go where that package puts them."""
    body = {name: value for name, value in chat.items() if name not in {"extra_body", "extra_headers", "extra_query"}}
    body.update(chat.get("extra_body") or {})
    headers = {**client["default_headers"], **client["headers"], **(chat.get("extra_headers") or {})}
    for header, name in (("OpenAI-Organization", "organization"), ("OpenAI-Project", "project")):
        if client[name]:
            headers[header] = client[name]
    query = {**client["default_query"], **client["query"], **(chat.get("extra_query") or {})}
    return body, headers, {name: str(value) for name, value in query.items()}


def _check_headers(headers: dict[str, str], path: Path) -> None:
    """Refuse what would break the request, or put a header of somebody else's into it."""
    for name, value in headers.items():
        if not _HEADER_NAME.fullmatch(name) or any(ord(letter) < 32 or ord(letter) == 127 for letter in value):
            raise ConfigError(
                f"{path}: client_config.headers: {name!r} is no header; allowed are names of letters, digits and -, "
                "and values of one line"
            )


def _take_limit(parameters: dict[str, Any], path: Path) -> tuple[str, int | None]:
    if "messages" in parameters:
        raise ConfigError(f"{path}: chat_config.messages: the conversation comes from the rows; remove it here")
    if parameters.get("n") not in (None, 1):
        raise ConfigError(
            f"{path}: chat_config.n: write `generate.samples: {parameters['n']}` in the config instead "
            "(and samples_mode: n)"
        )
    parameters.pop("n", None)
    given = [name for name in LIMIT_NAMES if parameters.get(name) is not None]
    if len(given) > 1:
        raise ConfigError(
            f"{path}: chat_config: max_tokens and max_completion_tokens are two names of one thing; keep one"
        )
    limit = parameters[given[0]] if given else None
    for name in LIMIT_NAMES:
        parameters.pop(name, None)
    return (given[0] if given else "max_tokens"), limit


def clean_base(url: str) -> str:
    """Return an address up to `/v1`, without a trailing slash or the path of an endpoint."""
    return url.strip().rstrip("/").removesuffix("/chat/completions").rstrip("/")


def _addresses(client: dict[str, Any]) -> tuple[Address, ...]:
    listed = client["base_urls"] or [client["base_url"]]
    pairs = [(item, 1.0) if isinstance(item, str) else (item["url"], float(item["weight"])) for item in listed]
    for url, _ in pairs:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.netloc:
            raise ConfigError(
                f"client_config.base_url: {url!r} is no address; it begins with http:// or https:// and names a host"
            )
        if parts.username or parts.password:
            raise ConfigError(
                "client_config.base_url holds a user or password; use `headers_env` or `api_key_env` instead"
            )
    return tuple(Address(clean_base(url), weight) for url, weight in pairs)


def _key_source(client: dict[str, Any], env: Mapping[str, str]) -> KeySource:
    if client["api_key_env"]:
        return KeySource(env=client["api_key_env"], environ=env)
    if client["api_key_file"]:
        return KeySource(file=Path(client["api_key_file"]), environ=env)
    host = urllib.parse.urlsplit(client["base_url"]).hostname
    if client["api_key"] is None and not client["base_urls"] and host == _OPENAI_HOST:
        # The openai package's own default; for any other host it would hand the key to a stranger.
        return KeySource(env="OPENAI_API_KEY", environ=env)
    return KeySource(environ=env)


def _checked_proxy(proxy: str | None, path: Path) -> str | None:
    if proxy and urllib.parse.urlsplit(proxy).password:
        remember(urllib.parse.urlsplit(proxy).password or "")
        raise ConfigError(
            f"{path}: client_config.proxy holds a password; leave it out here and set HTTPS_PROXY in the environment"
        )
    return proxy
