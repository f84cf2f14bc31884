"""The plugin's folder on the shared volume: `.snakemake/siflow/`, one folder per run in it.

```
.snakemake/siflow/run_id             the run that is going on; a new one begins when all tasks of the last are settled
.snakemake/siflow/RUN/ledger.jsonl   what was asked of the platform, written before it was asked
                     /wrapper.py     what the tasks run
                     /tasks          KEY-aN.json   the spec of attempt N
                     /reports        KEY-aN.json   how attempt N ended, by its own account
                     /fence  /claims  /alive       see wrapper.py
                     /logs           one log per attempt
                     /secrets        one file per variable, mode 0600, removed at the end
```
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import threading
import uuid
from pathlib import Path
from typing import IO, Any, NamedTuple

from . import wrapper

PARTS = ("tasks", "reports", "fence", "claims", "alive", "logs", "secrets")


class Event(NamedTuple):
    """One line of the ledger."""

    event: str
    key: str
    attempt: int
    data: dict[str, Any]


class Held(Exception):
    """Raised when another live controller holds the run."""


class Ledger:
    """An append-only file of events, repaired after a torn end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.events = self._load()
        self._file = path.open("ab")
        self._lock = threading.Lock()

    def _load(self) -> list[Event]:
        """Read all whole lines and cut off what a crash left of the last one."""
        if not self.path.exists():
            return []
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            with self.path.open("r+b") as file:
                file.truncate(len(whole))
        return [Event(**json.loads(line)) for line in whole.splitlines()]

    def append(self, *events: Event) -> None:
        """Write events so that they survive a crash from here on."""
        if not events:
            return
        with self._lock:
            self._file.write(b"".join(json.dumps(event._asdict()).encode() + b"\n" for event in events))
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class RunFolder:
    """The folder of one run.

    Args:
        root: The plugin's folder, `.snakemake/siflow` of the working directory.
        run: The run's id.
    """

    def __init__(self, root: Path, run: str) -> None:
        self.root = root
        self.run = run
        self.path = root / run

    @classmethod
    def current(cls, root: Path) -> RunFolder:
        """The run that is going on, or a new one."""
        root.mkdir(parents=True, exist_ok=True)
        named = root / "run_id"
        run = wrapper.read_text(named).strip()
        if not run:
            run = uuid.uuid4().hex[:12]
            wrapper.write_whole(named, run)
        return cls(root, run)

    def prepare(self) -> None:
        """Make the parts and put a fresh copy of the wrapper there."""
        for part in PARTS:
            (self.path / part).mkdir(parents=True, exist_ok=True)
        (self.path / "secrets").chmod(0o700)
        wrapper.write_whole(self.path / "wrapper.py", Path(wrapper.__file__).read_text(encoding="utf-8"))

    def hold(self) -> IO[str]:
        """Take the run for this process; the kernel lets go of it when the process ends, however it ends.

        Raises:
            Held: When a live process has it.
        """
        file = (self.root / "controller.lock").open("a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            holder = file.read().strip() or "another process"
            file.close()
            raise Held(holder) from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {os.uname().nodename}\n")
        file.flush()
        return file

    def finish(self) -> None:
        """End the run: the next controller begins a new one."""
        if wrapper.read_text(self.root / "run_id").strip() == self.run:
            (self.root / "run_id").unlink(missing_ok=True)

    def remove_secrets(self) -> None:
        """Remove all files with secrets."""
        shutil.rmtree(self.path / "secrets", ignore_errors=True)

    def write_secret(self, name: str, value: bytes) -> None:
        """Write one secret, byte for byte, readable by nobody else at any moment."""
        path = self.path / "secrets" / name
        new = path.with_name(f".{name}.new")
        new.unlink(missing_ok=True)
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(value)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)

    def spec_path(self, name: str) -> Path:
        """Where the spec of an attempt is."""
        return self.path / "tasks" / f"{name}.json"

    def log_path(self, rule: str, name: str) -> Path:
        """Where the log of an attempt is."""
        return self.path / "logs" / f"{rule}-{name}.log"

    def read_json(self, part: str, name: str) -> dict[str, Any] | None:
        """A spec or a report, or None if it is not there (yet)."""
        text = wrapper.read_text(self.path / part / f"{name}.json")
        try:
            value = json.loads(text) if text else None
        except ValueError:
            return None
        return value if isinstance(value, dict) else None

    def raise_fence(self, key: str, attempt: int) -> None:
        """Let attempts before this one stop themselves."""
        wrapper.write_whole(self.path / "fence" / key, str(attempt))

    def generation(self) -> int:
        """How often the run was cancelled; attempts of an earlier generation stop themselves."""
        text = wrapper.read_text(self.path / "fence" / "all")
        return int(text) if text.isdecimal() else 0

    def cancel_generation(self, generation: int) -> None:
        """Let all attempts up to this generation stop themselves."""
        wrapper.write_whole(self.path / "fence" / "all", str(generation + 1))
