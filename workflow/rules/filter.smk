"""filter_answers: each row is kept, or rejected with every reason.

Reads the rows of the last stage that is on; adds keep, reject_reasons, reject_reason.
"""

if PLAN.has("filter"):

    rule filter_answers:
        input:
            rows=get_rows_before("filter"),
        output:
            kept=get_filtered_file(PLAN.kept_output),
            rejected=get_filtered_file(*PLAN.rejected_output),
        log:
            f"{RUN}/logs/filter_answers/{{model}}/{{chunk}}.log",
        benchmark:
            f"{RUN}/benchmarks/filter_answers/{{model}}/{{chunk}}.tsv"
        wildcard_constraints:
            model=PLAN.round_pattern,
        priority: PLAN.priority
        conda:
            "../../environment.yml"
        threads: 1
        resources:
            mem_mb=300,
        params:
            settings=PLAN.settings("filter"),
        message:
            "Filtering chunk {wildcards.chunk} of {wildcards.model}"
        shell:
            '"$POTSTILL_PYTHON" "$POTSTILL_SCRIPTS"/filter_answers.py'
            " --rows {input.rows:q}"
            " --kept {output.kept:q}"
            " --rejected {output.rejected:q}"
            " --settings {params.settings:q}"
            " --log {log:q}"
