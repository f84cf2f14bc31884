"""merge_cascade: the best answer per row of models that form a cascade.

Reads the merged files of the cascade's models with their counts and costs, and the prepared chunks for their order.
"""

if PLAN.cascade:

    rule merge_cascade:
        input:
            kept=expand(f"{RUN}/{{model}}/merged.jsonl", model=PLAN.cascade),
            stats=expand(f"{RUN}/{{model}}/stats.json", model=PLAN.cascade),
            cost=expand(f"{RUN}/{{model}}/reports/cost_report.json", model=PLAN.cascade),
            chunks=get_prepared(),
        output:
            merged=f"{RUN}/cascade/merged.jsonl",
            summary=f"{RUN}/cascade/summary.json",
        log:
            f"{RUN}/logs/merge_cascade/merge_cascade.log",
        benchmark:
            f"{RUN}/benchmarks/merge_cascade/merge_cascade.tsv"
        conda:
            "../../environment.yml"
        threads: 1
        resources:
            mem_mb=300,
        params:
            models=PLAN.cascade,
        message:
            "Merging the best answers of the cascade"
        script:
            "../../scripts/merge_cascade.py"
