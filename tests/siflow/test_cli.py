"""`snakemake-siflow` against the simulator."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from snakemake_executor_plugin_siflow.cli import main
from tests.siflow.rig import KEYS, ROOT, Controller, Simulator, arguments, chunks_snakefile, run, workdir

PROFILE = ["--profile", str(ROOT / "profiles" / "siflow")]


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def test_check(simulator: Simulator, capsys: pytest.CaptureFixture[str]) -> None:
    """With the shipped profile and a base URL every point of the check is good, and nothing is left in the folder."""
    assert main(["check", *PROFILE, "--siflow-base-url", simulator.url]) == 0
    shown = capsys.readouterr().out
    assert all(
        f"ok   {what}" in shown
        for what in ("credentials", "settings", "create", "task", "volume", "snakemake", "plugin")
    )
    assert len(simulator.tasks()) == 1
    assert not list(Path.cwd().glob(".snakemake/siflow/*check*"))


def test_check_finds_a_task_that_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An image that cannot be pulled, and a volume that the task does not see, are findings and exit status 1."""
    with Simulator(tmp_path / "platform", image_pull=1) as platform:
        assert main(["check", *PROFILE, "--siflow-base-url", platform.url]) == 1
    shown = capsys.readouterr().out
    assert "FAIL task: ended as Failed ImagePullBackOff" in shown
    assert "FAIL volume" in shown


def test_check_with_wrong_key(
    simulator: Simulator, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refused key is one line, not a traceback."""
    monkeypatch.setenv("SIFLOW_ACCESS_KEY_SECRET", "wrong")
    assert main(["check", *PROFILE, "--siflow-base-url", simulator.url]) == 1
    assert "FAIL Unauthorized" in capsys.readouterr().out


def test_unknown_run(simulator: Simulator, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a run in the folder the user is asked for one."""
    assert main(["ps", "--siflow-base-url", simulator.url]) == 1
    assert "give --run ID" in capsys.readouterr().err


def test_ps_and_logs(simulator: Simulator, capsys: pytest.CaptureFixture[str]) -> None:
    """The tasks of the last run are listed, and the ends of their logs shown."""
    run(workdir(Path.cwd(), chunks_snakefile(1)), simulator.url)
    assert main(["ps", "--siflow-base-url", simulator.url]) == 0
    shown = capsys.readouterr().out
    assert shown.count("Succeeded") == 3
    assert main(["logs", "merge", "--siflow-base-url", simulator.url]) == 0
    assert "1 of 1 steps (100%) done" in capsys.readouterr().out


def test_reap_stops_what_a_killed_controller_left(simulator: Simulator, capsys: pytest.CaptureFixture[str]) -> None:
    """`reap` respects a live controller; of a dead one it leaves no task alive."""
    work = workdir(Path.cwd(), chunks_snakefile(2, seconds=60))
    controller = Controller(work, arguments(simulator.url))
    until = time.monotonic() + 40
    while len(simulator.live()) < 2 and time.monotonic() < until:
        time.sleep(0.1)
    assert main(["reap", "--siflow-base-url", simulator.url]) == 1
    assert "end it first" in capsys.readouterr().err
    controller.kill()
    assert len(simulator.live()) == 2
    assert main(["reap", "--siflow-base-url", simulator.url]) == 0
    assert simulator.live() == []
