"""Why a row is not asked because of the answers that are there already: another model's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from potstill.records import Row
from potstill.rows import read_rows

Reason = Callable[[Row], str | None]


def solved_by(kept: Sequence[Path], run_dir: Path) -> Reason:
    """Return the function that says which earlier model of the cascade has solved a row: its answer was kept.

    Args:
        kept: The kept rows of the same chunk, the earliest model first: files below the models' folders.
        run_dir: The run's folder, which holds the models' folders.
    """
    solvers: dict[str, str] = {}
    for path in kept:
        alias = path.relative_to(run_dir).parts[0]
        for row in read_rows(path):
            solvers.setdefault(row["sample_id"], alias)
    return lambda row: f"solved_by:{solvers[row['sample_id']]}" if row["sample_id"] in solvers else None
