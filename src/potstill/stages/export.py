"""The export stage: merged rows in, files for trainers out. Only the formats that are asked for cost anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from potstill.exports.exporter import ExportCounts


def export_dataset(
    kept: Sequence[Path],
    rejected: Sequence[Path],
    output_dir: Path,
    *,
    settings: Mapping[str, Any],
    manifest: Path | None = None,
) -> ExportCounts:
    """Export the rows of one model, or of several whose answers make preference pairs together.

    Args:
        kept: The merged files (`merged.jsonl`), one per model.
        rejected: The files of rejected rows; without them `dpo` has no pairs and `kto` no negatives.
        output_dir: The export folder; `potstill.exports.layout.get_export_files` lists what it will hold.
        settings: The `export` section of the config.
        manifest: The manifest that the dataset card quotes, where there is one.

    Returns:
        What was read, exported and left out, by reason, format and split; `summary.json` holds the same.

    Raises:
        ConfigError: If the settings contradict one another or name files that are not there.
        InputError: If a row cannot be used, or a group or prompt would be in two splits.
    """
    from potstill.exports.exporter import Exporter

    return Exporter(settings, output_dir).run(kept, rejected, manifest)
