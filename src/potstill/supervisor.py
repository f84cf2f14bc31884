"""The supervisor of one server: `python -m potstill.supervisor`, started by `potstill.servers` and by nobody else.

```
supervisor   holds `alive`, asks for the lease, writes state.json
└── guard    starts the server; stops it when told, and when the supervisor is gone (its end of a pipe closes)
    └── sh -c COMMAND   gets SIGKILL from the kernel when the guard is gone
        └── …           whatever the command starts: orphans come to the guard, then to the supervisor
```
Each of the two stops whatever is below it when the other is killed; both are subreapers, so that no process of the
server can get away by changing its group or session.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import http.client
import json
import os
import random
import re
import select
import signal
import socket
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NamedTuple, NoReturn
from urllib.parse import urlsplit

from potstill.processes import find_children, identify
from potstill.servers import ServerSpec, in_one_line, is_alive, locked, read_state, tail_of, try_lock

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_POLL_S = 0.1
_GRACE_S = 10.0
#: Below the kernel's range for outgoing connections, so that none of those takes the port before the server does.
_PORTS = (20000, 32000)
_MAX_PORTS_TRIED = 5
#: A server waits this long for the next job of a living Snakemake: as long as its start took, within these limits.
_LINGER_S = (10.0, 60.0)


class _Outcome(NamedTuple):
    """How waiting for a server ended: `ready`, `died`, `late` or `unneeded`, and what was seen last."""

    phase: str
    detail: str = ""


class Guard:
    """The guard process and, below it, the server."""

    def __init__(self, spec: ServerSpec, port: int) -> None:
        self.log = Path(spec.log)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.status: int | None = None
        with self.log.open("ab") as log:
            self.log_start = log.seek(0, os.SEEK_END)
            read_end, self._life = os.pipe()
            self._pid = os.fork()
            if not self._pid:
                os.close(self._life)
                _guard(spec.command.replace("{port}", str(port)), spec.cwd, log.fileno(), read_end)
        os.close(read_end)

    def is_running(self) -> bool:
        """Whether the server runs; its status is known afterwards."""
        if self.status is None:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
        return self.status is None

    def stop(self) -> None:
        """Stop the server and all that it started."""
        os.close(self._life)
        deadline = time.monotonic() + _GRACE_S + 5
        while self.is_running() and time.monotonic() < deadline:
            time.sleep(0.01)
        # The guard has done it, unless somebody has killed it.
        stop_descendants()


def _guard(command: str, cwd: str, log: int, life: int) -> NoReturn:
    """Start the server, wait for its end or for ours, leave nothing behind."""
    code = 1
    try:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)
        server = _start_server(command, cwd, log)
        status = None
        while status is None:
            if select.select([life], [], [], 0.05)[0]:
                break
            status = _reap(server)
        code = 0 if status is None else status & 0xFF
        stop_descendants(server)
    finally:
        os._exit(code)


def _reap(server: int) -> int | None:
    """Collect ended children, orphans included; return the server's exit status if it is among them."""
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return None
            if pid == server:
                code = os.waitstatus_to_exitcode(status)
                return code if code >= 0 else 128 - code
    return 0


def _start_server(command: str, cwd: str, log: int) -> int:
    guard = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != guard:
            os._exit(1)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.chdir(cwd)
        os.execv("/bin/sh", ["sh", "-c", command])
    except OSError as error:
        os.write(2, f"{error}\n".encode())
    finally:
        os._exit(127)


def stop_descendants(group: int | None = None) -> None:
    """End every process below this one: TERM, and KILL for what is left after the grace period."""
    for number, wait_s in ((signal.SIGTERM, _GRACE_S), (signal.SIGKILL, 5.0)):
        told: set[int] = set()
        deadline = time.monotonic() + wait_s
        while True:
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            found = _descendants() or _group_members(group)
            if not found:
                return
            if time.monotonic() > deadline:
                break
            for pid in found - told:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, number)
            told |= found
            time.sleep(0.01)


def _group_members(group: int | None) -> set[int]:
    """Where the kernel lists no children: the group as a whole, which `os.kill` takes as a negative number."""
    try:
        if group:
            os.killpg(group, 0)
            return {-group}
    except (ProcessLookupError, PermissionError):
        pass
    return set()


def _descendants() -> set[int]:
    found: set[int] = set()
    queue = [os.getpid()]
    while queue:
        below = find_children(queue.pop())
        found.update(below)
        queue.extend(below)
    return found


