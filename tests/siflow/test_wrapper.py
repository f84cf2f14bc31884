"""The wrapper, run as a task runs it: proof of work, fencing, secrets, and no process left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from snakemake_executor_plugin_siflow import wrapper
from snakemake_executor_plugin_siflow.folder import RunFolder

KEY = "abcdefabcdef"


class Task:
    """A task's spec and its process."""

    def __init__(self, root: Path, command: str, attempt: int = 1, **more: Any) -> None:
        self.folder = RunFolder(root / "siflow", "run")
        self.folder.prepare()
        self.root = root
        self.label = f"{KEY}-a{attempt}"
        spec = {
            "folder": str(self.folder.path),
            "key": KEY,
            "attempt": attempt,
            "generation": 0,
            "rule": "r",
            "workdir": str(root),
            "command": command,
            "inputs": [],
            "outputs": [str(root / "out")],
            "updated": [],
            "env": {},
            "secrets": [],
            "log": str(self.folder.path / "logs" / f"{self.label}.log"),
            "lease": 2.0,
            "input_wait": 0.5,
            **more,
        }
        self.folder.spec_path(self.label).write_text(json.dumps(spec))
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, **env: str) -> subprocess.Popen[bytes]:
        """Start it as the platform does."""
        command = [sys.executable, str(self.folder.path / "wrapper.py"), str(self.folder.spec_path(self.label))]
        self.process = subprocess.Popen(command, env={**os.environ, **env}, stdout=subprocess.DEVNULL)
        return self.process

    def run(self, **env: str) -> int:
        """Run it to its end."""
        return self.start(**env).wait(30)

    @property
    def report(self) -> dict[str, Any]:
        """What it said of itself."""
        return self.folder.read_json("reports", self.label) or {}

    @property
    def log(self) -> str:
        """Its log."""
        return (self.folder.path / "logs" / f"{self.label}.log").read_text()


def wait_until(what: Any) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + 20
    while not what():
        assert time.monotonic() < deadline, "it never came to be"
        time.sleep(0.02)


def test_done(tmp_path: Path) -> None:
    """A command that makes its outputs ends with 0, and the report tells what they are."""
    task = Task(tmp_path, "echo x > out")
    assert task.run() == wrapper.DONE
    assert task.report["outcome"] == "done"
    assert task.report["outputs"] == {str(tmp_path / "out"): wrapper.stat_of(str(tmp_path / "out"))}
    assert not (task.folder.path / "alive" / task.label).exists()


def test_exit_status_of_the_command(tmp_path: Path) -> None:
    """A command that fails is a failure of the job."""
    task = Task(tmp_path, "echo oops; exit 7")
    assert task.run() == wrapper.FAILED
    assert (task.report["outcome"], task.report["status"]) == ("failed", 7)
    assert "oops" in task.log


@pytest.mark.parametrize("command", ["true", "touch other"])
def test_zero_without_outputs_is_no_proof(tmp_path: Path, command: str) -> None:
    """Exit status 0 without the outputs is not a success."""
    assert Task(tmp_path, command).run() == wrapper.NO_PROOF


def test_zero_with_old_outputs_is_no_proof(tmp_path: Path) -> None:
    """Outputs that were there before and have not changed are no proof of work."""
    (tmp_path / "out").write_text("old")
    task = Task(tmp_path, "true")
    assert task.run() == wrapper.NO_PROOF
    assert task.report["outcome"] == "no_proof"


def test_same_content_made_anew_is_proof(tmp_path: Path) -> None:
    """An output that was written again counts, even with the same content."""
    (tmp_path / "out").write_text("x")
    assert Task(tmp_path, "rm out; printf x > out").run() == wrapper.DONE


def test_inputs_that_never_come(tmp_path: Path) -> None:
    """Without an input nothing is run, and the status says: try again."""
    task = Task(tmp_path, "echo x > out", inputs=[str(tmp_path / "in")])
    assert task.run() == wrapper.TRY_AGAIN
    assert not (tmp_path / "out").exists()
    assert "not visible" in task.log


def test_inputs_that_come_late(tmp_path: Path) -> None:
    """An input that a volume shows late is waited for."""
    task = Task(tmp_path, "cat in > out", inputs=[str(tmp_path / "in")], input_wait=20)
    process = task.start()
    wait_until(lambda: (task.folder.path / "alive" / task.label).exists())
    (tmp_path / "in").write_text("x")
    assert process.wait(20) == wrapper.DONE


