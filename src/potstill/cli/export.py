"""`potstill export`: write merged rows as training files."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from potstill.exports.layout import FORMATS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    parser.add_argument(
        "--input", type=Path, nargs="+", required=True, metavar="FILE", help="merged.jsonl, one per model"
    )
    parser.add_argument(
        "--rejected", type=Path, nargs="*", default=[], metavar="FILE", help="rejected.jsonl (dpo, kto)"
    )
    parser.add_argument("--output-dir", type=Path, required=True, help="the export folder")
    parser.add_argument("--format", action="append", choices=FORMATS, dest="formats", help="may be given several times")
    parser.add_argument("--train-ratio", type=float, default=0.9)
    parser.add_argument("--valid-ratio", type=float, help="default: what train and test leave")
    parser.add_argument("--test-ratio", type=float, default=0.0)
    parser.add_argument("--split-by", default="prompt", help="prompt, sql_template, sql_skeleton or field:NAME")
    parser.add_argument("--split-field", help="a field in which each row names its split itself")
    parser.add_argument("--answer", choices=("auto", "sql", "generation", "template"), default="auto")
    parser.add_argument("--answer-template", help="a Jinja file that makes the answer from the row")
    parser.add_argument("--reasoning", choices=("none", "think", "field"), default="none")
    parser.add_argument("--field", action="append", dest="fields", help="a field to carry along; several times")
    parser.add_argument("--limit", action="append", metavar="GROUP=N", help="at most N rows per group; several times")
    parser.add_argument("--decontaminate", nargs="+", metavar="FILE", help="leave out rows that repeat these files")
    parser.add_argument(
        "--decontaminate-field",
        action="append",
        dest="text_fields",
        metavar="FIELD",
        help="a field of the rows to compare (such as question); default: the last user message; several times",
    )
    parser.add_argument("--license", help="the licence of the dataset folder (--format huggingface)")


def run(args: argparse.Namespace) -> int:
    """Export and print the counts."""
    from potstill.rows import dumps
    from potstill.stages.export import export_dataset

    counts = export_dataset(args.input, args.rejected, args.output_dir, settings=make_settings(args))
    print(dumps({"rows": counts.rows, "exported": counts.exported, "formats": counts.formats}).decode(), end="")
    return 0


def make_settings(args: argparse.Namespace) -> dict[str, Any]:
    """Return the `export` section that the flags stand for."""
    names = ("train_ratio", "valid_ratio", "test_ratio", "split_by", "split_field", "answer", "answer_template")
    return {
        **{name: getattr(args, name) for name in names},
        "formats": args.formats or ["messages"],
        "reasoning": args.reasoning,
        "fields": args.fields or [],
        "limits": dict(_read_limit(text) for text in args.limit or []),
        "decontaminate": {"files": args.decontaminate, "fields": args.text_fields} if args.decontaminate else None,
        "huggingface": {"license": args.license},
    }


def _read_limit(text: str) -> tuple[str, int]:
    from potstill.errors import ConfigError

    name, _, number = text.rpartition("=")
    if not name or not number.isascii() or not number.isdigit() or int(number) < 1:
        raise ConfigError(f"--limit {text}: GROUP=N was expected, as in field:db_id=100, N at least 1")
    return name, int(number)
