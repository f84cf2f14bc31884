"""Compare two runs: what changed in the config, which rows moved between kept and rejected."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    parser.add_argument("before", type=Path, metavar="RUN_DIR", help="the earlier run: output_dir/run")
    parser.add_argument("after", type=Path, metavar="RUN_DIR", help="the later run")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that was found to a JSON file too")
    parser.add_argument(
        "--page", type=Path, metavar="FILE", help="write the later run's page with the comparison in it"
    )


def run(args: argparse.Namespace) -> int:
    """Compare two runs."""
    from potstill.reports.compare import compare_runs, describe
    from potstill.rows import publish_json

    comparison = compare_runs(args.before, args.after)
    print(*describe(comparison), sep="\n")
    if args.json is not None:
        publish_json(args.json, comparison)
    if args.page is not None:
        _write_page(args.page, args.after, comparison)
    return 0


def _write_page(output: Path, run_dir: Path, comparison: dict[str, object]) -> None:
    import yaml

    from potstill.reports.files import find_models
    from potstill.reports.page import write_page

    config = yaml.safe_load((run_dir / "config.yaml").read_text())
    write_page(output, model_folders=find_models(run_dir), config=config, comparison=comparison)
