"""Old task files become a config that validates and a profile that the executor accepts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from potstill.cli import main
from potstill.config.schema import load_schema, validate
from potstill.errors import ConfigError
from potstill.migrate import migrate

SUBMIT: dict[str, Any] = {
    "task_name": "batch_submit_opc_stage2",
    "task_type": "batch_distillation_submit",
    "data_split": {"input_file": "/data/in.jsonl", "num_chunks": 1000},
    "batch_submit": {
        "output_base_dir": "/data/out",
        "name_prefix": "opc2",
        "concurrency": 20,
        "batch_size": 10,
        "siflow": {"count_per_pod": 10, "resource_pool": "eval-cpu", "priority": "high", "guarantee": True},
        "models": [{"config_path": "m/one.yaml", "alias": "think"}, {"config_path": "/m/two.yaml", "alias": "std"}],
    },
    "environment": {"env_file": "env/add_siflow.env"},
    "post_processing": {"auto_merge": False},
}


def write(folder: Path, task: dict[str, Any]) -> Path:
    """Write a task file."""
    file = folder / "task.yaml"
    file.write_text(yaml.safe_dump(task, allow_unicode=True))
    return file


def test_submit_task_becomes_config_and_profile(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Data, chunks, models and limits go into the config, alias to alias; the platform into the profile."""
    assert main(["migrate", str(write(tmp_path, SUBMIT)), "--output-dir", str(tmp_path / "new")]) == 0
    config = yaml.safe_load((tmp_path / "new" / "config.yaml").read_text())
    validate(config, load_schema("config"), "config")
    assert config["input"] == {"path": "/data/in.jsonl"}
    assert config["chunks"] == {"count": 1000}
    assert config["output_dir"] == "/data/out"
    assert config["models"] == [{"alias": "think", "config": "m/one.yaml"}, {"alias": "std", "config": "/m/two.yaml"}]
    assert config["generate"] == {"concurrency": 20, "batch_size": 10}
    profile = yaml.safe_load((tmp_path / "new" / "profiles" / "siflow" / "config.yaml").read_text())
    wanted = {
        "executor": "siflow",
        "siflow-name-prefix": "opc2",
        "siflow-resource-pool": "eval-cpu",
        "siflow-priority": "high",
        "siflow-guarantee": True,
        "siflow-count-per-pod": 10,
        "siflow-env-file": "env/add_siflow.env",
        "siflow-region": "cn-beijing",
        "siflow-cluster": "auriga",
    }
    assert {name: profile[name] for name in wanted} == wanted
    assert "siflow-instance-size" not in profile
    assert "post_processing is not carried over" in capsys.readouterr().err


def test_profile_passes_the_executors_validation(tmp_path: Path) -> None:
    """The profile's entries are settings of the executor."""
    from snakemake_executor_plugin_siflow import ExecutorSettings

    (tmp_path / "keys.env").write_text("A=b\n")
    task = {**SUBMIT, "environment": {"env_file": str(tmp_path / "keys.env")}}
    profile = migrate(write(tmp_path, task)).profile
    given = {name[7:].replace("-", "_"): value for name, value in profile.items() if name.startswith("siflow-")}
    assert ExecutorSettings(**given).count_per_pod == 10


def test_all_of_the_platform_section(tmp_path: Path) -> None:
    """Image, type, workers, volumes, instances and fault tolerance are carried over."""
    siflow = {
        "region": "cn-shanghai",
        "cluster": "hercules",
        "image": "verl",
        "image_version": "dev",
        "image_url": "r/verl:dev",
        "type": "pytorchjob",
        "workers": 0,
        "volumes": [{"volumeId": 5, "mountDir": "/volume/a"}, {"name": "b", "mount": "/volume/b"}],
        "instances": [{"name": "sci.c24-2"}],
        "fault_tolerance": {"enabled": True, "max_retry_count": 3},
        "colour": "red",
    }
    made = migrate(write(tmp_path, {**SUBMIT, "batch_submit": {**SUBMIT["batch_submit"], "siflow": siflow}}))
    wanted = {
        "siflow-region": "cn-shanghai",
        "siflow-cluster": "hercules",
        "siflow-image": "verl",
        "siflow-image-version": "dev",
        "siflow-image-url": "r/verl:dev",
        "siflow-type": "pytorchjob",
        "siflow-workers": 0,
        "siflow-volumes": ["5:/volume/a", "b:/volume/b"],
        "siflow-instance": ["sci.c24-2"],
        "siflow-fault-tolerance": 3,
    }
    assert {name: made.profile[name] for name in wanted} == wanted
    assert any("siflow.colour is not carried over" in note for note in made.notes)


