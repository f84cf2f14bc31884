"""generate_answers: one chunk of rows -> the answers of one model.

Reads a prepared chunk and the model file; writes the answered, the failed and the not asked rows. Each answer is
durable in the answer store before it counts, so that a rerun asks only for what is missing. No `retries`: the
engine owns them.
"""

from potstill.workflow import to_parameter


rule generate_answers:
    input:
        rows=f"{RUN}/prepared/chunks/{{chunk}}{PLAN.ending}",
        model=(
            get_model_of_round
            if PLAN.config["rounds"]
            else f"{RUN}/{{model}}/model.yaml"
        ),
        # The audit comes first in any case: write_model waits for it.
        gold=PLAN.gold_audit if PLAN.skips_bad_gold else [],
        summary=PLAN.pilot_summary,
        held_out=get_held_out if PLAN.students else [],
        solved=get_solved_before if PLAN.cascade else [],
        target=get_target if PLAN.has_target else [],
        round_before=get_round_before if PLAN.config["rounds"] else [],
    output:
        answered=f"{RUN}/{{model}}/generated/{{chunk}}{PLAN.ending}",
        failed=f"{RUN}/{{model}}/generated/{{chunk}}.failed{PLAN.ending}",
        not_asked=f"{RUN}/{{model}}/generated/{{chunk}}.not_asked{PLAN.ending}",
    log:
        f"{RUN}/logs/generate_answers/{{model}}/{{chunk}}.log",
    benchmark:
        f"{RUN}/benchmarks/generate_answers/{{model}}/{{chunk}}.tsv"
    wildcard_constraints:
        model=PLAN.round_pattern,
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        **PLAN.job_limits,
        **PLAN.server_resources(),
        pace=PLAN.pace,
        mem_mb=300,
        # Requests in flight: `--resources requests_in_flight=120` limits the sum over parallel jobs.
        requests_in_flight=PLAN.config["generate"]["concurrency"],
    params:
        settings=(
            get_round_settings
            if PLAN.config["rounds"]
            else PLAN.settings("generate", without=PLAN.pace_keys)
        ),
        execute=PLAN.settings("execute") if PLAN.skips_bad_gold else [],
        routes=to_parameter(PLAN.routes) if PLAN.routes else [],
        answers_dir=PLAN.config["answers_dir"],
        env_file=PLAN.env_files,
    message:
        "Asking {wildcards.model} for the answers of chunk {wildcards.chunk}"
    shell:
        '"$POTSTILL_PYTHON" "$POTSTILL_SCRIPTS"/generate_answers.py'
        " --rows {input.rows:q}"
        " --model {input.model:q}"
        " --answered {output.answered:q}"
        " --failed {output.failed:q}"
        " --not-asked {output.not_asked:q}"
        " --settings {params.settings:q}"
        " --answers-dir {params.answers_dir:q}"
        " --concurrency {resources.requests_in_flight:q}"
        " --pace {resources.pace:q}"
        " --log {log:q}%s" % PLAN.generate_options


if PLAN.has_target:

    # From when on kept rows count for the target: this file is made anew when what decides about them changes.
    rule write_target:
        input:
            model=f"{RUN}/{{model}}/model.yaml",
            summary=f"{RUN}/prepared/summary.json",
            gold=PLAN.gold_audit,
        output:
            target=f"{RUN}/{{model}}/target.json",
        log:
            f"{RUN}/logs/write_target/{{model}}.log",
        benchmark:
            f"{RUN}/benchmarks/write_target/{{model}}.tsv"
        conda:
            "../../environment.yml"
        threads: 1
        resources:
            mem_mb=300,
        params:
            settings=PLAN.target_settings,
        message:
            "Noting what decides about the kept rows of {wildcards.model}"
        shell:
            "printf '%s\\n' {params.settings:q} > {output.target:q} 2> {log:q}"
