"""Rule judge_answers: ask the judge about the rows of one chunk."""

from potstill.answers.place import opened_answers
from potstill.config.model import load_model
from potstill.environment import load_env_file
from potstill.jobs import job, parse_arguments
from potstill.stages.generate import started
from potstill.stages.judge import judge_rows


def main() -> None:
    """Judge, with what the command line says."""
    for path in args.env_file:
        load_env_file(path)
    model = load_model(args.model)
    with opened_answers(args.answers_dir, model.name) as answers_dir, started(model) as judge:
        judge_rows(
            args.rows,
            args.output,
            settings=args.settings,
            model=judge,
            concurrency=int(args.concurrency),
            answers_dir=answers_dir,
            run_id=f"judge {args.output.parent}",
        )


if __name__ == "__main__":
    args = parse_arguments("rows", "model", "output", "env-file*", values=("answers-dir", "concurrency"))
    with job(args.log, notes=True):
        main()
