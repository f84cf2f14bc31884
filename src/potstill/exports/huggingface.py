"""A dataset folder as the Hugging Face hub has it: Parquet files and a README card; and its upload."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potstill.errors import ConfigError, InputError, TryAgainError
from potstill.rows import loads, publish

#: Upper bounds of the hub's size classes.
_SIZES = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
    (100_000_000, "10M<n<100M"),
)
_PUBLIC_HUB = "https://huggingface.co"
#: The stages whose counts the card gives.
_COUNTED = ("prepared", "merged", "kept", "rejected", "failed", "not_asked")
_HUB_NAMES = {"train": "train", "valid": "validation", "test": "test"}


@dataclass(frozen=True)
class Card:
    """What the card of a dataset is made from.

    Attributes:
        settings: The `export` section of the config.
        splits: Rows per split.
        columns: The columns of the tables.
        manifest: The manifest of the model, where there is one.
        left_out: Reason -> rows that were kept and are not in the dataset.
        split_by: What the groups of the split are.
    """

    settings: Mapping[str, Any]
    splits: Mapping[str, int]
    columns: list[str]
    manifest: Path | None
    left_out: Mapping[str, int]
    split_by: str


def find_license(settings: Mapping[str, Any]) -> str:
    """Return the licence that the dataset is published under.

    Raises:
        ConfigError: If none is named: a teacher's terms decide it, so there is no default.
    """
    license_name = (settings.get("huggingface") or {}).get("license")
    if not isinstance(license_name, str) or not license_name.strip():
        raise ConfigError(
            "export.huggingface.license is missing: a dataset folder needs a licence, by its identifier on the hub "
            "(apache-2.0, cc-by-4.0, other …); the terms of the teacher and of the inputs decide which"
        )
    return license_name.strip()


def write_card(folder: Path, card: Card) -> None:
    """Write the README of a dataset folder."""
    import yaml

    header = yaml.safe_dump(_make_header(card), sort_keys=False, allow_unicode=True, width=1000)
    with publish(folder / "README.md") as out:
        out.write_line(f"---\n{header}---\n\n{_make_text(card)}".encode())


def _make_header(card: Card) -> dict[str, Any]:
    own = card.settings.get("huggingface") or {}
    total = sum(card.splits.values())
    header = {
        "license": find_license(card.settings),
        "pretty_name": own.get("pretty_name"),
        "language": own.get("language"),
        "task_categories": own.get("task_categories"),
        "tags": [*(own.get("tags") or []), "synthetic", "distillation"],
        "size_categories": [next((name for limit, name in _SIZES if total < limit), "n>100M")],
        # A split without rows is left out: a loader takes an empty file for a broken one.
        "configs": [{"config_name": "default", "data_files": _list_files(card) or _list_files(card, empty=True)}],
        "potstill": _identify(card.manifest),
    }
    return {name: value for name, value in header.items() if value}


def _list_files(card: Card, *, empty: bool = False) -> list[dict[str, str]]:
    return [
        {"split": _HUB_NAMES[name], "path": f"data/{_HUB_NAMES[name]}.parquet"}
        for name, count in card.splits.items()
        if count or empty
    ]


def _make_text(card: Card) -> str:
    title = (card.settings.get("huggingface") or {}).get("pretty_name") or "Distilled dataset"
    parts = [
        f"# {title}\n\nAnswers of a teacher model, each one checked before it was kept. Made with potstill.",
        _table("Splits", ("split", "rows"), [(_HUB_NAMES[name], count) for name, count in card.splits.items()]),
        f"Split by `{card.split_by}`: no group and no prompt is in two splits.",
        "## Columns\n\n" + ", ".join(f"`{name}`" for name in card.columns),
    ]
    left_out = [(name, count) for name, count in sorted(card.left_out.items()) if count]
    if left_out:
        parts.append(_table("Left out of the kept rows", ("reason", "rows"), left_out))
    facts = _read_facts(card.manifest)
    if facts:
        parts.append(_table("How it was made", ("what", "value"), facts))
    return "\n\n".join(parts) + "\n"


def _table(title: str, head: tuple[str, str], rows: list[tuple[str, Any]]) -> str:
    lines = [f"| {head[0]} | {head[1]} |", "| --- | --- |", *(f"| {name} | {_cell(value)} |" for name, value in rows)]
    return f"## {title}\n\n" + "\n".join(lines)


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


def _read_manifest(path: Path | None) -> dict[str, Any]:
    if path is None or not path.is_file():
        return {}
    try:
        value = loads(path.read_bytes())
    except ValueError as error:
        raise InputError(f"{path}: not JSON: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: a JSON object was expected, found {type(value).__name__}")
    return value


def _identify(manifest: Path | None) -> dict[str, Any]:
    """Return what names the run that a dataset comes from, for programs that read the header."""
    value = _read_manifest(manifest)
    names = ("run_id", "model", "config_sha256")
    return {name: value[name] for name in names if value.get(name) is not None}


def _read_facts(manifest: Path | None) -> list[tuple[str, Any]]:
    """Return what a reader of the dataset needs of a manifest: identity, counts, comparison, versions, hashes."""
    value = _read_manifest(manifest)
    if not value:
        return []
    stages = {name: stage["count"] for name, stage in value.get("stages", {}).items() if name in _COUNTED}
    policy = {name: item for name, item in (value.get("comparison_policy") or {}).items() if _is_plain(item)}
    # The name of a file, not where it lies: that is nobody's business.
    sources = {
        f"{kind}: {Path(name).name}": digest
        for kind, files in value.get("sources", {}).items()
        for name, digest in files.items()
    }
    code = {name: value.get("code", {}).get(name) for name in ("potstill", "package_sha256")}
    return [
        *_facts("", {name: value.get(name) for name in ("model", "run_id", "config_sha256", "python")}),
        *_facts("rows ", stages),
        *_facts("comparison: ", policy),
        *_facts("code: ", code),
        *_facts("package ", value.get("packages", {})),
        *_facts("sha256 of ", sources),
    ]


def _facts(prefix: str, values: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [(f"{prefix}{name}", value) for name, value in values.items() if value is not None]


def _is_plain(value: Any) -> bool:
    return isinstance(value, bool | int | float) or (isinstance(value, str) and "/" not in value)


def push_folder(
    folder: Path,
    repo_id: str,
    *,
    token: str,
    endpoint: str | None = None,
    private: bool = True,
    revision: str | None = None,
    message: str = "Upload dataset",
) -> str:
    """Upload a dataset folder to the hub, and return the address of the commit.

    What the hub has already is not sent again, so that an upload that broke off is given again.

    Args:
        folder: The folder that an export wrote (`export/huggingface`).
        repo_id: The dataset's name, `owner/name`; it is made if it is missing.
        token: The access token.
        endpoint: Another hub than the public one.
        private: Whether a new dataset is private.
        revision: The branch to write to; the main one by default.
        message: The message of the commit.

    Raises:
        ConfigError: If the folder is no dataset folder, the package is missing, or the hub refuses token or name.
        TryAgainError: If the hub cannot be reached or is out of order.
    """
    _check_folder(folder)
    hub = _import_hub(endpoint or os.environ.get("HF_ENDPOINT") or _PUBLIC_HUB)
    api = hub.HfApi(endpoint=endpoint, token=token)
    try:
        api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_id,
            repo_type="dataset",
            folder_path=folder,
            revision=revision,
            commit_message=message,
            allow_patterns=["README.md", "data/*.parquet"],
        )
    except hub.errors.HfHubHTTPError as error:
        raise _name_refusal(error, repo_id) from error
    except ValueError as error:
        raise ConfigError(f"push: {error}") from error
    except hub.errors.HfHubHTTPError.__bases__ as error:
        # Its bases are OSError and the error of the HTTP library, which is another one in each age of the package.
        raise TryAgainError(f"push: the hub cannot be reached: {type(error).__name__}: {error}") from error
    return str(commit.commit_url)


def _check_folder(folder: Path) -> None:
    if not (folder / "README.md").is_file() or not any(folder.glob("data/*.parquet")):
        raise ConfigError(
            f"{folder}: no dataset folder: README.md and data/*.parquet were expected; "
            "export it first with `export.formats: [huggingface]`"
        )


def _import_hub(endpoint: str) -> Any:
    # It asks the network for nothing but what we tell it to: no usage reports, no notice of updates.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    if endpoint.rstrip("/") != _PUBLIC_HUB:
        # Only the public hub has a Xet store for sure; large files by Git LFS work with each.
        os.environ.setdefault("HF_HUB_DISABLE_XET", "1")
    os.environ.setdefault("HF_HUB_DISABLE_UPDATE_CHECK", "1")
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ImportError as error:
        raise ConfigError("push: the package huggingface_hub is missing: pip install 'potstill[hub]'") from error
    return huggingface_hub


def _name_refusal(error: Any, repo_id: str) -> ConfigError | TryAgainError:
    status = error.response.status_code if error.response is not None else 0
    said = f"{repo_id}: the hub answered {status}: {error.server_message or type(error).__name__}"
    if status >= 500 or status in {0, 408, 429}:
        return TryAgainError(f"push: {said}; what was uploaded is not sent again")
    hint = {401: "the token is not valid", 403: "the token may not write there", 404: "no such owner or branch"}
    return ConfigError(f"push: {said}; {hint.get(status, 'see the message of the hub')}")
