"""`potstill push`: upload a dataset folder to the Hugging Face hub."""

from __future__ import annotations

import argparse
import os
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    parser.add_argument("folder", type=Path, help="the folder that an export wrote: export/huggingface")
    parser.add_argument(
        "--repo-id", required=True, metavar="OWNER/NAME", help="the dataset; it is made if it is missing"
    )
    parser.add_argument("--token-env", default="HF_TOKEN", metavar="NAME", help="the variable that holds the token")
    parser.add_argument("--endpoint", help="another hub than the public one")
    parser.add_argument("--revision", help="the branch to write to")
    parser.add_argument("--public", action="store_true", help="a new dataset is private without this flag")
    parser.add_argument("--message", default="Upload dataset", help="the message of the commit")


def run(args: argparse.Namespace) -> int:
    """Upload and print the address of the commit."""
    from potstill.errors import ConfigError
    from potstill.exports.huggingface import push_folder

    token = os.environ.get(args.token_env, "").strip()
    if not token:
        raise ConfigError(
            f"the variable {args.token_env} is empty: put a token that may write there (or --token-env NAME)"
        )
    address = push_folder(
        args.folder,
        args.repo_id,
        token=token,
        endpoint=args.endpoint,
        private=not args.public,
        revision=args.revision,
        message=args.message,
    )
    print(address)
    return 0
