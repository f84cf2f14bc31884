"""A server of the user's own, started for the jobs that need it: the `server:` block of a model file.

One server per command and machine, shared by all jobs that run there, stopped with the last of them. What must
hold after any kill is left to the kernel, which forgets nobody: a job holds a shared lock on the file `lease` for as
long as it lives, the supervisor (`potstill.supervisor`, a small process of its own) stops the server when it can have
that lock for itself. No file is ever believed about who is alive.

```
<temp>/potstill-<uid>/servers/<key>/   key = hash of command, folder and addresses: different commands never share
    lease         shared lock: a job that needs the server; exclusive lock: the supervisor, while it stops the server
    alive         exclusive lock: the supervisor and its guard; free = there is no server
    start         exclusive lock, for moments: only one job starts a supervisor
    state.json    what the supervisor last said: starting, ready, failed, stopped
    server.log    the server's output (or the file that `log:` names); supervisor.log: that of the supervisor
    controllers/  the Snakemake processes whose jobs came by: while one lives, the server waits a while for the next
```
Written for Linux. Elsewhere (macOS) there is no /proc and no parent-death signal: the server is stopped with its jobs
just the same, but a SIGKILL of the supervisor leaves it running, and it does not wait for the next job.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import itertools
import json
import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple, NoReturn
from urllib.parse import urljoin, urlsplit

from potstill.config.locate import workflow_root
from potstill.errors import ConfigError, PotstillError, TryAgainError
from potstill.processes import find_controllers, identify
from potstill.rows import disk_errors

_log = logging.getLogger(__name__)

_POLL_S = 0.05
_WATCH_S = 1.0
_MAX_RESTARTS = 3
_MAX_STARTS = 5
_NOTE_EVERY_S = 30.0
_PORT = "{port}"


@dataclasses.dataclass(frozen=True)
class ServerSpec:
    """What a supervisor needs to know; `{port}` still stands in command and addresses."""

    folder: str
    command: str
    cwd: str
    port: int | None
    base_url: str
    ready_url: str
    startup_timeout_s: float
    log: str
    resources: tuple[str, ...] = ()

    @property
    def path(self) -> Path:
        """The runtime folder."""
        return Path(self.folder)


@contextlib.contextmanager
def running_server(server: Mapping[str, Any], *, base_url: str | None = None) -> Iterator[str]:
    """Give the base URL of a server that runs for as long as the `with` block, and start it where none does.

    A server that dies meanwhile is started again on the same port (a few times), so that a caller that waits out
    an outage goes on by itself.

    Args:
        server: The `server:` block of a model file: `command`, and `port`, `ready_url`, `startup_timeout_s`, `log`,
            `resources`: an idle server makes room for one that needs a resource that it holds.
        base_url: The model's base URL, `{port}` in it is filled; by default `http://127.0.0.1:{port}/v1`.

    Yields:
        The base URL to send requests to.

    Raises:
        ConfigError: When the server ends before it is ready; the message holds the end of its log, as one line.
        TryAgainError: When it is not ready in time.
    """
    spec = plan_server(server, base_url)
    with _lease(spec.path):
        over = threading.Event()
        with disk_errors(spec.path):
            _record_controller(spec.path)
            url = _ensure_ready(spec, over)
        watcher = threading.Thread(target=_watch, args=(spec, url, over), name="potstill-server-watch", daemon=True)
        watcher.start()
        try:
            yield url
        finally:
            over.set()
            watcher.join()


def plan_server(server: Mapping[str, Any], base_url: str | None) -> ServerSpec:
    """Turn a `server:` block into a plan, and make the runtime folder of its server.

    Raises:
        ConfigError: When the block has no command, or the temporary folder cannot be used.
    """
    command = _exec_form(fill_command(str(server.get("command") or "")))
    if not command.strip():
        raise ConfigError("server: command is empty; write the line that starts the server, with {port} in it")
    address = base_url or f"http://127.0.0.1:{_PORT}/v1"
    port = _find_port(server.get("port"), command, address)
    ready_url = urljoin(address, str(server.get("ready_url") or "/v1/models"))
    folder = _runtime_folder() / _key(command, port, address, ready_url)
    with disk_errors(folder):
        (folder / "controllers").mkdir(parents=True, exist_ok=True)
    log = server.get("log")
    return ServerSpec(
        folder=str(folder),
        command=command,
        cwd=str(Path.cwd()),
        port=port,
        base_url=address,
        ready_url=ready_url,
        startup_timeout_s=float(server.get("startup_timeout_s") or 300),
        log=str(Path(log).absolute() if log else folder / "server.log"),
        resources=tuple(sorted(name for name, amount in (server.get("resources") or {}).items() if amount)),
    )


def _find_port(port: int | str | None, command: str, address: str) -> int | None:
    """Return the port where the config fixes it, None where a free one is to be chosen.

    Raises:
        ConfigError: When a free port would not reach both the server and the address that is asked.
    """
    if port not in ("auto", None):
        return int(port)
    if (_PORT in command) != (_PORT in address):
        missing = "server.command" if _PORT in address else "client_config.base_url"
        raise ConfigError(f"server: port is auto, but {missing} has no {_PORT}: write it where the port belongs")
    return None if _PORT in command else urlsplit(address).port


def fill_command(command: str) -> str:
    """Fill `{python}`, `{potstill}` and `{workflow}` into a command; any other brace is the user's own."""
    python = shlex.quote(sys.executable)
    # -P: a file of the user's such as random.py in the working directory is not Python's own.
    words = {"python": python, "potstill": f"{python} -P -m potstill", "workflow": shlex.quote(str(workflow_root()))}
    return re.sub(r"\{(python|potstill|workflow)\}", lambda match: words[match[1]], command)


