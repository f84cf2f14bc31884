"""A model's own server in a real run: one for all jobs, gone with Snakemake however that ends."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.servers.waiting import eventually, processes_with

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc: Linux only")


class Run:
    """A folder with a run over the demo's rows, answered by a teacher of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.answers = folder / "answers.jsonl"
        self.starts = folder / "starts"
        shutil.copy(ROOT / "config" / "demo" / "answers.jsonl", self.answers)
        (folder / "tmp").mkdir()

    def start(self, *, latency: float, flags: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        """Start Snakemake in a session of its own."""
        teacher = f"{{potstill}} teacher --port {{port}} --answers {self.answers} --latency {latency}"
        model = {
            "client_config": {"base_url": "http://127.0.0.1:{port}/v1", "api_key": "none"},
            "chat_config": {"model": "replay"},
            "server": {"command": f"echo x >> {self.starts}; exec {teacher}"},
        }
        config: dict[str, Any] = yaml.safe_load((ROOT / "config" / "config.yaml").read_text(encoding="utf-8"))
        config["models"] = [{"alias": "teacher", "config": "model.yaml"}]
        (self.folder / "model.yaml").write_text(yaml.safe_dump(model))
        (self.folder / "run.yaml").write_text(yaml.safe_dump(config))
        words = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--configfile", "run.yaml"]
        return subprocess.Popen(
            [*words, "--cores", "2", *flags],
            cwd=self.folder,
            env=os.environ | {"TMPDIR": str(self.folder / "tmp")},
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def start_count(self) -> int:
        """How often a server was started."""
        return self.starts.read_text().count("x") if self.starts.exists() else 0

    def has_server(self) -> bool:
        """Whether the teacher runs."""
        return bool(processes_with(str(self.answers)))

    def is_asking(self) -> bool:
        """Whether the server runs and a job waits for its answers."""
        return self.has_server() and bool(processes_with("generate_answers.py")) and self._is_ready()

    def _is_ready(self) -> bool:
        states = self.folder.glob("tmp/potstill-*/servers/*/state.json")
        return any(json.loads(path.read_text())["phase"] == "ready" for path in states)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    made = Run(tmp_path)
    yield made
    assert eventually(lambda: not made.has_server())


def test_one_server_serves_all_jobs_of_a_run(run: Run) -> None:
    """Four chunks, one job at a time, need one start; the server is gone after the run."""
    process = run.start(latency=0, flags=("--jobs", "1", "--until", "generate_answers"))
    _, err = process.communicate(timeout=240)
    assert process.returncode == 0, err[-3000:]
    assert run.start_count() == 1
    assert eventually(lambda: not run.has_server())


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_killed_run_leaves_no_server_and_goes_on_with_the_same_command(run: Run, number: signal.Signals) -> None:
    """After SIGKILL of Snakemake alone, or Ctrl-C, nothing of the server is left; the same command finishes."""
    first = run.start(latency=20)
    assert eventually(run.is_asking)
    # A terminal sends Ctrl-C to the whole group, SIGKILL hits one process.
    if number == signal.SIGINT:
        os.killpg(first.pid, number)
    else:
        os.kill(first.pid, number)
    first.communicate(timeout=60)
    assert eventually(lambda: not run.has_server())
    again = run.start(latency=0)
    _, err = again.communicate(timeout=240)
    assert again.returncode == 0, err[-3000:]
    folder = run.folder / "results" / "demo" / "teacher"
    assert len((folder / "merged.jsonl").read_text(encoding="utf-8").splitlines()) == 43


def test_a_server_that_cannot_start_is_said_in_the_log(run: Run) -> None:
    """The job's log ends with the reason from the server's own output, and names no traceback."""
    run.answers.write_text("this is no answers file\n")
    process = run.start(latency=0, flags=("--jobs", "1"))
    process.communicate(timeout=240)
    assert process.returncode == 1
    logs = sorted((run.folder / "results" / "demo" / "logs" / "generate_answers" / "teacher").glob("*.log"))
    text = logs[0].read_text(encoding="utf-8")
    assert "answers.jsonl: line 1: not JSON" in text
    assert "Traceback" not in text
