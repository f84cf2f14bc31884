"""What stands between us and a teacher: proxies, private certificates, headers and query parameters of gateways."""

from __future__ import annotations

import base64
import logging
from pathlib import Path
from typing import Any

import pytest

from potstill import secrets
from potstill.config.model import Model
from potstill.errors import ConfigError, TryAgainError
from potstill.generate.chunk import GenerateCounts
from tests.servers.handle import Server
from tests.servers.raw import Certificates, Proxy, RawServer, Request, has_openssl, make_certificates, serving
from tests.unit.generate_work import Work

PROXY_VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture(autouse=True)
def _no_proxies_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXY_VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    if not has_openssl():
        pytest.skip("needs the openssl command")
    return make_certificates(tmp_path_factory.mktemp("certificates"))


def answer(request: Request) -> None:
    """Say something right."""
    request.answer()


def ask(folder: Path, url: str, *texts: str, client: dict[str, Any] | None = None, **settings: Any) -> GenerateCounts:
    """Ask a few rows."""
    work = work_of(folder, url, client)
    work.rows(*(texts or ("a", "b", "c")))
    return work.run(**settings)


def work_of(folder: Path, url: str, client: dict[str, Any] | None = None) -> Work:
    """Return a job over a server."""
    return Work(folder, Server(url, None), client={"max_retries": 1, **(client or {})})  # type: ignore[arg-type]


def model_of(folder: Path, url: str, client: dict[str, Any]) -> Model:
    """Return a loaded model file."""
    return work_of(folder, url, client).model()


# -- TLS ------------------------------------------------------------------------------------------------------


def test_a_private_ca_by_its_file(tmp_path: Path, certificates: Certificates) -> None:
    """A server whose certificate a private CA has signed is asked when `ca_file` names that CA."""
    with serving(answer, certificates.server) as server:
        counts = ask(tmp_path, server.url, client={"ca_file": str(certificates.ca)})
    assert (counts.answered, counts.failed) == (3, 0)


def test_a_certificate_that_nobody_vouches_for_stops_the_job(tmp_path: Path, certificates: Certificates) -> None:
    """Without the CA the job stops at once, says what to set, and has sent no key."""
    with serving(answer, certificates.server) as server:
        with pytest.raises(ConfigError, match=r"certificate is not trusted .*client_config.ca_file"):
            ask(tmp_path, server.url)
        assert server.requests == []


def test_a_certificate_of_another_host_stops_the_job(tmp_path: Path, certificates: Certificates) -> None:
    """A certificate for another name is refused, also when its CA is trusted."""
    folder = tmp_path / "other"
    folder.mkdir()
    other = make_certificates(folder, name="DNS:teacher.example")
    with serving(answer, other.server) as server, pytest.raises(ConfigError, match="certificate"):
        ask(tmp_path, server.url, client={"ca_file": str(other.ca)})


def test_https_to_a_server_that_speaks_http(tmp_path: Path) -> None:
    """An `https` address of a plain server stops the job at once and says that TLS is the trouble."""
    with serving(answer) as plain, pytest.raises(ConfigError, match=r"TLS.*http://"):
        ask(tmp_path, plain.url.replace("http://", "https://"))


@pytest.mark.parametrize("text", [None, "no certificate in here"])
def test_a_ca_file_that_cannot_be_used(tmp_path: Path, text: str | None) -> None:
    """A missing or broken CA file is a config error that names it, before anything is sent."""
    file = tmp_path / "ca.pem"
    if text is not None:
        file.write_text(text)
    with serving(answer) as server:
        with pytest.raises(ConfigError, match=r"client_config.ca_file: .*ca.pem cannot be used"):
            ask(tmp_path, server.url, client={"ca_file": str(file)})
        assert server.requests == []


# -- proxies --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["config", "http_proxy", "HTTP_PROXY", "all_proxy", "without a scheme"])
def test_through_a_proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """A proxy of the model file or of the environment carries all requests to an `http` server."""
    proxy, client = Proxy(), {}
    with serving(answer) as server, serving(proxy) as gateway:
        address = gateway.url.removesuffix("/v1")
        if how == "config":
            client = {"proxy": address}
        elif how == "without a scheme":
            monkeypatch.setenv("http_proxy", address.removeprefix("http://"))
        else:
            monkeypatch.setenv(how, address)
        assert ask(tmp_path, server.url, client=client).answered == 3
        assert [target for method, target, _ in proxy.seen if method == "POST"] == [
            f"{server.url}/chat/completions"
        ] * 3


