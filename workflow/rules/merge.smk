"""merge_answers: the chunks of one model, in all rounds, become one file for each outcome, in input order.

Reads the last stage's chunks and those of generate_answers; checks that no row was lost or doubled.
"""


rule merge_answers:
    input:
        kept=get_results(PLAN.kept_output),
        rejected=get_results(PLAN.rejected_output),
        failed=get_results(f"{RUN}/{{model}}/generated/{{chunk}}.failed{PLAN.ending}"),
        not_asked=get_results(
            f"{RUN}/{{model}}/generated/{{chunk}}.not_asked{PLAN.ending}"
        ),
        # The order of the rows, which several rounds do not tell.
        chunks=get_prepared() if len(PLAN.rounds) > 1 else [],
        summary=f"{RUN}/prepared/summary.json",
    output:
        kept=f"{RUN}/{{model}}/merged.jsonl",
        rejected=f"{RUN}/{{model}}/rejected.jsonl",
        failed=f"{RUN}/{{model}}/failed.jsonl",
        not_asked=f"{RUN}/{{model}}/not_asked.jsonl",
        timings=f"{RUN}/{{model}}/timings.jsonl",
    log:
        f"{RUN}/logs/merge_answers/{{model}}.log",
    benchmark:
        f"{RUN}/benchmarks/merge_answers/{{model}}.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=300,
    params:
        samples=PLAN.config["generate"]["samples"],
        duplicates=PLAN.config["filter"] and PLAN.config["filter"]["duplicates"],
        dialect=PLAN.dialect,
    message:
        "Merging the chunks of {wildcards.model}"
    script:
        "../../scripts/merge_answers.py"
