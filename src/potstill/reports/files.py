"""Where the files of a run lie, as the reports read them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from potstill.errors import InputError
from potstill.records import Row
from potstill.rows import loads, read_rows

#: The folders of a run that are no model's.
OWN_FOLDERS = frozenset({"prepared", "logs", "benchmarks", "cascade"})


class ModelFiles(NamedTuple):
    """The merged files of one model: each asked sample stands in exactly one of the first four."""

    kept: Path
    rejected: Path
    failed: Path
    not_asked: Path
    timings: Path

    @classmethod
    def of(cls, folder: Path) -> ModelFiles:
        """Return the files of a model's folder."""
        return cls(*(folder / f"{name}.jsonl" for name in ("merged", "rejected", "failed", "not_asked", "timings")))

    def answered(self) -> Iterator[tuple[bool, Row]]:
        """Yield every answered row with whether it was kept."""
        for row in read_rows(self.kept):
            yield True, row
        for row in read_rows(self.rejected):
            yield False, row


def read_json(path: Path) -> dict[str, Any]:
    """Return the object of a JSON file.

    Raises:
        InputError: If the file is missing or holds something else.
    """
    try:
        value = loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error})") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: a JSON object was expected, found {type(value).__name__}")
    return value


def stage_ending(config: Mapping[str, Any]) -> str:
    """Return the ending of the files of the stages that work on one chunk, by a run's own config."""
    return ".jsonl.zst" if config.get("chunks", {}).get("compress") == "zst" else ".jsonl"


def keeps_stages(config: Mapping[str, Any]) -> bool:
    """Say whether a run keeps the files of stages that nothing needs any more, by its own config."""
    return bool(config.get("chunks", {}).get("keep_stages", True))


def round_folders(folder: Path, rounds: int) -> list[Path]:
    """Return the folders that hold the chunks of a model's rounds, of which the first is the model's own folder.

    It fits the folders of logs and benchmarks likewise.
    """
    return [folder, *(folder / "rounds" / str(number) for number in range(2, rounds + 1))]


def find_models(run_dir: Path) -> list[Path]:
    """Return the model folders of a run that hold a merged file, sorted by name.

    Raises:
        InputError: If the folder is not there.
    """
    if not run_dir.is_dir():
        raise InputError(f"{run_dir}: no such folder; give the folder of a run: output_dir/run")
    return sorted(
        folder for folder in run_dir.iterdir() if folder.name not in OWN_FOLDERS and (folder / "merged.jsonl").is_file()
    )
