"""`potstill generate`."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from potstill.cli.arguments import positive_int
from potstill.config.model import load_model
from potstill.errors import ConfigError, InputError
from potstill.logs import set_up_logging
from potstill.records import Row, canonical_json, sha256_text

#: A longer line of the input is a bad row; it is never held whole in memory.
_MAX_LINE_BYTES = 64 << 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `potstill generate`."""
    parser.add_argument(
        "--input-path", type=Path, required=True, metavar="FILE", help="rows: .jsonl (.gz, .zst), .csv, .parquet"
    )
    parser.add_argument("--output-path", type=Path, required=True, metavar="DIR", help="folder of the output files")
    parser.add_argument("--model-config", type=Path, required=True, metavar="M.yaml", help="the model file")
    parser.add_argument(
        "--concurrency", type=positive_int, default=30, metavar="N", help="requests in flight (default 30)"
    )
    parser.add_argument(
        "--batch-size",
        type=positive_int,
        default=30,
        metavar="N",
        help="answers that are synced to the disk together (default 30, at most 64)",
    )
    parser.add_argument(
        "--answers-dir",
        metavar="DIR",
        help="the answer store, a folder or s3://… (default: answers in the output folder)",
    )
    parser.add_argument(
        "--prompt-template", type=Path, metavar="T.jinja", help="makes the user message from a row's fields"
    )
    parser.add_argument("--max-rows", type=positive_int, metavar="N", help="a pilot: ask only the first rows")
    parser.add_argument("--samples", type=positive_int, default=1, metavar="K", help="answers per row (default 1)")
    parser.add_argument("--retry-failed", action="store_true", help="ask again the rows that failed before")
    parser.add_argument("--refresh", action="store_true", help="ask everything again")
    parser.add_argument("--offline", action="store_true", help="send nothing: a missing answer is an error")
    parser.add_argument(
        "--mode", choices=("online", "batch"), default="online", help="batch: through the provider's batch API"
    )
    parser.add_argument(
        "--batch-wait",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="stay while batches run; with --no-batch-wait the command ends with status 75 and is given again later",
    )
    parser.add_argument("--requests-per-minute", type=float, metavar="N", help="rate limit")
    parser.add_argument("--tokens-per-minute", type=float, metavar="N", help="rate limit")
    parser.add_argument(
        "--outage-timeout",
        type=float,
        default=1800.0,
        metavar="S",
        help="seconds to wait for a teacher that is away (default 1800)",
    )


def run(args: argparse.Namespace) -> int:
    """Generate, and say where the answers are."""
    from potstill.answers.place import is_remote, opened_answers
    from potstill.stages.generate import generate_chunk, started

    set_up_logging()
    model = load_model(args.model_config)
    answered, failed, not_asked = _outputs(args.input_path, args.output_path)
    place = args.answers_dir or str(args.output_path / "answers")
    if args.mode == "batch" and is_remote(place):
        raise ConfigError(f"--mode batch keeps the state of its batches in a folder; found --answers-dir {place}")
    with opened_answers(place, model.name) as answers_dir, started(model) as teacher:
        counts = generate_chunk(
            args.input_path,
            answered,
            failed,
            not_asked if args.max_rows else None,
            model=teacher,
            settings=_settings(args),
            concurrency=args.concurrency,
            answers_dir=answers_dir,
            read=_reader(args.prompt_template),
        )
    if counts.failed:
        logging.getLogger("potstill.generate").warning(
            "%d rows failed: see %s; --retry-failed asks them again", counts.failed, failed
        )
    print(f"{counts.answered} answers: {answered}")
    return 0


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    """Return the flags under the names of the config's `generate`."""
    names = (
        "samples",
        "batch_size",
        "max_rows",
        "retry_failed",
        "refresh",
        "offline",
        "mode",
        "batch_wait",
        "requests_per_minute",
        "tokens_per_minute",
    )
    return {**{name: getattr(args, name) for name in names}, "outage_timeout_s": args.outage_timeout}


def _outputs(source: Path, folder: Path) -> tuple[Path, Path, Path]:
    """Return the files for answers, failures and rows not asked; answers keep the name of a JSONL file.

    Raises:
        InputError: If the answers would take the place of the input.
    """
    stem = source.name
    for ending in (".gz", ".zst", ".jsonl", ".json", ".ndjson", ".csv", ".parquet"):
        stem = stem.removesuffix(ending)
    name = f"{stem}.jsonl" if source.suffix in {".csv", ".parquet"} else source.name
    if (folder / name).resolve() == source.resolve():
        raise InputError(f"--output-path {folder}: the answers would take the place of {source}; name another folder")
    return folder / name, folder / f"{stem}_error.jsonl", folder / f"{stem}_not_asked.jsonl"


def _reader(template: Path | None) -> Callable[[Path], Iterator[Row]]:
    """Return a function that reads a user's file: each line becomes a row, a bad one a row that says why."""
    from potstill.prompts import Prompt, PromptError
    from potstill.readers import read_input

    prompt = Prompt(template)

    def read(path: Path) -> Iterator[Row]:
        for line in read_input(path, _MAX_LINE_BYTES):
            row = line.row
            if row is None:
                row = {"line": line.number, "bad_row": line.reason}
            elif template is not None:
                try:
                    row = {**row, "messages": prompt.messages(row)}
                except PromptError as error:
                    row = {**row, "bad_row": str(error)}
            if "sample_id" not in row:
                row = {"sample_id": sha256_text(canonical_json(row)), **row}
            yield row

    return read