def test_an_older_attempt_does_not_start(tmp_path: Path) -> None:
    """An attempt that finds a newer one does nothing."""
    task = Task(tmp_path, "echo x > out")
    task.folder.raise_fence(KEY, 2)
    assert task.run() == wrapper.FENCED
    assert not (tmp_path / "out").exists()
    assert task.report == {}


@pytest.mark.parametrize("fence", [KEY, "all"])
def test_an_older_attempt_stops_with_all_its_processes(tmp_path: Path, fence: str) -> None:
    """When the fence is raised, a running attempt ends all its processes, detached ones too."""
    task = Task(tmp_path, "setsid sleep 60 & echo $! > pid; sleep 60")
    process = task.start()
    wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().strip())
    (task.folder.path / "fence" / fence).write_text("2")
    assert process.wait(20) == wrapper.FENCED
    wait_until(lambda: not Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}").exists())
    assert task.report == {}


def test_sigterm_ends_all_processes_and_is_no_failure(tmp_path: Path) -> None:
    """A task that the platform ends reports that, and leaves nothing running."""
    task = Task(tmp_path, "setsid sleep 60 & echo $! > pid; sleep 60")
    process = task.start()
    wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().strip())
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 143
    wait_until(lambda: not Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}").exists())
    assert task.report["outcome"] == "terminated"


def test_one_process_per_attempt(tmp_path: Path) -> None:
    """A second process of an attempt waits for the first, and does not do its work again."""
    task = Task(tmp_path, "echo $$ >> starts; sleep 3; echo x > out")
    first = task.start()
    wait_until(lambda: (tmp_path / "starts").exists())
    second = task.start()
    assert (first.wait(20), second.wait(20)) == (wrapper.DONE, wrapper.FENCED)
    assert len((tmp_path / "starts").read_text().splitlines()) == 1


def test_a_killed_process_is_replaced(tmp_path: Path) -> None:
    """If the first process of an attempt was killed, a second one takes over after the lease."""
    task = Task(tmp_path, "echo $$ >> starts; [ $(wc -l < starts) = 2 ] || sleep 60; echo x > out")
    first = task.start()
    wait_until(lambda: (tmp_path / "starts").exists() and (task.folder.path / "alive" / task.label).exists())
    pid = int((tmp_path / "starts").read_text())
    first.kill()
    first.wait()
    assert task.run() == wrapper.DONE
    os.kill(pid, signal.SIGKILL)


def test_a_newer_attempt_waits_for_the_older(tmp_path: Path) -> None:
    """A newer attempt starts its work only when the older one is still."""
    old = Task(tmp_path, "echo old >> order; sleep 60; echo x > out")
    process = old.start()
    wait_until(lambda: (tmp_path / "order").exists())
    new = Task(tmp_path, "echo new >> order; echo x > out", attempt=2)
    new.folder.raise_fence(KEY, 2)
    assert new.run() == wrapper.DONE
    assert process.wait(20) == wrapper.FENCED
    assert (tmp_path / "order").read_text() == "old\nnew\n"


@pytest.mark.parametrize(
    "value", [b"plain", b'it\'s "a" $HOME \\ `x` %s\n two lines\n', "schlüssel€".encode(), b"\xff\xfe"]
)
def test_secrets_arrive_byte_for_byte(tmp_path: Path, value: bytes) -> None:
    """A secret is in the variable and in the file, with every byte as it was."""
    task = Task(
        tmp_path,
        f'{sys.executable} -c \'import os; open("out", "wb").write(os.environb[b"K"])\'; cat $K_FILE > file',
        secrets=["K"],
    )
    task.folder.write_secret("K", value)
    assert task.run() == wrapper.DONE
    assert (tmp_path / "out").read_bytes() == (tmp_path / "file").read_bytes() == value
    assert (task.folder.path / "secrets" / "K").stat().st_mode & 0o777 == 0o600


def test_a_secret_that_others_can_read_is_refused(tmp_path: Path) -> None:
    """A secret's file with wide permissions stops the task: try again, not a failure of the job."""
    task = Task(tmp_path, "echo x > out", secrets=["K"])
    task.folder.write_secret("K", b"v")
    (task.folder.path / "secrets" / "K").chmod(0o644)
    assert task.run() == wrapper.TRY_AGAIN
    assert "readable by nobody else" in task.log


def test_a_profile_of_the_user_does_not_reach_the_inner_snakemake(tmp_path: Path) -> None:
    """SNAKEMAKE_PROFILE of the machine is not for the inner Snakemake."""
    assert Task(tmp_path, 'echo "[$SNAKEMAKE_PROFILE]" > out').run(SNAKEMAKE_PROFILE="x") == wrapper.DONE
    assert (tmp_path / "out").read_text() == "[]\n"
