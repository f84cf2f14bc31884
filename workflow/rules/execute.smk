"""execute_answers: each statement is run, read-only, and its result compared with gold's.

Reads cleaned rows and the gold audit (which stands for the databases too: it is made anew when one changes).
"""

if PLAN.has("execute"):

    rule execute_answers:
        input:
            rows=get_rows_before("execute"),
            gold=rules.audit_gold.output.audit,
            variants=PLAN.variants,
        output:
            rows=get_stage_file(PLAN.stage_output("execute")),
        log:
            f"{RUN}/logs/execute_answers/{{model}}/{{chunk}}.log",
        benchmark:
            f"{RUN}/benchmarks/execute_answers/{{model}}/{{chunk}}.tsv"
        wildcard_constraints:
            model=PLAN.round_pattern,
        priority: PLAN.priority
        conda:
            "../../environment.yml"
        threads: PLAN.workers
        resources:
            mem_mb=1000,
        params:
            settings=PLAN.settings("execute"),
        message:
            "Running the statements of chunk {wildcards.chunk} of {wildcards.model}"
        shell:
            '"$POTSTILL_PYTHON" "$POTSTILL_SCRIPTS"/execute_answers.py'
            " --rows {input.rows:q}"
            " --gold {input.gold:q}"
            " --variants {input.variants:q}"
            " --output {output.rows:q}"
            " --settings {params.settings:q}"
            " --log {log:q}"
