"""Settings check themselves; a body follows template, settings and resources, in this order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from snakemake_interface_common.exceptions import WorkflowError

from snakemake_executor_plugin_siflow.settings import (
    Environment,
    ExecutorSettings,
    find_keys,
    parse_volume,
    read_env_file,
)
from snakemake_executor_plugin_siflow.task import NAME, TaskError, TaskFactory, job_key, label_value, task_name

GIVEN: dict[str, Any] = {"image": "verl", "resource_pool": "pool", "instance": ["sci.c23-2"]}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"region": "mars"}, "one of cn-beijing"),
        ({"cluster": "draco"}, "region cn-beijing has auriga"),
        ({"base_url": "ftp://x"}, "must be http"),
        ({"base_url": "https://user:key@host/sfapi"}, "without user"),
        ({"name_prefix": "Bad_Name"}, "a letter first"),
        ({"priority": "urgent"}, "one of high, medium, low"),
        ({"type": "job"}, "one of pod, pytorchjob"),
        ({"workers": -1}, "at least 0"),
        ({"count_per_pod": 0}, "at least 1"),
        ({"volumes": ["5"]}, "for example 5:/volume/data"),
        ({"instance_size": ["x:cpus=0"]}, "for example sci"),
        ({"secret_env": ["sk-123"]}, "never its value"),
        ({"env": ["1X=2"]}, "NAME or NAME=VALUE"),
        ({"env_file": Path("/nowhere.env")}, "no such file"),
        ({"on_exit": "explode"}, "one of stop, detach"),
        ({"page_size": 0}, "at least 1"),
    ],
)
def test_wrong_setting(given: dict[str, Any], said: str) -> None:
    """A wrong setting is named by its flag, with what is allowed."""
    (name,) = given
    with pytest.raises(WorkflowError, match=said) as caught:
        ExecutorSettings(**given)
    assert f"--siflow-{name.replace('_', '-')}" in str(caught.value)


def test_all_problems_at_once() -> None:
    """Several wrong settings are told together."""
    with pytest.raises(WorkflowError) as caught:
        ExecutorSettings(region="mars", priority="urgent", page_size=0)
    assert all(word in str(caught.value) for word in ("region", "priority", "page-size"))


def test_private_installation() -> None:
    """With base URL and cluster, any region is taken."""
    given = ExecutorSettings(base_url="https://sf.example.com/sfapi/", region="home", cluster="one")
    assert given.effective_base_url == "https://sf.example.com/sfapi"


def test_missing_key_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing access key is an error that names the variable."""
    monkeypatch.setenv("SIFLOW_ACCESS_KEY_ID", "x")
    monkeypatch.delenv("SIFLOW_ACCESS_KEY_SECRET", raising=False)
    with pytest.raises(WorkflowError, match="SIFLOW_ACCESS_KEY_SECRET not set"):
        find_keys(Environment(None), None)


def test_env_file(tmp_path: Path) -> None:
    """An env file may have exports, quotes and comments; values keep every character."""
    file = tmp_path / "keys.env"
    file.write_text('# keys\nexport SIFLOW_ACCESS_KEY_ID="id"\nSIFLOW_ACCESS_KEY_SECRET=\'se"c $r=t\'\nOTHER=a=b c\n')
    assert read_env_file(file) == {
        "SIFLOW_ACCESS_KEY_ID": "id",
        "SIFLOW_ACCESS_KEY_SECRET": 'se"c $r=t',
        "OTHER": "a=b c",
    }
    assert find_keys(Environment(file), file) == ("id", 'se"c $r=t')


def test_volume_by_id_or_name() -> None:
    """Digits are a volume's id, all else its name."""
    assert parse_volume("5:/volume/data").as_body() == {"volumeId": 5, "mountDir": "/volume/data"}
    assert parse_volume("data:/v").as_body() == {"volumeName": "data", "mountDir": "/v"}


def body(resources: dict[str, Any] | None = None, threads: int = 1, **settings: Any) -> dict[str, Any]:
    """The body for a job."""
    return TaskFactory(ExecutorSettings(**{**GIVEN, **settings})).body(resources or {}, threads, "rule_x")


def test_body_from_settings() -> None:
    """Every setting of the old task files is in the body."""
    made = body(
        image_version="1",
        image_url="u",
        image_type="custom",
        priority="high",
        guarantee=True,
        fault_tolerance=2,
        count_per_pod=10,
        volumes=["5:/v"],
        type="pytorchjob",
    )
    assert made == {
        "type": "pytorchjob",
        "image": "verl",
        "imageVersion": "1",
        "imageUrl": "u",
        "imageType": "custom",
        "workers": 0,
        "resourcePool": "pool",
        "priority": "high",
        "guarantee": True,
        "instances": [{"name": "sci.c23-2", "countPerPod": 10}],
        "volumes": [{"volumeId": 5, "mountDir": "/v"}],
        "datasets": [],
        "models": [],
        "enhancements": {"faultTolerance": {"enabled": True, "maxRetryCount": 2}},
    }


