"""write_config, write_model: what a run was made with stands beside its results.

write_config writes the merged, validated config; write_model copies each model's file, from which generate_answers
reads, so that a change of the file is a change of its input.
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
        **PLAN.config_params,
    message:
        "Writing the config of this run"
    script:
        "../../scripts/write_config.py"


rule write_model:
    input:
        model=get_model_file,
        # No token is spent before the gold queries were audited: one edge per model, where one per job would cost the
        # DAG a twentieth of its time.
        gold=PLAN.gold_audit,
    output:
        model=f"{RUN}/{{model}}/model.yaml",
    log:
        f"{RUN}/logs/write_model/{{model}}.log",
    benchmark:
        f"{RUN}/benchmarks/write_model/{{model}}.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=300,
    message:
        "Writing the model file of {wildcards.model}"
    shell:
        "cp {input.model:q} {output.model:q} 2> {log:q}"
