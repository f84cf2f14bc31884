"""A student against its teacher: how near its scores are, row by row.

Each row is a score of the teacher and one of the student for the same `sample_id` (and `sample_index`). Correlations
are null where they are not defined: fewer than two rows, or scores that are all the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from potstill.errors import InputError
from potstill.records import Row
from potstill.rows import publish_json, read_rows

#: Differences up to which two scores count as agreeing.
TOLERANCES = (0.0, 0.05, 0.1, 0.2)
_ROUNDING = 1e-9

Scores = Mapping[str, float | None]


def score_agreement(teacher: Scores, student: Scores, *, pass_score: float = 1.0) -> Row:
    """Compare two sets of scores over the same rows.

    Args:
        teacher: The teacher's score by the identity of the row; None where it has none.
        student: The student's.
        pass_score: The score from which a row passes, for `pass_agreement`.

    Returns:
        `rows` (of the teacher), `compared`, `missing` (rows that the teacher scored and the student did not), `extra`
        (the reverse), means, `mae`, `rmse`, `agreement` by tolerance, `pearson`, `spearman`, `pass_agreement` with its
        four cells; numbers are null where nothing can be compared.
    """
    scored = {key for key, score in teacher.items() if score is not None}
    answered = {key for key, score in student.items() if score is not None}
    pairs = [(float(teacher[key] or 0.0), float(student[key] or 0.0)) for key in sorted(scored & answered)]
    differences = [right - left for left, right in pairs]
    return {
        "rows": len(teacher),
        "compared": len(pairs),
        "missing": len(scored - answered),
        "extra": len(answered - scored),
        "teacher_mean": _mean([left for left, _ in pairs]),
        "student_mean": _mean([right for _, right in pairs]),
        "mae": _mean([abs(difference) for difference in differences]),
        "rmse": _root(_mean([difference**2 for difference in differences])),
        "agreement": {
            f"{limit:g}": _mean([float(abs(difference) <= limit + _ROUNDING) for difference in differences])
            for limit in TOLERANCES
        },
        "pearson": _pearson([left for left, _ in pairs], [right for _, right in pairs]),
        "spearman": _pearson(_ranks([left for left, _ in pairs]), _ranks([right for _, right in pairs])),
        "pass_score": pass_score,
        **_compare_passes(pairs, pass_score),
    }


def _compare_passes(pairs: Sequence[tuple[float, float]], limit: float) -> Row:
    cells = [(left >= limit - _ROUNDING, right >= limit - _ROUNDING) for left, right in pairs]
    return {
        "pass_agreement": _mean([float(left == right) for left, right in cells]),
        "both_pass": cells.count((True, True)),
        "only_teacher_passes": cells.count((True, False)),
        "only_student_passes": cells.count((False, True)),
        "neither_passes": cells.count((False, False)),
    }


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def _root(value: float | None) -> float | None:
    return None if value is None else math.sqrt(value)


def _pearson(left: Sequence[float], right: Sequence[float]) -> float | None:
    mean_left, mean_right = _mean(left), _mean(right)
    if mean_left is None or mean_right is None:
        return None
    lefts, rights = [value - mean_left for value in left], [value - mean_right for value in right]
    spread = math.sqrt(math.fsum(one * one for one in lefts)) * math.sqrt(math.fsum(one * one for one in rights))
    # Scores that are all the same leave only the rounding of their mean.
    if spread <= 1e-12 * len(left):
        return None
    together = math.fsum(one * other for one, other in zip(lefts, rights, strict=True))
    return max(-1.0, min(1.0, together / spread))


def _ranks(values: Sequence[float]) -> list[float]:
    """Return the rank of each value, equal values sharing the mean of theirs (Spearman's way with ties)."""
    order = sorted(range(len(values)), key=lambda at: values[at])
    ranks = [0.0] * len(values)
    start = 0
    while start < len(order):
        end = start
        while end < len(order) and values[order[end]] == values[order[start]]:
            end += 1
        for at in order[start:end]:
            ranks[at] = (start + end + 1) / 2
        start = end
    return ranks


def held_out(splits: Path, split: str = "test") -> Callable[[Row], str | None]:
    """Return the function that says why a student is not asked about a row: only rows of the held-out split are.

    Args:
        splits: `export/splits.jsonl` of the teacher.
        split: The split that the student answers.

    Raises:
        InputError: If no row is in that split.
    """
    chosen = {row["sample_id"] for row in read_rows(splits) if row["split"] == split and row["used"]}
    if not chosen:
        raise InputError(
            f"{splits}: no row is in the split {split!r}: give export.{split}_ratio a value above 0, "
            "or name an export.split_by that has more groups (summary.json beside it counts them)"
        )
    return lambda row: None if row["sample_id"] in chosen else "not_held_out"


def read_scores(paths: Iterable[Path], field: str = "score") -> dict[str, float | None]:
    """Return the score of each row of some files by its identity.

    Args:
        paths: Merged, rejected or failed files: a row without a score counts as one that has none. Rows that were not
            asked are passed over.
        field: The field that holds the score.

    Raises:
        InputError: If a file cannot be read, a row has no identity, or a score is no number.
    """
    scores: dict[str, float | None] = {}
    for path in paths:
        for row in read_rows(path):
            if "not_asked_reason" not in row:
                scores[_identity(row, path)] = _score(row, field, path)
    return scores


def _read_not_asked(paths: Iterable[Path]) -> set[str]:
    return {_identity(row, path) for path in paths for row in read_rows(path) if "not_asked_reason" in row}


def _identity(row: Row, path: Path) -> str:
    if not isinstance(row.get("sample_id"), str):
        raise InputError(f"{path}: a row without `sample_id`")
    return f"{row['sample_id']}/{row.get('sample_index', 0)}"


def _score(row: Row, field: str, path: Path) -> float | None:
    value: Any = row.get(field)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise InputError(f"{path}: row {row['sample_id']}: {field} is {str(value)[:40]!r}, no number")
    return None if value is None else float(value)


def write_agreement(
    output: Path,
    *,
    teacher: Sequence[Path],
    students: Mapping[str, Sequence[Path]],
    pass_score: float = 1.0,
    teacher_field: str = "score",
    student_field: str = "score",
) -> Row:
    """Write score_agreement.json and return it.

    Args:
        output: The file to make.
        teacher: The teacher's rows (merged and rejected).
        students: Name -> rows of a student (merged, rejected, and not asked: what a student was not asked is not
            missing); with two of them, before and after training, their difference is added.
        pass_score: The score from which a row passes.
        teacher_field: The field of the teacher's score.
        student_field: The field of a student's score.

    Raises:
        InputError: If a file cannot be used.
    """
    scores = read_scores(teacher, teacher_field)
    compared = {}
    for name, paths in students.items():
        not_asked = _read_not_asked(paths) & scores.keys()
        asked = {key: score for key, score in scores.items() if key not in not_asked}
        agreement = score_agreement(asked, read_scores(paths, student_field), pass_score=pass_score)
        compared[name] = {"not_asked": len(not_asked), **agreement}
    report: Row = {"teacher": [path.name for path in teacher], "students": compared}
    if len(compared) == 2:
        report["change"] = _change(*compared.values())
    publish_json(output, report)
    return report


def _change(before: Row, after: Row) -> Row:
    names = ("student_mean", "mae", "rmse", "pearson", "spearman", "pass_agreement", "compared", "missing")
    return {name: None if before[name] is None or after[name] is None else after[name] - before[name] for name in names}
