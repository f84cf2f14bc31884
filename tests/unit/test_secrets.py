"""Keys are nowhere: twelve kinds of failure with two canary keys, and every trace of them is searched."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from potstill import secrets
from tests.servers.handle import ROOT, Server, running
from tests.servers.raw import Proxy, RawServer, Request, serving

PLAIN = "canaryPLAINkey0123456789abcdef"
ODD = "canary'ODD\"$HOME\\key with space"
FAILURES = (
    "401",
    "403",
    "400",
    "echo_key",
    "402",
    "404",
    "500",
    "reset",
    "garbage",
    "error200",
    "truncated",
    "disconnect",
)


@pytest.fixture(scope="module")
def teacher() -> Iterator[Server]:
    with running() as server:
        yield server


class CommandLines(threading.Thread):
    """Reads the command lines of all processes, again and again."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.seen: set[bytes] = set()
        self.over = threading.Event()

    def run(self) -> None:
        """Read until it is over."""
        while not self.over.is_set():
            for folder in Path("/proc").iterdir():
                if folder.name.isdigit():
                    try:
                        self.seen.add((folder / "cmdline").read_bytes())
                    except OSError:
                        continue
            time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("key", [PLAIN, ODD], ids=["plain", "odd"])
def test_no_key_is_left_anywhere(teacher: Server, tmp_path: Path, key: str) -> None:
    """After twelve kinds of failure no file, stream or command line holds the key; the server did get it."""
    watcher = CommandLines()
    watcher.start()
    teacher.control(rows={failure: failure for failure in FAILURES}, key=key, reset=True)
    with ThreadPoolExecutor(4) as pool:
        outputs = b"".join(
            pool.map(lambda item: _fail(tmp_path, teacher, item[1], key, by_file=item[0] % 2 == 1), enumerate(FAILURES))
        )
    watcher.over.set()
    watcher.join()
    files = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.name != "key")
    for form in (key, json.dumps(key)[1:-1], repr(key)[1:-1]):
        for name, data in (("files", files), ("streams", outputs), ("command lines", b"\0".join(watcher.seen))):
            assert form.encode() not in data, name
    # The key that the server expects is the canary: had another one arrived, all would have been refused by 401.
    assert set(teacher.stats()["statuses"]) == set(FAILURES)


