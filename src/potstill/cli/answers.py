"""`potstill answers`: look after the store of paid answers."""

from __future__ import annotations

import argparse
from pathlib import Path

from potstill.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `potstill answers`."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument(
        "--answers-dir",
        default="answers",
        metavar="DIR",
        help="the folder of all stores, or s3://… (default: answers)",
    )
    one = argparse.ArgumentParser(add_help=False, parents=[shared])
    one.add_argument("--model", metavar="NAME", help="the model's name as sent; may be left out if there is one store")
    actions.add_parser("list", parents=[shared], help="what the stores hold: answers, failures, tokens, dates")
    actions.add_parser("verify", parents=[one], help="read every record and name all damage by file and byte")
    export = actions.add_parser("export", parents=[one], help="write all records as JSONL")
    export.add_argument("--output", type=Path, required=True, metavar="FILE")
    prune = actions.add_parser(
        "prune", parents=[one], help="take records out; says what it would do, unless --yes is given"
    )
    prune.add_argument("--damaged", action="store_true", help="records that cannot be read")
    prune.add_argument("--failures", action="store_true", help="rows that failed")
    prune.add_argument(
        "--superseded", action="store_true", help="records that a later or better one of the same request replaces"
    )
    prune.add_argument("--before", metavar="DATE", help="answers from before a day, such as 2026-01-31")
    prune.add_argument("--yes", action="store_true", help="do it")
    take = actions.add_parser("import", parents=[shared], help="take over rows that were paid for with other tools")
    take.add_argument("files", type=Path, nargs="+", metavar="FILE", help="rows with the conversation and the answer")
    take.add_argument(
        "--model-config",
        type=Path,
        required=True,
        metavar="M.yaml",
        help="the model and the parameters they were asked with",
    )
    take.add_argument(
        "--messages-field",
        metavar="NAME",
        help="the conversation as sent (default: final_messages, else messages); it may end with the answer",
    )
    take.add_argument(
        "--response-field", default="response", help="the answer: its text, or the whole reply (default: response)"
    )


def run(args: argparse.Namespace) -> int:
    """Do what was asked for."""
    action = {"list": _list, "verify": _verify, "export": _export, "prune": _prune, "import": _import}[args.action]
    return action(args)


def _stores(args: argparse.Namespace) -> list[Path]:
    from potstill.answers.key import slug
    from potstill.answers.place import fetch_stores

    stores = sorted(path.parent for path in fetch_stores(args.answers_dir).glob("*/FORMAT.json"))
    wanted = getattr(args, "model", None)
    if wanted:
        stores = [path for path in stores if path.name == slug(wanted)]
    if not stores:
        what = f"answers of {wanted}" if wanted else "answer store"
        raise InputError(
            f"{args.answers_dir}: no {what} there; --answers-dir names the folder of the config's answers_dir"
        )
    return stores


def _one_store(args: argparse.Namespace) -> Path:
    stores = _stores(args)
    if len(stores) > 1:
        raise InputError(f"{args.answers_dir}: --model is needed, there are {', '.join(path.name for path in stores)}")
    return stores[0]


def _list(args: argparse.Namespace) -> int:
    from potstill.answers.upkeep import summarise

    for folder in _stores(args):
        print(summarise(folder).text())
    return 0


def _verify(args: argparse.Namespace) -> int:
    from potstill.answers.upkeep import verify

    damage = 0
    for folder in _stores(args):
        report = verify(folder)
        damage += len(report.damage)
        for place in report.damage:
            print(f"{place.path}: byte {place.offset}: {place.length} bytes are damaged")
        print(
            f"{folder.name}: {report.records} records whole, {len(report.damage)} damaged, "
            f"{report.torn} torn ends (of kills)"
        )
    return 1 if damage else 0


def _export(args: argparse.Namespace) -> int:
    from potstill.answers.upkeep import export

    print(f"{export(_one_store(args), args.output)} records: {args.output}")
    return 0


def _prune(args: argparse.Namespace) -> int:
    from potstill.answers.place import is_remote
    from potstill.answers.upkeep import Prune, prune

    if is_remote(args.answers_dir):
        raise InputError(
            f"{args.answers_dir}: objects in a bucket are never changed; download journals/*.jsonl of the store into a folder "
            "answers/<model>/journals, prune that, and upload it as a new answers_dir"
        )
    what = Prune(args.damaged, args.failures, args.superseded, args.before)
    counts = prune(_one_store(args), what, do=args.yes)
    verb = "taken out" if args.yes else "to be taken out (add --yes to do it)"
    print(f"{counts.dropped} records {verb}, {counts.kept} stay")
    return 0


def _import(args: argparse.Namespace) -> int:
    from potstill.answers.place import opened_answers
    from potstill.answers.upkeep import import_rows
    from potstill.config.model import load_model

    model = load_model(args.model_config)
    with opened_answers(args.answers_dir, model.name) as answers_dir:
        counts = import_rows(args.files, model, answers_dir, args.messages_field, args.response_field)
    print(
        f"{counts.taken} answers taken over, {counts.known} were there already, {len(counts.bad)} rows cannot be used"
    )
    for reason in counts.bad[:10]:
        print(f"  {reason}")
    return 1 if counts.bad and not counts.taken else 0
