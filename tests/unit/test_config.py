"""Configs: closed schemas, defaults, errors for a person, and a page that cannot drift."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from potstill.config.document import fill_tables
from potstill.config.locate import workflow_root
from potstill.config.run import complete_config, load_config
from potstill.config.schema import load_schema
from potstill.errors import ConfigError
from potstill.sql.outcome import ERROR_CLASSES

ROOT = workflow_root()


@pytest.fixture
def minimal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The smallest config, in a folder with the files that it names."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text("{}\n")
    (tmp_path / "m.yaml").write_text("client_config: {base_url: http://127.0.0.1:1/v1}\nchat_config: {model: m}\n")
    (tmp_path / "bad.yaml").write_text("client_config: {base_ur: http://127.0.0.1:1/v1}\nchat_config: {model: m}\n")
    (tmp_path / "shop.sqlite").write_bytes(b"")
    return {"input": {"path": "rows.jsonl"}, "models": [{"alias": "m", "config": "m.yaml"}]}


def test_a_minimal_config_is_completed_from_the_schema_alone(minimal: dict[str, Any]) -> None:
    """No key of the demo leaks into it: without `execute` the stages that need it are off."""
    config = complete_config(minimal, "config")
    assert (config["execute"], config["clean"], config["score"]) == (None, None, None)
    assert config["filter"]["min_chars"] == 1
    assert config["generate"]["concurrency"] == 30


def test_the_classes_of_the_schema_are_those_of_the_engines() -> None:
    """`filter.reject_classes` takes every class that a statement can end with, and no other."""
    classes = load_schema("config")["properties"]["filter"]["properties"]["reject_classes"]["items"]["enum"]
    assert sorted(classes) == sorted(ERROR_CLASSES)


def test_cleaning_and_scoring_come_with_execution(minimal: dict[str, Any]) -> None:
    """`execute` alone switches on what it needs."""
    config = complete_config({**minimal, "execute": {"database": "shop.sqlite"}}, "config")
    assert config["clean"]["kind"] == "sql"
    assert config["score"]["gold"] == 1.0


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"chunk": {"count": 2}}, r"my\.yaml: chunk: unknown key; did you mean chunks\?"),
    ({"filter": {"min_scores": 1}}, r"filter\.min_scores: unknown key; did you mean min_score\?"),
    ({"generate": {"concurrency": 0}}, r"generate\.concurrency: 0 is less than the minimum of 1"),
    ({"generate": {"concurrency": "30"}}, r"generate\.concurrency: found text '30', but integer is allowed"),
    ({"chunks": {"count": 2, "rows": 3}}, r"chunks: found both count and rows"),
    ({"input": {"path": "nowhere.jsonl"}}, r"input\.path nowhere\.jsonl: no such file"),
    ({"input": {}}, r"input\.path: required, but missing"),
    ({"models": []}, r"models: "),
    ({"models": [{"alias": "logs", "config": "m.yaml"}]}, r"models\[0\]\.alias: "),
    ({"models": [{"alias": "a/b", "config": "m.yaml"}]}, r"models\[0\]\.alias: found text 'a/b', which does not fit"),
    ({"models": [{"alias": "m", "config": "x.yaml"}]}, r"models\[0\]\.config: x\.yaml: no such file"),
    ({"prompt": {"template": "x.jinja"}}, r"prompt\.template: x\.jinja: no such file"),
    ({"output_dir": "rows.jsonl"}, r"output_dir: rows\.jsonl: rows\.jsonl is not a folder"),
    ({"answers_dir": "rows.jsonl/x"}, r"answers_dir: rows\.jsonl/x: .*rows\.jsonl is not a folder"),
    (
        {"models": [{"alias": "m", "config": "bad.yaml"}]},
        r"model file bad\.yaml: client_config\.base_ur: unknown key; did you mean base_url\?",
    ),
    ({"execute": {}}, r"execute: give one of database .* found neither"),
    ({"execute": {"database_dir": "nowhere"}}, r"execute\.database_dir: nowhere: no such folder"),
    ({"execute": {"database": "shop.sqlite"}, "clean": None}, r"execute needs the field sql"),
    (
        {"execute": {"database": "shop.sqlite", "gold_field": None, "on_bad_gold": "skip"}},
        r"execute\.on_bad_gold: skip: no row has gold \(execute\.gold_field: null\)",
    ),
    ({"filter": {"expression": "question >"}}, r"my\.yaml: filter\.expression: 'question >' cannot be read"),
    ({"filter": {"expression": "score > 0.5"}}, r"filter\.expression: .*'score', since the stage 'score' is off"),
    ({"filter": {"reject_classes": ["time_out"]}}, r"filter\.reject_classes\[0\]: found text 'time_out', allowed are"),
    ({"clean": {"kind": "json", "language": "python"}}, r"clean\.language: means something with kind code only"),
    ({"output_dir": "sk-abcdefghijklmnop123"}, r"output_dir: this looks like a key; .*api_key_env"),
]


@pytest.mark.parametrize(("change", "message"), WRONG)
def test_a_wrong_config_says_which_key_and_what_is_allowed(
    minimal: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    """One line: file, key, what was found, what is allowed."""
    with pytest.raises(ConfigError, match=message) as caught:
        complete_config({**minimal, **change}, "config my.yaml")
    assert "\n" not in str(caught.value)


def test_two_models_of_one_name_are_refused(minimal: dict[str, Any]) -> None:
    """Aliases are paths, and some filesystems know no case."""
    models = [{"alias": "m", "config": "m.yaml"}, {"alias": "M", "config": "m.yaml"}]
    with pytest.raises(ConfigError, match=r"models\[1\]\.alias: M is taken"):
        complete_config({**minimal, "models": models}, "config")


def test_a_file_that_is_no_yaml_is_refused_in_one_line(tmp_path: Path) -> None:
    """The message names the file and the place."""
    path = tmp_path / "c.yaml"
    path.write_text("a: [1\nb: 2")
    with pytest.raises(ConfigError, match=r"c\.yaml: not valid YAML: .*line 2"):
        load_config(path)


@pytest.mark.parametrize("name", [path.name.partition(".")[0] for path in (ROOT / "workflow/schemas").glob("*.yaml")])
def test_every_key_of_every_schema_is_closed_and_described(name: str) -> None:
    """Each object forbids unknown keys, each key has a type and a description."""

    def walk(schema: dict[str, Any], path: str) -> None:
        if "properties" in schema:
            # A chat_config is the body of the request: whatever the server knows.
            assert schema.get("additionalProperties") is (path == "model.chat_config"), path
        for key, value in schema.get("properties", {}).items():
            assert value.get("description"), f"{path}.{key} has no description"
            assert value.keys() & {"type", "enum", "anyOf", "oneOf"}, f"{path}.{key} has no type"
            walk(value, f"{path}.{key}")
        if "items" in schema:
            walk(schema["items"], f"{path}[]")

    walk(load_schema(name), name)


def test_the_page_explains_every_key_of_the_schema() -> None:
    """config/README.md is what `make docs` would write, and every section of the config has its table."""
    page = (ROOT / "config/README.md").read_text()
    assert fill_tables(page) == page, "run `make docs`"
    for section, schema in load_schema("config")["properties"].items():
        has_keys = any("properties" in branch for branch in (schema, schema.get("items", {})))
        assert not has_keys or f"<!-- table: config {section} -->" in page, section


def test_conda_and_pip_users_get_the_same_packages() -> None:
    """environment.yml and pyproject.toml name the same packages with the same bounds."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]

    def normalise(requirement: str) -> str:
        return requirement.partition(";")[0].replace(" ", "").replace("[c]", "").lower()

    conda = {normalise(item) for item in environment if isinstance(item, str)}
    pip = {normalise(item) for item in project["dependencies"]}
    assert conda - {"pip", f"python{project['requires-python']}"} == pip
