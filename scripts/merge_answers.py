"""Rule merge_answers: merge the chunks of one model, and check that no row was lost or doubled."""

import dataclasses
import itertools
from pathlib import Path

from potstill.jobs import job
from potstill.stages.merge import ChunkFiles, MergedFiles, merge_answers

if __name__ == "__main__":
    with job(snakemake.log[0], notes=True):
        files = snakemake.input
        # Without a filter there are no rejected files.
        ends = itertools.zip_longest(files.kept, files.get("rejected", []), files.failed, files.not_asked)
        rounds = [ChunkFiles(*(path and Path(path) for path in paths)) for paths in ends]
        # All chunks of the first round, then all of the second …; a single round needs no prepared chunks.
        count = len(files.chunks) or len(rounds)
        merge_answers(
            [
                dataclasses.replace(first, later=rounds[number + count :: count], prepared=prepared and Path(prepared))
                for number, (first, prepared) in enumerate(itertools.zip_longest(rounds[:count], files.chunks))
            ],
            Path(files.summary),
            MergedFiles(**{name: Path(path) for name, path in snakemake.output.items()}),
            samples=snakemake.params.samples,
            duplicates=snakemake.params.duplicates,
            dialect=snakemake.params.dialect,
        )
