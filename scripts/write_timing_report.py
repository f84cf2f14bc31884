"""Rule write_timing_report: how long stages, teacher and SQL took."""

from pathlib import Path

from potstill.jobs import job
from potstill.reports.files import ModelFiles
from potstill.reports.timing import model_benchmarks, write_timing_report

if __name__ == "__main__":
    with job(snakemake.log[0]):
        model = snakemake.wildcards.model
        # The merged files tell where the run lies: a module's prefix moves them, but no parameter.
        run_dir = Path(snakemake.input.kept).parent.parent
        write_timing_report(
            Path(snakemake.output.report),
            model=model,
            files=ModelFiles(*(Path(snakemake.input[name]) for name in ModelFiles._fields)),
            benchmarks=model_benchmarks(run_dir, model, snakemake.params.chunks, snakemake.params.rounds),
        )