def test_old_task_template_is_read(tmp_path: Path) -> None:
    """Where the old task template is found, image, volumes and instances come from it."""
    template = tmp_path / "configs" / "siflow" / "task_template.yaml"
    template.parent.mkdir(parents=True)
    template.write_text(
        "namePrefix: {name_prefix}\nvolumes:\n  - volumeId: 9\n    mountDir: /volume/t\nimage: own\n"
        'imageVersion: "v"\ntype: pytorchjob\n'
        "workers: 0\ninstances:\n  - name: sci.c1\n    countPerPod: {count_per_pod}\ncmd: |\n{cmd}\n"
    )
    made = migrate(write(tmp_path, {**SUBMIT, "environment": {"project_root": str(tmp_path)}}))
    assert made.profile["siflow-image"] == "own"
    assert made.profile["siflow-volumes"] == ["9:/volume/t"]
    assert made.profile["siflow-instance"] == ["sci.c1"]
    assert made.config["models"][0]["config"] == str(tmp_path / "m" / "one.yaml")


def test_inline_key_of_a_model_file_is_told(tmp_path: Path) -> None:
    """A model file with a key in it is named, with what to do."""
    model = tmp_path / "m.yaml"
    model.write_text("client_config: {base_url: 'http://x/v1', api_key: sk-1234567890}\nchat_config: {model: m}\n")
    submit = {**SUBMIT["batch_submit"], "models": [{"config_path": str(model), "alias": "m"}]}
    notes = migrate(write(tmp_path, {**SUBMIT, "batch_submit": submit})).notes
    assert any("api_key_env" in note for note in notes)
    assert not any("sk-1234567890" in note for note in notes)


def test_merge_task(tmp_path: Path) -> None:
    """A merge task becomes commands that do the same at once, and a config with the same aliases."""
    task = {
        "task_type": "merge_distillation_results",
        "merge": {
            "output_base_dir": "/data/out dir",
            "merge_errors": True,
            "models": [{"name": "think"}, {"name": "std"}],
        },
    }
    assert main(["migrate", str(write(tmp_path, task)), "--output-dir", str(tmp_path / "new")]) == 0
    config = yaml.safe_load((tmp_path / "new" / "config.yaml").read_text())
    validate(config, load_schema("config"), "config")
    assert [model["alias"] for model in config["models"]] == ["think", "std"]
    assert (
        "potstill merge '/data/out dir/think' --output '/data/out dir/think.jsonl'"
        in (tmp_path / "new" / "merge.sh").read_text()
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"task_type": "data_scoring"}, "potstill migrates batch_distillation_submit"),
        ({"data_split": {"input_file": "x"}}, "data_split.num_chunks is missing"),
        ({"data_split": {"input_file": "x", "num_chunks": "many"}}, "whole number"),
        ({"batch_submit": {"output_base_dir": "x", "models": []}}, "at least one model"),
        (
            {
                "batch_submit": {
                    "output_base_dir": "x",
                    "models": [{"config_path": "a.yaml"}, {"config_path": "b/a.yaml"}],
                }
            },
            "'a' is there twice",
        ),
        ({"batch_submit": {**SUBMIT["batch_submit"], "siflow": {"volumes": [{"x": 1}]}}}, "a volume needs"),
    ],
)
def test_what_cannot_be_migrated(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    """A task file that cannot be migrated is an error that says where and what."""
    file = write(tmp_path, {**SUBMIT, **change})
    with pytest.raises(ConfigError, match=said) as caught:
        migrate(file)
    assert str(file) in str(caught.value)


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    """Files that are there already stay."""
    (tmp_path / "config.yaml").write_text("mine")
    assert main(["migrate", str(write(tmp_path, SUBMIT)), "--output-dir", str(tmp_path)]) == 78
    assert (tmp_path / "config.yaml").read_text() == "mine"
