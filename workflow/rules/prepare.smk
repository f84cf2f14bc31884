"""prepare_rows: input files -> N chunks of rows with sample_id and messages.

Reads the input and the prompt template; writes prepared/ of the run.
"""


rule prepare_rows:
    input:
        rows=[get_user_file(path) for path in PLAN.inputs],
        template=[get_user_file(path) for path in PLAN.templates],
    output:
        chunks=get_prepared(),
        rejected=f"{RUN}/prepared/rejected.jsonl",
        duplicates=f"{RUN}/prepared/duplicates.jsonl",
        summary=f"{RUN}/prepared/summary.json",
    log:
        f"{RUN}/logs/prepare_rows/prepare_rows.log",
    benchmark:
        f"{RUN}/benchmarks/prepare_rows/prepare_rows.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=500,
    params:
        input=PLAN.without(PLAN.config["input"], "path"),
        prepare=PLAN.config["prepare"],
        prompt=PLAN.without(PLAN.config["prompt"], "template"),
        routes=PLAN.routes,
    message:
        "Preparing rows from {input.rows}"
    script:
        "../../scripts/prepare_rows.py"
