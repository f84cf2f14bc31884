"""A run's config: read, checked, completed. What the schema can't say is said here."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from potstill.answers.place import is_remote
from potstill.config.locate import find_file
from potstill.config.model import load_model
from potstill.config.schema import complete, format_key, load_yaml
from potstill.errors import ConfigError, InputError
from potstill.readers import expand_inputs

Config = dict[str, Any]

#: The stages that work on one chunk, in order, and the folder of each.
STAGE_FOLDERS = {
    "generate": "generated",
    "clean": "cleaned",
    "execute": "executed",
    "judge": "judged",
    "score": "scored",
}

#: What a pasted key looks like: the known prefixes of providers, and a bearer header.
_KEY = re.compile(r"^(sk-|hf_|gsk_|xai-|AIza|ghp_|AKIA|LTAI|Bearer )[A-Za-z0-9_\-.]{8,}")


def load_config(path: Path) -> Config:
    """Return the completed config of a file.

    Raises:
        ConfigError: If anything in it is wrong.
    """
    return complete_config(load_yaml(path, "config"), f"config {path}")


def complete_config(config: Mapping[str, Any], where: str) -> Config:
    """Validate a config, fill in its defaults and find its files.

    Args:
        config: What the user wrote, of a file or of a module's `config:`.
        where: The word for it in messages.

    Returns:
        The config with every key present. `clean` is on by default exactly when `execute` is; `score` is off
        without `execute`. Paths are as they can be opened from here.

    Raises:
        ConfigError: At the first thing that is wrong: key, what was found, what is allowed.
    """
    _refuse_secrets(config, where)
    completed = complete(config, "config", where)
    if "clean" not in completed:
        default: Config | None = {} if completed["execute"] is not None else None
        completed = complete({**config, "clean": default}, "config", where)
    if completed["execute"] is None:
        completed["score"] = None
    _complete_chunks(completed, where)
    _check_models(completed, where)
    _check_cascade(completed, where)
    _check_gates(completed, where)
    if completed["generate"]["target_kept"] is not None and completed["filter"] is None:
        raise ConfigError(f"{where}: generate.target_kept: without a filter nothing is known as kept; set `filter`")
    _complete_rounds(completed, where)
    _check_execute(completed, where)
    _find_files(completed, where)
    _check_stages(completed, where)
    return completed


def _refuse_secrets(config: Mapping[str, Any], where: str) -> None:
    for path, value in _walk(config, ()):
        if isinstance(value, str) and _KEY.match(value):
            raise ConfigError(
                f"{where}: {format_key(path)}: this looks like a key; a config holds none. Put it into a variable or a "
                "file and name that in the model file (client_config.api_key_env or api_key_file)"
            )


def _walk(value: Any, path: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _walk(item, (*path, key))
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _walk(item, (*path, number))
    else:
        yield path, value


def _complete_chunks(config: Config, where: str) -> None:
    chunks = config["chunks"]
    if "count" in chunks and "rows" in chunks:
        raise ConfigError(f"{where}: chunks: found both count and rows; give one of them")
    if "rows" not in chunks:
        chunks.setdefault("count", 4)


def _check_models(config: Config, where: str) -> None:
    seen: dict[str, str] = {}
    for number, model in enumerate(config["models"]):
        alias = model["alias"]
        # Folders of two names that differ in case only are one on some filesystems.
        if alias.lower() in seen:
            raise ConfigError(
                f"{where}: models[{number}].alias: {alias} is taken ({seen[alias.lower()]}); give each its own"
            )
        seen[alias.lower()] = alias
    if any(model["role"] == "student" for model in config["models"]):
        if all(model["role"] == "student" for model in config["models"]):
            raise ConfigError(f"{where}: models: a student is compared with a teacher; give one model `role: teacher`")
        if config["export"] is None or config["export"]["test_ratio"] == 0:
            raise ConfigError(f"{where}: models: a student answers held-out rows; set export.test_ratio above 0")


def _check_cascade(config: Config, where: str) -> None:
    cascade = config["cascade"]
    if not cascade:
        return
    teachers = [model["alias"] for model in config["models"] if model["role"] != "student"]
    if unknown := [alias for alias in cascade if alias not in teachers]:
        raise ConfigError(
            f"{where}: cascade: {unknown[0]}: no teacher has this alias; allowed are {', '.join(teachers)}"
        )
    if len(cascade) == 1:
        raise ConfigError(f"{where}: cascade: found one model, give two or more, the cheapest first")
    if config["filter"] is None:
        raise ConfigError(f"{where}: cascade: without a filter every answer would solve its row; set `filter`")


def _check_gates(config: Config, where: str) -> None:
    allowed = [model["alias"] for model in config["models"]] + ["cascade"] * bool(config["cascade"])
    if unknown := [name for name in config["gates"]["of"] or [] if name not in allowed]:
        raise ConfigError(f"{where}: gates.of: {unknown[0]}: no such model; allowed are {', '.join(allowed)}")


def _complete_rounds(config: Config, where: str) -> None:
    """Check `rounds`, and make `generate.samples` what a row gets at most, with which rows are counted."""
    rounds, generate = config["rounds"], config["generate"]
    if rounds is None:
        return
    most = rounds["max"] * rounds["samples"]
    if generate["samples"] not in (1, most):
        raise ConfigError(
            f"{where}: generate.samples: found {generate['samples']} beside `rounds`; leave it out: a round asks "
            f"rounds.samples ({rounds['samples']}) answers per row, {most} in all rounds"
        )
    needed = {"gold_match": "execute", "exec_pass": "execute", "kept": "filter"}[rounds["stop_when"]]
    if config[needed] is None:
        raise ConfigError(
            f"{where}: rounds.stop_when: {rounds['stop_when']} needs `{needed}`; set it, or stop otherwise"
        )
    if rounds["stop_when"] == "gold_match" and config["execute"]["gold_field"] is None:
        raise ConfigError(
            f"{where}: rounds.stop_when: gold_match needs `execute.gold_field`; set it, or stop otherwise"
        )
    generate["samples"] = most


def _check_execute(config: Config, where: str) -> None:
    execute = config["execute"]
    if execute is None:
        return
    if (execute["database"] is None) == (execute["database_dir"] is None):
        found = "neither" if execute["database"] is None else "both"
        raise ConfigError(f"{where}: execute: give one of database (a file) and database_dir (a folder); found {found}")
    if execute["gold_field"] is None and execute["on_bad_gold"] != "keep":
        raise ConfigError(
            f"{where}: execute.on_bad_gold: {execute['on_bad_gold']}: no row has gold (execute.gold_field: null); name "
            "the field with the gold query, or leave it out"
        )
    if config["clean"] is None or config["clean"]["kind"] != "sql":
        raise ConfigError(f"{where}: execute needs the field sql: set `clean: {{kind: sql}}`, or `execute: null`")


def _check_stages(config: Config, where: str) -> None:
    """Check what only the stages themselves know: a filter's needs, a cleaner's dialect."""
    from potstill.exports.check import check_export
    from potstill.judge.rubric import Rubric
    from potstill.stages.clean import make_cleaner
    from potstill.stages.filter import check_stages

    try:
        if config["export"] is not None:
            check_export(config["export"])
        if config["judge"] is not None:
            Rubric(config["judge"])
        if config["clean"] is not None:
            make_cleaner(config["clean"])
        if config["filter"] is not None:
            check_stages(config["filter"], {stage: config[stage] for stage in ("clean", "execute", "judge", "score")})
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def _find_files(config: Config, where: str) -> None:
    """Replace each path by the one that can be opened, and complain about what is missing."""
    prompt, execute = config["prompt"], config["execute"]
    for number, model in enumerate(config["models"]):
        model["config"] = _find(model["config"], f"{where}: models[{number}].config", Path.is_file)
        load_model(Path(model["config"]))
    _check_writable(Path(config["output_dir"]), f"{where}: output_dir")
    _check_answers_dir(config, where)
    if prompt["template"] is not None:
        prompt["template"] = _find(prompt["template"], f"{where}: prompt.template", Path.is_file)
    if config["judge"] is not None:
        for key in ("model", "template"):
            if config["judge"][key] is not None:
                config["judge"][key] = _find(config["judge"][key], f"{where}: judge.{key}", Path.is_file)
    if execute is not None:
        if execute["engine"] == "postgresql":
            # A connection string, or a service: nothing to be found here.
            pass
        elif execute["database"] is not None:
            execute["database"] = _find(execute["database"], f"{where}: execute.database", Path.is_file)
        else:
            execute["database_dir"] = _find(execute["database_dir"], f"{where}: execute.database_dir", Path.is_dir)
    paths = config["input"]["path"]
    config["input"]["path"] = [str(find_file(path)) for path in ([paths] if isinstance(paths, str) else paths)]
    try:
        expand_inputs(config["input"]["path"])
    except InputError as error:
        raise ConfigError(f"{where}: {error}") from error


def _check_answers_dir(config: Config, where: str) -> None:
    """Check where answers go, and refuse what jobs without a common folder could not keep."""
    try:
        remote = is_remote(config["answers_dir"])
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    if not remote:
        _check_writable(Path(config["answers_dir"]), f"{where}: answers_dir")
    elif config["generate"]["mode"] == "batch":
        raise ConfigError(
            f"{where}: generate.mode: batch keeps the state of its batches in answers_dir, which must be a folder that all "
            f"jobs share; found {config['answers_dir']}"
        )
    elif config["generate"]["budget"] is not None:
        raise ConfigError(
            f"{where}: generate.budget: the jobs of a run tell each other what they spend in answers_dir, which must be "
            f"a folder that all jobs share; found {config['answers_dir']}. Use generate.max_rows or target_kept there"
        )


def _check_writable(folder: Path, key: str) -> None:
    """Check that a folder is one that can be written, or can be made."""
    nearest = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not nearest.is_dir():
        raise ConfigError(f"{key}: {folder}: {nearest} is not a folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ConfigError(
            f"{key}: {folder}: {nearest} cannot be written; name another folder, or change its permissions"
        )


def _find(path: str, key: str, is_there: Any) -> str:
    found = find_file(path)
    if not is_there(found):
        kind = "folder" if is_there is Path.is_dir else "file"
        raise ConfigError(f"{key}: {path}: no such {kind}; paths are relative to the working directory ({Path.cwd()})")
    return str(found)
