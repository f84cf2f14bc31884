"""Rule generate_answers: ask a teacher for the answers of one chunk."""

import contextlib
import json
from pathlib import Path

from potstill.config.model import load_model
from potstill.environment import load_env_file
from potstill.jobs import job, parse_arguments
from potstill.stages.audit_gold import GoldCheck
from potstill.stages.generate import generate_chunk, started
from potstill.stages.prepare import find_first_row


def main() -> None:
    """Ask, with what the command line says."""
    for path in args.env_file:
        load_env_file(path)
    pace = {key: float(value) for key, _, value in (item.partition("=") for item in args.pace.split(","))}
    execute = json.loads(args.execute)
    with contextlib.ExitStack() as scope:
        gold = scope.enter_context(GoldCheck(args.gold[0], settings=execute)) if execute else None
        model = scope.enter_context(started(load_model(args.model)))
        generate_chunk(
            args.rows,
            args.answered,
            args.failed,
            args.not_asked,
            model=model,
            settings={**args.settings, **pace},
            concurrency=int(args.concurrency),
            answers_dir=Path(args.answers_dir),
            first_row=find_first_row(args.summary[0], args.rows) if args.summary else 0,
            skip=gold and (lambda row: "bad_gold" if gold.skips(row) else None),
            # The jobs of a run share its budget.
            run_id=str(args.answered.parents[2]),
            share=1 / pace["parallel_jobs"],
        )


if __name__ == "__main__":
    args = parse_arguments(
        "rows",
        "model",
        "gold*",
        "summary*",
        "env-file*",
        "answered",
        "failed",
        "not-asked",
        values=("answers-dir", "concurrency", "pace", "execute"),
    )
    with job(args.log):
        main()
