"""Rule compare_students: write score_agreement.json."""

from pathlib import Path

from potstill.jobs import job
from potstill.student import write_agreement

if __name__ == "__main__":
    with job(snakemake.log[0]):
        # Three files each, merged, rejected and not asked, in the order of the students.
        files = [Path(path) for path in snakemake.input.students]
        students = {alias: files[3 * at : 3 * at + 3] for at, alias in enumerate(snakemake.params.students)}
        write_agreement(
            Path(snakemake.output.agreement),
            teacher=[Path(path) for path in snakemake.input.teacher],
            students=students,
            pass_score=snakemake.params.pass_score,
        )
