"""`potstill preview`."""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from potstill.cli.arguments import positive_int
from potstill.config.model import load_model
from potstill.config.run import Config, load_config
from potstill.errors import InputError
from potstill.generate.requests import BadRowError, RequestMaker
from potstill.prompts import Prompt
from potstill.records import Row
from potstill.rows import loads, publish
from potstill.stages.prepare import PrepareCounts, RowMaker, make_rows


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `potstill preview`."""
    parser.add_argument("config", type=Path, metavar="CONFIG", help="the config of a run")
    parser.add_argument("-n", type=positive_int, default=3, metavar="N", help="how many rows (default 3)")


def run(args: argparse.Namespace) -> int:
    """Show the first rows' conversations and, for each model, the request's body."""
    config = load_config(args.config)
    rows = list(itertools.islice(prepared_rows(config), args.n))
    if not rows:
        raise InputError(f"{', '.join(config['input']['path'])}: no usable row")
    for number, row in enumerate(rows, start=1):
        print(f"══ row {number}  {row['sample_id'][:12]}")
        for message in row["messages"]:
            print(f"── {message['role']}\n{_text(message.get('content'))}")
    for model in config["models"]:
        _show_request(model, rows[0], config)
    return 0


def prepared_rows(config: Config) -> Iterator[Row]:
    """Yield the rows as `prepare_rows` makes them; say what is wrong with a line that is none."""
    template = config["prompt"]["template"]
    prompt = Prompt(template and Path(template), config["prompt"]["system"], config["prompt"]["messages_field"])
    maker = RowMaker(config["input"], config["prepare"], prompt)
    with tempfile.TemporaryDirectory() as folder, publish(Path(folder) / "rejected.jsonl") as rejected:
        inputs = config["input"]["path"]
        yield from make_rows(inputs, config["prepare"]["max_line_bytes"], maker, PrepareCounts(), rejected)


def _show_request(model: dict[str, Any], row: Row, config: Config) -> None:
    teacher = load_model(Path(model["config"]))
    try:
        job = RequestMaker(teacher).job(row, (0,), 0)
    except BadRowError as error:
        print(f"══ {model['alias']}: this row can't be asked: {error}")
        return
    print(f"══ {model['alias']}: POST {teacher.addresses[0].base}/chat/completions\n{_text(loads(job.body()))}")


def _text(content: Any) -> str:
    return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False, indent=2)
