"""`potstill split`."""

from __future__ import annotations

import argparse
from pathlib import Path

from potstill.chunks import split_file
from potstill.cli.arguments import positive_int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `potstill split`."""
    parser.add_argument("file", type=Path, metavar="FILE", help="a JSONL file, plain, .gz or .zst")
    parser.add_argument("--output-dir", type=Path, required=True, metavar="DIR", help="folder of the chunk files")
    size = parser.add_mutually_exclusive_group(required=True)
    size.add_argument(
        "--chunks", type=positive_int, metavar="N", help="number of chunks; their sizes differ by one row"
    )
    size.add_argument("--rows", type=positive_int, metavar="N", help="rows in a chunk, at most")


def run(args: argparse.Namespace) -> int:
    """Split, and say where the chunks are."""
    files = split_file(args.file, args.output_dir, chunks=args.chunks, rows=args.rows)
    print(f"{len(files)} chunks: {files[0]} … {files[-1].name}")
    return 0
