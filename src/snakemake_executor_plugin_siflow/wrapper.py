"""What a task runs: it starts the inner Snakemake, guards it and proves its work. Standard library only.

The controller copies this file onto the shared volume; a task's `cmd` is `cd WORKDIR && exec PYTHON wrapper.py SPEC`.
So the task needs nothing of the plugin, and everything that it is told stands in the spec, not in the platform's body.

Exit status 0 means that the inner Snakemake ended well *and* every output is new and there. Snakemake's own exit
status does not mean that: with an input that it cannot see it ends with 0 and has done nothing.

Two writers of one output are kept apart by three files beside the spec:

- `fence/KEY` holds the newest attempt; an older attempt that reads it stops its processes at once (`fence/all`: all do,
  the run was cancelled).
- `claims/KEY-aN` is made by the first process of attempt N; a second one (a task created twice, or started again
  by the platform) waits until the first is dead.
- `alive/KEY-aN` changes every few seconds while attempt N lives; a newer attempt waits until it is still.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

DONE, FAILED, NO_PROOF, TRY_AGAIN, FENCED = 0, 1, 74, 75, 76
#: How a task ended, as its report says it.
OUTCOMES = {DONE: "done", FAILED: "failed", NO_PROOF: "no_proof", TRY_AGAIN: "inputs_missing", FENCED: "fenced"}
TICK = 0.25


class Fenced(Exception):
    """Raised when a newer attempt at the same work exists."""


class Terminated(Exception):
    """Raised in the main thread when the platform asks the task to end."""


def stat_of(path: str) -> list[int] | None:
    """Size, times and inode of a path, or None where nothing is; a folder's are those of Snakemake's mark in it."""
    mark = os.path.join(path, ".snakemake_timestamp")  # noqa: PTH118 - a plain string is what the report holds
    try:
        info = os.stat(mark if os.path.isdir(path) and os.path.exists(mark) else path)  # noqa: PTH110, PTH112, PTH116
    except OSError:
        return None
    return [info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino]


def write_whole(path: Path, text: str) -> None:
    """Write a file so that a reader sees all of it or nothing."""
    new = path.with_name(f"{path.name}.{os.getpid()}.new")
    with new.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


def read_text(path: Path) -> str:
    """The text of a small file; empty if it is not there."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""


def descendants(root: int) -> list[int]:
    """All processes below one, deepest last."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            fields = read_text(entry / "stat").rpartition(")")[2].split()
            if len(fields) > 1 and fields[0] != "Z":
                children.setdefault(int(fields[1]), []).append(int(entry.name))
    found, todo = [], [root]
    while todo:
        below = children.get(todo.pop(), [])
        found.extend(below)
        todo.extend(below)
    return found


def end_descendants(grace: float) -> None:
    """End all processes below this one: SIGTERM, and after a grace SIGKILL."""
    deadline = time.monotonic() + grace
    number = signal.SIGTERM
    while pids := descendants(os.getpid()):
        for pid in pids:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue
        reap()
        time.sleep(0.05)
        if time.monotonic() > deadline:
            number = signal.SIGKILL


def reap() -> None:
    """Collect children that have ended, adopted ones too."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return


def adopt_orphans() -> None:
    """Make this process the parent of its orphaned descendants, so that none can hide (PR_SET_CHILD_SUBREAPER)."""
    try:
        import ctypes

        ctypes.CDLL(None, use_errno=True).prctl(36, 1, 0, 0, 0)
    except (OSError, AttributeError, ImportError):
        return


