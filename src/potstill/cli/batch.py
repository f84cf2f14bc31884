"""`potstill batch`: list and cancel the batches that a provider is working on."""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from potstill.config.model import load_model
from potstill.errors import ConfigError, PotstillError

if TYPE_CHECKING:
    from potstill.config.model import Model
    from potstill.generate.batch_files import BatchFolder

#: Seconds that a person waits for a server that is away.
_PATIENCE_S = 60.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `potstill batch`."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument(
        "--answers-dir",
        type=Path,
        default=Path("answers"),
        metavar="DIR",
        help="the folder of all stores (default: answers)",
    )
    actions.add_parser("list", parents=[shared], help="the batches whose answers are not collected yet")
    cancel = actions.add_parser(
        "cancel", parents=[shared], help="cancel them; the next run collects what they had answered by then"
    )
    cancel.add_argument(
        "--model-config", type=Path, metavar="M.yaml", help="the model file (default: the one each batch was made with)"
    )
    cancel.add_argument("batches", nargs="*", metavar="BATCH", help="the provider's ids (default: all)")


def run(args: argparse.Namespace) -> int:
    """Do what was asked for."""
    from potstill.generate.batch_files import find_batches

    stores = sorted(path.parent for path in args.answers_dir.glob("*/FORMAT.json"))
    batches = [batch for store in stores for batch in find_batches(store) if batch.is_open]
    if not batches:
        print(f"{args.answers_dir}: no batch is open")
        return 0
    if args.action == "cancel":
        return asyncio.run(_cancel(batches, args.model_config, set(args.batches)))
    for batch in batches:
        state = batch.state() or {}
        print(
            f"{state.get('batch_id', '(no id yet)')}  {state.get('step')}  {state.get('requests')} requests  "
            f"{state.get('base')}  {batch.path}"
        )
    return 0


async def _cancel(batches: list[BatchFolder], model_file: Path | None, wanted: set[str]) -> int:
    from potstill.generate.batch import cancel
    from potstill.generate.batch_api import BatchApi

    status = 0
    for batch in batches:
        state = batch.state() or {}
        if wanted and state.get("batch_id") not in wanted:
            continue
        try:
            model = load_model(model_file or Path(state["model_file"]))
            _check_address(state["base"], model)
            async with BatchApi(model, state["base"], _PATIENCE_S) as api:
                print(f"{batch.path.name}: {await cancel(api, batch)}")
        except PotstillError as error:
            print(f"{batch.path.name}: {error}")
            status = error.exit_status
    return status


def _check_address(base: str, model: Model) -> None:
    """Refuse to send the key to an address that the model file does not name."""
    if base not in {address.base for address in model.addresses}:
        raise ConfigError(f"it was handed to {base}, which {model.file} does not name; give --model-config")
