"""judge_answers: each row is shown to a judge model; adds judge_score, null where the judge fails.

Reads executed rows and the judge's model file. Its answers are in the answer store, as a teacher's are: a rerun asks
only for what is missing. No `retries`: the engine owns them.
"""

if PLAN.has("judge"):

    rule judge_answers:
        input:
            rows=get_rows_before("judge"),
            model=get_user_file(PLAN.config["judge"]["model"]),
            template=[
                get_user_file(path)
                for path in [PLAN.config["judge"]["template"]]
                if path
            ],
        output:
            rows=get_stage_file(PLAN.stage_output("judge")),
        log:
            f"{RUN}/logs/judge_answers/{{model}}/{{chunk}}.log",
        benchmark:
            f"{RUN}/benchmarks/judge_answers/{{model}}/{{chunk}}.tsv"
        wildcard_constraints:
            model=PLAN.round_pattern,
        priority: PLAN.priority
        conda:
            "../../environment.yml"
        threads: 1
        resources:
            mem_mb=300,
            requests_in_flight=PLAN.config["judge"]["concurrency"],
        params:
            settings=PLAN.settings("judge", without=["concurrency"]),
            answers_dir=PLAN.config["answers_dir"],
            env_file=PLAN.env_files,
        message:
            "Judging chunk {wildcards.chunk} of {wildcards.model}"
        shell:
            '"$POTSTILL_PYTHON" "$POTSTILL_SCRIPTS"/judge_answers.py'
            " --rows {input.rows:q}"
            " --model {input.model:q}"
            " --output {output.rows:q}"
            " --settings {params.settings:q}"
            " --answers-dir {params.answers_dir:q}"
            " --env-file {params.env_file:q}"
            " --concurrency {resources.requests_in_flight:q}"
            " --log {log:q}"
