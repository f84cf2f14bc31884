"""`potstill init`."""

from __future__ import annotations

import argparse
from pathlib import Path

from potstill.config.locate import workflow_root
from potstill.errors import InputError

_SNAKEFILE = """\
# Your own run of potstill. Add rules of your own below: they can read what potstill makes.
configfile: "config.yaml"


module potstill:
    snakefile:
        "{workflow}/Snakefile"
    config:
        config


use rule * from potstill as potstill_*


rule all:
    input:
        rules.potstill_all.input,
    default_target: True
"""

_CONFIG = """\
# Every key is explained in {workflow}/config/README.md; what is left out has its default.
run: first
input:
  path: rows.jsonl            # one JSON object a line; also .jsonl.gz, .jsonl.zst, .csv, .parquet, a glob or a list
chunks: {{count: 4}}
prompt:
  template: prompt.jinja      # rendered with each row's fields
  # system: Be brief.
models:
  - {{alias: teacher, config: model.yaml}}
generate:
  concurrency: 30             # requests in flight per job
  # max_rows: 20              # a pilot: its answers are not paid for again
# For SQL, uncomment these: each answer is run, read-only, and compared with the row's gold query.
# execute: {{database_dir: databases, database_field: db_id, gold_field: gold_sql}}
# filter: {{min_score: 1.0}}
"""

_MODEL = """\
# Any OpenAI-compatible server. More examples: {workflow}/config/models/
client_config:
  base_url: http://127.0.0.1:8000/v1
  api_key: EMPTY              # a real key: api_key_env: NAME_OF_A_VARIABLE, or api_key_file: PATH
  timeout: 600
  max_retries: 3
chat_config:
  model: my-model
  temperature: 0.7
  max_tokens: 1024
"""

_PROMPT = "{{ question }}\n"
_ROWS = '{"question": "What is a pot still?"}\n{"question": "How does it differ from a column still?"}\n'

_PROFILE = """\
# snakemake --profile profile
cores: all
keep-going: true              # one failing model does not stop another
show-failed-logs: true
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `potstill init`."""
    parser.add_argument(
        "folder", type=Path, metavar="DIR", help="the folder to make; files that exist are never touched"
    )


def run(args: argparse.Namespace) -> int:
    """Write the files, and say what to do next.

    Raises:
        InputError: If one of them exists, or cannot be written.
    """
    workflow = workflow_root()
    files = {
        "Snakefile": _SNAKEFILE.format(workflow=workflow),
        "config.yaml": _CONFIG.format(workflow=workflow),
        "model.yaml": _MODEL.format(workflow=workflow),
        "prompt.jinja": _PROMPT,
        "rows.jsonl": _ROWS,
        "profile/config.yaml": _PROFILE,
    }
    existing = [name for name in files if (args.folder / name).exists()]
    if existing:
        raise InputError(f"{args.folder}: {existing[0]} is there already; nothing was written. Name another folder")
    for name, text in files.items():
        path = args.folder / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        except OSError as error:
            raise InputError(f"{path}: cannot be written: {error.strerror}") from error
    print(
        f"wrote {', '.join(files)} to {args.folder}\n"
        f"  1. put your rows into rows.jsonl, your prompt into prompt.jinja, your teacher into model.yaml\n"
        f"  2. cd {args.folder} && potstill preview config.yaml\n"
        f"  3. snakemake --profile profile -n     then without -n"
    )
    return 0
