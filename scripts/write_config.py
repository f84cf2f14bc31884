"""Rule write_config: put the merged, validated config beside the results."""

from pathlib import Path

import yaml

from potstill.jobs import job
from potstill.rows import publish

if __name__ == "__main__":
    with job(snakemake.log[0]), publish(Path(snakemake.output.config)) as out:
        sections = dict(snakemake.params.items())
        config = {**sections.pop("names"), **sections}
        out.write_line(yaml.safe_dump(config, sort_keys=False, allow_unicode=True).encode())
