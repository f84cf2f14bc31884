"""The replay teacher: which answer a request gets, and how the server gives it."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from potstill.cli import main
from potstill.errors import InputError
from potstill.teacher import Answers, BadRequestError, UnknownPromptError, count_tokens, usage_of


def user(text: str, **more: Any) -> dict[str, Any]:
    """A request with one user message."""
    return {"model": "m", "messages": [{"role": "user", "content": text}], **more}


def answers_of(*rows: dict[str, Any]) -> Answers:
    """The answers of some lines."""
    answers = Answers()
    for row in rows:
        answers.add(row)
    return answers


def contents(answers: Answers, request: dict[str, Any]) -> list[str]:
    """The texts that a request gets."""
    return [answer["content"] for answer in answers.find(request)]


def test_exact_messages_come_before_user_text_before_match() -> None:
    """Of the three ways to name a prompt, the more exact one answers."""
    conversation = [{"role": "system", "content": "S"}, {"role": "user", "content": "How many?"}]
    answers = answers_of(
        {"match": "many", "answers": ["by match"]},
        {"user": "How many?", "answers": ["by user"]},
        {"messages": conversation, "answers": ["by messages"]},
    )
    assert contents(answers, {"messages": conversation}) == ["by messages"]
    assert contents(answers, user("How many?")) == ["by user"]
    assert contents(answers, user("How many of them?")) == ["by match"]


def test_the_match_that_ends_last_answers_and_of_those_the_longest() -> None:
    """A question wins over the examples before it, and over a shorter question that it ends with."""
    answers = answers_of(
        {"match": "How many orders?", "answers": ["orders"]},
        {"match": "Late: How many orders?", "answers": ["late"]},
        {"match": "An example, much longer than any question", "answers": ["example"]},
    )
    assert contents(answers, user("An example, much longer than any question. How many orders?\n")) == ["orders"]
    assert contents(answers, user("Late: How many orders?")) == ["late"]


def test_the_last_user_message_counts_and_parts_are_read() -> None:
    """Earlier turns do not answer, and a content made of parts is read as its text."""
    answers = answers_of({"user": "first", "answers": ["1"]}, {"user": "second", "answers": ["2"]})
    messages = [
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "1", "tool_calls": []},
        {"role": "user", "content": [{"type": "text", "text": "sec"}, {"type": "text", "text": "ond"}]},
        {"role": "tool", "content": "first"},
    ]
    assert contents(answers, {"messages": messages}) == ["2"]


def test_several_answers_come_in_turn_for_each_prompt() -> None:
    """Requests that ask the same get the answers from the first on and around; another prompt starts at the first."""
    answers = answers_of({"match": "q", "answers": ["a", "b", "c"]})
    assert [contents(answers, user("q1"))[0] for _ in range(4)] == ["a", "b", "c", "a"]
    assert contents(answers, user("q2")) == ["a"]
    assert contents(answers, user("q2", n=4)) == ["b", "c", "a", "b"]


def test_a_seed_fixes_the_answer() -> None:
    """The same request with the same seed always gets the same answer, however often it comes."""
    answers = answers_of({"match": "q", "answers": ["a", "b", "c"]})
    assert [contents(answers, user("q", seed=4)) for _ in range(3)] == [["b"]] * 3
    assert contents(answers, user("q", seed=5, n=2)) == ["c", "a"]


def test_an_unknown_prompt_is_an_error() -> None:
    """Nothing is made up for a prompt that was not recorded."""
    with pytest.raises(UnknownPromptError, match="never heard"):
        answers_of({"match": "q", "answers": ["a"]}).find(user("never heard"))


@pytest.mark.parametrize("request_", [{}, {"messages": []}, {"messages": "hi"}, user("q", n=0), user("q", n="2")])
def test_a_request_that_is_none_is_refused(request_: dict[str, Any]) -> None:
    """Missing messages or a wrong n are the client's fault, not an unknown prompt."""
    with pytest.raises(BadRequestError, match=r"messages|n must be"):
        answers_of({"match": "q", "answers": ["a"]}).find(request_)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"answers": ["a"]}', "one of messages, user, match"),
        ('{"match": "q", "user": "q", "answers": ["a"]}', "one of messages, user, match"),
        ('{"match": "q"}', "answers must be a list"),
        ('{"match": "q", "answers": []}', "answers must be a list"),
        ('{"match": "", "answers": ["a"]}', "match must be a text"),
        ('{"match": "q", "answers": [7]}', "a text or an object, found int"),
        ('{"match": "q", "answers": [{"text": "a"}]}', "no field 'text'"),
        ('{"messages": [], "answers": ["a"]}', "messages must be a list"),
        ('{"match": "first", "answers": ["b"]}', "given before: 'first'"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, reason: str) -> None:
    """A line that cannot be used stops the start, with its number and the reason."""
    path = tmp_path / "answers.jsonl"
    path.write_text('{"match": "first", "answers": ["a"]}\n' + line + "\n")
    with pytest.raises(InputError, match=f"answers.jsonl: entry 2: .*{reason}"):
        Answers.load(path)


