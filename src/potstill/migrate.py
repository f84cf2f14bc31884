"""Old task files of modelcall (`batch_distillation_submit`, `merge_distillation_results`) as a config and a profile.

What a task file says has exactly one place here: data and models in the config, the platform in the profile. What has
no place any more is told to the user, never dropped in silence.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from potstill.config.locate import workflow_root
from potstill.config.schema import load_schema, load_yaml, validate
from potstill.errors import ConfigError

SUBMIT, MERGE = "batch_distillation_submit", "merge_distillation_results"

#: Key of the old `siflow:` section, or of a task template -> entry of the profile.
PLATFORM = {
    "region": "siflow-region",
    "cluster": "siflow-cluster",
    "base_url": "siflow-base-url",
    "resource_pool": "siflow-resource-pool",
    "count_per_pod": "siflow-count-per-pod",
    "priority": "siflow-priority",
    "guarantee": "siflow-guarantee",
    "image": "siflow-image",
    "image_version": "siflow-image-version",
    "image_url": "siflow-image-url",
    "image_type": "siflow-image-type",
    "type": "siflow-type",
    "workers": "siflow-workers",
    "env_file": "siflow-env-file",
}
#: What the old code took where a task file said nothing.
OLD_DEFAULTS: dict[str, Any] = {
    "region": "cn-beijing",
    "cluster": "auriga",
    "resource_pool": "eval-cpu",
    "count_per_pod": 10,
    "priority": "medium",
    "guarantee": False,
}
#: Sections of a task file that every task has and that carry nothing over.
SILENT = {"task_name", "task_type", "description"}
#: Why a section or key has no place any more.
GONE = {
    "execution": "`snakemake -n` is the dry run; splitting is a rule of the workflow",
    "logging": "logs are in {output_dir}/{run}/logs/",
    "post_processing": "merging, of failed rows too, is part of the workflow",
    "conda_env": "tasks use the Python that runs Snakemake, or siflow-python in the profile",
    "project_root": "paths are relative to the folder where Snakemake is started",
    "data_split.output_dir": "chunks are in {output_dir}/{run}/prepared/chunks/",
}


@dataclass
class Migration:
    """What a task file becomes.

    Args:
        config: The config.
        profile: The entries of the profile; none for a task that submitted nothing.
        commands: Shell commands that do at once what the task did.
        notes: What the user should know.
    """

    config: dict[str, Any]
    profile: dict[str, Any] = field(default_factory=dict)
    commands: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def migrate(task_file: Path) -> Migration:
    """Read an old task file.

    Raises:
        ConfigError: If it is none, or lacks what cannot be guessed.
    """
    task = load_yaml(task_file, "task file")
    kind = task.get("task_type")
    if kind == SUBMIT:
        result = _migrate_submit(task, task_file)
    elif kind == MERGE:
        result = _migrate_merge(task, task_file)
    else:
        raise ConfigError(f"task file {task_file}: task_type is {kind!r}; potstill migrates {SUBMIT} and {MERGE}")
    validate(result.config, load_schema("config"), f"the config made from {task_file}")
    return result


# -- batch_distillation_submit -----------------------------------------------------------------------------------------


def _migrate_submit(task: Mapping[str, Any], where: Path) -> Migration:
    """A task that split a file and sent one task for each chunk and model."""
    split, submit = _section(task, "data_split", where), _section(task, "batch_submit", where)
    environment = _section(task, "environment", where, optional=True)
    root = environment.get("project_root")
    base = str(_need(submit, "output_base_dir", "batch_submit", where))
    models = _models(submit, root, where)
    config = {
        **_frame(_slug(str(task.get("task_name") or submit.get("name_prefix") or "run")), base),
        "input": {"path": str(_need(split, "input_file", "data_split", where))},
        "chunks": {"count": _whole(_need(split, "num_chunks", "data_split", where), "data_split.num_chunks", where)},
        "models": models,
        "generate": {
            "concurrency": _whole(submit.get("concurrency", 30), "batch_submit.concurrency", where),
            "batch_size": _whole(submit.get("batch_size", 30), "batch_submit.batch_size", where),
        },
    }
    notes = [*_gone(task), *_model_notes(models), *_leftovers(split, {"input_file", "num_chunks"}, "data_split")]
    notes += _leftovers(
        submit, {"output_base_dir", "name_prefix", "concurrency", "batch_size", "siflow", "models"}, "batch_submit"
    )
    notes += _leftovers(environment, {"env_file"}, "environment")
    profile = _profile(submit, environment, root, where, notes)
    return Migration(config, profile, notes=notes)


def _frame(run: str, base: str) -> dict[str, Any]:
    """What is the same in every migrated config: the old code generated and merged, and did nothing else."""
    off = dict.fromkeys(("clean", "execute", "score", "filter"))
    return {"run": run, "output_dir": base, "answers_dir": f"{base.rstrip('/')}/answers", **off}


def _models(submit: Mapping[str, Any], root: str | None, where: Path) -> list[dict[str, str]]:
    """The models, alias to alias; without an alias, the name of the model file."""
    given = submit.get("models")
    if not isinstance(given, list) or not given:
        raise ConfigError(
            f"task file {where}: batch_submit.models must be a list of at least one model, found {given!r}"
        )
    models: list[dict[str, str]] = []
    for number, model in enumerate(given):
        if not isinstance(model, dict) or not model.get("config_path"):
            raise ConfigError(f"task file {where}: batch_submit.models[{number}] needs config_path, found {model!r}")
        path = Path(str(model["config_path"]))
        alias = _slug(str(model.get("alias") or path.stem))
        if any(known["alias"] == alias for known in models):
            raise ConfigError(
                f"task file {where}: batch_submit.models[{number}]: alias {alias!r} is there twice; "
                "each model needs its own"
            )
        models.append({"alias": alias, "config": str(Path(root) / path if root and not path.is_absolute() else path)})
    return models


def _model_notes(models: list[dict[str, str]]) -> list[str]:
    """What is to be done about model files."""
    notes = []
    for model in models:
        path = Path(model["config"])
        if not path.is_file():
            notes.append(f"model file {path} of {model['alias']} is not here: it must be where the run is started")
            continue
        key = (load_yaml(path, "model file").get("client_config") or {}).get("api_key")
        if key and str(key).lower() not in ("empty", "none", "dummy"):
            notes.append(
                f"model file {path} has a key in it: write api_key_env: SOME_VARIABLE instead of api_key, "
                "and set that variable"
            )
    return notes


def _profile(
    submit: Mapping[str, Any], environment: Mapping[str, Any], root: str | None, where: Path, notes: list[str]
) -> dict[str, Any]:
    """The entries of the profile: ours for the workflow, the old ones for the platform."""
    siflow = submit.get("siflow") or {}
    if not isinstance(siflow, dict):
        raise ConfigError(f"task file {where}: batch_submit.siflow must be a mapping, found {siflow!r}")
    shipped = load_yaml(workflow_root() / "profiles" / "siflow" / "config.yaml", "profile")
    # With a table of instance sizes, threads would decide instead of the old count_per_pod.
    profile = {name: value for name, value in shipped.items() if name != "siflow-instance-size"}
    template = _old_template(siflow, root, notes)
    told = {**OLD_DEFAULTS, **template, **siflow}
    if environment.get("env_file"):
        told["env_file"] = environment["env_file"]
    profile["siflow-name-prefix"] = _name_prefix(str(submit.get("name_prefix") or "distill"), notes)
    profile.update({entry: told[name] for name, entry in PLATFORM.items() if told.get(name) is not None})
    profile.update(_platform_lists(told, where))
    if not told.get("guarantee"):
        profile.pop("siflow-guarantee", None)
    known = {*PLATFORM, "volumes", "instance", "instances", "fault_tolerance", "task_template", "template_path"}
    notes += _leftovers(siflow, known, "batch_submit.siflow")
    missing = [name for name in ("image", "volumes") if not told.get(name)]
    if missing:
        notes.append(
            f"the task file says nothing of {' and '.join(missing)}: the profile has the example's; put yours there"
        )
    return profile


def _platform_lists(told: Mapping[str, Any], where: Path) -> dict[str, Any]:
    """Volumes, instances and fault tolerance in the form of the profile."""
    entries: dict[str, Any] = {}
    if volumes := told.get("volumes"):
        entries["siflow-volumes"] = [_volume(volume, where) for volume in volumes]
    names = told.get("instances") or told.get("instance")
    if names:
        items = names if isinstance(names, list) else [names]
        entries["siflow-instance"] = [str(item["name"] if isinstance(item, dict) else item) for item in items]
        counts = [item.get("count_per_pod") or item.get("countPerPod") for item in items if isinstance(item, dict)]
        if counts and counts[0] and "count_per_pod" not in told:
            entries["siflow-count-per-pod"] = counts[0]
    tolerance = told.get("fault_tolerance")
    if isinstance(tolerance, dict):
        count = tolerance.get("max_retry_count", tolerance.get("maxRetryCount", 0))
        entries["siflow-fault-tolerance"] = count if tolerance.get("enabled", True) else 0
    elif tolerance is not None:
        entries["siflow-fault-tolerance"] = int(tolerance)
    return entries


def _volume(volume: Any, where: Path) -> str:
    """A volume as ID_OR_NAME:/MOUNT."""
    if isinstance(volume, str):
        return volume
    if isinstance(volume, dict):
        name = next(
            (
                volume[key]
                for key in ("volumeId", "volume_id", "id", "volumeName", "volume_name", "name")
                if key in volume
            ),
            None,
        )
        mount = next((volume[key] for key in ("mountDir", "mount_dir", "mount") if key in volume), None)
        if name is not None and mount is not None:
            return f"{name}:{mount}"
    raise ConfigError(f"task file {where}: a volume needs an id or a name, and where it is mounted; found {volume!r}")


def _old_template(siflow: Mapping[str, Any], root: str | None, notes: list[str]) -> dict[str, Any]:
    """What the old task template says, if it can be found: image, volumes, instances, type."""
    named = siflow.get("task_template") or siflow.get("template_path")
    path = Path(root or ".") / str(named or "configs/siflow/task_template.yaml")
    if not path.is_file():
        if named:
            notes.append(
                f"task template {path} is not here: image, instance and volumes are the example's; put yours there"
            )
        return {}
    # The template's own places in braces would not be YAML.
    text = re.sub(r"(?m)^\{[a-z_]+\}\s*$", "  x", path.read_text(encoding="utf-8"))
    try:
        body = yaml.safe_load(re.sub(r"\{[a-z_]+\}", "x", text)) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"task template {path}: not valid YAML: {' '.join(str(error).split())}") from error
    names = {
        "image": "image",
        "imageVersion": "image_version",
        "imageUrl": "image_url",
        "imageType": "image_type",
        "type": "type",
        "workers": "workers",
    }
    told = {ours: body[theirs] for theirs, ours in names.items() if theirs in body}
    told.update({name: body[name] for name in ("volumes",) if body.get(name)})
    if body.get("instances"):
        told["instances"] = [item["name"] for item in body["instances"]]
    tolerance = (body.get("enhancements") or {}).get("faultTolerance")
    return {**told, **({"fault_tolerance": tolerance} if tolerance else {})}


def _name_prefix(given: str, notes: list[str]) -> str:
    """A name prefix as the executor wants it."""
    prefix = re.sub(r"[^a-z0-9]+", "-", given.lower()).strip("-")[:20].strip("-")
    prefix = prefix if prefix[:1].isalpha() else f"t{prefix}"[:20]
    if prefix != given:
        notes.append(f"name_prefix {given!r} is written {prefix!r}: task names have small letters, digits and dashes")
    return prefix


# -- merge_distillation_results ----------------------------------------------------------------------------------------


def _migrate_merge(task: Mapping[str, Any], where: Path) -> Migration:
    """A task that merged the results of others."""
    merge = _section(task, "merge", where)
    base = str(_need(merge, "output_base_dir", "merge", where)).rstrip("/")
    names = merge.get("models")
    if (
        not isinstance(names, list)
        or not all(isinstance(item, dict) and item.get("name") for item in names)
        or not names
    ):
        raise ConfigError(f"task file {where}: merge.models must be a list of {{name: FOLDER}}, found {names!r}")
    folders = [str(item["name"]) for item in names]
    config = {
        **_frame(_slug(str(task.get("task_name") or "run")), base),
        "input": {"path": f"{base}/input.jsonl"},
        "models": [{"alias": _slug(name), "config": f"models/{name}.yaml"} for name in folders],
    }
    commands = [
        f"potstill merge {shlex.quote(f'{base}/{name}')} --output {shlex.quote(f'{base}/{name}.jsonl')}"
        for name in folders
    ]
    notes = [
        "merging is part of the workflow now; migrate the task that made the results, and this one is not needed",
        "a merge task does not name input and model files: set input.path and models.config before using config.yaml",
        *_gone(task),
        *_leftovers(merge, {"output_base_dir", "models", "merge_errors"}, "merge"),
    ]
    return Migration(config, commands=commands, notes=notes)


# -- small helps -------------------------------------------------------------------------------------------------------


def _section(task: Mapping[str, Any], name: str, where: Path, optional: bool = False) -> dict[str, Any]:
    """A section of the task file."""
    section = task.get(name, {} if optional else None)
    if section is None and optional:
        return {}
    if not isinstance(section, dict):
        raise ConfigError(f"task file {where}: section {name} must be a mapping, found {section!r}")
    return section


def _need(section: Mapping[str, Any], key: str, name: str, where: Path) -> Any:
    """A value that cannot be guessed."""
    if section.get(key) in (None, ""):
        raise ConfigError(f"task file {where}: {name}.{key} is missing")
    return section[key]


def _whole(value: Any, name: str, where: Path) -> int:
    """A whole number of at least 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"task file {where}: {name} must be a whole number of at least 1, found {value!r}")
    return value