def _fail(parent: Path, teacher: Server, failure: str, key: str, *, by_file: bool) -> bytes:
    """Run the command into one kind of failure and return all that it printed."""
    folder = parent / failure
    folder.mkdir()
    (folder / "rows.jsonl").write_text(json.dumps({"messages": [{"role": "user", "content": failure}]}) + "\n")
    client = {"base_url": teacher.url, "timeout": 2, "max_retries": 1}
    client |= {"api_key_file": str(folder / "key")} if by_file else {"api_key_env": "CANARY_KEY"}
    (folder / "model.yaml").write_text(json.dumps({"client_config": client, "chat_config": {"model": "fake"}}))
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    if by_file:
        (folder / "key").write_text(key)
    else:
        environment["CANARY_KEY"] = key
    command = [sys.executable, "-m", "potstill", "generate", "--input-path", "rows.jsonl", "--output-path", "out"]
    done = subprocess.run(
        [*command, "--model-config", "model.yaml"],
        cwd=folder,
        env=environment,
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert done.returncode in {0, 75, 78}, done.stderr
    return done.stdout + done.stderr


def test_every_form_of_a_key_is_hidden() -> None:
    """A key that was read is hidden in its plain, escaped, quoted and encoded forms, and so is what looks like one."""
    secrets.remember(ODD)
    for text in (ODD, json.dumps({"k": ODD}), repr(ODD), "Authorization: Bearer abcdefghijklmn", "sk-abcdefghijklmnop"):
        hidden = secrets.redact(f"before {text} after")
        assert "***" in hidden
        assert "ODD" not in hidden and "abcdefgh" not in hidden
        assert hidden.startswith("before ") and hidden.endswith(" after")


def test_plain_words_stay() -> None:
    """Hiding leaves ordinary text alone."""
    text = "HTTP 400: the basic idea is that bearer tokens expire; see task-1234"
    assert secrets.redact(text) == text


def _tell_all(request: Request) -> None:
    """Say all that was sent back to the client, as careless gateways do in their errors."""
    told = json.dumps({"headers": request.headers, "target": request.target})
    status = {"echo 400": 400, "echo 500": 500, "echo 401": 401, "echo 407": 407}.get(request.text, 200)
    request.reply(json.dumps({"error": {"message": f"bad request: {told}", "code": told}}).encode(), status=status)


def _tell_all_as_the_proxy(request: Request) -> None:
    request.reply(json.dumps(request.headers).encode(), f"X-You-Sent: {json.dumps(request.headers)}", status=407)


@pytest.mark.slow
def test_no_secret_of_a_gateway_is_left_anywhere(tmp_path: Path) -> None:
    """Secret headers, a key in a header of its own and a proxy's password are as hidden as a key, also when echoed."""
    token, password = "gateTOKEN'\"$HOME\\0123456789", "proxyPASS word$%@:/0123456789"
    watcher = CommandLines()
    watcher.start()
    with serving(_tell_all) as server, serving(Proxy()) as proxy, serving(_tell_all_as_the_proxy) as wary:
        login = urllib.parse.quote(password, safe="")
        gateways = {
            "direct": {},
            "proxied": {"http_proxy": f"http://me:{login}@127.0.0.1:{proxy.port}"},
            "refused": {"http_proxy": f"http://me:{login}@127.0.0.1:{wary.port}"},
            "socks": {"http_proxy": f"socks5://me:{login}@127.0.0.1:{wary.port}"},
            "away": {"http_proxy": f"http://me:{login}@127.0.0.1:9"},
        }
        outputs = b""
        for name, variables in gateways.items():
            every = ("echo 400", "echo 200", "echo 500", "echo 401", "echo 407")
            for text in every if name == "direct" else every[:1]:
                folder = tmp_path / name / text
                folder.mkdir(parents=True)
                outputs += _fail_by_gateway(folder, server, text, {**variables, "TOKEN": token, "API_KEY": PLAIN})
        assert {request.headers["x-gate"] for request in server.asked} == {token}
        assert {request.headers["api-key"] for request in server.asked} == {PLAIN}
        assert wary.requests and all("proxy-authorization" in request.headers for request in wary.requests)
    watcher.over.set()
    watcher.join()
    files = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"bad request" in files and b"proxy" in outputs  # what was echoed did arrive
    basic = base64.b64encode(f"me:{password}".encode()).decode()
    for secret in (token, password, PLAIN, basic, urllib.parse.quote(password, safe="")):
        for form in (secret, json.dumps(secret)[1:-1], json.dumps(json.dumps(secret)[1:-1])[1:-1], repr(secret)[1:-1]):
            for name, data in (("files", files), ("streams", outputs), ("command lines", b"\0".join(watcher.seen))):
                assert form.encode() not in data, (name, form)


def _fail_by_gateway(folder: Path, server: RawServer, text: str, variables: dict[str, str]) -> bytes:
    """Run the command over a gateway into one kind of failure and return all that it printed."""
    (folder / "rows.jsonl").write_text(json.dumps({"messages": [{"role": "user", "content": text}]}) + "\n")
    client = {
        "base_url": server.url,
        "timeout": 2,
        "max_retries": 0,
        "api_key_env": "API_KEY",
        "api_key_header": "api-key",
        "headers_env": {"X-Gate": "TOKEN"},
    }
    (folder / "model.yaml").write_text(json.dumps({"client_config": client, "chat_config": {"model": "fake"}}))
    config = json.dumps({"outage_timeout_s": 1})
    words = ["-c", f"import sys, logging; logging.basicConfig(level=0)\n{_WITH_SETTINGS}", config]
    clean = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    done = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env={**clean, "PYTHONPATH": str(ROOT / "src"), **variables},
        capture_output=True,
        check=False,
        timeout=60,
    )
    return done.stdout + done.stderr


#: One job at the lowest log level, its error printed with all that Python can tell about it.
_WITH_SETTINGS = """
import json, traceback
from pathlib import Path
from potstill.config.model import load_model
from potstill.stages.generate import generate_chunk
try:
    generate_chunk(
        *(Path(f"{name}.jsonl") for name in ("rows", "answered", "failed", "not_asked")),
        model=load_model(Path("model.yaml")), settings=json.loads(sys.argv[1]), concurrency=2, answers_dir=Path("answers"),
    )
except Exception as error:
    traceback.print_exc()
    print(repr(error))
"""