def test_a_missing_answers_file_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The command says which file it cannot read, without a traceback."""
    assert main(["teacher", "--port", "0", "--answers", str(tmp_path / "none.jsonl")]) == 1
    assert "none.jsonl: cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize("port", ["70000", "-1", "eight"])
def test_a_port_that_is_none_is_a_usage_error(port: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The command line says which ports there are."""
    with pytest.raises(SystemExit, match="2"):
        main(["teacher", f"--port={port}", "--answers", "x.jsonl"])
    assert "a port from 0 to 65535 was expected" in capsys.readouterr().err


def test_a_taken_port_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A port that another process has is a config error that says so."""
    (tmp_path / "answers.jsonl").write_text('{"match": "q", "answers": ["a"]}\n')
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        port = str(stranger.getsockname()[1])
        assert main(["teacher", "--port", port, "--answers", str(tmp_path / "answers.jsonl")]) == 78
    assert "address already in use" in capsys.readouterr().err


def test_token_counts_are_plausible_and_stable() -> None:
    """Usage counts ASCII by fours and other characters one by one, reasoning apart, and adds up."""
    assert count_tokens("SELECT 1") == 2
    assert count_tokens("上海 ok") == 3
    usage = usage_of(user("x" * 600)["messages"], [{"content": "SELECT 1", "reasoning_content": "think" * 4}])
    assert usage["completion_tokens_details"] == {"reasoning_tokens": 5}
    assert usage["completion_tokens"] == 7
    assert usage["total_tokens"] == usage["prompt_tokens"] + 7
    assert usage["prompt_tokens_details"]["cached_tokens"] <= usage["prompt_tokens"]


LINES = [
    {"match": "plain", "answers": ["SELECT 1"]},
    {"match": "thought", "answers": [{"content": "SELECT 2", "reasoning_content": "let me think", "usage": {"x": 1}}]},
    {"match": "cut", "answers": [{"content": "SELECT", "finish_reason": "length"}]},
    {"match": "broken", "answers": [{"error": {"status": 429, "message": "slow down", "retry_after": 2}}, "SELECT 3"]},
    {"match": "tool", "answers": [{"content": None, "tool_calls": [{"id": "1", "type": "function"}]}]},
    {"match": "lone \ud83d", "answers": ["\ud83d"]},
]


class Client:
    """A connection to a running teacher."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout
        self.base_url = process.stdout.readline().strip()
        self.process = process
        self._connection = http.client.HTTPConnection(self.base_url.removeprefix("http://").removesuffix("/v1"))

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, dict[str, str], bytes]:
        """Send one request."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode() if body is not None else None
        self._connection.request(method, path, data)
        with self._connection.getresponse() as response:
            return response.status, dict(response.headers), response.read()

    def chat(self, body: Any) -> tuple[int, dict[str, str], bytes]:
        """Ask for a chat completion."""
        return self.ask("POST", "/v1/chat/completions", body)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    path = tmp_path_factory.mktemp("teacher") / "answers.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    words = [sys.executable, "-m", "potstill", "teacher", "--port", "0", "--answers", str(path)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    made = Client(process)
    yield made
    made.close()
    if process.poll() is None:
        process.kill()
    process.communicate()


def test_server_answers_with_content_usage_and_finish_reason(client: Client) -> None:
    """A reply has the shape of a chat completion and the name of the model that was asked for."""
    status, _, body = client.chat(user("plain"))
    reply = json.loads(body)
    assert status == 200
    assert reply["object"] == "chat.completion"
    assert reply["model"] == "m"
    (choice,) = reply["choices"]
    assert choice["message"] == {"role": "assistant", "content": "SELECT 1"}
    assert choice["finish_reason"] == "stop"
    assert reply["usage"]["completion_tokens"] == 2


def test_server_gives_reasoning_recorded_usage_and_length(client: Client) -> None:
    """What was recorded beside the content comes with it."""
    reply = json.loads(client.chat(user("thought"))[2])
    assert reply["choices"][0]["message"]["reasoning_content"] == "let me think"
    assert reply["usage"]["x"] == 1
    assert json.loads(client.chat(user("cut"))[2])["choices"][0]["finish_reason"] == "length"
    tool = json.loads(client.chat(user("tool"))[2])["choices"][0]
    assert tool["finish_reason"] == "tool_calls"
    assert tool["message"]["content"] is None


def test_server_streams_the_same_answer_in_pieces(client: Client) -> None:
    """The pieces of a stream join to the answer, usage comes last where asked for, then the end mark."""
    _, headers, body = client.chat(user("thought", stream=True, stream_options={"include_usage": True}))
    assert headers["Content-Type"].startswith("text/event-stream")
    events = [line.removeprefix("data: ") for line in body.decode().split("\n\n") if line]
    assert events[-1] == "[DONE]"
    pieces = [json.loads(event) for event in events[:-1]]
    assert pieces[-1]["choices"] == []
    assert pieces[-1]["usage"]["total_tokens"] > 0
    deltas = [piece["choices"][0]["delta"] for piece in pieces[:-1]]
    assert "".join(delta.get("content", "") for delta in deltas) == "SELECT 2"
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "let me think"
    assert pieces[-2]["choices"][0]["finish_reason"] == "stop"
    assert b'"usage"' not in client.chat(user("plain", stream=True))[2]


def test_server_gives_n_choices(client: Client) -> None:
    """`n` choices come with their indexes, and are billed together."""
    reply = json.loads(client.chat(user("plain", n=3))[2])
    assert [choice["index"] for choice in reply["choices"]] == [0, 1, 2]
    assert reply["usage"]["completion_tokens"] == 6


def test_server_gives_recorded_errors_then_the_answer(client: Client) -> None:
    """A recorded error has its status, Retry-After and the shape of OpenAI's errors; the next try gets the answer."""
    status, headers, body = client.chat(user("broken"))
    assert (status, headers["Retry-After"]) == (429, "2")
    assert json.loads(body)["error"]["message"] == "slow down"
    assert client.chat(user("broken"))[0] == 200


