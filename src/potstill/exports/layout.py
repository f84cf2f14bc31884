"""Where the files of an export are: what a rule declares as its outputs. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from potstill.exports.ratios import Ratios

EXPORT_SUMMARY = "summary.json"
#: Where each row went, exported or not: a line per row of the merged and the rejected files.
EXPORT_SPLITS = "splits.jsonl"
FORMATS = ("messages", "sharegpt", "alpaca", "mlx", "parquet", "dpo", "kto", "huggingface")


def get_table_path(name: str, split: str) -> str:
    """Return the path of one format's file for one split, below the export folder."""
    if name == "huggingface":
        # The names of splits that the hub knows.
        return f"huggingface/data/{'validation' if split == 'valid' else split}.parquet"
    return f"{name}/{split}.{'parquet' if name == 'parquet' else 'jsonl'}"


def get_export_files(settings: Mapping[str, Any]) -> list[str]:
    """Return every file that an export with these settings writes, below the export folder, in a fixed order.

    Args:
        settings: The `export` section of a config.

    Raises:
        ConfigError: If the ratios contradict one another.
    """
    splits = get_split_names(settings)
    formats = list(dict.fromkeys(settings.get("formats") or ["messages"]))
    files = [get_table_path(name, split) for name in formats for split in splits]
    if "huggingface" in formats:
        files.append("huggingface/README.md")
    if settings.get("decontaminate") is not None:
        files += ["decontamination.json", "decontamination.jsonl"]
    return [*files, EXPORT_SPLITS, EXPORT_SUMMARY]


def get_split_names(settings: Mapping[str, Any]) -> list[str]:
    """Return the splits that an export with these settings writes: those with a ratio above 0."""
    return Ratios.from_settings(settings).names()


def get_export_inputs(settings: Mapping[str, Any]) -> list[str]:
    """Return the files of the user's that an export with these settings reads beside the rows, for a rule's inputs."""
    template = settings.get("answer_template")
    references = (settings.get("decontaminate") or {}).get("files") or []
    return [*([template] if template else []), *references]
