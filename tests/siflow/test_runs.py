"""Whole runs: Snakemake, the plugin and the simulator, each a real process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.siflow.rig import (
    ROOT,
    Controller,
    Simulator,
    arguments,
    chunks_snakefile,
    clean_env,
    expected_merge,
    run,
    workdir,
)

COUNT = 6
JOBS = 2 * COUNT + 1


def merged(folder: Path) -> str:
    """What the workflow made."""
    return (folder / "merged.txt").read_text()


def profile_command(url: str, *more: str) -> list[str]:
    """What a user types, with the shipped profile and a base URL."""
    base = [sys.executable, "-m", "snakemake", "--profile", str(ROOT / "profiles" / "siflow")]
    return [*base, "--siflow-base-url", url, "--siflow-poll-seconds", "0.5", *more]


def wait_for(what: object, seconds: float = 30) -> None:
    """Wait until something is so."""
    until = time.monotonic() + seconds
    while not what():  # type: ignore[operator]
        assert time.monotonic() < until, "it never came to be"
        time.sleep(0.05)


def test_shipped_profile_needs_only_keys_and_url(tmp_path: Path, simulator: Simulator) -> None:
    """With keys and base URL alone the shipped profile runs a workflow; the command line holds nothing else."""
    work = workdir(tmp_path / "work", chunks_snakefile(COUNT))
    controller = Controller(work, profile_command(simulator.url))
    assert controller.wait() == 0, controller.text()
    assert merged(work) == expected_merge(COUNT)
    assert len(simulator.tasks()) == JOBS


def test_labels_and_names(tmp_path: Path, simulator: Simulator) -> None:
    """Tasks have exactly the four labels, and run, key and attempt in their names."""
    work = workdir(tmp_path / "work", chunks_snakefile(2))
    assert run(work, simulator.url).process.returncode == 0
    for task in simulator.tasks():
        assert set(task["labels"]) == {"run", "key", "attempt", "rule"}
        parts = (task["labels"]["run"][:8], task["labels"]["key"], f"a{task['labels']['attempt']}")
        assert "-".join(parts) in task["name"]


def test_kill_and_the_same_command_again(tmp_path: Path, simulator: Simulator) -> None:
    """After a SIGKILL of the controller the same command takes the tasks over and creates only what is missing."""
    work = workdir(tmp_path / "work", chunks_snakefile(COUNT, seconds=3))
    controller = Controller(work, profile_command(simulator.url))
    wait_for(lambda: len(simulator.live()) == COUNT)
    controller.kill()
    again = Controller(work, profile_command(simulator.url))
    assert again.wait() == 0, again.text()
    assert merged(work) == expected_merge(COUNT)
    assert len(simulator.tasks()) == JOBS
    assert "took over" in again.text()


def test_a_clean_end_leaves_no_lock_and_no_secret(tmp_path: Path, simulator: Simulator) -> None:
    """After a clean end the folder is free, and no key is left in it."""
    work = workdir(tmp_path / "work", chunks_snakefile(1))
    assert run(work, simulator.url, env={"TOKEN": "value"}, secret_env=["TOKEN"]).process.returncode == 0
    assert not list((work / ".snakemake").glob("locks/*"))
    assert not list((work / ".snakemake/siflow").glob("*/secrets/*"))
    second = subprocess.run(
        [sys.executable, "-m", "snakemake", "--cores", "1", "--forceall"],
        cwd=work,
        env=clean_env(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert second.returncode == 0, second.stderr


def test_a_live_holder_is_respected(tmp_path: Path, simulator: Simulator) -> None:
    """While a controller lives, neither a second one nor a local run touches the folder, and the first goes on."""
    work = workdir(tmp_path / "work", chunks_snakefile(2, seconds=4))
    first = Controller(work, profile_command(simulator.url))
    wait_for(lambda: simulator.live())
    second = Controller(work, profile_command(simulator.url))
    assert second.wait() == 1
    assert "wait for it or stop it" in second.text()
    local = Controller(work, [sys.executable, "-m", "snakemake", "--cores", "1"])
    assert local.wait() == 1
    assert "LockException" in local.text()
    assert first.wait() == 0, first.text()


def test_a_local_run_is_respected(tmp_path: Path, simulator: Simulator) -> None:
    """While a local run works in the folder, nothing is sent, and its lock stays."""
    work = workdir(
        tmp_path / "work", "rule all:\n    output: 'x'\n    shell: 'while [ ! -e go ]; do sleep 0.1; done; touch x'\n"
    )
    local = Controller(work, [sys.executable, "-m", "snakemake", "--cores", "1"])
    wait_for(lambda: list((work / ".snakemake").glob("locks/*.lock")))
    controller = Controller(work, profile_command(simulator.url))
    assert controller.wait() == 1
    assert "LockException" in controller.text()
    assert list((work / ".snakemake").glob("locks/*.lock"))
    (work / "go").touch()
    assert local.wait() == 0
    assert simulator.tasks() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_stops_all_tasks(tmp_path: Path, simulator: Simulator, number: int) -> None:
    """Ctrl-C and SIGTERM stop every task within ten seconds."""
    work = workdir(tmp_path / "work", chunks_snakefile(COUNT, seconds=60))
    controller = Controller(work, arguments(simulator.url))
    wait_for(lambda: len(simulator.live()) == COUNT)
    os.kill(controller.process.pid, number)
    started = time.monotonic()
    assert controller.wait(30) != 0
    assert time.monotonic() - started < 12
    wait_for(lambda: not simulator.live())
    assert "all tasks are stopped" in controller.text()


def test_detach_leaves_the_tasks_to_the_next_start(tmp_path: Path, simulator: Simulator) -> None:
    """With `on-exit: detach` Ctrl-C leaves the tasks running, and the same command finishes the run."""
    work = workdir(tmp_path / "work", chunks_snakefile(3, seconds=4))
    command = arguments(simulator.url, on_exit="detach")
    controller = Controller(work, command)
    wait_for(lambda: len(simulator.live()) == 3)
    os.kill(controller.process.pid, signal.SIGINT)
    controller.wait(30)
    assert "go on without us" in controller.text()
    again = Controller(work, command)
    assert again.wait() == 0, again.text()
    assert len(simulator.tasks()) == 7


def test_failed_job_shows_the_end_of_its_log(tmp_path: Path, simulator: Simulator) -> None:
    """A failing job costs its attempts, and its log's end is in Snakemake's output, without the key."""
    snakefile = "rule all:\n    output: 'x'\n    shell: 'echo the reason; echo key $SECRET; exit 5'\n"
    work = workdir(tmp_path / "work", snakefile)
    controller = run(work, simulator.url, "--retries", "1", env={"SECRET": "very-secret-value"}, secret_env=["SECRET"])
    assert controller.process.returncode == 1
    assert "the reason" in controller.text()
    assert "very-secret-value" not in controller.text()
    assert len(simulator.tasks()) == 2


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--keep-incomplete", "half-written"),
        ("--immediate-submit", "no dependencies"),
        ("--shared-fs-usage=input-output", "must have persistence, sources"),
    ],
)
def test_dangerous_options_are_refused(tmp_path: Path, simulator: Simulator, flag: str, said: str) -> None:
    """Options with which outputs could be spoiled are refused at the start."""
    more = [flag, "--notemp"] if flag == "--immediate-submit" else [flag]
    controller = run(workdir(tmp_path / "work", chunks_snakefile(1)), simulator.url, *more)
    assert controller.process.returncode == 1
    assert said in controller.text()
    assert simulator.tasks() == []


def test_wrong_key_is_said_at_the_start(tmp_path: Path, simulator: Simulator) -> None:
    """A wrong access key ends the run before anything is sent."""
    work = workdir(tmp_path / "work", chunks_snakefile(1))
    controller = run(work, simulator.url, env={"SIFLOW_ACCESS_KEY_SECRET": "wrong"})
    assert controller.process.returncode == 1
    assert "refuses the access key" in controller.text()


def test_missing_key_names_the_variable(tmp_path: Path, simulator: Simulator) -> None:
    """Without an access key the message names the variable."""
    work = workdir(tmp_path / "work", chunks_snakefile(1))
    controller = run(work, simulator.url, env={"SIFLOW_ACCESS_KEY_ID": ""})
    assert controller.process.returncode == 1
    assert "SIFLOW_ACCESS_KEY_ID not set" in controller.text()


def test_resources_reach_the_body(tmp_path: Path, simulator: Simulator) -> None:
    """A rule's resources, threads and memory decide what its task asks for; a misspelled one is an error of the job."""
    snakefile = (
        "rule all:\n    input: 'a', 'b'\n"
        "rule a:\n    output: 'a'\n    resources: siflow_pool='gpu', siflow_priority='high'\n    shell: 'touch a'\n"
        "rule b:\n    output: 'b'\n    threads: 8\n    resources: mem_mb=9000\n    shell: 'touch b'\n"
        "rule c:\n    output: 'c'\n    resources: siflow_pol='x'\n    shell: 'touch c'\n"
    )
    work = workdir(tmp_path / "work", snakefile)
    assert run(work, simulator.url, instance_size="sci.c23-2:cpus=2,mem_mb=8000").process.returncode == 0
    bodies = [json.loads(json.loads(line)["body"]) for line in simulator.bodies().splitlines() if '"POST"' in line]
    made = {body["labels"]["rule"]: body for body in bodies}
    assert (made["a"]["resourcePool"], made["a"]["priority"]) == ("gpu", "high")
    assert made["b"]["instances"] == [{"name": "sci.c23-2", "countPerPod": 4}]
    wrong = run(work, simulator.url, "c")
    assert wrong.process.returncode == 1
    assert "did you mean siflow_pool" in wrong.text()


