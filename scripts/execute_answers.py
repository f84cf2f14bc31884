"""Rule execute_answers: run each statement and compare its result with gold's."""

from pathlib import Path

from potstill.jobs import job
from potstill.stages.execute import execute_rows

if __name__ == "__main__":
    with job(snakemake.log[0]):
        execute_rows(
            Path(snakemake.input.rows),
            Path(snakemake.output.rows),
            settings=snakemake.params.execute,
            gold_audit=Path(snakemake.input.gold),
        )
