"""Rule check_gates: the limits that the run must keep, against its reports."""

from pathlib import Path

from potstill.jobs import job
from potstill.reports.gates import check_gates

if __name__ == "__main__":
    with job(snakemake.log[0]):
        check_gates(
            Path(snakemake.output.gates),
            settings=snakemake.params.gates,
            quality_reports=[Path(path) for path in snakemake.input.quality],
            cost_reports=[Path(path) for path in snakemake.input.cost],
            cascade=Path(snakemake.input.cascade) if snakemake.input.cascade else None,
        )