def test_command_in_the_body_holds_only_paths(tmp_path: Path, simulator: Simulator) -> None:
    """Neither configuration nor secret stands in what the platform is told."""
    work = workdir(tmp_path / "work", chunks_snakefile(1))
    env = {"TOKEN": "tok-en-value"}
    assert (
        run(work, simulator.url, "--config", "private=configvalue", env=env, secret_env=["TOKEN"]).process.returncode
        == 0
    )
    assert "tok-en-value" not in simulator.bodies()
    assert "configvalue" not in simulator.bodies()


def test_env_in_body_is_hidden_and_arrives(tmp_path: Path, simulator: Simulator) -> None:
    """On request a variable travels as hidden taskEnv, with a warning."""
    work = workdir(tmp_path / "work", "rule all:\n    output: 'x'\n    shell: 'printf \"%s\" \"$TOKEN\" > x'\n")
    value = 'it\'s "$HOME" \\'
    controller = run(work, simulator.url, env={"TOKEN": value}, env_in_body=["TOKEN"])
    assert controller.process.returncode == 0
    assert (work / "x").read_text() == value
    assert "the platform is told" in controller.text()


def test_the_simulator_may_restart(tmp_path: Path) -> None:
    """Tasks outlive the simulator, and a run goes on when it is back."""
    work = workdir(tmp_path / "work", chunks_snakefile(3, seconds=3))
    with Simulator(tmp_path / "platform") as platform:
        controller = Controller(work, arguments(platform.url))
        wait_for(lambda: len(platform.live()) == 3)
        platform.kill()
        time.sleep(2)
        platform.start()
        assert controller.wait() == 0, controller.text()
        assert len(platform.tasks()) == 7


