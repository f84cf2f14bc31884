"""Rule write_config: put the merged, validated config beside the results."""

from pathlib import Path

import yaml

from potstill.jobs import job
from potstill.rows import publish

if __name__ == "__main__":
    with job(snakemake.log[0]), publish(Path(snakemake.output.config)) as out:
        text = yaml.safe_dump(dict(snakemake.params.items()), sort_keys=False, allow_unicode=True)
        out.write_line(text.encode())
