"""Who works in a folder, and what a killed run left there."""

import json
import subprocess
import sys
from base64 import urlsafe_b64encode
from pathlib import Path

import pytest

from potstill.holders import recover

HOLD = "import sys, time; from pathlib import Path; from potstill.holders import hold; hold(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `.snakemake` folder with a lock and two outputs marked as being made, one of them ours."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / ".snakemake"
    for name in ("locks", "incomplete"):
        (folder / name).mkdir(parents=True)
    (folder / "locks/0.output.lock").write_text("ours/a\n")
    for output in ("ours/a", "theirs/b"):
        (tmp_path / output).parent.mkdir()
        (tmp_path / output).write_text("half")
        (folder / "incomplete" / urlsafe_b64encode(output.encode()).decode()).write_text("{}")
    return folder


def start_holder(folder: Path) -> subprocess.Popen[str]:
    """Start a process that holds the folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def end(process: subprocess.Popen[str]) -> None:
    """SIGKILL it, and close its pipe."""
    process.kill()
    process.communicate()


def is_ours(path: str) -> bool:
    """Say whether an output may be removed."""
    return path.startswith("ours/")


def test_after_a_sigkill_locks_and_our_unfinished_outputs_are_removed(folder: Path) -> None:
    """Other people's outputs keep their marks: Snakemake asks its user about them, as always."""
    end(start_holder(folder))
    found = recover(folder, is_ours)
    assert (found.living, found.locks_removed, found.outputs_removed) == ([], 1, ["ours/a"])
    assert not Path("ours/a").exists()
    assert Path("theirs/b").exists()
    assert len(list((folder / "incomplete").iterdir())) == 1
    assert not list((folder / "potstill").iterdir())


def test_a_living_holder_is_respected(folder: Path) -> None:
    """While it lives nothing is touched, and it is named."""
    process = start_holder(folder)
    try:
        found = recover(folder, is_ours)
    finally:
        end(process)
    assert [holder.pid for holder in found.living] == [process.pid]
    assert Path("ours/a").exists()
    assert (folder / "locks/0.output.lock").exists()


def test_one_dead_and_one_living_holder_leave_all_as_it_is(folder: Path) -> None:
    """Nobody can tell whose the locks are."""
    end(start_holder(folder))
    process = start_holder(folder)
    try:
        assert recover(folder, is_ours).locks_removed == 0
    finally:
        end(process)


def test_locks_of_a_run_that_knows_nothing_of_us_are_left_alone(folder: Path) -> None:
    """Without a record of ours there is no proof of death."""
    assert recover(folder, is_ours).locks_removed == 0


def test_a_holder_on_another_machine_counts_as_alive_and_one_before_a_reboot_as_dead(folder: Path) -> None:
    """A kernel lock cannot be judged across machines; after a reboot nobody of before is left."""
    end(start_holder(folder))
    record = next((folder / "potstill").iterdir())
    holder = json.loads(record.read_text())
    record.write_text(json.dumps({**holder, "boot_id": "another", "host": "elsewhere"}))
    assert [found.host for found in recover(folder, is_ours).living] == ["elsewhere"]
    record.write_text(json.dumps({**holder, "boot_id": "another"}))
    assert recover(folder, is_ours).locks_removed == 1
