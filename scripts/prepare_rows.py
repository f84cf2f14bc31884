"""Rule prepare_rows: cut the input into chunks of rows with an identity and a conversation."""

from pathlib import Path

from potstill.jobs import job
from potstill.prompts import Prompt
from potstill.stages.prepare import Outputs, prepare_rows

if __name__ == "__main__":
    with job(snakemake.log[0], notes=True):
        templates = [Path(path) for path in snakemake.input.get("template", [])]
        prepare_rows(
            Outputs(
                chunks=[Path(path) for path in snakemake.output.chunks],
                rejected=Path(snakemake.output.rejected),
                duplicates=Path(snakemake.output.duplicates),
                summary=Path(snakemake.output.summary),
            ),
            inputs=snakemake.input.rows,
            input_settings=snakemake.params.input,
            settings=snakemake.params.prepare,
            prompt=Prompt(templates[0] if templates else None, **snakemake.params.prompt),
            routes=snakemake.params.routes,
            evidence=Path(snakemake.log[0]).with_name("rejected.jsonl"),
        )
