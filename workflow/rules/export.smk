"""export_dataset: the kept rows of one model as files that trainers load, in splits that do not leak.

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
