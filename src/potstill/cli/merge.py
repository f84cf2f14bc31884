"""`potstill merge`."""

from __future__ import annotations

import argparse
from pathlib import Path

from potstill.chunks import merge_files


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `potstill merge`."""
    parser.add_argument("paths", type=Path, nargs="+", metavar="PATH", help="chunk files, or folders of them, in order")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="the merged file")


def run(args: argparse.Namespace) -> int:
    """Merge, and say what was written."""
    merged = merge_files(args.paths, args.output)
    print(f"{merged.rows} rows: {merged.output}")
    if merged.errors is not None:
        print(f"{merged.error_rows} error rows: {merged.errors}")
    return 0
