"""Rule write_page: one static page for the run, and its sections for `snakemake --report`."""

from pathlib import Path

import yaml

from potstill.jobs import job
from potstill.reports.compare import compare_runs
from potstill.reports.page import write_page

if __name__ == "__main__":
    with job(snakemake.log[0]):
        folders = [Path(path).parent for path in snakemake.input.kept]
        earlier = snakemake.params.compare_with
        write_page(
            Path(snakemake.output.page),
            model_folders=folders,
            config=yaml.safe_load(Path(snakemake.input.config).read_text()),
            page_rows=snakemake.params.page_rows,
            comparison=compare_runs(Path(earlier), folders[0].parent) if earlier else None,
            panels=Path(snakemake.output.overview).parent,
            cascade=Path(snakemake.input.cascade) if snakemake.input.cascade else None,
            agreement=Path(snakemake.input.agreement) if snakemake.input.agreement else None,
        )
