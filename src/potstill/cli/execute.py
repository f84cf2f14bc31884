"""Run each statement of a file, read-only, and compare it with gold."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from potstill.cli.arguments import positive_int

#: Flag -> key of the config section `execute`, for flags that say the same.
_SETTINGS = (
    "engine", "database", "database_dir", "database_field", "sql_field", "gold_field", "timeout_s", "max_rows",
    "workers", "clock", "variants",
)  # fmt: skip
_KNOBS = (
    "row_order", "ties", "duplicates", "column_order", "extra_columns", "empty_width", "float_rel_tol", "float_abs_tol",
    "numeric_text",
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    parser.add_argument("--input", type=Path, required=True, metavar="FILE", help="rows with a statement each")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="the rows with what became of them")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--database", metavar="FILE", help="the database of all rows")
    where.add_argument(
        "--database-dir", metavar="DIR", help="a folder with {db_id}/{db_id}.sqlite or {db_id}.sqlite per row's id"
    )
    parser.add_argument("--database-field", default="db_id", metavar="NAME", help="field with that id (default: db_id)")
    parser.add_argument("--sql-field", default="sql", metavar="NAME", help="field with the statement (default: sql)")
    parser.add_argument(
        "--gold-field", default="gold_sql", metavar="NAME", help="field with the gold query (default: gold_sql)"
    )
    parser.add_argument("--engine", default="sqlite", help="sqlite (default), duckdb or postgresql")
    parser.add_argument(
        "--timeout", dest="timeout_s", type=float, default=5.0, metavar="S", help="seconds per statement (default: 5)"
    )
    parser.add_argument("--max-rows", type=positive_int, metavar="N", help="rows of a result (default: 100000)")
    parser.add_argument("--clock", metavar="TIME", help='what `now` means (default: "2025-01-01 00:00:00")')
    parser.add_argument(
        "--workers",
        type=positive_int,
        default=_usable_cores(),
        metavar="N",
        help="worker processes (default: one per core, to 4)",
    )
    parser.add_argument(
        "--variants", type=int, default=0, metavar="K", help="run each match on K changed copies of its database too"
    )
    _add_comparison(parser.add_argument_group("comparison"))


def _usable_cores() -> int:
    """Return how many workers can really run at once; more than some wait for the process that reads and writes."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(4, usable)


def _add_comparison(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--comparison", choices=("strict", "bird", "spider"), default="strict", help="preset")
    group.add_argument("--row-order", choices=("auto", "strict", "ignore"), help="auto: as gold's ORDER BY asks")
    group.add_argument("--ties", choices=("free", "strict"), help="order of rows that tie on gold's sort keys")
    group.add_argument("--duplicates", choices=("bag", "set"), help="bag: the number of equal rows counts")
    group.add_argument("--column-order", choices=("strict", "any"), help="any: one permutation for all rows")
    group.add_argument(
        "--extra-columns", action="store_true", default=None, help="columns beyond gold's are passed over"
    )
    group.add_argument("--empty-width", choices=("compare", "ignore"), help="width of two empty results")
    group.add_argument("--float-rel-tol", type=float, metavar="X", help="relative tolerance of real numbers")
    group.add_argument("--float-abs-tol", type=float, metavar="X", help="absolute tolerance of real numbers")
    group.add_argument("--numeric-text", action="store_true", default=None, help="text '1' equals the number 1")


def run(args: argparse.Namespace) -> int:
    """Execute the file and say in one line what came of it."""
    from potstill.stages.execute import execute_rows

    settings: dict[str, Any] = {name: getattr(args, name) for name in _SETTINGS}
    settings["comparison"] = {"preset": args.comparison, **{name: getattr(args, name) for name in _KNOBS}}
    counts = execute_rows(args.input, args.output, settings=settings, gold_audit=None)
    classes = ", ".join(f"{name} {count}" for name, count in counts.error_classes.most_common())
    print(
        f"{counts.rows} rows: {counts.exec_pass} passed, {counts.gold_match} match gold, "
        f"{counts.gold_mismatch} do not, {counts.rows - counts.gold_match - counts.gold_mismatch} without usable gold"
        + (f"; errors: {classes}" if classes else "")
    )
    return 0
