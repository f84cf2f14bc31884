"""manifest.json: what one model's results were made from and what they are, by hash; and its verification.

Said of each file of rows: the sha256 of its lines (unpacked, where it is packed), their number, the columns and the first
and last sample_id by text order. The jobs that wrote them have noted it; a file without such a note is read whole.
Paths inside a run are relative to the run's folder, so that a run may be moved and verified elsewhere.
"""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from potstill import __version__
from potstill.config.run import STAGE_FOLDERS
from potstill.contents import find_note, notes_file
from potstill.errors import InputError
from potstill.records import canonical_json, sha256_text
from potstill.reports.files import ModelFiles, keeps_stages, read_json, round_folders, stage_ending
from potstill.rows import publish_json, read_content

#: The folders of the stages that work on one chunk.
STAGES = tuple(STAGE_FOLDERS.values())
#: Folder of a stage -> the rule whose jobs write it.
_RULES = {
    "generated": "generate_answers",
    "cleaned": "clean_answers",
    "executed": "execute_answers",
    "judged": "judge_answers",
    "scored": "score_answers",
    "filtered": "filter_answers",
}
#: Folder of a stage -> its section of the config.
_SECTIONS = {folder: section for section, folder in STAGE_FOLDERS.items()}
#: What the manifest says of each file.
_SAID = ("sha256", "bytes", "rows", "min_sample_id", "max_sample_id")
#: Stages whose files go with `chunks.keep_stages: false`.
REMOVED = (*STAGES[1:], "filtered_kept", "filtered_rejected")
#: Where a sample may end.
ENDS = ("kept", "rejected", "failed", "not_asked")
#: Packages whose version can change what a run yields.
PACKAGES = (
    "snakemake",
    "openai",
    "sqlglot",
    "httptools",
    "orjson",
    "jinja2",
    "jsonschema",
    "pandas",
    "pyarrow",
    "duckdb",
)


def hash_file(path: Path) -> str:
    """Return the sha256 of a file.

    Raises:
        InputError: If it cannot be read.
    """
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error


def describe_stage(run_dir: Path, paths: Iterable[Path], *, by_notes: bool = False) -> dict[str, Any]:
    """Return one stage's entry of the manifest: the sums over its files and each file.

    Args:
        run_dir: The run's folder.
        paths: The stage's files.
        by_notes: Whether to believe the notes of the jobs that wrote them, which is cheap, also for files that are gone;
            else all files are read whole.
    """
    files: dict[str, dict[str, Any]] = {}
    columns: set[str] = set()
    for path in paths:
        entry = (find_stage_note(run_dir, path) if by_notes else None) or read_content(path)._asdict()
        columns.update(entry["columns"])
        files[_inside(run_dir, path)] = {name: entry[name] for name in _SAID}
    lows = [entry["min_sample_id"] for entry in files.values() if entry["min_sample_id"] is not None]
    highs = [entry["max_sample_id"] for entry in files.values() if entry["max_sample_id"] is not None]
    return {
        "count": sum(entry["rows"] for entry in files.values()),
        "columns": sorted(columns),
        "field_hash": sha256_text(canonical_json(sorted(columns))),
        "min_sample_id": min(lows, default=None),
        "max_sample_id": max(highs, default=None),
        "files": files,
    }


def find_stage_note(run_dir: Path, path: Path) -> dict[str, Any] | None:
    """Return what the job that wrote a file of rows in a run has noted of it, if that is still so."""
    name = path.name.partition(".")[0]
    *folders, stage = path.relative_to(run_dir).parts[:-1]
    if stage == "chunks":
        log = Path("prepare_rows", "prepare_rows.log")
    elif folders:
        log = Path(_RULES[stage], *folders, f"{name}.log")
    else:
        log = Path("merge_answers", f"{stage}.log")
    return find_note(notes_file(run_dir / "logs" / log), path)


def _inside(folder: Path, path: Path) -> str:
    return os.path.relpath(path, folder)


