"""write_quality_report, write_timing_report, write_cost_report, write_manifest: what came out of one model.

Read the merged files of the model, what stands beside them, and (for times) the benchmark files of its jobs, which are
no rule's outputs; write the JSON files in reports/.
"""


rule write_quality_report:
    input:
        kept=rules.merge_answers.output.kept,
        rejected=rules.merge_answers.output.rejected,
        failed=rules.merge_answers.output.failed,
        not_asked=rules.merge_answers.output.not_asked,
        timings=rules.merge_answers.output.timings,
        summary=f"{RUN}/prepared/summary.json",
        gold=f"{RUN}/gold_audit.json" if PLAN.has("execute") else [],
    output:
        report=f"{RUN}/{{model}}/reports/quality_report.json",
    log:
        f"{RUN}/logs/write_quality_report/{{model}}.log",
    benchmark:
        f"{RUN}/benchmarks/write_quality_report/{{model}}.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=500,
    params:
        samples=PLAN.config["generate"]["samples"],
        rounds=PLAN.config["rounds"],
        database_field=(
            PLAN.config["execute"]["database_field"] if PLAN.has("execute") else None
        ),
        require=PLAN.config["filter"]["require"] if PLAN.has("filter") else [],
    message:
        "Writing the quality report of {wildcards.model}"
    script:
        "../../scripts/write_quality_report.py"


rule write_timing_report:
    input:
        kept=rules.merge_answers.output.kept,
        rejected=rules.merge_answers.output.rejected,
        failed=rules.merge_answers.output.failed,
        not_asked=rules.merge_answers.output.not_asked,
        timings=rules.merge_answers.output.timings,
    output:
        report=f"{RUN}/{{model}}/reports/timing_report.json",
    log:
        f"{RUN}/logs/write_timing_report/{{model}}.log",
    benchmark:
        f"{RUN}/benchmarks/write_timing_report/{{model}}.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=500,
    params:
        chunks=PLAN.chunks,
        rounds=len(PLAN.rounds),
    message:
        "Writing the timing report of {wildcards.model}"
    script:
        "../../scripts/write_timing_report.py"


rule write_cost_report:
    input:
        kept=rules.merge_answers.output.kept,
        rejected=rules.merge_answers.output.rejected,
        failed=rules.merge_answers.output.failed,
        not_asked=rules.merge_answers.output.not_asked,
        timings=rules.merge_answers.output.timings,
        model=f"{RUN}/{{model}}/model.yaml",
    output:
        report=f"{RUN}/{{model}}/reports/cost_report.json",
    log:
        f"{RUN}/logs/write_cost_report/{{model}}.log",
    benchmark:
        f"{RUN}/benchmarks/write_cost_report/{{model}}.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=500,
    params:
        chunks=PLAN.chunks,
        rounds=PLAN.config["rounds"],
    message:
        "Writing the cost report of {wildcards.model}"
    script:
        "../../scripts/write_cost_report.py"


rule write_manifest:
    input:
        kept=rules.merge_answers.output.kept,
        rejected=rules.merge_answers.output.rejected,
        failed=rules.merge_answers.output.failed,
        not_asked=rules.merge_answers.output.not_asked,
        timings=rules.merge_answers.output.timings,
        stats=f"{RUN}/{{model}}/stats.json",
        summary=f"{RUN}/prepared/summary.json",
        gold=f"{RUN}/gold_audit.json" if PLAN.has("execute") else [],
        quality=rules.write_quality_report.output.report,
        timing=rules.write_timing_report.output.report,
        cost=rules.write_cost_report.output.report,
        config=f"{RUN}/config.yaml",
        model=f"{RUN}/{{model}}/model.yaml",
        rows=[get_user_file(path) for path in PLAN.inputs],
        templates=[get_user_file(path) for path in PLAN.templates],
        databases=[get_user_file(path) for path in PLAN.databases],
    output:
        manifest=f"{RUN}/{{model}}/reports/manifest.json",
    log:
        f"{RUN}/logs/write_manifest/{{model}}.log",
    benchmark:
        f"{RUN}/benchmarks/write_manifest/{{model}}.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=500,
    params:
        chunks=PLAN.chunks,
    message:
        "Writing the manifest of {wildcards.model}"
    script:
        "../../scripts/write_manifest.py"