def _exec_form(command: str) -> str:
    """Let the shell become the server where the command is a plain one, so that no shell stands between us and it."""
    if set(command) & set("$;&|()<>`*?[~#!\n"):
        return command
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise ConfigError(f"server: command cannot be read: {error}: {command}") from error
    assignments = list(itertools.takewhile(lambda word: re.match(r"\w+=", word), words))
    program = words[len(assignments) :]
    if not program or not shutil.which(program[0]):
        return command
    variables = [f"{name}={shlex.quote(value)}" for name, _, value in (word.partition("=") for word in assignments)]
    return " ".join([*variables, "exec", shlex.join(program)])


def _key(command: str, *rest: object) -> str:
    # Variables that the command reads are part of what it does; only their hash is kept.
    names = sorted(set(re.findall(r"\$\{?([A-Za-z_][A-Za-z0-9_]*)", command)))
    values = [os.environ.get(name) for name in names]
    text = json.dumps([command, str(Path.cwd()), *rest, values, *_machine()])
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:20]


def _machine() -> list[str]:
    """Return what tells machines apart, containers too, where their temporary folder is shared: no server is."""
    spaces = [Path("/proc/self/ns/net"), Path("/proc/self/ns/pid")]
    return [os.uname().nodename, *(str(space.readlink()) for space in spaces if space.is_symlink())]


def _runtime_folder() -> Path:
    """Make the folder of all our servers: ours alone, since whoever can write there can name ports and locks."""
    root = Path(tempfile.gettempdir()) / f"potstill-{os.getuid()}"
    try:
        root.mkdir(mode=0o700, exist_ok=True)
        found = root.lstat()
    except OSError as error:
        raise ConfigError(f"{root}: cannot be used for servers: {error.strerror}; set TMPDIR to your own") from error
    if found.st_uid != os.getuid() or found.st_mode & 0o077 or root.is_symlink():
        raise ConfigError(
            f"{root}: must be a folder of yours that nobody else can enter (mode 0700); remove it or set TMPDIR"
        )
    return root / "servers"


@contextlib.contextmanager
def locked(path: Path, kind: int) -> Iterator[IO[bytes]]:
    """Hold a lock on a file; waits by asking again and again, so that signals and Ctrl-C get through."""
    with path.open("ab") as file:
        while not try_lock(file, kind):
            time.sleep(_POLL_S / 5)
        yield file


