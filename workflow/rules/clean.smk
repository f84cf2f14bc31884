"""clean_answers: the statement is extracted from each answer.

Reads answered rows; adds sql, clean_method, clean_note.
"""

if PLAN.has("clean"):

    rule clean_answers:
        input:
            rows=get_rows_before("clean"),
        output:
            rows=get_stage_file(PLAN.stage_output("clean")),
        log:
            f"{RUN}/logs/clean_answers/{{model}}/{{chunk}}.log",
        benchmark:
            f"{RUN}/benchmarks/clean_answers/{{model}}/{{chunk}}.tsv"
        wildcard_constraints:
            model=PLAN.round_pattern,
        priority: PLAN.priority
        conda:
            "../../environment.yml"
        threads: 1
        resources:
            mem_mb=300,
        params:
            settings=PLAN.settings("clean"),
        message:
            "Extracting statements from chunk {wildcards.chunk} of {wildcards.model}"
        shell:
            '"$POTSTILL_PYTHON" "$POTSTILL_SCRIPTS"/clean_answers.py'
            " --rows {input.rows:q}"
            " --output {output.rows:q}"
            " --settings {params.settings:q}"
            " --log {log:q}"
