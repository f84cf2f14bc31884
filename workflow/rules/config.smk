"""write_config: the merged, validated config stands beside the results.
"""


rule write_config:
    output:
        config=f"{RUN}/config.yaml",
    log:
        f"{RUN}/logs/write_config/write_config.log",
    benchmark:
        f"{RUN}/benchmarks/write_config/write_config.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=300,
    params:
        config=PLAN.config,
    message:
        "Writing the config of this run"
    script:
        "../../scripts/write_config.py"