def _prctl(option: int, value: int) -> None:
    """Ask the kernel for something; where it has no prctl (not Linux), there is nothing to ask for."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


class Supervisor:
    """Starts one server, says when it is ready, stops it when no job needs it."""

    def __init__(self, spec: ServerSpec) -> None:
        self._spec = spec
        self._id = uuid.uuid4().hex
        self._lease = (spec.path / "lease").open("ab")
        self._idle_since: float | None = None
        self._linger_s = _LINGER_S[0]
        self._told_to_stop = False
        self._reserved: IO[bytes] | None = None
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def _on_signal(self, *_: object) -> None:
        self._told_to_stop = True

    def run(self) -> None:
        """Do the whole life of one server."""
        preferred = self._spec.port or read_state(self._spec.path).get("port")
        if Path(self._spec.log).parent == self._spec.path:
            Path(self._spec.log).unlink(missing_ok=True)
        self._say("starting", resources=self._spec.resources)
        self._claim_resources()
        for _ in range(_MAX_PORTS_TRIED):
            port = self._choose_port(preferred)
            if port is None:
                return
            guard, preferred = Guard(self._spec, port), None
            outcome = self._serve(guard, port)
            guard.stop()
            if outcome.phase == "died" and not self._spec.port and _port_was_taken(port, guard):
                continue
            self._report_end(outcome, guard)
            return
        self.fail(f"no free port found in {_MAX_PORTS_TRIED} tries", again=True)

    def _claim_resources(self) -> None:
        """Send away idle servers that hold what this one needs (a GPU), and wait until they are gone."""
        wanted = self._wanted()
        for path in wanted:
            path.parent.mkdir(exist_ok=True)
            path.touch()
        deadline = time.monotonic() + _GRACE_S + 5
        while wanted and any(map(self._stands_in_the_way, self._spec.path.parent.iterdir())):
            if self._told_to_stop or time.monotonic() > deadline:
                return
            time.sleep(_POLL_S)

    def _wanted(self) -> list[Path]:
        """The files whose time says when somebody last needed our resources for a server."""
        folder = self._spec.path.parent / "wanted"
        return [folder / re.sub(r"\W", "_", name) for name in self._spec.resources]

    def _stands_in_the_way(self, folder: Path) -> bool:
        """Whether the server of another runtime folder holds our resources without a job that uses it."""
        state = read_state(folder)
        if folder == self._spec.path or not set(state.get("resources") or ()) & set(self._spec.resources):
            return False
        with locked(folder / "start", fcntl.LOCK_EX):
            if not is_alive(folder):
                return False
        with (folder / "lease").open("ab") as lease:
            return state.get("phase") == "stopping" or try_lock(lease, fcntl.LOCK_EX)

    def _choose_port(self, preferred: int | None) -> int | None:
        """Return a port that is free now; None, with the failure told, when a fixed one is not."""
        if self._spec.port:
            if _is_free(self._spec.port):
                return self._spec.port
            self.fail(
                f"server: port {self._spec.port} is taken by another process; stop that one, or write `port: auto` "
                "and {port} in command and base_url"
            )
            return None
        candidates = [preferred] if preferred else []
        candidates += [random.SystemRandom().randrange(*_PORTS) for _ in range(200)]
        for port in candidates:
            if _is_free(port) and self._reserve(port):
                return port
        self.fail(f"server: no free port between {_PORTS[0]} and {_PORTS[1]}", again=True)
        return None

    def _reserve(self, port: int) -> bool:
        """Keep our other supervisors off a port until this one ends: a server may take minutes to bind it."""
        folder = self._spec.path.parent / "ports"
        folder.mkdir(exist_ok=True)
        file = (folder / str(port)).open("ab")
        if not try_lock(file, fcntl.LOCK_EX):
            file.close()
            return False
        if self._reserved:
            self._reserved.close()
        self._reserved = file
        return True

    def _serve(self, guard: Guard, port: int) -> _Outcome:
        """Wait until the server is ready, then until nobody needs it."""
        began = time.monotonic()
        outcome = self._wait_ready(guard, port)
        if outcome.phase != "ready":
            return outcome
        self._linger_s = min(max(time.monotonic() - began, _LINGER_S[0]), _LINGER_S[1])
        self._idle_since = None
        url = self._spec.base_url.replace("{port}", str(port))
        self._say("ready", port=port, base_url=url, resources=self._spec.resources)
        while guard.is_running():
            if not self._is_needed():
                self._say("stopping", resources=self._spec.resources)
                return _Outcome("unneeded")
            time.sleep(_POLL_S)
        return _Outcome("ended")

    def _wait_ready(self, guard: Guard, port: int) -> _Outcome:
        url = self._spec.ready_url.replace("{port}", str(port))
        deadline = time.monotonic() + self._spec.startup_timeout_s
        pause, seen = 0.02, ""
        while guard.is_running():
            if not self._is_needed():
                return _Outcome("unneeded")
            ready, seen = _ask(url)
            if ready and guard.is_running():
                return _Outcome("ready")
            if time.monotonic() > deadline:
                return _Outcome("late", f"{url}: {seen}")
            time.sleep(pause)
            pause = min(pause * 1.5, 0.5)
        return _Outcome("died", seen)

    def _is_needed(self) -> bool:
        """Whether a job holds the lease, or one may come soon; if not, the lease is ours from here on."""
        if self._told_to_stop:
            return False
        if not try_lock(self._lease, fcntl.LOCK_EX):
            self._idle_since = None
            return True
        now = time.time()
        self._idle_since = self._idle_since or now
        if now - self._idle_since < self._linger_s and self._has_controller() and not self._is_in_the_way():
            fcntl.flock(self._lease, fcntl.LOCK_UN)
            return True
        return False

    def _is_in_the_way(self) -> bool:
        """Whether another server has asked for our resources since no job needs this one."""
        marks = [path.stat().st_mtime for path in self._wanted() if path.exists()]
        return any(mark >= (self._idle_since or 0) for mark in marks)

    def _has_controller(self) -> bool:
        """Whether a Snakemake lives whose jobs came by; the dead ones are forgotten."""
        for mark in (self._spec.path / "controllers").iterdir():
            pid, _, started = mark.name.partition("-")
            controller = identify(int(pid))
            if controller and controller.started == started:
                return True
            mark.unlink(missing_ok=True)
        return False

    def _report_end(self, outcome: _Outcome, guard: Guard) -> None:
        tail = tail_of(guard.log, guard.log_start)
        ending = f"its log {guard.log} ends: {in_one_line(tail)}"
        if outcome.phase == "died":
            hint = " (its command must stay in the foreground)" if guard.status == 0 else ""
            self.fail(f"server: it ended with status {guard.status} before it was ready{hint}; {ending}", tail=tail)
        elif outcome.phase == "late":
            waited = f"not ready after {self._spec.startup_timeout_s:g} s (startup_timeout_s)"
            self.fail(f"server: {waited}; last seen at {outcome.detail}; {ending}", tail=tail, again=True)
        else:
            self._say("stopped")

    def fail(self, message: str, *, tail: str = "", again: bool = False) -> None:
        """Say why there is no server; `again` where the same command may do later."""
        self._say("failed", message=message, tail=tail, again=again)

    def _say(self, phase: str, **more: Any) -> None:
        """Write state.json, whole; the port stays in it, so that a server that comes back comes back there."""
        path = self._spec.path / "state.json"
        me = identify(os.getpid())
        state = {"id": self._id, "phase": phase, "pid": os.getpid(), "started": me.started if me else None}
        state["port"] = read_state(self._spec.path).get("port")
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(state | more), encoding="utf-8")
        temporary.replace(path)


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


def _port_was_taken(port: int, guard: Guard) -> bool:
    """Whether a server died because another process took its port between our look and its bind."""
    return not _is_free(port) or "address already in use" in tail_of(guard.log, guard.log_start).lower()


def _ask(url: str) -> tuple[bool, str]:
    """Ask a server whether it is ready; one that wants a key for this question is."""
    parts = urlsplit(url)
    make: Callable[..., http.client.HTTPConnection] = (
        http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    )
    connection = make(parts.hostname or "127.0.0.1", parts.port, timeout=2)
    try:
        connection.request("GET", parts.path + (f"?{parts.query}" if parts.query else ""))
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        return False, f"{type(error).__name__}: {error}"
    finally:
        connection.close()
    return status < 400 or status in (401, 403), f"HTTP {status}"


def main() -> int:
    """Take the lock, leave the job that started us, and supervise."""
    plan = json.load(sys.stdin)
    spec = ServerSpec(**plan | {"resources": tuple(plan["resources"])})
    alive = (spec.path / "alive").open("ab")
    if not try_lock(alive, fcntl.LOCK_EX):
        return 0
    # The lock belongs to the open file, which the child shares: it never is without a holder in between.
    if os.fork():
        os._exit(0)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    supervisor = Supervisor(spec)
    try:
        supervisor.run()
    except OSError as error:
        supervisor.fail(f"server: {error.filename}: {error.strerror}", again=True)
        raise
    return 0


if __name__ == "__main__":
    sys.exit(main())
