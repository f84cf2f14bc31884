"""Rule export_dataset: write the kept rows of one model as training files."""

from pathlib import Path

from potstill.jobs import job
from potstill.stages.export import export_dataset

if __name__ == "__main__":
    with job(snakemake.log[0]):
        export_dataset(
            [Path(snakemake.input.kept)],
            [Path(snakemake.input.rejected)],
            Path(snakemake.output.summary).parent,
            settings=snakemake.params.export,
            manifest=Path(snakemake.input.manifest),
        )
