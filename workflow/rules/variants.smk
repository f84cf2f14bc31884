"""make_variants: changed copies of each database, on which a match with gold must hold too.

Reads the prepared chunks (which name the databases) and the databases; the copies lie in prepared/variants, named by
content and seed, so that they are made once.
"""

if PLAN.has_variants:

    rule make_variants:
        input:
            chunks=get_prepared(),
            databases=[get_user_file(path) for path in PLAN.databases],
        output:
            variants=f"{RUN}/prepared/variants.json",
        log:
            f"{RUN}/logs/make_variants/make_variants.log",
        benchmark:
            f"{RUN}/benchmarks/make_variants/make_variants.tsv"
        conda:
            "../../environment.yml"
        threads: 1
        resources:
            mem_mb=1000,
        params:
            execute=PLAN.config["execute"],
        message:
            "Making {params.execute[variants]} changed copies of {input.databases}"
        script:
            "../../scripts/make_variants.py"
