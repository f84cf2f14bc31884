"""compare_students: how near the students' scores are to the teacher's, on the rows that both have.

Reads merged and rejected rows of the teacher and of each model with `role: student`.
"""

STUDENTS = [alias for alias, model in PLAN.models.items() if model["role"] == "student"]
TEACHER = next(
    (alias for alias, model in PLAN.models.items() if model["role"] != "student"), None
)

if STUDENTS:

    rule compare_students:
        input:
            teacher=expand(f"{RUN}/{TEACHER}/{{end}}.jsonl", end=["merged", "rejected"]),
            students=expand(
                f"{RUN}/{{student}}/{{end}}.jsonl",
                student=STUDENTS,
                end=["merged", "rejected", "not_asked"],
            ),
        output:
            agreement=f"{RUN}/score_agreement.json",
        log:
            f"{RUN}/logs/compare_students.log",
        benchmark:
            f"{RUN}/benchmarks/compare_students.tsv"
        conda:
            "../../environment.yml"
        threads: 1
        resources:
            mem_mb=600,
        params:
            students=STUDENTS,
            # What the filter keeps passes: with a judge's part in it, no score may be as high as gold's.
            pass_score=(PLAN.config["filter"] or {}).get("min_score")
            or (PLAN.config["score"]["gold"] if PLAN.has("score") else 1.0),
        message:
            "Comparing students with the teacher"
        script:
            "../../scripts/compare_students.py"
