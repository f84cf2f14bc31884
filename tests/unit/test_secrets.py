"""Keys are nowhere: twelve kinds of failure with two canary keys, and every trace of them is searched."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from potstill import secrets
from tests.servers.handle import ROOT, Server, running

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
