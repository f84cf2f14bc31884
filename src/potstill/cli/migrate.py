"""Turn an old task file into a config and a profile."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    parser.add_argument(
        "task", type=Path, metavar="TASK.yaml", help="a batch_distillation_submit or merge_distillation_results file"
    )
    parser.add_argument("--output-dir", type=Path, required=True, help="folder for config.yaml and profiles/siflow/")


def run(args: argparse.Namespace) -> int:
    """Write the config and the profile, and say what is left to do."""
    from potstill.migrate import migrate, write_migration

    migration = migrate(args.task)
    for path in write_migration(migration, args.output_dir, args.task):
        print(path)
    for note in migration.notes:
        print(f"note: {note}", file=sys.stderr)
    return 0
