"""The frame around a rule's script: its log, its exit status, its end when Snakemake ends."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from potstill.contents import noted, notes_file
from potstill.errors import PotstillError
from potstill.logs import set_up_logging
from potstill.processes import die_with_controllers

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def job(log: str | Path, *, notes: bool = False) -> Iterator[None]:
    """Run a script's body: everything it prints goes to the log, an error becomes one line and an exit status.

    The log's last line says how the job ended, with the exit status that Snakemake does not pass on: 75 try
    again later, 78 configuration, 1 anything else.

    Args:
        log: The rule's log file; each start of the job begins it anew.
        notes: Whether the job leaves notes, beside its log, on the files of rows that it writes.
    """
    path = Path(log)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("")
    terminal = os.dup(sys.stderr.fileno())
    _redirect_output(path)
    set_up_logging(path)
    logger.info("begun")
    die_with_controllers()
    try:
        with noted(notes_file(path)) if notes else contextlib.nullcontext():
            yield
    except PotstillError as error:
        _end(terminal, f"{error}", error.exit_status)
    except KeyboardInterrupt:
        _end(terminal, "stopped by Ctrl-C; give the same command again to go on", 128 + signal.SIGINT)
    except Exception as error:
        logger.exception("this is a bug in potstill, or a machine that failed")
        _end(terminal, f"{type(error).__name__}: {error}", 1)
    logger.info("done")


def _redirect_output(path: Path) -> None:
    """Point stdout and stderr of this process, and of all that it starts, at the log."""
    sys.stdout.flush()
    sys.stderr.flush()
    with path.open("ab") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)


def _end(terminal: int, message: str, status: int) -> None:
    from potstill.secrets import redact

    message = redact(message)
    logger.error("exit status %d: %s", status, message)
    os.write(terminal, f"potstill: {message}\n".encode(errors="backslashreplace"))
    sys.exit(status)


def parse_arguments(*files: str, values: Sequence[str] = ()) -> argparse.Namespace:
    """Read the command line of a chunk rule's script: `--log`, `--settings` (a JSON object), files and values.

    Args:
        files: Options that name files. One that ends in `*` may name none, or several.
        values: Options that are plain text. One that ends in `?` may be left out.
    """
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--settings", type=json.loads, required=True)
    for name in files:
        if name.endswith("*"):
            parser.add_argument(f"--{name[:-1]}", type=Path, nargs="*", default=[])
        else:
            parser.add_argument(f"--{name}", type=Path, required=True)
    for name in values:
        parser.add_argument(f"--{name.removesuffix('?')}", required=not name.endswith("?"))
    return parser.parse_args()
