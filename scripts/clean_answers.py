"""Rule clean_answers: extract the statement from each answer."""

from pathlib import Path

from potstill.jobs import job
from potstill.stages.clean import clean_rows

if __name__ == "__main__":
    with job(snakemake.log[0]):
        clean_rows(Path(snakemake.input.rows), Path(snakemake.output.rows), settings=snakemake.params.clean)
