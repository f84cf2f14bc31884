"""Rule filter_answers: keep each row, or reject it with every reason."""

from pathlib import Path

from potstill.jobs import job
from potstill.stages.filter import filter_rows

if __name__ == "__main__":
    with job(snakemake.log[0]):
        filter_rows(
            Path(snakemake.input.rows),
            Path(snakemake.output.kept),
            Path(snakemake.output.rejected),
            settings=snakemake.params.filter,
        )
