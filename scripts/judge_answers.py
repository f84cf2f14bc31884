"""Rule judge_answers: ask the judge about the rows of one chunk."""

from pathlib import Path

from potstill.config.model import load_model
from potstill.jobs import job
from potstill.stages.generate import started
from potstill.stages.judge import judge_rows

if __name__ == "__main__":
    # What generate_answers does with `environment.env_file` belongs here too.
    with job(snakemake.log[0]), started(load_model(Path(snakemake.input.model))) as judge:
        judge_rows(
            Path(snakemake.input.rows),
            Path(snakemake.output.rows),
            settings=snakemake.params.judge,
            model=judge,
            concurrency=snakemake.resources.requests_in_flight,
            answers_dir=Path(snakemake.params.answers_dir),
            run_id=f"judge {Path(snakemake.output.rows).parent}",
        )
