"""export_dataset, export_cascade: the kept rows of one model, or the best ones of a cascade, as files that trainers load, in
splits that do not leak.

Reads merged and rejected rows (the latter for preference pairs) and, for a dataset's card, the manifest.
"""

from potstill.exports.layout import get_export_files, get_export_inputs

if PLAN.config["export"] is not None:

    rule export_dataset:
        input:
            kept=rules.merge_answers.output.kept,
            rejected=rules.merge_answers.output.rejected,
            manifest=rules.write_manifest.output.manifest,
            user_files=[
                get_user_file(path)
                for path in get_export_inputs(PLAN.config["export"])
            ],
        output:
            summary=f"{RUN}/{{model}}/export/summary.json",
            files=[
                f"{RUN}/{{model}}/export/{name}"
                for name in get_export_files(PLAN.config["export"])
                if name != "summary.json"
            ],
        log:
            f"{RUN}/logs/export_dataset/{{model}}.log",
        benchmark:
            f"{RUN}/benchmarks/export_dataset/{{model}}.tsv"
        conda:
            "../../environment.yml"
        threads: 1
        resources:
            mem_mb=600,
        params:
            export=PLAN.config["export"],
        message:
            "Exporting the kept rows of {wildcards.model}"
        script:
            "../../scripts/export_dataset.py"

    if PLAN.cascade:

        rule export_cascade:
            input:
                kept=f"{RUN}/cascade/merged.jsonl",
                rejected=expand(f"{RUN}/{{model}}/rejected.jsonl", model=PLAN.cascade),
                manifest=expand(
                    f"{RUN}/{{model}}/reports/manifest.json", model=PLAN.cascade
                ),
                user_files=rules.export_dataset.input.user_files,
            output:
                summary=f"{RUN}/cascade/export/summary.json",
                files=[
                    f"{RUN}/cascade/export/{name}"
                    for name in get_export_files(PLAN.config["export"])
                    if name != "summary.json"
                ],
            log:
                f"{RUN}/logs/export_cascade/export_cascade.log",
            benchmark:
                f"{RUN}/benchmarks/export_cascade/export_cascade.tsv"
            conda:
                "../../environment.yml"
            threads: 1
            resources:
                mem_mb=600,
            params:
                export=PLAN.config["export"],
            message:
                "Exporting the best answers of the cascade"
            script:
                "../../scripts/export_dataset.py"
