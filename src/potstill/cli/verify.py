"""Verify a finished run: every file against the manifest and, with --execute, the labels by running the SQL again."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="the folder of a run: output_dir/run")
    parser.add_argument(
        "--execute",
        nargs="?",
        type=int,
        const=0,
        metavar="ROWS",
        help="run the statements again and compare the labels: of all answered rows, or of a sample of this size",
    )


def run(args: argparse.Namespace) -> int:
    """Verify a run; exit status 1 where something is not as it was."""
    from potstill.reports.verify import verify_run

    good = True
    for found in verify_run(args.run_dir, execute=args.execute):
        for problem in found.problems:
            print(f"{found.model}: {problem}", file=sys.stderr)
        good = good and not found.problems
        executed = f", {found.executed} statements run again" if args.execute is not None else ""
        print(f"{found.model}: {'verified' if not found.problems else f'{len(found.problems)} problems'}{executed}")
    return 0 if good else 1
