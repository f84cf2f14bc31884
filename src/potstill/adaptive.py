"""Why a row is not asked for the sake of answers that are there: another model's, an earlier round's, or enough."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from potstill.errors import InputError
from potstill.records import Row
from potstill.rows import count_lines, read_rows

#: A row that a sample of an earlier round has solved.
SOLVED = "solved"
#: A row that nothing can solve: it has no usable gold query to match.
BAD_GOLD = "bad_gold"

#: The config's `rounds.stop_when` -> the field that is true in an answer that solves its row.
VERDICT_FIELDS = {"gold_match": "gold_match", "exec_pass": "exec_pass", "kept": "keep"}

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


def solved_in_round(files: Sequence[Path], stop_when: str) -> Reason:
    """Return the function that says why a row gets no more samples after a round.

    Args:
        files: What became of the same chunk's rows in the round before: kept, rejected and not asked ones. The latter
            hand on what the rounds before that one have solved.
        stop_when: The config's `rounds.stop_when`.
    """
    field = VERDICT_FIELDS[stop_when]
    ends: dict[str, str] = {}
    for path in files:
        for row in read_rows(path):
            reason = _end(row, field)
            if reason == SOLVED:
                ends[row["sample_id"]] = reason
            elif reason is not None:
                ends.setdefault(row["sample_id"], reason)
    return lambda row: ends.get(row["sample_id"])


def _end(row: Row, field: str) -> str | None:
    if "not_asked_reason" in row:
        return row["not_asked_reason"] if row["not_asked_reason"] in (SOLVED, BAD_GOLD) else None
    if row.get(field) is True:
        return SOLVED
    return BAD_GOLD if field == "gold_match" and row.get(field) is None else None


def target_reached(marker: Path, target: int, answered: Path) -> bool:
    """Say whether a model has so many kept rows that a chunk need not be asked any more.

    A chunk that has kept rows already is asked again (the answer store has its answers), so that a job that Snakemake
    runs once more, for whatever reason, does not give them up.

    Args:
        marker: A file in the model's folder that is newer than all that decides about its kept rows: older files of
            kept rows do not count.
        target: The config's `generate.target_kept`.
        answered: The output of the chunk in question.
    """
    since = marker.stat().st_mtime_ns
    folders = (marker.parent, *(marker.parent / "rounds").glob("*"))
    name, dot, ending = answered.name.partition(".")
    kept = [path for folder in folders for path in (folder / "filtered").glob(f"*.kept{dot}{ending}")]
    own = answered.parents[1] / "filtered" / f"{name}.kept{dot}{ending}"
    if _count_since(own, since):
        return False
    found = 0
    for path in kept:
        found += _count_since(path, since)
        if found >= target:
            return True
    return False


def _count_since(path: Path, since: int) -> int:
    """Return the rows of a file that is not older than a moment; 0 where there is none."""
    try:
        if path.stat().st_mtime_ns < since:
            return 0
        return count_lines(path)
    except (FileNotFoundError, InputError):
        # Snakemake removes a job's outputs before the job: it may be gone between the look and the reading.
        return 0
