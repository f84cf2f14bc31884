"""Rule write_manifest: what the results of one model were made from, and what they are, by hash."""

from pathlib import Path

import yaml

from potstill.config.locate import workflow_root
from potstill.jobs import job
from potstill.reports.files import read_json
from potstill.reports.manifest import find_stage_files, write_manifest

if __name__ == "__main__":
    with job(snakemake.log[0]):
        files, model = snakemake.input, snakemake.wildcards.model
        run_dir = Path(files.kept).parent.parent
        config = yaml.safe_load(Path(files.config).read_text())
        named = ["quality", "timing", "cost", "stats", "summary", *(["gold"] if files.gold else [])]
        write_manifest(
            Path(snakemake.output.manifest),
            model=model,
            run_dir=run_dir,
            stages=find_stage_files(run_dir, model, snakemake.params.chunks, config),
            reports=[Path(files[name]) for name in named],
            sources={
                "inputs": [Path(path) for path in files.rows],
                "prompts": [Path(path) for path in files.templates],
                "databases": [Path(path) for path in files.databases],
                "model_files": [Path(files.model)],
            },
            config=config,
            prices=read_json(Path(files.cost))["prices"],
            workflow_dir=workflow_root(),
        )
