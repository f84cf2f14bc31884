"""generate_answers: one chunk of rows -> the answers of one model.

Reads a prepared chunk and the model file; writes the answered, the failed and the not asked rows. Each answer is
durable in the answer store before it counts, so that a rerun asks only for what is missing. No `retries`: the
engine owns them.
"""


rule generate_answers:
    input:
        rows=f"{RUN}/prepared/chunks/{{chunk}}.jsonl",
        summary=rules.prepare_rows.output.summary,
        model=get_model_file,
        gold=rules.audit_gold.output.audit if PLAN.has("execute") else [],
    output:
        answered=f"{RUN}/{{model}}/generated/{{chunk}}.jsonl",
        failed=f"{RUN}/{{model}}/generated/{{chunk}}.failed.jsonl",
        not_asked=f"{RUN}/{{model}}/generated/{{chunk}}.not_asked.jsonl",
    log:
        f"{RUN}/logs/generate_answers/{{model}}/{{chunk}}.log",
    benchmark:
        f"{RUN}/benchmarks/generate_answers/{{model}}/{{chunk}}.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=300,
        # Requests in flight: `--resources requests_in_flight=120` limits the sum over parallel jobs.
        requests_in_flight=PLAN.config["generate"]["concurrency"],
        #**PLAN.server_resources(),
    params:
        generate=PLAN.without(PLAN.config["generate"], "concurrency", "batch_size"),
        answers_dir=PLAN.config["answers_dir"],
        env_file=PLAN.config["environment"]["env_file"],
    message:
        "Asking {wildcards.model} for the answers of chunk {wildcards.chunk}"
    script:
        "../../scripts/generate_answers.py"
