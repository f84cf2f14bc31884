"""Show how far a run is, from its files alone: chunks, rows, errors, rate, time left, money."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

_CLEAR = "\x1b[H\x1b[2J"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="the folder of a run: output_dir/run")
    parser.add_argument(
        "--watch",
        nargs="?",
        type=float,
        const=2.0,
        metavar="SECONDS",
        help="show it again every so many seconds (default 2) until the run is merged",
    )


def run(args: argparse.Namespace) -> int:
    """Show the state of a run, once or until it is merged."""
    from potstill.reports.status import StatusReader, describe

    reader = StatusReader(args.run_dir)
    while True:
        status = reader.read()
        if args.watch is not None and sys.stdout.isatty():
            print(_CLEAR, end="")
        print(*describe(status), sep="\n", flush=True)
        if args.watch is None or status.finished:
            return 0
        time.sleep(max(0.2, args.watch))
