"""After a kill, the same command goes on, and nothing that was answered is asked again."""

import random
import signal
import time
from pathlib import Path

import pytest

from tests.workflow.runs import Run, find_processes, kill


def is_job(command: str) -> bool:
    """Say whether a command line is that of a rule's script."""
    return "/scripts/" in command and ".py" in command and "snakemake -" not in command


def is_ours(command: str) -> bool:
    """Say whether a command line is Snakemake's, a script's or a server's."""
    return any(word in command for word in ("snakemake", "/scripts/", "potstill"))


def wait_for(condition: object, seconds: float = 20) -> None:
    """Wait until a condition holds."""
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The outcomes of a run that nobody killed."""
    calm = Run(tmp_path_factory.mktemp("calm"), rows=200)
    calm.snakemake()
    return calm.outcomes()


@pytest.mark.parametrize("seed", [1, 2])
def test_a_run_that_is_killed_at_random_ends_as_if_it_were_not(
    tmp_path: Path, undisturbed: dict[str, bytes], seed: int
) -> None:
    """Controller, script or everything, killed while jobs run; the final bytes are those of an undisturbed run."""
    chance = random.Random(seed)
    small = Run(tmp_path, rows=200, latency=0.2, config={"generate": {"concurrency": 4}})
    landed = 0
    for kind in ("controller", "script", "everything", "controller"):
        process = small.start()
        wait_for(lambda: find_processes(tmp_path, is_job))
        time.sleep(chance.uniform(0, 1.5))
        jobs = find_processes(tmp_path, is_job)
        landed += bool(jobs)
        kill({"controller": [process.pid], "script": jobs[:1], "everything": find_processes(tmp_path, is_ours)}[kind])
        process.wait(timeout=60)
        if kind != "script":
            wait_for(lambda: not find_processes(tmp_path, is_job), 5)
    assert landed >= 3, "the kills did not land while jobs ran"
    small.snakemake()
    assert small.outcomes() == undisturbed
    wait_for(lambda: not find_processes(tmp_path, is_ours), 15)


def test_local_jobs_die_with_their_controller(tmp_path: Path) -> None:
    """Half a second after a SIGKILL of Snakemake no script of it is left to spend money."""
    small = Run(tmp_path, rows=40, latency=1, config={"generate": {"concurrency": 1}})
    process = small.start()
    wait_for(lambda: any("generate_answers" in path.name for path in (tmp_path / "results").rglob("*")))
    wait_for(lambda: find_processes(tmp_path, is_job))
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_for(lambda: not find_processes(tmp_path, is_job), 3)
    wait_for(lambda: not find_processes(tmp_path, is_ours), 15)


def test_a_holder_that_lives_is_respected(tmp_path: Path) -> None:
    """A second Snakemake over the same files says who holds the folder, and stops; the first goes on."""
    small = Run(tmp_path, rows=40, latency=0.5, config={"generate": {"concurrency": 2}})
    first = small.start()
    wait_for(lambda: find_processes(tmp_path, is_job))
    second = small.snakemake(check=False)
    assert second.returncode == 1
    assert f"another run is working in this folder (process {first.pid} on" in second.stdout
    assert "cannot be locked" in second.stdout
    assert first.wait(timeout=120) == 0
    assert "Nothing to be done" in small.snakemake().stdout
