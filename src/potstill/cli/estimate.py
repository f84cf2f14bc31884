"""`potstill estimate`."""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

from potstill.cli.arguments import positive_int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `potstill estimate`."""
    parser.add_argument("config", type=Path, metavar="CONFIG", help="the config of a run")
    parser.add_argument("-n", type=positive_int, default=1000, metavar="N", help="rows to look at (default 1000)")


def run(args: argparse.Namespace) -> int:
    """Print tokens and cost for each model; nothing is sent."""
    from potstill.answers.place import look_up
    from potstill.cli.preview import prepared_rows
    from potstill.config.model import load_model
    from potstill.config.run import load_config
    from potstill.generate.estimate import estimate
    from potstill.readers import count_rows

    config = load_config(args.config)
    total = sum(count_rows(Path(path)) for path in config["input"]["path"])
    settings = config["generate"]
    if settings["max_rows"] is not None:
        total = min(total, settings["max_rows"])
    rows = list(itertools.islice(prepared_rows(config), min(args.n, total)))
    for entry in config["models"]:
        model = load_model(Path(entry["config"]))
        batch = settings["mode"] == "batch"
        store = look_up(config["answers_dir"], model.name)
        print(estimate(model, rows, total, store, settings["samples"], batch=batch).text())
    return 0