class Guard:
    """The fence, the claim and the heartbeat of one attempt."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.key: str = spec["key"]
        self.attempt: int = spec["attempt"]
        self.generation: int = spec["generation"]
        self.lease: float = spec["lease"]
        self.folder = Path(spec["folder"])
        self.name = f"{self.key}-a{self.attempt}"
        self.nonce = os.urandom(8).hex()
        self.alive = self.folder / "alive" / self.name
        self.beats = 0
        self.next_beat = 0.0

    def beat(self) -> None:
        """Show that this attempt lives, and stop if a newer one exists or another process has taken this one over."""
        if time.monotonic() < self.next_beat:
            return
        self.next_beat = time.monotonic() + min(2.0, self.lease / 4)
        self.check_fence()
        if read_text(self.folder / "claims" / self.name) != self.nonce:
            raise Fenced("another process runs this attempt")
        self.beats += 1
        self.alive.write_text(f"{self.nonce} {self.beats}", encoding="utf-8")

    def check_fence(self) -> None:
        """Raise if the fence names a newer attempt, or the run was cancelled."""
        cancelled = read_text(self.folder / "fence" / "all")
        if cancelled.isdecimal() and int(cancelled) > self.generation:
            raise Fenced("the run was cancelled")
        newest = read_text(self.folder / "fence" / self.key)
        if newest.isdecimal() and int(newest) > self.attempt:
            raise Fenced(f"attempt {newest} has taken over")

    def claim(self) -> None:
        """Become the one process of this attempt; wait while another one lives."""
        self.check_fence()
        path = self.folder / "claims" / self.name
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(self.nonce)
        except FileExistsError:
            self.wait_until_still(self.alive, self.check_fence)
            if (self.folder / "reports" / f"{self.name}.json").exists():
                raise Fenced("this attempt has ended before") from None
            write_whole(path, self.nonce)

    def wait_for_older(self) -> None:
        """Wait until no older attempt at the same work lives."""
        for older in range(1, self.attempt):
            self.wait_until_still(self.folder / "alive" / f"{self.key}-a{older}", self.beat)

    def wait_until_still(self, alive: Path, meanwhile: Callable[[], None]) -> None:
        """Wait until a heartbeat has gone or has not changed for a lease; only this machine's clock is used."""
        last, since = read_text(alive), time.monotonic()
        while last and time.monotonic() < since + self.lease:
            time.sleep(TICK)
            meanwhile()
            now = read_text(alive)
            if now != last:
                last, since = now, time.monotonic()

    def release(self) -> None:
        """Take the heartbeat away, so that a successor need not wait."""
        if read_text(self.alive).startswith(self.nonce):
            self.alive.unlink(missing_ok=True)


def missing_inputs(spec: dict[str, Any]) -> list[str]:
    """The inputs that this machine does not see yet."""
    return [path for path in spec["inputs"] if not os.path.lexists(path)]


def wait_for_inputs(spec: dict[str, Any], guard: Guard) -> list[str]:
    """Wait for inputs that a shared volume shows late; return those that never came."""
    deadline = time.monotonic() + float(spec["input_wait"])
    while (missing := missing_inputs(spec)) and time.monotonic() < deadline:
        guard.beat()
        time.sleep(TICK)
    return missing


def environment(spec: dict[str, Any]) -> dict[str, str]:
    """The variables of the inner Snakemake: ours, those of the spec, and the secrets from their files."""
    env = dict(os.environ)
    env.update(spec["env"])
    env.pop("SNAKEMAKE_PROFILE", None)
    for name in spec["secrets"]:
        path = Path(spec["folder"]) / "secrets" / name
        info = path.stat()
        if info.st_uid not in (os.getuid(), 0) or info.st_mode & 0o077:
            raise PermissionError(f"{path}: must be ours and readable by nobody else")
        env[name] = os.fsdecode(path.read_bytes())
        env[f"{name}_FILE"] = str(path)
    return env


def stale_outputs(spec: dict[str, Any], before: dict[str, list[int] | None]) -> list[str]:
    """The outputs that are missing, or are still what they were before the work."""
    after = {path: stat_of(path) for path in before}
    kept = set(spec["updated"])
    return [path for path in before if after[path] is None or (after[path] == before[path] and path not in kept)]


