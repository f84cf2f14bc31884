"""Rule enforce_gates: a missed gate fails the run. The run's log is written here too, by the last job of a run."""

from pathlib import Path

from potstill.jobs import job
from potstill.reports.gates import enforce_gates
from potstill.reports.runlog import write_run_log

if __name__ == "__main__":
    try:
        with job(snakemake.log[0]):
            enforce_gates(Path(snakemake.input.gates), Path(snakemake.output.passed))
    finally:
        write_run_log(Path(snakemake.input.gates).parent / "logs")
