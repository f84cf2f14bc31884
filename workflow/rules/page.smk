"""write_page, check_gates, enforce_gates: one page for the run, and the limits that the run must keep.

Read the reports and merged files of all models, and the summary of their cascade. check_gates writes its verdict and never fails: Snakemake deletes the
outputs of a job that fails, and the verdict must survive. enforce_gates fails.
"""


rule write_page:
    input:
        kept=expand(f"{RUN}/{{model}}/merged.jsonl", model=PLAN.models),
        rejected=expand(f"{RUN}/{{model}}/rejected.jsonl", model=PLAN.models),
        failed=expand(f"{RUN}/{{model}}/failed.jsonl", model=PLAN.models),
        not_asked=expand(f"{RUN}/{{model}}/not_asked.jsonl", model=PLAN.models),
        quality=expand(
            f"{RUN}/{{model}}/reports/quality_report.json", model=PLAN.models
        ),
        timing=expand(f"{RUN}/{{model}}/reports/timing_report.json", model=PLAN.models),
        cost=expand(f"{RUN}/{{model}}/reports/cost_report.json", model=PLAN.models),
        manifest=expand(f"{RUN}/{{model}}/reports/manifest.json", model=PLAN.models),
        cascade=f"{RUN}/cascade/summary.json" if PLAN.cascade else [],
        agreement=f"{RUN}/score_agreement.json" if PLAN.students else [],
        config=f"{RUN}/config.yaml",
        databases=[get_user_file(path) for path in PLAN.databases],
    output:
        page=report(
            f"{RUN}/report.html",
            caption="../report/page.rst",
            category="Run",
            labels={"shows": "page"},
        ),
        overview=report(
            f"{RUN}/panels/overview.html",
            caption="../report/overview.rst",
            category="Sections",
            labels={"shows": "overview"},
        ),
        thresholds=report(
            f"{RUN}/panels/thresholds.html",
            caption="../report/thresholds.rst",
            category="Sections",
            labels={"shows": "thresholds"},
        ),
        quality=report(
            f"{RUN}/panels/quality.html",
            caption="../report/quality.rst",
            category="Sections",
            labels={"shows": "quality"},
        ),
        time=report(
            f"{RUN}/panels/time.html",
            caption="../report/time.rst",
            category="Sections",
            labels={"shows": "time"},
        ),
        cost=report(
            f"{RUN}/panels/cost.html",
            caption="../report/cost.rst",
            category="Sections",
            labels={"shows": "cost"},
        ),
        errors=report(
            f"{RUN}/panels/errors.html",
            caption="../report/errors.rst",
            category="Sections",
            labels={"shows": "errors"},
        ),
    log:
        f"{RUN}/logs/write_page/write_page.log",
    benchmark:
        f"{RUN}/benchmarks/write_page/write_page.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=500,
    params:
        page_rows=PLAN.config["report"]["rows"],
        compare_with=PLAN.config["report"]["compare_with"],
    message:
        "Writing the page of the run"
    script:
        "../../scripts/write_page.py"


rule check_gates:
    input:
        quality=rules.write_page.input.quality,
        timing=rules.write_page.input.timing,
        cost=rules.write_page.input.cost,
        manifest=rules.write_page.input.manifest,
        cascade=rules.write_page.input.cascade,
        page=rules.write_page.output.page,
    output:
        gates=report(
            f"{RUN}/gates.json",
            caption="../report/gates.rst",
            category="Run",
            labels={"shows": "gates"},
        ),
    log:
        f"{RUN}/logs/check_gates/check_gates.log",
    benchmark:
        f"{RUN}/benchmarks/check_gates/check_gates.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=500,
    params:
        gates=PLAN.config["gates"],
    message:
        "Checking the gates"
    script:
        "../../scripts/check_gates.py"


rule enforce_gates:
    input:
        gates=rules.check_gates.output.gates,
    output:
        passed=f"{RUN}/gates.passed.json",
    log:
        f"{RUN}/logs/enforce_gates/enforce_gates.log",
    benchmark:
        f"{RUN}/benchmarks/enforce_gates/enforce_gates.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=500,
    message:
        "Enforcing the gates"
    script:
        "../../scripts/enforce_gates.py"
