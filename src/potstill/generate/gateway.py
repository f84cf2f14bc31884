"""What may stand between us and a server: the proxy to go through, by the model file or by the environment."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import urllib.parse
import urllib.request

from yarl import URL

from potstill.config.model import Model
from potstill.errors import ConfigError
from potstill.secrets import remember


def proxy_for(model: Model, url: URL) -> str | None:
    """Return the address of the proxy for a server, or None; looked up once, not for each request.

    Raises:
        ConfigError: If it is none that speaks HTTP.
    """
    proxy = model.proxy or (None if _is_own_server(model, url) else _proxy_of_environment(url))
    if not proxy:
        return None
    proxy = proxy if "://" in proxy else f"http://{proxy}"
    parts = urllib.parse.urlsplit(proxy)
    for secret in (parts.password, urllib.parse.unquote(parts.password or "")):
        remember(secret or "")
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        where = f"client_config.proxy in {model.file}" if model.proxy else "the environment (HTTPS_PROXY, ALL_PROXY …)"
        raise ConfigError(
            f"{where} names the proxy {proxy_name(proxy)}, which cannot be used; allowed is one that speaks HTTP: "
            "http://host:port. Servers that need none stand in NO_PROXY"
        )
    return proxy


def proxy_name(proxy: str) -> str:
    """Return a proxy's address without its login."""
    scheme, _, rest = proxy.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"


def _is_own_server(model: Model, url: URL) -> bool:
    """Return whether a server was started here for the model: no proxy could reach it."""
    return model.server is not None and url.host in {"127.0.0.1", "localhost", "::1"}


def _proxy_of_environment(url: URL) -> str | None:
    host = url.host or ""
    if urllib.request.proxy_bypass(f"{host}:{url.port}") or urllib.request.proxy_bypass(host) or _in_free_network(host):
        return None
    proxies = urllib.request.getproxies()
    return proxies.get(url.scheme) or proxies.get("all")


def _in_free_network(host: str) -> bool:
    """Return whether NO_PROXY has a network (10.0.0.0/8) that an address lies in; the standard library knows names only."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    for item in (os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or "").split(","):
        with contextlib.suppress(ValueError):
            if "/" in item and address in ipaddress.ip_network(item.strip(), strict=False):
                return True
    return False
