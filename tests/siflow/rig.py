"""Starts and stops what the tests need: the simulator, controllers, and a look at what happened."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import requests

ROOT = Path(__file__).resolve().parents[2]
KEYS = {"SIFLOW_ACCESS_KEY_ID": "test-key", "SIFLOW_ACCESS_KEY_SECRET": "test-secret"}
ENDED = {"Succeeded", "Failed", "Error", "Stopped"}


def clean_env(**more: str) -> dict[str, str]:
    """Our environment without keys and profiles of the person who runs the tests, with the test keys."""
    kept = {
        k: v for k, v in os.environ.items() if not k.startswith(("SIFLOW_", "SNAKEMAKE_")) and not k.endswith("_KEY")
    }
    path = os.pathsep.join([str(ROOT / "src"), *kept.get("PYTHONPATH", "").split(os.pathsep)]).rstrip(os.pathsep)
    return {**kept, "PYTHONPATH": path, **KEYS, **more}


class Simulator:
    """A running simulator over a state folder; may be killed and started again."""

    def __init__(self, state: Path, slots: int = 8, seed: int = 1, **faults: float | str) -> None:
        self.state = state
        self.options = ["--slots", str(slots), "--seed", str(seed)]
        self.faults = faults
        self.port = 0
        self.url = ""
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> Self:
        """Start it; a second start uses the port of the first."""
        given = [word for name, value in self.faults.items() for word in ("--fault", f"{name}={value}")]
        command = [sys.executable, "-m", "tests.servers.siflow", "--port", str(self.port), "--state", str(self.state)]
        self.process = subprocess.Popen(
            [*command, *self.options, *given], cwd=ROOT, env=clean_env(), stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()
        assert self.url.endswith("/sfapi"), self.url
        self.port = int(self.url.split(":")[2].split("/")[0])
        return self

    def kill(self) -> None:
        """Kill it; its tasks live on."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            if self.process.stdout is not None:
                self.process.stdout.close()
            self.process = None

    def set_faults(self, **faults: float | str) -> None:
        """Change faults while it runs."""
        requests.post(f"{self.url}/__faults", json=faults, timeout=10).raise_for_status()

    def history(self) -> dict[str, Any]:
        """All calls and tasks."""
        answer: dict[str, Any] = requests.get(f"{self.url}/__history", timeout=30).json()
        return answer

    def tasks(self) -> list[dict[str, Any]]:
        """All tasks."""
        found: list[dict[str, Any]] = self.history()["tasks"]
        return found

    def live(self) -> list[dict[str, Any]]:
        """The tasks that have not ended."""
        return [task for task in self.tasks() if task["status"] not in ENDED]

    def counts(self) -> Counter[str]:
        """Tasks per state."""
        return Counter(task["status"] for task in self.tasks())

    def bodies(self) -> str:
        """Everything that was ever sent."""
        return (self.state / "bodies.jsonl").read_text()

    def end_tasks(self) -> None:
        """Kill the process groups of all tasks."""
        for file in (self.state / "tasks").glob("*/task.json"):
            pid = json.loads(file.read_text()).get("pid")
            if pid and not (file.parent / "exit").exists():
                try:
                    os.killpg(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        self.end_tasks()


#: Settings that make the plugin quick enough for tests.
QUICK = {
    "poll-seconds": 0.5,
    "poll-seconds-max": 1,
    "list-grace": 4,
    "lost-after": 2,
    "infra-backoff": 0.3,
    "retry-delay": 0.3,
    "lease": 3,
    "input-wait": 10,
    "max-calls-per-second": 100,
    "request-timeout": 4,
    "image": "img",
    "resource-pool": "pool",
    "instance": "sci.c23-2",
}


def arguments(url: str, *more: str, **settings: object) -> list[str]:
    """The command line of a controller."""
    flags = [
        w
        for k, v in {**QUICK, **settings}.items()
        for w in (f"--siflow-{k.replace('_', '-')}", *map(str, v if isinstance(v, list) else [v]))
    ]
    base = [sys.executable, "-m", "snakemake", *more, "--executor", "siflow", "--siflow-base-url", url]
    jobs = [] if "--jobs" in more else ["--jobs", "100"]
    # Settings with several values come last: they would swallow a target.
    return [*base, *jobs, "--rerun-incomplete", "--nolock", "--latency-wait", "3", *flags]


class Controller:
    """A running Snakemake."""

    def __init__(self, workdir: Path, command: list[str], **env: str) -> None:
        self.workdir = workdir
        self.log = workdir / f"controller-{time.time_ns()}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, cwd=workdir, env=clean_env(**env), stdout=log, stderr=log, start_new_session=True
            )

    def wait(self, timeout: float = 120) -> int:
        """Wait for the end and return the exit status."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"the controller does not end:\n{self.text()[-6000:]}") from None

    def kill(self) -> None:
        """SIGKILL the controller and what it runs itself."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def text(self) -> str:
        """What it printed."""
        return self.log.read_text(errors="replace")


def run(
    workdir: Path, url: str, *more: str, timeout: float = 120, env: dict[str, str] | None = None, **settings: object
) -> Controller:
    """Run a workflow to its end."""
    controller = Controller(workdir, arguments(url, *more, **settings), **(env or {}))
    controller.wait(timeout)
    return controller


def workdir(folder: Path, snakefile: str) -> Path:
    """A folder with a Snakefile."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "Snakefile").write_text(snakefile)
    return folder


def chunks_snakefile(count: int, seconds: float = 0.2) -> str:
    """A small pipeline: chunks, each through a task of its own and then a group, and a merge."""
    return f"""
wildcard_constraints: i="[0-9]+"
rule all:
    input: "merged.txt"
rule generate:
    output: "gen/{{i}}.txt"
    log: "logs/{{i}}.log"
    shell:
        "(echo $$ >> starts.{{wildcards.i}}; sleep {seconds};"
        " seq {{wildcards.i}} $(({{wildcards.i}} + 20)) > {{output}}.new; mv {{output}}.new {{output}}) 2> {{log}}"
rule clean:
    input: "gen/{{i}}.txt"
    output: "clean/{{i}}.txt"
    group: "cpu"
    shell: "sort -n {{input}} > {{output}}"
rule score:
    input: "clean/{{i}}.txt"
    output: "score/{{i}}.txt"
    group: "cpu"
    shell: "sed 's/$/ 1.0/' {{input}} > {{output}}"
rule merge:
    input: expand("score/{{i}}.txt", i=range({count}))
    output: "merged.txt"
    shell: "cat {{input}} > {{output}}"
"""


def expected_merge(count: int) -> str:
    """What the pipeline makes."""
    return "".join(f"{n} 1.0\n" for i in range(count) for n in range(i, i + 21))
