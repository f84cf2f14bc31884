"""Extract the statement from each answer of a file."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from potstill.stages.clean import KINDS, clean_rows, output_field


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `potstill clean`."""
    parser.add_argument(
        "--input", type=Path, required=True, metavar="FILE", help="rows (.jsonl, .jsonl.gz, .jsonl.zst)"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="the rows with `sql` added")
    parser.add_argument("--kind", choices=KINDS, default="sql", help="what to take out of an answer (default: sql)")
    parser.add_argument("--field", default="generation", help="the field with the answer (default: generation)")
    parser.add_argument("--dialect", default="sqlite", help="the SQL dialect of the answers (default: sqlite)")
    parser.add_argument("--transpile-to", metavar="DIALECT", help="write the statement anew in this dialect")
    parser.add_argument("--language", help="with --kind code: the label of the fence that is wanted")


def run(args: argparse.Namespace) -> int:
    """Clean one file."""
    settings = {
        "kind": args.kind,
        "field": args.field,
        "dialect": args.dialect,
        "transpile_to": args.transpile_to,
        "language": args.language,
    }
    counts = clean_rows(args.input, args.output, settings=settings)
    methods = ", ".join(f"{name} {count}" for name, count in counts.methods.most_common())
    print(
        f"{counts.rows} rows, {output_field(settings)} found in {counts.found} ({methods or 'no rows'}): {args.output}",
        file=sys.stderr,
    )
    return 0
