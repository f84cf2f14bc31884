"""Rules export_dataset, export_cascade: write the kept rows of one model, or a cascade's best ones, as training files."""

from pathlib import Path

from potstill.jobs import job
from potstill.stages.export import export_dataset


def as_list(paths: str | list[str]) -> list[str]:
    """Return one path, or several, as a list."""
    return [paths] if isinstance(paths, str) else list(paths)


if __name__ == "__main__":
    with job(snakemake.log[0]):
        export_dataset(
            [Path(snakemake.input.kept)],
            [Path(path) for path in as_list(snakemake.input.rejected)],
            Path(snakemake.output.summary).parent,
            settings=snakemake.params.export,
            # Of a cascade the last model's: it rests on the others.
            manifest=Path(as_list(snakemake.input.manifest)[-1]),
        )
