"""Rule audit_gold: run every distinct gold query before a token is spent."""

from pathlib import Path

from potstill.jobs import job
from potstill.stages.audit_gold import audit_gold

if __name__ == "__main__":
    with job(snakemake.log[0]):
        audit_gold(
            [Path(path) for path in snakemake.input.chunks],
            Path(snakemake.output.audit),
            Path(snakemake.output.summary),
            settings=snakemake.params.execute,
        )