def test_resources_beat_settings() -> None:
    """What a rule says wins."""
    made = body(
        {
            "siflow_instance": "a,b",
            "siflow_count_per_pod": 3,
            "siflow_pool": "other",
            "siflow_priority": "low",
            "siflow_guarantee": 1,
        },
        count_per_pod=10,
    )
    assert made["instances"] == [{"name": "a", "countPerPod": 3}, {"name": "b", "countPerPod": 3}]
    assert (made["resourcePool"], made["priority"], made["guarantee"]) == ("other", "low", True)


@pytest.mark.parametrize(
    ("threads", "memory", "units"), [(1, 1, 1), (2, 8192, 1), (3, 100, 2), (1, 8193, 2), (7, 40000, 5)]
)
def test_units_from_threads_and_memory(threads: int, memory: int, units: int) -> None:
    """With a table of sizes, threads and mem_mb become units per pod."""
    made = body({"mem_mb": memory}, threads, instance_size=["sci.c23-2:cpus=2,mem_mb=8192"])
    assert made["instances"] == [{"name": "sci.c23-2", "countPerPod": units}]


def test_template_is_under_the_settings(tmp_path: Path) -> None:
    """A template fills in what settings and rules leave open."""
    file = tmp_path / "task.yaml"
    file.write_text(
        "image: other\nresourcePool: fromfile\ninstances: [{name: t, countPerPod: 4}]\ntimezone: UTC\nguarantee: true\n"
    )
    made = TaskFactory(ExecutorSettings(image="verl", task_template=file)).body({}, 1, "r")
    assert (made["image"], made["resourcePool"], made["timezone"], made["guarantee"]) == (
        "verl",
        "fromfile",
        "UTC",
        True,
    )
    assert made["instances"] == [{"name": "t", "countPerPod": 4}]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("imagee: x\n", "did you mean image"),
        ("labels: {}\n", "not allowed"),
        ("workers: many\n", "type int"),
        ("[]", "mapping"),
        ("a: [", "task template"),
    ],
)
def test_wrong_template(tmp_path: Path, text: str, said: str) -> None:
    """A wrong template is named with what is wrong in it."""
    file = tmp_path / "task.yaml"
    file.write_text(text if text != "[]" else "[1]")
    with pytest.raises(TaskError, match=said):
        TaskFactory(ExecutorSettings(**GIVEN, task_template=file))


@pytest.mark.parametrize(
    ("resources", "said"),
    [
        ({"siflow_pol": "x"}, "did you mean siflow_pool"),
        ({"siflow_count_per_pod": 0}, "siflow_count_per_pod=0"),
        ({"siflow_priority": "now"}, "priority 'now'"),
    ],
)
def test_wrong_resource_names_the_rule(resources: dict[str, Any], said: str) -> None:
    """A wrong resource is an error that names rule and resource."""
    with pytest.raises(TaskError, match=said) as caught:
        body(resources)
    assert "rule_x" in str(caught.value)


def test_missing_field_says_where_to_give_it() -> None:
    """A field that the platform needs is asked for by flag, resource and template."""
    with pytest.raises(TaskError, match="--siflow-image, resources: siflow_image"):
        TaskFactory(ExecutorSettings(resource_pool="p", instance=["i"])).body({}, 1, "r")


def test_names_are_found_again() -> None:
    """From a final name, with whatever suffix, run, key and attempt can be read."""
    name = task_name("pot-still", "0123456789ab", "fedcba987654", 12)
    match = NAME.fullmatch(f"{name}-x7k2p")
    assert match is not None
    assert (match["prefix"], match["run"], match["key"], match["attempt"]) == (name, "01234567", "fedcba987654", "12")
    assert len(name) <= 50


def test_key_is_that_of_run_and_outputs() -> None:
    """The key does not depend on the order of outputs, and differs between runs."""
    assert job_key("r", ["b", "a"], "") == job_key("r", ["a", "b"], "") != job_key("s", ["a", "b"], "")
    assert job_key("r", [], "one") != job_key("r", [], "two")


def test_label_values_are_plain() -> None:
    """Labels hold nothing but letters, digits, `_`, `.` and `-`."""
    assert label_value("a rule/with:all €") == "a_rule_with_all"
    assert label_value("€") == "job"