@pytest.mark.parametrize(
    ("no_proxy", "used"),
    [
        ("127.0.0.1", False),
        ("localhost,127.0.0.1:{port}", False),
        ("127.0.0.1:1", True),
        ("127.0.0.0/8, 10.0.0.0/8", False),
        ("10.0.0.0/8", True),
        ("*", False),
        ("example.org", True),
    ],
)
def test_no_proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_proxy: str, used: bool) -> None:
    """NO_PROXY is respected: hosts, hosts with a port, networks, and the star."""
    proxy = Proxy()
    with serving(answer) as server, serving(proxy) as gateway:
        monkeypatch.setenv("http_proxy", gateway.url.removesuffix("/v1"))
        monkeypatch.setenv("no_proxy", no_proxy.format(port=server.port))
        assert ask(tmp_path, server.url).answered == 3
        assert bool(proxy.seen) == used


def test_tls_through_a_tunnel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    """An `https` server behind a proxy with a login is reached by CONNECT; neither key nor password is told to others."""
    password, key = "proxy:P@ss/word", "key-behind-proxy-1234"
    proxy = Proxy(login="Basic " + base64.b64encode(f"me:{password}".encode()).decode())
    monkeypatch.setenv("THE_KEY", key)
    caplog.set_level(logging.DEBUG)
    with serving(answer, certificates.server) as server, serving(proxy) as gateway:
        monkeypatch.setenv("https_proxy", f"http://me:proxy%3AP%40ss%2Fword@127.0.0.1:{gateway.port}")
        client = {"ca_file": str(certificates.ca), "api_key_env": "THE_KEY"}
        assert ask(tmp_path, server.url, client=client).answered == 3
        assert {request.headers["authorization"] for request in server.asked} == {f"Bearer {key}"}
        assert {(method, target) for method, target, _ in proxy.seen} == {("CONNECT", f"127.0.0.1:{server.port}")}
        assert not any("proxy-authorization" in request.headers for request in server.requests)
    written = (
        b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()).decode("latin-1") + caplog.text
    )
    assert key not in written and "P@ss" not in written and "P%40ss" not in written
    assert "P@ss" not in secrets.redact(f"text with {password} in it")


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_wants_a_login_stops_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, certificates: Certificates, scheme: str
) -> None:
    """407 stops the job at once and names the proxy; no row is blamed."""
    proxy = Proxy(login="Basic right")
    files = {"ca_file": str(certificates.ca)} if scheme == "https" else {}
    with serving(answer, certificates.server if files else None) as server, serving(proxy) as gateway:
        monkeypatch.setenv(f"{scheme}_proxy", f"http://me:wrong-password@127.0.0.1:{gateway.port}")
        with pytest.raises(ConfigError, match=rf"proxy .*127.0.0.1:{gateway.port}") as stopped:
            ask(tmp_path, server.url, client=files)
        assert "wrong-password" not in str(stopped.value)
        assert server.asked == []


def test_a_proxy_that_forbids_the_tunnel_is_no_refused_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, certificates: Certificates
) -> None:
    """403 to a CONNECT is the proxy's word, and the message says so instead of blaming the key."""
    with serving(answer, certificates.server) as server, serving(Proxy(refuse=403)) as gateway:
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{gateway.port}")
        with pytest.raises(ConfigError, match=rf"proxy .*127.0.0.1:{gateway.port}.* 403"):
            ask(tmp_path, server.url, client={"ca_file": str(certificates.ca)})


def test_a_proxy_without_a_server_behind_it_is_an_outage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, certificates: Certificates
) -> None:
    """502 to a CONNECT is an outage: the job waits, and stops with "try again later" when it lasts."""
    with serving(answer, certificates.server) as server, serving(Proxy(refuse=502)) as gateway:
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{gateway.port}")
        with pytest.raises(TryAgainError, match="has not answered"):
            ask(tmp_path, server.url, *"abcdefgh", client={"ca_file": str(certificates.ca)}, outage_timeout_s=1.0)


