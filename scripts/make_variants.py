"""Rule make_variants: make changed copies of each database."""

from pathlib import Path

from potstill.jobs import job
from potstill.stages.make_variants import make_variants

if __name__ == "__main__":
    with job(snakemake.log[0]):
        listed = Path(snakemake.output.variants)
        chunks = [Path(path) for path in snakemake.input.chunks]
        make_variants(chunks, listed.with_suffix(""), listed, settings=snakemake.params.execute)
