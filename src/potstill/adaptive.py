"""Why a row is not asked because of the answers that are there already: another model's, or an earlier round's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from potstill.records import Row
from potstill.rows import read_rows

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