def test_server_lists_its_model_and_its_health(client: Client) -> None:
    """The two questions that a client may ask before it starts are answered."""
    assert json.loads(client.ask("GET", "/v1/models")[2])["data"][0]["id"] == "replay"
    assert json.loads(client.ask("GET", "/health")[2]) == {"status": "ok", "answers": len(LINES)}


@pytest.mark.parametrize("body", [b"{", b"[]", b"\xff", {"messages": []}])
def test_server_refuses_what_is_no_request(client: Client, body: Any) -> None:
    """A body that is not a request is HTTP 400 in the shape of OpenAI's errors."""
    status, _, answer = client.chat(body)
    assert status == 400
    assert json.loads(answer)["error"]["type"] == "invalid_request_error"


def test_server_takes_and_gives_lone_surrogates(client: Client) -> None:
    """Half an emoji, which models do send, passes in both directions."""
    status, _, body = client.chat(user("lone \ud83d"))
    assert status == 200
    assert json.loads(body)["choices"][0]["message"]["content"] == "\ud83d"


def test_official_client_understands_the_server(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """The openai package reads a whole reply, a stream and an error."""
    openai = pytest.importorskip("openai")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with openai.OpenAI(base_url=client.base_url, api_key="none", max_retries=0) as official:
        messages = [{"role": "user", "content": "plain"}]
        assert official.chat.completions.create(model="m", messages=messages).choices[0].message.content == "SELECT 1"
        stream = official.chat.completions.create(model="m", messages=messages, stream=True)
        assert "".join(piece.choices[0].delta.content or "" for piece in stream) == "SELECT 1"
        with pytest.raises(openai.NotFoundError, match="no recorded answer"):
            official.chat.completions.create(model="m", messages=[{"role": "user", "content": "nobody knows"}])


def test_server_says_unknown_prompts_loudly_and_ends_at_sigterm(client: Client) -> None:
    """An unknown prompt is HTTP 404 with a code and a line on stderr; SIGTERM ends the server with status 0."""
    status, _, body = client.chat(user("what is this?"))
    assert status == 404
    assert json.loads(body)["error"]["code"] == "no_recorded_answer"
    os.kill(client.process.pid, signal.SIGTERM)
    _, err = client.process.communicate(timeout=20)
    assert client.process.returncode == 0
    assert "no recorded answer for: 'what is this?'" in err
    assert "Traceback" not in err
