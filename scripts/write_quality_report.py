"""Rule write_quality_report: what became of every row of one model."""

from pathlib import Path

from potstill.jobs import job
from potstill.reports.files import ModelFiles
from potstill.reports.quality import write_quality_report

if __name__ == "__main__":
    with job(snakemake.log[0]):
        files = snakemake.input
        write_quality_report(
            Path(snakemake.output.report),
            model=snakemake.wildcards.model,
            files=ModelFiles(*(Path(files[name]) for name in ModelFiles._fields)),
            summary=Path(files.summary),
            samples=snakemake.params.samples,
            database_field=snakemake.params.database_field,
            require=snakemake.params.require,
            rounds=snakemake.params.rounds,
            gold_audit=Path(files.gold) if files.gold else None,
        )