def run_inner(spec: dict[str, Any], guard: Guard, log: Any) -> int:
    """Run the inner Snakemake to its end and return its exit status."""
    child = subprocess.Popen(
        ["/bin/sh", "-c", spec["command"]],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        cwd=spec["workdir"],
        env=environment(spec),
    )
    while (status := child.poll()) is None:
        guard.beat()
        time.sleep(TICK if guard.beats > 2 else 0.05)
    return status


def work(spec: dict[str, Any], guard: Guard, report: dict[str, Any], log: Any) -> int:
    """Do the work; returns the task's exit status and fills the report."""
    guard.beat()
    guard.wait_for_older()
    if missing := wait_for_inputs(spec, guard):
        say(log, f"inputs are not visible after {spec['input_wait']} s: {', '.join(missing[:10])}")
        return TRY_AGAIN
    report["inputs"] = {path: stat_of(path) for path in spec["inputs"]}
    before = {path: stat_of(path) for path in spec["outputs"]}
    report["started"] = time.time()
    status = run_inner(spec, guard, log)
    report["status"] = status
    if status != 0:
        say(log, f"the inner Snakemake ended with {status}")
        return FAILED
    if stale := stale_outputs(spec, before):
        say(log, f"the inner Snakemake ended with 0, but these outputs are missing or old: {', '.join(stale[:10])}")
        return NO_PROOF
    guard.check_fence()
    report["outputs"] = {path: stat_of(path) for path in spec["outputs"]}
    return DONE


def say(log: Any, text: str) -> None:
    """Write a line of our own into the task's log."""
    log.write(f"siflow task: {text}\n".encode())
    log.flush()


def terminate(number: int, _frame: object) -> None:
    """Handle SIGTERM and SIGINT: leave the work by an exception."""
    raise Terminated(signal.Signals(number).name)


def load_spec(path: Path) -> dict[str, Any]:
    """Read the spec, waiting a little for a volume that shows it late."""
    for pause in pauses(60.0):
        text = read_text(path)
        if text:
            spec: dict[str, Any] = json.loads(text)
            return spec
        time.sleep(pause)
    sys.exit(f"siflow task: {path} is not visible here: is the volume mounted at the same place?")


def pauses(total: float) -> Iterator[float]:
    """Growing pauses that add up to a total."""
    pause, spent = 0.1, 0.0
    while spent < total:
        yield pause
        spent += pause
        pause = min(2.0, pause * 1.5)


def guarded(spec: dict[str, Any], report: dict[str, Any]) -> int:
    """Run the work under the guard; whatever happens, no process of it is left."""
    guard = Guard(spec)
    Path(spec["log"]).parent.mkdir(parents=True, exist_ok=True)
    with Path(spec["log"]).open("ab", buffering=0) as log:
        say(log, f"{spec['rule']}, attempt {spec['attempt']}, on {os.uname().nodename}")
        try:
            guard.claim()
            status = work(spec, guard, report, log)
            report["outcome"] = OUTCOMES[status]
        except Fenced as error:
            # No report: the outcome belongs to the attempt, or the process, that took over.
            say(log, f"stopped: {error}")
            report.clear()
            status = FENCED
        except Terminated as error:
            say(log, f"stopped by {error}")
            report["outcome"], status = "terminated", 128 + signal.SIGTERM
        except OSError as error:
            say(log, f"{type(error).__name__}: {error}")
            report["outcome"], status = "broken", TRY_AGAIN
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_IGN)
            end_descendants(grace=2.0)
    if report:
        write_whole(Path(spec["folder"]) / "reports" / f"{guard.name}.json", json.dumps(report))
    guard.release()
    return status


def main(argv: list[str]) -> int:
    """Run the task whose spec is named."""
    spec = load_spec(Path(argv[0]))
    print(f"siflow task: log in {spec['log']}", flush=True)
    os.chdir(spec["workdir"])
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, terminate)
    adopt_orphans()
    report: dict[str, Any] = {"key": spec["key"], "attempt": spec["attempt"], "outcome": "broken"}
    return guarded(spec, report)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
