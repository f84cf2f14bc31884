"""write_stats: all counts of one model by name.

Reads the merged files; with rounds, the cost report too.
"""


rule write_stats:
    input:
        kept=rules.merge_answers.output.kept,
        rejected=rules.merge_answers.output.rejected,
        failed=rules.merge_answers.output.failed,
        not_asked=rules.merge_answers.output.not_asked,
        timings=rules.merge_answers.output.timings,
        summary=f"{RUN}/prepared/summary.json",
        # What each round has brought, and its cost.
        cost=(
            f"{RUN}/{{model}}/reports/cost_report.json"
            if PLAN.config["rounds"]
            else []
        ),
    output:
        stats=f"{RUN}/{{model}}/stats.json",
    log:
        f"{RUN}/logs/write_stats/{{model}}.log",
    benchmark:
        f"{RUN}/benchmarks/write_stats/{{model}}.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=300,
    params:
        samples=PLAN.config["generate"]["samples"],
    message:
        "Counting the rows of {wildcards.model}"
    script:
        "../../scripts/write_stats.py"
