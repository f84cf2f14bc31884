"""Rule score_answers: give each row its score."""

from potstill.jobs import job, parse_arguments
from potstill.stages.score import score_rows

if __name__ == "__main__":
    args = parse_arguments("rows", "output")
    with job(args.log, notes=True):
        score_rows(args.rows, args.output, settings=args.settings)
