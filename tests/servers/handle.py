"""Start a fake server as a process of its own and talk to it."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Server:
    """A running fake: its base URL (up to `/v1`) and its process."""

    url: str
    process: subprocess.Popen[str]

    def get(self, path: str) -> Any:
        """Return the JSON of a path outside `/v1`."""
        with urllib.request.urlopen(f"{self.url.removesuffix('/v1')}{path}", timeout=30) as response:
            return json.loads(response.read())

    def stats(self) -> dict[str, Any]:
        """Return what the server has seen."""
        stats: dict[str, Any] = self.get("/stats")
        return stats

    def control(self, **changes: Any) -> None:
        """Change its settings; `reset=True` also forgets what it saw."""
        request = urllib.request.Request(
            f"{self.url.removesuffix('/v1')}/control", data=json.dumps(changes).encode(), method="POST"
        )
        with urllib.request.urlopen(request, timeout=30) as response:
            response.read()


@contextlib.contextmanager
def running(module: str = "tests.servers.openai", *arguments: str, **settings: Any) -> Iterator[Server]:
    """Run a fake server for the length of a block."""
    command = [sys.executable, "-m", module, "--port", "0", *arguments]
    if settings:
        command += ["--settings", json.dumps(settings)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    try:
        url = process.stdout.readline().strip()
        assert url.startswith("http"), f"{module} did not start"
        yield Server(url, process)
    finally:
        process.terminate()
        process.wait(10)
        process.stdout.close()
