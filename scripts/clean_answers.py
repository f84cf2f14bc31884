"""Rule clean_answers: extract the statement from each answer."""

from potstill.jobs import job, parse_arguments
from potstill.stages.clean import clean_rows

if __name__ == "__main__":
    args = parse_arguments("rows", "output")
    with job(args.log, notes=True):
        clean_rows(args.rows, args.output, settings=args.settings)
