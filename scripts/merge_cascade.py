"""Rule merge_cascade: the best answer per row of models that form a cascade."""

from pathlib import Path

from potstill.jobs import job
from potstill.stages.cascade import CascadeModel, merge_cascade

if __name__ == "__main__":
    with job(snakemake.log[0]):
        files = snakemake.input
        models = zip(snakemake.params.models, files.kept, files.stats, files.cost, strict=True)
        merge_cascade(
            [CascadeModel(alias, *(Path(path) for path in paths)) for alias, *paths in models],
            [Path(path) for path in files.chunks],
            Path(snakemake.output.merged),
            Path(snakemake.output.summary),
        )
