"""The DAG as a Snakemake user sees it: stages, targets, reuse of answers, config, modules."""

import json
from pathlib import Path

import pytest

from tests.workflow.runs import MODEL, ROOT, SNAKEMAKE, Run, run


def rules_of(output: str) -> dict[str, int]:
    """Return the job counts that a dry run prints."""
    table = output.rpartition("Job stats:")[2].partition("total")[0]
    return {
        line.split()[0]: int(line.split()[1])
        for line in table.splitlines()
        if len(line.split()) == 2 and line.split()[1].isdigit()
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of forty questions that went to its end; tests look at it and leave it as it is."""
    finished = Run(tmp_path_factory.mktemp("finished"))
    finished.snakemake()
    return finished


def test_every_row_ends_in_one_place_with_a_reason(finished: Run) -> None:
    """Right answers are merged in input order, wrong ones rejected with their reason, and the counts agree."""
    kept, rejected = finished.read("merged.jsonl"), finished.read("rejected.jsonl")
    assert [row["id"] for row in kept] == [str(number) for number in range(40) if number % 5 == number % 7]
    assert len(kept) + len(rejected) == 40
    assert {row["reject_reason"] for row in rejected} == {"gold_mismatch"}
    stats = json.loads((finished.results / "m/stats.json").read_text())
    assert (stats["prepared"], stats["kept"], stats["rejected"], stats["failed"]) == (40, len(kept), len(rejected), 0)


def test_a_second_run_has_nothing_to_do(finished: Run) -> None:
    """Snakemake says so itself."""
    assert "Nothing to be done" in finished.snakemake().stdout


def test_merged_files_hold_no_volatile_field(finished: Run) -> None:
    """Times and endpoints stand in timings.jsonl, by sample_id."""
    timings = {row["sample_id"]: row for row in finished.read("timings.jsonl")}
    for row in finished.read("merged.jsonl") + finished.read("rejected.jsonl"):
        assert not {"latency_s", "endpoint", "answered_at", "exec_s"} & row.keys()
        assert timings[row["sample_id"]]["latency_s"] > 0


def test_one_file_can_be_asked_for(tmp_path: Path) -> None:
    """A scored chunk as a target makes its chunk's stages only."""
    small = Run(tmp_path)
    counts = rules_of(small.snakemake("-n", "results/r/m/scored/0003.jsonl").stdout)
    assert (counts["generate_answers"], counts["score_answers"]) == (1, 1)
    assert "filter_answers" not in counts


def test_gold_can_be_audited_alone(tmp_path: Path) -> None:
    """The target audit_gold asks nothing, and its last lines say what was found and where, not where a page would be."""
    small = Run(tmp_path, rows=6)
    output = small.snakemake("audit_gold").stdout
    assert "gold audit: 6 rows, " in output
    assert "0 bad: results/r/gold_audit.json" in output
    assert "open first" not in output
    assert not (small.results / "m").exists()


def test_rows_that_were_not_asked_are_explained(tmp_path: Path) -> None:
    """Gold that cannot judge, with on_bad_gold: skip: no row is asked, and the run's last lines say why."""
    rows = [{"id": str(number), "question": f"q{number}", "gold_sql": "SELEC 1"} for number in range(3)]
    small = Run(tmp_path, rows=3, config={"execute": {"database": "db.sqlite", "on_bad_gold": "skip"}})
    small.write_rows(rows)
    assert "3 not asked (not asked: bad_gold 3)" in small.snakemake().stdout
    assert {row["not_asked_reason"] for row in small.read("not_asked.jsonl")} == {"bad_gold"}


@pytest.mark.parametrize(
    ("change", "gone"),
    [
        ({"execute": None, "filter": {}}, {"audit_gold", "clean_answers", "execute_answers", "score_answers"}),
        ({"score": None, "filter": {}}, {"score_answers"}),
        ({"filter": None}, {"filter_answers"}),
        ({"export": None}, {"export_dataset"}),
    ],
)
def test_a_stage_that_is_off_leaves_the_dag(tmp_path: Path, change: dict[str, object], gone: set[str]) -> None:
    """Switched off in the config, its rule is not there, and the run goes to its end without it."""
    small = Run(tmp_path, rows=6, config={"chunks": {"count": 2}, **change})
    assert not gone & rules_of(small.snakemake("-n").stdout).keys()
    small.snakemake()
    assert len(small.read("merged.jsonl")) + len(small.read("rejected.jsonl")) == 6


def test_answers_are_found_again_whatever_changes_around_them(tmp_path: Path) -> None:
    """Other chunks, another threshold, more rows, a changed prompt: only what is new is asked."""
    small = Run(tmp_path, rows=20, config={"chunks": {"count": 4}})
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    small.write_rows(rows[:15])
    small.snakemake()
    assert small.requests() == 15
    small.config["chunks"] = {"count": 7}
    small.write_config()
    small.snakemake()
    assert small.requests() == 0
    assert len(small.read("merged.jsonl")) + len(small.read("rejected.jsonl")) == 15
    small.config["filter"] = {"min_score": 0.5}
    small.write_config()
    small.snakemake()
    assert (small.requests(), len(small.read("merged.jsonl"))) == (0, 15)
    small.write_rows(rows)
    small.snakemake()
    assert small.requests() == 5
    assert len(small.read("merged.jsonl")) == 20


def test_chunks_by_rows_follow_the_length_of_the_input(tmp_path: Path) -> None:
    """`chunks.rows: 6` cuts twenty rows into four chunks of five, known before the DAG is built."""
    small = Run(tmp_path, rows=20, config={"chunks": {"rows": 6}})
    small.snakemake("results/r/prepared/summary.json")
    sizes = [len(path.read_text().splitlines()) for path in sorted((small.results / "prepared/chunks").iterdir())]
    assert sizes == [5, 5, 5, 5]


def test_a_failing_model_does_not_hurt_another(tmp_path: Path) -> None:
    """With --keep-going the second model's rows are merged although the first model's key is missing."""
    models = [{"alias": "bad", "config": "bad.yaml"}, {"alias": "m", "config": "model.yaml"}]
    small = Run(tmp_path, rows=8, config={"models": models, "chunks": {"count": 2}})
    small.write_model(
        "bad.yaml",
        {**MODEL, "client_config": {"base_url": "http://127.0.0.1:9/v1", "api_key_env": "NO_SUCH_KEY"}, "server": None},
    )
    done = small.snakemake("--keep-going", check=False)
    assert done.returncode == 1
    assert "NO_SUCH_KEY" in done.stdout
    assert len(small.read("merged.jsonl")) + len(small.read("rejected.jsonl")) == 8
    assert not (small.results / "bad/merged.jsonl").exists()


def test_a_mistake_in_the_config_is_one_line_without_a_traceback(tmp_path: Path) -> None:
    """The error of Snakemake holds file, key and the nearest key, and nothing of our insides."""
    small = Run(tmp_path, config={"filter": {"min_scor": 1}})
    done = small.snakemake("-n", check=False)
    assert done.returncode == 1
    assert "config config.yaml: filter.min_scor: unknown key; did you mean min_score?" in done.stdout
    assert "Traceback" not in done.stdout


def test_the_demos_config_does_not_leak_into_a_users_run(tmp_path: Path) -> None:
    """A config that names no `execute` runs nothing, though the demo's does."""
    small = Run(tmp_path, rows=4)
    small.config = {key: small.config[key] for key in ("run", "input", "prompt", "models")}
    small.write_config()
    counts = rules_of(small.snakemake("-n").stdout)
    assert "execute_answers" not in counts
    assert counts["generate_answers"] == 4


def test_config_on_the_command_line_alone_changes_the_demo() -> None:
    """`--config run=other` keeps the rest of the demo."""
    output = run([*SNAKEMAKE, "--snakefile", str(ROOT / "Snakefile"), "-n", "--config", "run=other"], ROOT).stdout
    assert "results/other/teacher/merged.jsonl" in output
    assert rules_of(output)["execute_answers"] == 4


def test_nested_values_on_the_command_line_have_their_type() -> None:
    """`--config chunks='{count: 7}'` is a number, though Snakemake leaves it as text."""
    command = [*SNAKEMAKE, "--snakefile", str(ROOT / "Snakefile"), "-n", "--config", "run=other", "chunks={count: 7}"]
    assert rules_of(run(command, ROOT).stdout)["execute_answers"] == 7


FOREIGN = """
configfile: "foreign.yaml"

module potstill:
    snakefile: "{root}/Snakefile"
    config: config["distillation"]
    {prefix}

use rule * from potstill as potstill_*

rule count:
    input: "{folder}results/r/m/merged.jsonl"
    output: "count.txt"
    default_target: True
    shell: "wc -l < {{input}} > {{output}}"
"""


@pytest.mark.parametrize("prefix", ["", "distilled"])
def test_a_foreign_snakefile_imports_the_module(tmp_path: Path, prefix: str) -> None:
    """From another folder, with a rule prefix, with and without a path prefix: dry run, then a real run."""
    small = Run(tmp_path, rows=8)
    folder = f"{prefix}/" if prefix else ""
    line = f'prefix: "{prefix}"' if prefix else ""
    (tmp_path / "Snakefile").write_text(FOREIGN.format(root=ROOT, prefix=line, folder=folder))
    (tmp_path / "foreign.yaml").write_text(json.dumps({"distillation": small.config}))
    assert "potstill_generate_answers" in run([*SNAKEMAKE, "-n"], tmp_path).stdout
    run([*SNAKEMAKE, "--cores", "2"], tmp_path)
    assert (tmp_path / "count.txt").read_text().strip() == "5"
    assert (tmp_path / folder / "results/r/m/merged.jsonl").is_file()


def test_graphs_lint_and_report_work(finished: Run) -> None:
    """`--dag`, `--rulegraph`, `--lint` and `--report` do what they do for any workflow."""
    assert "digraph" in finished.snakemake("--dag").stdout
    assert "digraph" in finished.snakemake("--rulegraph").stdout
    assert "good condition" in finished.snakemake("--lint").stdout
    finished.snakemake("--report", "report.html")
    assert (finished.folder / "report.html").stat().st_size > 100_000
