"""What all rules have in common - the plan of the run (config, chunks, models, paths) and a few helpers.

Everything that can be tested without Snakemake is in `potstill.workflow`; the names here carry it to the rules.
"""

import gc
import sys

from snakemake.exceptions import WorkflowError

from potstill.errors import PotstillError
from potstill.processes import announce_controller, announce_interpreter
from potstill.workflow import (
    RATE_LIMITED,
    describe_results,
    enter_folder,
    lift_job_rate,
    plan_run,
    refuse_keep_incomplete,
    write_log,
)

# A DAG is a graph of many objects that live to the end: looking through it for garbage while it is built is in vain.
gc.set_threshold(200_000, 20, 100)
if workflow.modifier.is_main_snakefile():
    # Until `onstart`, of which a module has none.
    gc.disable()
    # Snakemake imports pandas where it can, to compare params that are tables: 70 MB and a second, and no param is one.
    sys.modules.setdefault("pandas", None)

try:
    PLAN = plan_run(config, workflow.configfiles, workflow.config_settings.config)
except PotstillError as error:
    raise WorkflowError(str(error)) from None

announce_controller()
announce_interpreter()
if workflow.is_main_process:
    enter_folder(PLAN, sys.argv[1:])

RUN = PLAN.folder

# With a rate limit, no more jobs ask at once than share it.
if PLAN.job_limits:
    workflow.global_resources.setdefault(
        RATE_LIMITED, PLAN.config["generate"]["parallel_jobs"]
    )


wildcard_constraints:
    model=PLAN.model_pattern,
    chunk=r"\d\d\d\d+",  # no braces: expand() would take them for wildcards


def get_user_file(path):
    """A file of the user's: a module's `prefix:` must not move it."""
    return local(str(path))


def get_model_file(wildcards):
    # Every chunk needs this file, and an input function is called while the DAG is built: the first moment at which
    # Snakemake's settings are known, from the command line and profiles alike, and before any job runs.
    try:
        # No settings, no run: `--summary`, `--dag`.
        settings = workflow.execution_settings
        refuse_keep_incomplete(settings is not None and settings.keep_incomplete)
        lift_job_rate(workflow.scheduling_settings)
    except PotstillError as error:
        raise WorkflowError(str(error)) from None
    return get_user_file(PLAN.models[wildcards.model]["config"])


def get_rows_before(stage):
    """The rows that a stage reads, as an output of another rule, for which the DAG need not search."""
    before = PLAN.stage_before(stage)
    output = getattr(rules, f"{before}_answers").output
    return output.answered if before == "generate" else output.rows


def get_held_out(wildcards):
    """The splits of the teacher's export, of which a student answers the held-out rows."""
    if PLAN.split_round(wildcards.model)[0] in PLAN.students:
        return f"{RUN}/{PLAN.teacher}/export/splits.jsonl"
    return []


def get_solved_before(wildcards):
    """The same chunk's rows that earlier models of the cascade have solved."""
    return PLAN.solved_before(PLAN.split_round(wildcards.model)[0], wildcards.chunk)


def get_model_of_round(wildcards):
    return f"{RUN}/{PLAN.split_round(wildcards.model)[0]}/model.yaml"


def get_target(wildcards):
    return f"{RUN}/{PLAN.split_round(wildcards.model)[0]}/target.json"


def get_round_before(wildcards):
    """What became of the same chunk's rows in the round before."""
    return PLAN.round_before(wildcards.model, wildcards.chunk)


def get_round_settings(wildcards):
    return PLAN.round_settings(wildcards.model)


def get_chunks(pattern):
    """A pattern with {chunk} filled in for every chunk, {model} left open."""
    return expand(pattern, chunk=PLAN.chunks, allow_missing=True)


def get_prepared():
    """The prepared chunks, as plain paths: as an output of `prepare_rows` each would be looked up in its whole list."""
    return get_chunks(f"{RUN}/prepared/chunks/{{chunk}}{PLAN.ending}")


def get_stage_file(path):
    """An output that is removed, unless the config keeps it, when all jobs that need it are done."""
    return path if PLAN.keeps_stages else temp(path)


def get_filtered_file(path):
    return path if PLAN.keeps_filtered else temp(path)


def get_results(patterns):
    """Patterns with {chunk} filled in for every chunk of every round, {model} left open."""
    return [
        path for pattern in PLAN.in_rounds(patterns) for path in get_chunks(pattern)
    ]
