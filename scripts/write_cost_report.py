"""Rule write_cost_report: tokens by kind, and money by the model file's prices."""

from pathlib import Path

from potstill.config.model import load_model
from potstill.jobs import job
from potstill.reports.cost import write_cost_report
from potstill.reports.files import ModelFiles, round_folders

if __name__ == "__main__":
    with job(snakemake.log[0]):
        model, rounds = snakemake.wildcards.model, snakemake.params.rounds
        logs = Path(snakemake.input.kept).parent.parent / "logs" / "generate_answers" / model
        write_cost_report(
            Path(snakemake.output.report),
            model=model,
            files=ModelFiles(*(Path(snakemake.input[name]) for name in ModelFiles._fields)),
            prices=load_model(Path(snakemake.input.model)).prices,
            logs=[
                folder / f"{chunk}.log"
                for folder in round_folders(logs, rounds["max"] if rounds else 1)
                for chunk in snakemake.params.chunks
            ],
            rounds=rounds,
        )
