"""Rule filter_answers: keep each row, or reject it with every reason."""

from potstill.jobs import job, parse_arguments
from potstill.stages.filter import filter_rows

if __name__ == "__main__":
    args = parse_arguments("rows", "kept", "rejected")
    with job(args.log, notes=True):
        filter_rows(args.rows, args.kept, args.rejected, settings=args.settings)
