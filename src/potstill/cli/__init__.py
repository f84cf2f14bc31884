"""The command line: `potstill COMMAND …`, one module of this package per command.

A command's module has `add_arguments(parser)` and `run(args) -> int`, its docstring's first line is its help.
Only the module of the command that was asked for is imported, so that a start costs no more than it must.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from typing import Protocol, cast

from potstill import __version__
from potstill.errors import PotstillError

#: Command -> one line of help, in the order of `potstill --help`.
COMMANDS: dict[str, str] = {
    "init": "make a folder for your own runs: config, profile, Snakefile that imports the module",
    "split": "split a JSONL file into chunk files of equal size",
    "merge": "merge chunk files or folders, in order",
    "generate": "ask a teacher model for one answer per row of a file",
    "answers": "list, verify, export, prune or import the answers that were paid for",
    "clean": "extract the statement from each answer of a file",
    "execute": "run each statement of a file, read-only, and compare it with gold",
    "export": "write merged rows as training files: messages, sharegpt, alpaca, mlx, parquet, dpo, kto, huggingface",
    "agreement": "compare a student's scores with its teacher's, row by row",
    "push": "upload a dataset folder to the Hugging Face hub",
    "preview": "show rendered prompts and request bodies; nothing is sent",
    "estimate": "count the tokens and the cost of a run before it begins; nothing is sent",
    "status": "show how far a run is, from its files alone",
    "verify": "check a finished run's files against its manifests, and its labels by running the SQL again",
    "compare": "compare two runs: config, and which rows moved between kept and rejected",
    "migrate": "turn an old task file into a config and a profile",
    "teacher": "serve recorded answers as an OpenAI-compatible server on loopback",
}


class Command(Protocol):
    """What the module of a command has."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's flags."""

    def run(self, args: argparse.Namespace) -> int:
        """Do it and return the exit status."""


def load_command(name: str) -> Command:
    """Return the module of a command."""
    return cast(Command, importlib.import_module(f"potstill.cli.{name}"))


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: The words after `potstill`; those of the process by default.

    Returns:
        The exit status: 0 done, 1 error, 2 usage, 75 try again later, 78 configuration.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="potstill", description="Verified training data from any teacher model.")
    parser.add_argument("--version", action="version", version=f"potstill {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    asked = next((word for word in words if not word.startswith("-")), None)
    for name, summary in COMMANDS.items():
        subparser = commands.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
        if name == asked:
            load_command(name).add_arguments(subparser)
    args = parser.parse_args(words)
    try:
        return load_command(args.command).run(args)
    except PotstillError as error:
        print(f"potstill {args.command}: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print(f"potstill {args.command}: stopped; give the same command again to go on", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # The reader of our output (a `head`) has left. Point stdout elsewhere, so that the exit is quiet.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
