"""Rule write_stats: count the rows of one model."""

from pathlib import Path

from potstill.jobs import job
from potstill.stages.stats import write_stats

if __name__ == "__main__":
    with job(snakemake.log[0]):
        files = {name: Path(path) for name, path in snakemake.input.items() if path}
        write_stats(
            files,
            Path(snakemake.output.stats),
            model=snakemake.wildcards.model,
            samples=snakemake.params.samples,
        )