def _slug(text: str) -> str:
    """A name that may be a folder."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", text).lstrip(".-") or "run"


def _gone(task: Mapping[str, Any]) -> list[str]:
    """What has no place any more, and what we do not know."""
    known = {"data_split", "batch_submit", "environment", "merge", *SILENT}
    return [_not_carried(name, name) for name in task if name not in known]


def _leftovers(section: Mapping[str, Any], known: set[str], name: str) -> list[str]:
    """Keys of a section that are not carried over."""
    return [_not_carried(f"{name}.{key}", key) for key in section if key not in known]


def _not_carried(path: str, key: str) -> str:
    """One line on a key that is not carried over."""
    return f"{path} is not carried over: {GONE.get(path) or GONE.get(key) or 'potstill has nothing of that name'}"


# -- writing -----------------------------------------------------------------------------------------------------------


def write_migration(migration: Migration, folder: Path, task_file: Path) -> list[Path]:
    """Write config, profile and commands into a folder that has none yet.

    Returns:
        The files written.

    Raises:
        ConfigError: If one of them is there already.
    """
    texts = {folder / "config.yaml": _as_yaml(migration.config, f"Made from {task_file}. All keys: config/README.md.")}
    if migration.profile:
        use = f"snakemake --profile {folder / 'profiles' / 'siflow'} --configfile {folder / 'config.yaml'}"
        head = f"Made from {task_file}. Use: {use}"
        texts[folder / "profiles" / "siflow" / "config.yaml"] = _as_yaml(migration.profile, head)
    if migration.commands:
        texts[folder / "merge.sh"] = "\n".join(
            ["#!/bin/sh", f"# What {task_file} did.", "set -e", *migration.commands, ""]
        )
    for path in texts:
        if path.exists():
            raise ConfigError(f"{path} is there already; name another --output-dir, or remove it")
    for path, text in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return list(texts)


def _as_yaml(value: Mapping[str, Any], head: str) -> str:
    """A mapping as YAML in its own order."""
    return f"# {head}\n" + yaml.safe_dump(dict(value), sort_keys=False, allow_unicode=True, width=120)
