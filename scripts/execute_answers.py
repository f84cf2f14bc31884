"""Rule execute_answers: run each statement and compare its result with gold's."""

from potstill.jobs import job, parse_arguments
from potstill.stages.execute import execute_rows

if __name__ == "__main__":
    args = parse_arguments("rows", "gold", "variants*", "output")
    with job(args.log, notes=True):
        execute_rows(
            args.rows,
            args.output,
            settings=args.settings,
            gold_audit=args.gold,
            variants=args.variants[0] if args.variants else None,
        )
