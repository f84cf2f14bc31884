"""score_answers: each row gets its score.

Reads executed rows; adds score.
"""

if PLAN.has("score"):

    rule score_answers:
        input:
            rows=get_rows_before("score"),
        output:
            rows=get_stage_file(PLAN.stage_output("score")),
        log:
            f"{RUN}/logs/score_answers/{{model}}/{{chunk}}.log",
        benchmark:
            f"{RUN}/benchmarks/score_answers/{{model}}/{{chunk}}.tsv"
        wildcard_constraints:
            model=PLAN.round_pattern,
        priority: PLAN.priority
        conda:
            "../../environment.yml"
        threads: 1
        resources:
            mem_mb=300,
        params:
            settings=PLAN.settings("score"),
        message:
            "Scoring chunk {wildcards.chunk} of {wildcards.model}"
        shell:
            '"$POTSTILL_PYTHON" "$POTSTILL_SCRIPTS"/score_answers.py'
            " --rows {input.rows:q}"
            " --output {output.rows:q}"
            " --settings {params.settings:q}"
            " --log {log:q}"
