"""Small real runs of the workflow, in folders of their own."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from potstill.config.locate import workflow_root

ROOT = workflow_root()
SNAKEMAKE = (sys.executable, "-m", "snakemake")

#: A model file whose teacher replays `answers.jsonl` of the working directory.
MODEL: dict[str, Any] = {
    "client_config": {"base_url": "http://127.0.0.1:{port}/v1", "api_key": "none", "timeout": 30},
    "chat_config": {"model": "replay"},
    "server": {
        "command": "{potstill} teacher --port {port} --answers answers.jsonl",
        "port": "auto",
        "ready_url": "/v1/models",
    },
}


class Run:
    """A folder with rows, a teacher, a database and a config.

    Args:
        folder: An empty folder.
        rows: How many questions; the answer to number i is right when i is divisible by 5 or 7 or both alike.
        config: Keys to change in the config.
        latency: Seconds that the teacher takes for an answer.
    """

    def __init__(self, folder: Path, rows: int = 40, config: dict[str, Any] | None = None, latency: float = 0) -> None:
        self.folder = folder
        questions = [f"question {number}?" for number in range(rows)]
        self.write_rows(
            [
                {"id": str(number), "question": question, "gold_sql": f"SELECT {number % 7}"}
                for number, question in enumerate(questions)
            ]
        )
        answers = [{"user": text, "answers": [f"SELECT {number % 5}"]} for number, text in enumerate(questions)]
        (folder / "answers.jsonl").write_text("".join(json.dumps(answer) + "\n" for answer in answers))
        (folder / "prompt.jinja").write_text("{{ question }}")
        with sqlite3.connect(folder / "db.sqlite") as database:
            database.execute("CREATE TABLE t (a)")
        database.close()
        model = json.loads(json.dumps(MODEL))
        model["server"]["command"] += f" --latency {latency}"
        self.write_model("model.yaml", model)
        self.config: dict[str, Any] = {
            "run": "r",
            "input": {"path": "rows.jsonl", "id_field": "id"},
            "chunks": {"count": 4},
            "prompt": {"template": "prompt.jinja"},
            "models": [{"alias": "m", "config": "model.yaml"}],
            "execute": {"database": "db.sqlite"},
            "filter": {"min_score": 1.0},
            **(config or {}),
        }
        self.write_config()

    @property
    def results(self) -> Path:
        """The folder of the run."""
        return self.folder / "results" / "r"

    def write_rows(self, rows: list[dict[str, Any]]) -> None:
        """Write the input."""
        (self.folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def write_model(self, name: str, model: dict[str, Any]) -> None:
        """Write a model file."""
        (self.folder / name).write_text(yaml.safe_dump(model))

    def write_config(self) -> None:
        """Write the config."""
        (self.folder / "config.yaml").write_text(yaml.safe_dump(self.config))

    def command(self, *arguments: str) -> list[str]:
        """Return the command line of Snakemake."""
        config = ("--snakefile", str(ROOT / "Snakefile"), "--configfile", "config.yaml", "--cores", "2")
        return [*SNAKEMAKE, *config, *arguments]

    def snakemake(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run Snakemake to its end."""
        return run(self.command(*arguments), self.folder, check=check)

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start Snakemake, in a process group of its own."""
        with (self.folder / "snakemake.log").open("ab") as log:
            return subprocess.Popen(
                self.command(*arguments),
                cwd=self.folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=environment(),
            )

    def read(self, name: str, model: str = "m") -> list[dict[str, Any]]:
        """Return the rows of one of the model's files."""
        return [json.loads(line) for line in (self.results / model / name).read_text().splitlines()]

    def outcomes(self, model: str = "m") -> dict[str, bytes]:
        """Return the bytes of the files that two runs over the same answers share."""
        return {
            name: (self.results / model / f"{name}.jsonl").read_bytes() for name in ("merged", "rejected", "failed")
        }

    def requests(self) -> int:
        """Return how many requests the generate jobs of the last start sent, by their logs."""
        import re

        logs = (self.results / "logs" / "generate_answers").rglob("*.log")
        found = [re.findall(r"requests sent: (\d+)", log.read_text()) for log in logs]
        return sum(int(number) for numbers in found for number in numbers)


def environment() -> dict[str, str]:
    """Return an environment in which no `python`, `snakemake` or `potstill` of a virtual environment is found."""
    return {**os.environ, "PATH": "/usr/local/bin:/usr/bin:/bin", "PYTHONPATH": os.environ.get("PYTHONPATH", "")}


def run(command: list[str], folder: Path, *, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a command to its end and return its output, both streams in one."""
    done = subprocess.run(
        command, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False, env=environment()
    )
    if check and done.returncode != 0:
        raise AssertionError(f"{command} ended with {done.returncode}:\n{done.stdout[-6000:]}")
    return done


def find_processes(folder: Path, matches: Callable[[str], bool]) -> list[int]:
    """Return the processes that work in a folder and whose command line matches."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if (entry / "cwd").resolve() == folder.resolve() and matches(command):
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def kill(processes: list[int]) -> None:
    """SIGKILL all of them; one that is gone already is fine."""
    for process in processes:
        try:
            os.kill(process, signal.SIGKILL)
        except ProcessLookupError:
            continue