def try_lock(file: IO[bytes], kind: int) -> bool:
    """Take a lock on an open file if it can be had now."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def _lease(folder: Path) -> Iterator[None]:
    """Count as a user of the server; while an old one is being stopped this waits for its end."""
    with locked(folder / "lease", fcntl.LOCK_SH):
        yield


def _ensure_ready(spec: ServerSpec, over: threading.Event) -> str:
    """Wait for the server, starting it when there is none; the caller holds the lease.

    Returns:
        The base URL; nothing when `over` was set before there was one.
    """
    before = read_state(spec.path)
    stale = before.get("id") if before.get("phase") == "failed" else None
    noted = time.monotonic()
    starts = 0
    while not over.is_set():
        state, alive, started = _look_or_start(spec, stale)
        starts += started
        if starts > _MAX_STARTS:
            tail = in_one_line(tail_of(spec.path / "supervisor.log", 0))
            raise PotstillError(f"server: its supervisor ended {_MAX_STARTS} times without a word; its log: {tail}")
        if alive and state.get("phase") == "ready" and _is_current(state):
            return str(state["base_url"])
        if not alive and state.get("phase") == "failed" and state.get("id") != stale:
            _raise_failure(state)
        if time.monotonic() - noted > _NOTE_EVERY_S:
            noted = time.monotonic()
            _log.info("waiting for the server to be ready; its log: %s", spec.log)
        over.wait(_POLL_S)
    return ""


class _Look(NamedTuple):
    """What the supervisor says, whether it lives, whether it was started just now and has said nothing yet."""

    state: dict[str, Any]
    alive: bool
    started: bool = False


def _look_or_start(spec: ServerSpec, stale: object) -> _Look:
    """Look at the supervisor; start one when there is none and none has failed since we came."""
    with locked(spec.path / "start", fcntl.LOCK_EX):
        alive = is_alive(spec.path)
        state = read_state(spec.path)
        failed_for_us = state.get("phase") == "failed" and state.get("id") != stale
        if not alive and not failed_for_us:
            _spawn_supervisor(spec)
            return _Look({}, alive=True, started=True)
        return _Look(state, alive)


def is_alive(folder: Path) -> bool:
    """Whether a supervisor or its guard lives; the caller holds `start`, so that nobody is just starting one."""
    with (folder / "alive").open("ab") as file:
        return not try_lock(file, fcntl.LOCK_SH)


def _is_current(state: Mapping[str, Any]) -> bool:
    """Whether the supervisor that wrote this lives: after its death the guard alone holds `alive` for a while."""
    supervisor = identify(int(state["pid"]))
    return bool(state["started"] == (supervisor.started if supervisor else None))


def _spawn_supervisor(spec: ServerSpec) -> None:
    """Start the supervisor; when this returns, it holds `alive`."""
    with (spec.path / "supervisor.log").open("wb") as log:
        done = subprocess.run(
            # The plan goes through a pipe: a command line can be read by every user of the machine.
            [sys.executable, "-P", "-m", "potstill.supervisor"],
            input=json.dumps(dataclasses.asdict(spec)).encode(),
            stdout=log,
            stderr=log,
            check=False,
            start_new_session=True,
        )
    if done.returncode:
        tail = in_one_line(tail_of(spec.path / "supervisor.log", 0))
        raise PotstillError(f"server: its supervisor could not be started (status {done.returncode}): {tail}")


def _raise_failure(state: Mapping[str, Any]) -> NoReturn:
    message = str(state.get("message"))
    if tail := state.get("tail"):
        _log.error("the end of the server's log:\n%s", tail)
    raise TryAgainError(message) if state.get("again") else ConfigError(message)


def _watch(spec: ServerSpec, url: str, over: threading.Event) -> None:
    """Start a server again that died under a job; a failure is logged, the job's requests show the rest."""
    restarts = 0
    while not over.wait(_WATCH_S):
        with locked(spec.path / "start", fcntl.LOCK_EX):
            if is_alive(spec.path):
                continue
        if restarts == _MAX_RESTARTS:
            _log.error("the server died %d times; it is not started again; its log: %s", restarts + 1, spec.log)
            return
        restarts += 1
        _log.warning("the server died; starting it again (its log: %s)", spec.log)
        try:
            now = _ensure_ready(spec, over)
            if now and now != url:
                _log.error("the server came back at %s, no longer at %s: start this job again", now, url)
        except (PotstillError, OSError) as error:
            _log.error("the server could not be started again: %s", error)
            return


def read_state(folder: Path) -> dict[str, Any]:
    """Return what the supervisor last wrote; empty when it never wrote."""
    try:
        state = json.loads((folder / "state.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


def tail_of(path: Path, start: int, size: int = 2000) -> str:
    """Return the end of a log, no earlier than byte `start`, in whole lines where it is cut."""
    try:
        with path.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            begin = file.seek(max(start, end - size))
            text = file.read(size).decode("utf-8", "replace")
    except OSError as error:
        return f"({path}: {error.strerror})"
    if begin > start:
        text = text.partition("\n")[2]
    return text.strip() or "(it wrote nothing)"


def in_one_line(tail: str) -> str:
    """Return the last lines of a log as one line, for a message that is one."""
    return " | ".join(line.strip() for line in tail.splitlines()[-5:] if line.strip())[-600:]


def _record_controller(folder: Path) -> None:
    """Leave the name of the Snakemake that this job works for, the outermost where there are several."""
    controllers = find_controllers()
    if controllers and (controller := identify(controllers[-1])):
        (folder / "controllers" / f"{controller.pid}-{controller.started}").touch()
