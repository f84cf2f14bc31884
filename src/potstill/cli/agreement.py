"""`potstill agreement`: compare a student's scores with its teacher's, row by row."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    parser.add_argument(
        "--teacher", type=Path, nargs="+", required=True, metavar="FILE", help="merged and rejected rows"
    )
    parser.add_argument(
        "--student",
        type=Path,
        nargs="+",
        action="append",
        required=True,
        metavar="FILE",
        help="a student's rows; given twice: before and after training",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="score_agreement.json")
    parser.add_argument("--teacher-field", default="score", help="the teacher's score in its rows")
    parser.add_argument("--student-field", default="score", help="a student's score in its rows")
    parser.add_argument("--pass-score", type=float, default=1.0, help="the score from which a row passes")


def run(args: argparse.Namespace) -> int:
    """Compare, write the file and print one line per student."""
    from potstill.student import write_agreement

    count = len(args.student)
    names = (
        ["before", "after"]
        if count == 2
        else ["student"]
        if count == 1
        else [f"student_{at + 1}" for at in range(count)]
    )
    report = write_agreement(
        args.output,
        teacher=args.teacher,
        students=dict(zip(names, args.student, strict=True)),
        pass_score=args.pass_score,
        teacher_field=args.teacher_field,
        student_field=args.student_field,
    )
    for name, numbers in report["students"].items():
        shown = ", ".join(f"{key} {_show(numbers[key])}" for key in ("mae", "rmse", "pearson", "pass_agreement"))
        print(f"{name}: {numbers['compared']} rows compared, {numbers['missing']} missing; {shown}")
    return 0


def _show(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
