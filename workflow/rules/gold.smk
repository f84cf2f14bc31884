"""audit_gold: every distinct gold query is run before a token is spent.

Reads all prepared chunks and the databases; writes gold_audit.jsonl, for which generate_answers waits and from
which execute_answers takes gold's results.
"""

if PLAN.has("execute"):

    rule audit_gold:
        input:
            chunks=get_prepared(),
            databases=[get_user_file(path) for path in PLAN.databases],
        output:
            audit=f"{RUN}/gold_audit.jsonl",
            summary=f"{RUN}/gold_audit.json",
        log:
            f"{RUN}/logs/audit_gold/audit_gold.log",
        benchmark:
            f"{RUN}/benchmarks/audit_gold/audit_gold.tsv"
        conda:
            "../../environment.yml"
        threads: PLAN.workers
        resources:
            mem_mb=1000,
        params:
            execute=PLAN.config["execute"],
        message:
            "Auditing the gold queries of {input.databases}"
        script:
            "../../scripts/audit_gold.py"