def test_unclaimed_tasks_do_not_outlive_the_run(tmp_path: Path, simulator: Simulator) -> None:
    """A task of a killed controller that nobody wants any more is stopped at the end of the next run."""
    work = workdir(
        tmp_path / "work",
        "rule a:\n    output: 'a'\n    shell: 'sleep 60; touch a'\nrule b:\n    output: 'b'\n    shell: 'touch b'\n",
    )
    controller = Controller(work, arguments(simulator.url, "a"))
    wait_for(lambda: simulator.live())
    controller.kill()
    assert run(work, simulator.url, "b").process.returncode == 0
    wait_for(lambda: not simulator.live())


def test_profile_groups_the_cpu_stages() -> None:
    """The profile puts all CPU stages of a chunk into one task."""
    profile = yaml.safe_load((ROOT / "profiles" / "siflow" / "config.yaml").read_text())
    assert set(profile["groups"].values()) == {"cpu"}
    assert "generate_answers" not in profile["groups"]


def test_dry_run_costs_nothing(tmp_path: Path, simulator: Simulator) -> None:
    """A dry run with the profile calls nobody, and needs no key."""
    work = workdir(tmp_path / "work", chunks_snakefile(2))
    controller = Controller(work, profile_command(simulator.url, "-n"), SIFLOW_ACCESS_KEY_ID="")
    assert controller.wait() == 0, controller.text()
    assert simulator.history()["calls"] == []
