"""The demo through a real Slurm: the same bytes as on this machine, also after `scancel` and from a module."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.workflow.runs import ROOT, SNAKEMAKE, find_processes

pytest.importorskip(
    "snakemake_executor_plugin_slurm", reason="the package snakemake-executor-plugin-slurm is not installed"
)

SLURM = ROOT / "tests/servers/slurm.sh"

#: What an impatient test adds to the profile. A cluster without accounting knows its jobs by squeue only.
IMPATIENT = (
    "--profile",
    f"{ROOT}/profiles/slurm",
    "--slurm-status-command",
    "squeue",
    "--latency-wait",
    "5",
    "--seconds-between-status-checks",
    "1",
    "--slurm-init-seconds-before-status-checks",
    "1",
)

#: Up to here a run tells what matters; each further job would cost a cluster's half a minute.
TARGET = "results/demo/teacher/merged.jsonl"

#: A foreign workflow with a rule of its own; it imports ours under a prefix.
FOREIGN = """
configfile: "config.yaml"

module potstill:
    snakefile: "{snakefile}"
    config: config
    prefix: "distilled"

use rule * from potstill as potstill_*

rule train:
    default_target: True
    input: "distilled/results/demo/teacher/merged.jsonl"
    output: "trained.txt"
    shell: "wc -l < {{input}} > {{output}}"
"""


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment in which sbatch finds a Slurm of one node, which is gone at the end with all it made."""
    # Not below pytest's folder: the path of a socket has at most 107 bytes.
    started = subprocess.run([SLURM, "start"], text=True, capture_output=True, check=False)
    if started.returncode == 77:
        pytest.skip(started.stderr.strip())
    assert started.returncode == 0, started.stderr
    lines = [
        line.removeprefix("export ").replace("'", "").replace('"', "").split("=", 1)
        for line in started.stdout.splitlines()
    ]
    found = {name: os.path.expandvars(value) for name, value in lines}
    folder = Path(found["SLURM_CONF"]).parent
    try:
        yield {**os.environ, **found}
    finally:
        subprocess.run([SLURM, "stop", folder], check=True)
    assert not folder.exists()
    assert not find_processes(folder, lambda _: True)


def make_folder(folder: Path) -> Path:
    """Copy the demo's input and config into a folder of its own."""
    shutil.copytree(ROOT / "config", folder / "config")
    shutil.copy(ROOT / "config/config.yaml", folder / "config.yaml")
    return folder


def snakemake(folder: Path, *arguments: str, env: dict[str, str] | None = None, check: bool = True) -> str:
    """Run Snakemake to its end and return what it printed."""
    command = [*SNAKEMAKE, "--snakefile", str(ROOT / "Snakefile"), "--configfile", "config.yaml", *arguments]
    if "--snakefile" in arguments:
        del command[len(SNAKEMAKE) : len(SNAKEMAKE) + 4]
    done = subprocess.run(
        command, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env, check=False
    )
    assert not check or done.returncode == 0, done.stdout[-6000:]
    return done.stdout


def outcomes(results: Path) -> dict[str, bytes]:
    """Return the bytes of the model's outcomes."""
    return {name: (results / f"demo/teacher/{name}.jsonl").read_bytes() for name in ("merged", "rejected", "failed")}


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The outcomes of the demo without a cluster."""
    folder = make_folder(tmp_path_factory.mktemp("local"))
    snakemake(folder, "--cores", "2", TARGET)
    return outcomes(folder / "results")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_demo_on_slurm_is_the_demo(tmp_path: Path, slurm: dict[str, str], local: dict[str, bytes]) -> None:
    """All outcomes are byte for byte those of a local run, with two jobs per chunk and model."""
    folder = make_folder(tmp_path)
    output = snakemake(folder, *IMPATIENT, TARGET, env=slurm)
    assert outcomes(folder / "results") == local
    submitted = [line for line in output.splitlines() if "has been submitted with SLURM jobid" in line]
    of_chunks = [line for line in submitted if "group_cpu" in line or "rule_generate_answers" in line]
    assert len(of_chunks) == 8
    assert sum("group_cpu" in line for line in of_chunks) == 4
    assert "Nothing to be done" in snakemake(folder, *IMPATIENT, TARGET, env=slurm)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_after_scancel_the_same_command_goes_on(tmp_path: Path, slurm: dict[str, str], local: dict[str, bytes]) -> None:
    """A running job that somebody cancels fails the run when no retries are left; the same command ends it."""
    folder = make_folder(tmp_path)
    model = folder / "config/models/replay.yaml"
    model.write_text(model.read_text().replace("--answers", "--latency 2 --answers"))
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("concurrency: 30, batch_size: 30", "concurrency: 2, batch_size: 2"))
    command = [
        *SNAKEMAKE,
        "--snakefile",
        str(ROOT / "Snakefile"),
        "--configfile",
        "config.yaml",
        *IMPATIENT,
        "--retries",
        "0",
        TARGET,
    ]
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, env=slurm) as running,
    ):
        cancelled = cancel_one(running, folder, slurm)
        assert running.wait() == 1, (folder / "log").read_text()[-6000:]
    assert f"SLURM-job '{cancelled}' failed, SLURM status is: 'CANCELLED'" in (folder / "log").read_text()
    snakemake(folder, *IMPATIENT, "--retries", "0", TARGET, env=slurm)
    assert outcomes(folder / "results") == local


def cancel_one(running: "subprocess.Popen[bytes]", folder: Path, slurm: dict[str, str]) -> str:
    """Wait until the generate jobs have stored some answers and cancel one; return its number."""
    import time

    while running.poll() is None:
        jobs = subprocess.run(
            ["squeue", "--noheader", "--states=R", "--format=%A %k"],
            env=slurm,
            text=True,
            capture_output=True,
            check=True,
        )
        asking = [line.split()[0] for line in jobs.stdout.splitlines() if "rule_generate_answers" in line]
        stored = sum(path.read_bytes().count(b"\n") for path in (folder / "answers").rglob("*.jsonl"))
        if asking and stored >= 12:
            subprocess.run(["scancel", asking[0]], env=slurm, check=True)
            return asking[0]
        time.sleep(0.2)
    raise AssertionError((folder / "log").read_text()[-6000:])


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_foreign_workflow_imports_the_module_on_slurm(
    tmp_path: Path, slurm: dict[str, str], local: dict[str, bytes]
) -> None:
    """A Snakefile with a rule of its own runs our rules as jobs of Slurm below its prefix."""
    folder = make_folder(tmp_path)
    (folder / "Snakefile").write_text(FOREIGN.format(snakefile=ROOT / "Snakefile"))
    snakemake(folder, "--snakefile", "Snakefile", *IMPATIENT, env=slurm)
    assert (folder / "distilled/results/demo/teacher/merged.jsonl").read_bytes() == local["merged"]
    assert int((folder / "trained.txt").read_text()) == local["merged"].count(b"\n")
