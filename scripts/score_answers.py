"""Rule score_answers: give each row its score."""

from pathlib import Path

from potstill.jobs import job
from potstill.stages.score import score_rows

if __name__ == "__main__":
    with job(snakemake.log[0]):
        score_rows(Path(snakemake.input.rows), Path(snakemake.output.rows), settings=snakemake.params.score)
