"""Rule merge_answers: merge the chunks of one model, and check that no row was lost or doubled."""

import itertools
from pathlib import Path

from potstill.jobs import job
from potstill.stages.merge import ChunkFiles, MergedFiles, merge_answers

if __name__ == "__main__":
    with job(snakemake.log[0]):
        files = snakemake.input
        # Without a filter there are no rejected files.
        chunks = itertools.zip_longest(files.kept, files.get("rejected", []), files.failed, files.not_asked)
        merge_answers(
            [ChunkFiles(*(path and Path(path) for path in paths)) for paths in chunks],
            Path(files.summary),
            MergedFiles(**{name: Path(path) for name, path in snakemake.output.items()}),
            samples=snakemake.params.samples,
            duplicates=snakemake.params.duplicates,
            dialect=snakemake.params.dialect,
        )
