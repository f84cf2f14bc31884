"""Rule generate_answers: ask a teacher for the answers of one chunk."""

import contextlib
import functools
import json
from collections.abc import Callable

from potstill.adaptive import solved_by, solved_in_round, target_reached
from potstill.answers.place import opened_answers
from potstill.config.model import load_model
from potstill.environment import load_env_file
from potstill.jobs import job, parse_arguments
from potstill.records import Row
from potstill.routing import Router
from potstill.stages.audit_gold import GoldCheck
from potstill.stages.generate import generate_chunk, started
from potstill.stages.prepare import find_first_row
from potstill.student import held_out


def main() -> None:
    """Ask, with what the command line says."""
    for path in args.env_file:
        load_env_file(path)
    pace = {key: float(value) for key, _, value in (item.partition("=") for item in args.pace.split(","))}
    with contextlib.ExitStack() as scope:
        model = load_model(args.model)
        answers_dir = scope.enter_context(opened_answers(args.answers_dir, model.name))
        model = scope.enter_context(started(model))
        generate_chunk(
            args.rows,
            args.answered,
            args.failed,
            args.not_asked,
            model=model,
            settings={**args.settings, **pace},
            concurrency=int(args.concurrency),
            answers_dir=answers_dir,
            first_row=find_first_row(args.summary[0], args.rows) if args.summary else 0,
            skip=first_reason(find_reasons(scope)),
            # The jobs of a run share its budget.
            run_id=str(args.model.parents[1]),
            share=1 / pace["parallel_jobs"],
        )


def find_reasons(scope: contextlib.ExitStack) -> list[Callable[[Row], str | None]]:
    """Return what may keep a row from being asked: another model's row or answer, a bad gold query, and so on."""
    reasons: list[Callable[[Row], str | None]] = []
    if args.routes:
        routes = json.loads(args.routes)
        reasons.append(functools.partial(Router(routes).reason, alias=args.model.parent.name))
    if args.execute:
        execute = json.loads(args.execute)
        gold = scope.enter_context(GoldCheck(args.gold[0], settings=execute))
        reasons.append(lambda row: "bad_gold" if gold.skips(row) else None)
    if args.held_out:
        reasons.append(held_out(args.held_out[0]))
    if args.round_before:
        reasons.append(solved_in_round(args.round_before, args.settings["stop_when"]))
    if args.solved:
        reasons.append(solved_by(args.solved, run_dir=args.model.parents[1]))
    if args.target and target_reached(args.target[0], args.settings["target_kept"], args.answered):
        reasons.append(lambda _: "target_reached")
    return reasons


def first_reason(reasons: list[Callable[[Row], str | None]]) -> Callable[[Row], str | None] | None:
    """Return one function for several, or None where there is none."""
    return (lambda row: next(filter(None, (reason(row) for reason in reasons)), None)) if reasons else None


if __name__ == "__main__":
    args = parse_arguments(
        "rows",
        "model",
        "gold*",
        "summary*",
        "held-out*",
        "solved*",
        "target*",
        "round-before*",
        "env-file*",
        "answered",
        "failed",
        "not-asked",
        values=("answers-dir", "concurrency", "pace", "execute?", "routes?"),
    )
    with job(args.log, notes=True):
        main()