def write_manifest(
    output: Path,
    *,
    model: str,
    run_dir: Path,
    stages: Mapping[str, Sequence[Path]],
    reports: Sequence[Path] = (),
    sources: Mapping[str, Sequence[Path]],
    config: Mapping[str, Any],
    prices: Mapping[str, Any] | None = None,
    workflow_dir: Path | None = None,
) -> dict[str, Any]:
    """Write manifest.json of one model and return it.

    Args:
        output: The manifest.
        model: The model's alias.
        run_dir: The run's folder.
        stages: Stage -> its files, in the order of the flow (`prepared`, `generated`, … `merged`).
        reports: JSON reports to be named by hash.
        sources: Kind (`inputs`, `prompts`, `databases`, `model_files`) -> files that the run was made from.
        config: The whole merged config.
        prices: The price table that was used.
        workflow_dir: The folder of the Snakefile, with `workflow/` and `scripts/`; None outside of Snakemake.
    """
    manifest = {
        "manifest_version": 1,
        "model": model,
        "stages": {stage: describe_stage(run_dir, paths, by_notes=True) for stage, paths in stages.items()},
        "reports": {_inside(run_dir, path): hash_file(path) for path in reports},
        "sources": {kind: _hash_sources(run_dir, paths) for kind, paths in sources.items()},
        "config": config,
        "config_sha256": sha256_text(canonical_json(config)),
        "comparison_policy": _describe_policy(config.get("execute")),
        "prices": prices,
        "code": {
            "potstill": __version__,
            "package_sha256": hash_package(),
            "workflow": hash_workflow(workflow_dir) if workflow_dir is not None else {},
        },
        "python": platform.python_version(),
        "packages": installed_packages(),
    }
    manifest["run_id"] = identify_run(manifest)
    publish_json(output, manifest)
    return manifest


