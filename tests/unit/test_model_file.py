"""Model files: what users have is understood, what is wrong is said, no secret is let in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from potstill.config.locate import workflow_root
from potstill.config.model import load_model
from potstill.errors import ConfigError


def _load(folder: Path, document: Any, **env: str) -> Any:
    path = folder / "m.yaml"
    path.write_text(document if isinstance(document, str) else yaml.safe_dump(document))
    return load_model(path, env=env)


@pytest.mark.parametrize("path", sorted((workflow_root() / "config/models").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_examples_load(path: Path) -> None:
    """Each example is valid, and needs nothing but the key of the variable that it names."""
    model = load_model(
        path, env=dict.fromkeys(("OPENAI_API_KEY", "OPENROUTER_API_KEY", "DEEPSEEK_API_KEY"), "key-1234")
    )
    assert model.name
    assert model.key.read() in (None, "key-1234")


def test_the_file_of_the_openai_packages_users(tmp_path: Path) -> None:
    """A file with the openai package's own names loads unchanged, and its body is what it says."""
    model = _load(
        tmp_path,
        {
            "client_config": {
                "base_url": "http://127.0.0.1:8000/v1/chat/completions",
                "api_key": "EMPTY",
                "timeout": 600,
                "max_retries": 3,
                "organization": "org",
                "default_headers": {"X-A": "b"},
                "default_query": {"api-version": 1},
            },
            "chat_config": {
                "model": "gpt-oss-120b",
                "temperature": 0.7,
                "max_tokens": 4096,
                "reasoning_effort": "high",
                "stream": False,
            },
        },
    )
    assert model.parameters == {
        "model": "gpt-oss-120b",
        "temperature": 0.7,
        "reasoning_effort": "high",
        "stream": False,
    }
    assert (model.max_tokens, model.limit_name, model.max_retries, model.timeouts.attempt) == (
        4096,
        "max_tokens",
        3,
        600,
    )
    assert model.addresses[0].chat_url == "http://127.0.0.1:8000/v1/chat/completions"
    assert model.headers == {"X-A": "b", "OpenAI-Organization": "org"}
    assert model.query == {"api-version": "1"}
    assert model.key.read() is None


@pytest.mark.parametrize(
    ("document", "text"),
    [
        ("a: [", "not valid YAML"),
        ("[]", "mapping"),
        ({"client_config": {}}, "chat_config"),
        ({"chat_config": {}}, "model"),
        ({"chat_config": {"model": "m"}, "client_config": {"base_ulr": "x"}}, "did you mean base_url"),
        ({"chat_config": {"model": "m"}, "clientconfig": {}}, "did you mean client_config"),
        ({"chat_config": {"model": "m"}, "client_config": {"base_url": "localhost:8000"}}, "http://"),
        ({"chat_config": {"model": "m", "max_tokens": 1, "max_completion_tokens": 1}}, "two names"),
        ({"chat_config": {"model": "m", "n": 4}}, "generate.samples: 4"),
        ({"chat_config": {"model": "m", "messages": []}}, "comes from the rows"),
        ({"chat_config": {"model": "m"}, "client_config": {"timeout": -1}}, "timeout"),
    ],
)
def test_mistakes_are_said_in_one_line(tmp_path: Path, document: Any, text: str) -> None:
    """An error names the file, the key, what was found and what is allowed."""
    with pytest.raises(ConfigError, match=text) as error:
        _load(tmp_path, document)
    assert "m.yaml" in str(error.value) or "client_config" in str(error.value)


@pytest.mark.parametrize(
    "client",
    [
        {"api_key": "sk-abcdefghijklmnop1234"},
        {"api_key": "anything else"},
        {"headers": {"Authorization": "Bearer abcdefghijkl"}},
        {"default_headers": {"api-key": "0123456789abcdef"}},
        {"proxy": "http://user:secret-word@proxy:8080"},
        {"base_url": "http://user:secret-word@host/v1"},
    ],
)
def test_secrets_are_refused_and_not_shown(tmp_path: Path, client: dict[str, Any]) -> None:
    """A key in the file is an error that says how to move it, without repeating it."""
    with pytest.raises(ConfigError, match=r"variable|environment|api_key_env") as error:
        _load(tmp_path, {"client_config": client, "chat_config": {"model": "m"}})
    for secret in ("abcdefghijkl", "anything", "0123456789", "secret-word"):
        assert secret not in str(error.value)


def test_keys_come_from_variables_and_files(tmp_path: Path) -> None:
    """A key is read when it is needed; a missing or broken one is an error that names where it should be."""
    document = {"client_config": {"base_url": "http://h/v1", "api_key_env": "K"}, "chat_config": {"model": "m"}}
    assert _load(tmp_path, document, K="it's \"$a\\b c").key.read() == "it's \"$a\\b c"
    with pytest.raises(ConfigError, match="variable K is not set"):
        _load(tmp_path, document).key.read()
    with pytest.raises(ConfigError, match="line break"):
        _load(tmp_path, document, K="a\nb").key.read()
    document["client_config"] = {"api_key_file": str(tmp_path / "key")}
    with pytest.raises(ConfigError, match=r"key file .* cannot be read"):
        _load(tmp_path, document).key.read()
    (tmp_path / "key").write_text("abc\n")
    assert _load(tmp_path, document).key.read() == "abc"


def test_the_key_of_openai_goes_to_openai_alone(tmp_path: Path) -> None:
    """Without any key in the file OPENAI_API_KEY is used for api.openai.com, and never for another host."""
    assert _load(tmp_path, {"chat_config": {"model": "m"}}, OPENAI_API_KEY="key-1234").key.read() == "key-1234"
    other = {"client_config": {"base_url": "http://h/v1"}, "chat_config": {"model": "m"}}
    assert _load(tmp_path, other, OPENAI_API_KEY="key-1234").key.read() is None


def test_a_server_block_gets_its_defaults(tmp_path: Path) -> None:
    """A `server:` block needs a command only; the model can be asked at the address where it was started."""
    model = _load(
        tmp_path,
        {
            "client_config": {"base_url": "http://127.0.0.1:{port}/v1"},
            "chat_config": {"model": "m"},
            "server": {"command": "x --port {port}"},
        },
    )
    assert (model.server["port"], model.server["ready_url"]) == ("auto", "/v1/models")
    assert model.at("http://127.0.0.1:5/v1").addresses[0].chat_url == "http://127.0.0.1:5/v1/chat/completions"


def test_a_key_that_an_executor_hands_over_as_a_file_goes_before_the_variable(tmp_path: Path) -> None:
    """`{NAME}_FILE` is read anew each time, so that a rotated key reaches a running job."""
    (tmp_path / "key").write_text("first\n")
    document = {
        "client_config": {"base_url": "http://127.0.0.1:1/v1", "api_key_env": "K"},
        "chat_config": {"model": "m"},
    }
    key = _load(tmp_path, document, K="old", K_FILE=str(tmp_path / "key")).key
    assert key.read() == "first"
    (tmp_path / "key").write_text("second\n")
    assert key.read() == "second"