def test_a_proxy_that_is_not_there_is_an_outage(tmp_path: Path) -> None:
    """A proxy that takes no connection makes the job wait, not its rows fail."""
    with serving(answer) as server, pytest.raises(TryAgainError, match="has not answered"):
        ask(tmp_path, server.url, client={"proxy": "http://127.0.0.1:9"}, outage_timeout_s=0.5)


def test_a_server_of_ones_own_needs_no_proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that potstill starts on this machine is asked directly, whatever proxy the environment names."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with serving(answer) as server:
        work = work_of(tmp_path, server.url)
        work.more = {"server": {"command": "true"}}
        work.rows("a")
        assert work.run().answered == 1


def test_a_proxy_of_another_kind_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A SOCKS proxy is named in a clear error, wherever it was set."""
    with serving(answer) as server:
        with pytest.raises(ConfigError, match=r"socks5.*http://"):
            ask(tmp_path, server.url, client={"proxy": "socks5://127.0.0.1:1080"})
        monkeypatch.setenv("all_proxy", "socks5h://127.0.0.1:1080")
        with pytest.raises(ConfigError, match=r"socks5h.*http://"):
            ask(tmp_path, server.url)


# -- headers and query ----------------------------------------------------------------------------------------


def test_azure_like_gateways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The key bare in a header of any name, `api-version` in the query, more headers, secret ones from variables."""
    monkeypatch.setenv("AZURE_KEY", "azure-key-123456")
    monkeypatch.setenv("GATE_TOKEN", "gate-token-123456")
    client = {
        "api_key_env": "AZURE_KEY",
        "api_key_header": "api-key",
        "query": {"api-version": "2024-10-21", "n&=": "a b&c"},
        "headers": {"X-Team": "data"},
        "headers_env": {"X-Gate": "GATE_TOKEN"},
    }
    with serving(answer) as server:
        base = server.url.replace("/v1", "/openai/deployments/my-gpt")
        assert ask(tmp_path, base, client=client).answered == 3
        (request, *_) = server.asked
    path, _, query = request.target.partition("?")
    assert path == "/openai/deployments/my-gpt/chat/completions"
    assert query == "api-version=2024-10-21&n%26%3D=a+b%26c"
    assert request.headers["api-key"] == "azure-key-123456"
    assert (request.headers["x-team"], request.headers["x-gate"]) == ("data", "gate-token-123456")
    assert "authorization" not in request.headers
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()).decode("latin-1")
    assert "azure-key-123456" not in written and "gate-token-123456" not in written


@pytest.mark.parametrize(
    "headers", [{"X-A": "a\r\nX-Injected: 1"}, {"X-A\r\nX-Injected": "1"}, {"X A": "1"}, {"X-A": "nul\0"}]
)
def test_a_header_that_would_break_the_request(tmp_path: Path, headers: dict[str, str]) -> None:
    """Line breaks and blanks where a header can't have them are a config error; nothing is sent."""
    with serving(answer) as server:
        with pytest.raises(ConfigError, match=r"model.yaml: client_config.headers: .*header"):
            ask(tmp_path, server.url, client={"headers": headers})
        assert server.requests == []


def test_a_missing_secret_header_is_named(tmp_path: Path) -> None:
    """A variable of `headers_env` that is not set is a config error which names it."""
    with serving(answer) as server, pytest.raises(ConfigError, match="SURELY_NOT_SET"):
        ask(tmp_path, server.url, client={"headers_env": {"X-Gate": "SURELY_NOT_SET"}})


def test_redirects_are_not_followed(tmp_path: Path) -> None:
    """A redirect stops the job and says where to: a key is never carried to another host."""

    def redirect(request: Request) -> None:
        request.reply(b"", "Location: https://elsewhere.example/v1/chat/completions", status=308)

    with serving(redirect) as server:
        with pytest.raises(ConfigError, match=r"redirected to https://elsewhere.example"):
            ask(tmp_path, server.url)
        assert isinstance(server, RawServer)