def _describe_policy(execute: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return how results were compared: every knob as it held, since a preset's name alone says it for one version only."""
    if execute is None:
        return None
    from potstill.sql.settings import read_settings

    settings = read_settings(execute)
    comparison = execute.get("comparison") or "strict"
    return {
        "engine": settings.engine,
        "preset": comparison if isinstance(comparison, str) else comparison.get("preset", "strict"),
        **settings.policy.as_dict(),
        "on_bad_gold": settings.on_bad_gold,
        "variants": settings.variants,
        "variants_seed": settings.variants_seed,
        "limits": asdict(settings.limits),
    }


def _hash_sources(run_dir: Path, paths: Iterable[Path]) -> dict[str, str]:
    """Return the hashes of source files, those inside the run by their place in it."""
    hashes = {}
    for path in paths:
        inside = path.resolve().is_relative_to(run_dir.resolve())
        hashes[_inside(run_dir, path) if inside else str(path)] = hash_file(path)
    return hashes


def identify_run(manifest: Mapping[str, Any]) -> str:
    """Return the identity of what was made from what: config, sources and the four ends, by hash; no times."""
    made = {end: manifest["stages"].get(end, {}).get("files") for end in ENDS}
    sources = {kind: sorted(files.values()) for kind, files in manifest["sources"].items()}
    return sha256_text(canonical_json([manifest["model"], manifest["config_sha256"], sources, made]))[:32]


def find_stage_files(
    run_dir: Path, model: str, chunks: Sequence[str], config: Mapping[str, Any] | None = None
) -> dict[str, list[Path]]:
    """Return the files of every stage of a model that left any, or notes on them, in the order of the flow.

    Args:
        run_dir: The run's folder.
        model: The model's alias.
        chunks: The names of the run's chunks.
        config: The run's config: a stage that is off has no files, whatever an earlier run has left. All stages without.
    """
    folder = run_dir / model
    config = config or {}
    folders = round_folders(folder, (config.get("rounds") or {}).get("max", 1))
    end = stage_ending(config)
    stages = {"prepared": [run_dir / "prepared" / "chunks" / f"{chunk}{end}" for chunk in chunks]}
    for stage in STAGES:
        if config.get(_SECTIONS[stage], {}) is not None:
            stages[stage] = [part / stage / f"{chunk}{end}" for part in folders for chunk in chunks]
    if config.get("filter", {}) is not None:
        for verdict in ("kept", "rejected"):
            files = [part / "filtered" / f"{chunk}.{verdict}{end}" for part in folders for chunk in chunks]
            stages[f"filtered_{verdict}"] = files
    merged = ModelFiles.of(folder)._asdict().items()
    stages |= {name: [path] for name, path in merged}
    return {stage: paths for stage, paths in stages.items() if any(_is_known(run_dir, path) for path in paths)}


def _is_known(run_dir: Path, path: Path) -> bool:
    return path.is_file() or find_stage_note(run_dir, path) is not None


def hash_package() -> str:
    """Return one hash over potstill's own Python files, names and bytes."""
    root = Path(__file__).parent.parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\n{hash_file(path)}\n".encode())
    return digest.hexdigest()


def hash_workflow(folder: Path) -> dict[str, str]:
    """Return the hashes of the Snakefile, the rules, the schemas and the scripts, by their paths in the folder."""
    patterns = ("Snakefile", "workflow/**/*.smk", "workflow/schemas/*.yaml", "scripts/*.py")
    paths = sorted(path for pattern in patterns for path in folder.glob(pattern))
    return {_inside(folder, path): hash_file(path) for path in paths}


def installed_packages() -> dict[str, str | None]:
    """Return the versions of the packages that matter; null for one that is not installed."""
    return {name: _version(name) for name in PACKAGES}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def verify_manifest(path: Path, run_dir: Path) -> list[str]:
    """Return every difference between a manifest and the files that it names; empty when all is as it was.

    Source files (inputs, databases) that are no longer at their place are named too.

    Args:
        path: manifest.json.
        run_dir: The run's folder, wherever it lies now.
    """
    manifest = read_json(path)
    found = []
    for stage, entry in manifest["stages"].items():
        gone = stage in REMOVED and not keeps_stages(manifest["config"])
        found += [f"{stage}: {problem}" for problem in _verify_stage(run_dir, entry, may_be_gone=gone)]
    for name, expected in manifest["reports"].items():
        found += _verify_hash(run_dir / name, expected)
    for files in manifest["sources"].values():
        for name, expected in files.items():
            inside = run_dir / name
            found += _verify_hash(inside if inside.is_file() else Path(name), expected)
    if manifest["config_sha256"] != sha256_text(canonical_json(manifest["config"])):
        found.append("config: its hash is another one: the manifest was edited")
    if manifest["run_id"] != identify_run(manifest):
        found.append("run_id: it does not follow from the hashes: the manifest was edited")
    return found + _verify_conservation(manifest)


def _verify_stage(run_dir: Path, entry: Mapping[str, Any], *, may_be_gone: bool) -> list[str]:
    present = [run_dir / name for name in entry["files"] if (run_dir / name).is_file()]
    all_there = len(present) == len(entry["files"])
    missing = [] if may_be_gone else [f"{name}: missing" for name in entry["files"] if run_dir / name not in present]
    try:
        now = describe_stage(run_dir, present)
    except InputError as error:
        return [*missing, str(error)]
    found = missing
    for name, content in now["files"].items():
        found += [
            f"{name}: {key} is {content[key]!r}, the manifest says {said!r}"
            for key, said in entry["files"][name].items()
            if content[key] != said
        ]
    if all_there:
        found += [
            f"{key} is {now[key]!r}, the manifest says {entry[key]!r}"
            for key in ("count", "columns", "field_hash", "min_sample_id", "max_sample_id")
            if now[key] != entry[key]
        ]
    return found


def _verify_hash(path: Path, expected: str) -> list[str]:
    try:
        actual = hash_file(path)
    except InputError as error:
        return [str(error)]
    return [] if actual == expected else [f"{path}: sha256 is {actual}, the manifest says {expected}"]


def _verify_conservation(manifest: Mapping[str, Any]) -> list[str]:
    counts = {stage: entry["count"] for stage, entry in manifest["stages"].items()}
    if not counts.keys() >= {"prepared", *ENDS}:
        return []
    samples = (manifest["config"].get("generate") or {}).get("samples", 1)
    asked, ended = counts["prepared"] * samples, sum(counts[end] for end in ENDS)
    return [] if asked == ended else [f"{asked} samples were asked for, {ended} stand in {', '.join(ENDS)}"]
