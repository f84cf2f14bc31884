"""A simulator of the SiFlow platform: its HTTP API on loopback, each task a real process group.

```
python -m tests.servers.siflow --port 0 --state DIR [--slots 8] [--seed 1] [--fault NAME=VALUE …]
```
The first line printed is the base URL (it ends in `/sfapi`). `GET <base URL>/__history` tells every call and every
task since the state folder was made; `POST <base URL>/__faults` with `{"NAME": VALUE}` changes the faults of a running
simulator. Neither needs a signature, neither is a call of the history.

Keys: `--access-key-id` and `--access-key-secret`, else `SIFLOW_ACCESS_KEY_ID` and `SIFLOW_ACCESS_KEY_SECRET`. Without
them, the key id `AK` has the secret `SK`, and of any other key id only the shape of the signature can be checked.

A task's `cmd` is run by `bash` in a session of its own with a clean environment (PATH, HOME, TMPDIR, LANG and the
task's `taskEnv`), so it outlives both the client that created it and the simulator. A simulator that is started again
over the same state folder finds its tasks: those that ended meanwhile have left their exit status on disk.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import hmac
import json
import math
import os
import random
import re
import shlex
import signal
import string
import subprocess
import sys
import time
import uuid as uuids
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

BASE = "/sfapi"
TASKS = f"{BASE}/task-service/v1/tasks"
ENDED = frozenset({"Succeeded", "Failed", "Error", "Stopped"})
PRIORITIES = ("high", "medium", "low")

NOT_QUEUED = {
    "rankInPool": 0,
    "aheadInPool": dict.fromkeys(PRIORITIES, 0),
    "rankInUser": 0,
    "aheadInUser": dict.fromkeys(PRIORITIES, 0),
}

#: Fault -> (default, what it does). A share is the probability per call or per task, drawn from the seed.
FAULTS: dict[str, tuple[float | str, str]] = {
    "latency": (0.0, "seconds added to every call"),
    "jitter": (0.0, "up to so many seconds more, at random"),
    "error": (0.0, "share of calls answered 500, 502, 503 or 504 without being carried out"),
    "error_after": (0.0, "share of creates that are carried out and answered 502"),
    "bad_request": (0.0, "share of creates refused with 400"),
    "status_false": (0.0, "share of calls answered 200 with status false"),
    "html": (0.0, "share of calls answered 200 with a page of HTML"),
    "bad_json": (0.0, "share of calls answered 200 with half a JSON document or nothing"),
    "too_many": (0.0, "share of calls answered 429 with Retry-After"),
    "retry_after": (1.0, "the Retry-After of those, in seconds; may be a fraction"),
    "drop_post": (0.0, "share of creates that are carried out, then the connection is cut without an answer"),
    "lose_post": (0.0, "share of creates where the connection is cut before anything is carried out"),
    "cut": (0.0, "share of other calls where the connection is cut without an answer"),
    "list_lag": (0.0, "a new task is not listed for so many seconds"),
    "get_lag": (0.0, "a new task is 404 for so many seconds"),
    "reorder": (0.0, "1: every page of a list is cut from a freshly shuffled order"),
    "blip_404": (0.0, "share of gets of a known task answered 404"),
    "forget": (0.0, "share of tasks that the platform forgets some seconds after their start, though they run on"),
    "expire": (0.0, "every so many seconds all signatures are refused for one second (401)"),
    "unauthorized": (0.0, "share of calls answered 401"),
    "quota": (0.0, "creates beyond so many live tasks are refused (409); 0: no quota"),
    "preempt": (0.0, "share of starts that end in Stopped, 'preempted', after some seconds"),
    "node_lost": (0.0, "share of starts that end in Error, 'node lost', after some seconds"),
    "image_pull": (0.0, "share of starts that end in Failed, 'ImagePullBackOff', before anything ran"),
    "restart": (0.0, "share of starts that are killed after some seconds and started again under the same uuid"),
    "fault_after": (1.0, "the 'some seconds' of the above, at most"),
    "zombie": (0.0, "share of node_lost tasks whose processes live on"),
    "unknown": (0.0, "share of running tasks shown as Unknown at a look"),
    "new_word": (0.0, "share of running tasks shown with a status nobody has seen at a look"),
    "script": ("", "file with a JSON list of [status, seconds] lists: what tasks show, in turn, whatever they do"),
    "no_labels": (0.0, "1: labels are not returned in tasks"),
    "no_filter": (0.0, "1: the filters of a list are ignored"),
    "blind_filter": (0.0, "1: a list with a labels filter is empty"),
    "cap_page": (0.0, "pages have at most so many rows, whatever was asked; 0: 1000"),
    "outage": (0.0, "1: every call is answered 503 until changed"),
    "refuse": (0.0, "1: every connection is cut at once until changed"),
    "blackhole": (0.0, "1: no call is answered until changed"),
    "hold": (0.0, "1: no new task is started until changed"),
    "stop_error": (0.0, "share of stop calls answered 500"),
    "stop_grace": (5.0, "seconds between SIGTERM and SIGKILL of a stopped task"),
    "start_delay": (0.0, "seconds that a task is Pending at least"),
}


@dataclass
class Task:
    """One task: what was asked for and what became of it."""

    uuid: str
    name: str
    owner: str
    cluster: str
    body: dict[str, Any]
    created: float
    status: str = "Pending"
    message: str = ""
    updated: float = 0.0
    started: float | None = None
    ended: float | None = None
    pid: int | None = None
    pid_started: str = ""
    starts: int = 0
    exit_code: int | None = None
    deleted: bool = False
    forgotten: bool = False
    stop_asked: float | None = None
    doom: str = ""
    doom_at: float = 0.0
    script: list[list[Any]] = field(default_factory=list)

    @property
    def labels(self) -> dict[str, str]:
        """The labels given at creation."""
        return dict(self.body.get("labels") or {})

    @property
    def live(self) -> bool:
        """Whether the platform still counts the task."""
        return self.status not in ENDED and not self.deleted


class ApiError(Exception):
    """An answer other than 200, with the text for `msg`."""

    def __init__(self, status: int, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after


def process_start(pid: int) -> str:
    """The start time of a process as the kernel tells it; empty if there is no such process or it is a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in ("Z", "X") else fields[19]


def wall_time(moment: float | None) -> str | None:
    """A moment as the platform writes it."""
    return None if moment is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment))


class Faults:
    """The faults that are switched on, with one seeded source of chance."""

    def __init__(self, given: dict[str, float | str], seed: int) -> None:
        self.values: dict[str, float | str] = {name: default for name, (default, _) in FAULTS.items()}
        self.update(given)
        self.random = random.Random(seed)

    def update(self, given: dict[str, float | str]) -> None:
        """Change some faults; an unknown name is an error."""
        unknown = set(given) - set(FAULTS)
        if unknown:
            raise ValueError(f"unknown fault {sorted(unknown)}; known: {', '.join(FAULTS)}")
        self.values.update(given)

    def value(self, name: str) -> float:
        """The number given for a fault."""
        return float(self.values[name])

    def strikes(self, name: str) -> bool:
        """Draw whether a fault with a share strikes now."""
        share = self.value(name)
        return share > 0 and self.random.random() < share


class Store:
    """The state folder: one JSON file per task, one line per call and per body."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "tasks").mkdir(parents=True, exist_ok=True)
        self.calls_file = (folder / "calls.jsonl").open("a", buffering=1)
        self.bodies_file = (folder / "bodies.jsonl").open("a", buffering=1)

    def task_folder(self, task: Task) -> Path:
        """Where a task's script, output and exit status are."""
        return self.folder / "tasks" / task.uuid

    def save(self, task: Task) -> None:
        """Write a task so that a kill leaves the old or the new version."""
        folder = self.task_folder(task)
        folder.mkdir(exist_ok=True)
        new = folder / "task.json.new"
        new.write_text(json.dumps(asdict(task)))
        new.replace(folder / "task.json")

    def load(self) -> list[Task]:
        """Read all tasks, oldest first."""
        files = (self.folder / "tasks").glob("*/task.json")
        return sorted((Task(**json.loads(file.read_text())) for file in files), key=lambda task: task.created)

    def log_call(self, method: str, path: str, status: int) -> None:
        """Remember a call; status 0 means that it got no answer."""
        self.calls_file.write(json.dumps({"t": time.time(), "method": method, "path": path, "status": status}) + "\n")

    def log_body(self, method: str, path: str, body: str, headers: dict[str, str]) -> None:
        """Remember what was sent, for searches after secrets."""
        self.bodies_file.write(json.dumps({"method": method, "path": path, "body": body, "headers": headers}) + "\n")

    def calls(self) -> list[dict[str, Any]]:
        """All calls so far."""
        lines = (self.folder / "calls.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def close(self) -> None:
        """Close the files."""
        self.calls_file.close()
        self.bodies_file.close()


class Machine:
    """Runs tasks as process groups in a fixed number of slots."""

    def __init__(self, store: Store, faults: Faults, slots: int) -> None:
        self.store = store
        self.faults = faults
        self.slots = slots
        self.tasks: dict[str, Task] = {task.uuid: task for task in store.load()}
        self.children: dict[int, subprocess.Popen[bytes]] = {}

    def set_status(self, task: Task, status: str, message: str = "") -> None:
        """Change a task's status on disk and in memory."""
        task.status, task.message, task.updated = status, message, time.time()
        if status in ENDED and task.ended is None:
            task.ended = task.updated
        self.store.save(task)

    def alive(self, task: Task) -> bool:
        """Whether the first process of a task lives."""
        if task.pid is None:
            return False
        child = self.children.get(task.pid)
        if child is not None and child.poll() is not None:
            return False
        return bool(task.pid_started) and process_start(task.pid) == task.pid_started

    def signal(self, task: Task, number: int) -> None:
        """Send a signal to all processes of a task."""
        if task.pid is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(task.pid, number)

    def start(self, task: Task) -> None:
        """Start a task's `cmd`, or let it fail before it runs."""
        task.starts += 1
        task.started = task.started or time.time()
        self.draw_doom(task)
        if task.doom == "image_pull":
            self.set_status(task, "Failed", "ImagePullBackOff: back-off pulling image")
            return
        folder = self.store.task_folder(task)
        folder.mkdir(exist_ok=True)
        (folder / "cmd.sh").write_text(task.body["cmd"])
        (folder / "exit").unlink(missing_ok=True)
        script = "bash ./cmd.sh >>output.txt 2>&1; echo $? >exit.new; mv exit.new exit"
        child = subprocess.Popen(
            ["bash", "-c", script],
            cwd=folder,
            env=self.environment(task),
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.children[child.pid] = child
        task.pid, task.pid_started, task.exit_code = child.pid, process_start(child.pid), None
        self.set_status(task, "Running")

    def draw_doom(self, task: Task) -> None:
        """Draw what the platform will do to this start."""
        task.doom = ""
        for fault in ("image_pull", "preempt", "node_lost", "restart", "forget"):
            if self.faults.strikes(fault) and not (fault == "restart" and task.starts > 1):
                task.doom = fault
                task.doom_at = time.time() + self.faults.random.uniform(0, self.faults.value("fault_after"))
                return

    def environment(self, task: Task) -> dict[str, str]:
        """What a container would give: nothing of the simulator's own environment but where programs are."""
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR", "LANG") if name in os.environ}
        return kept | {item["envKey"]: str(item["envValue"]) for item in task.body.get("taskEnv") or []}

    def step(self) -> None:
        """Look at every live task once: start, end, stop, doom."""
        live = [task for task in self.tasks.values() if task.status not in ENDED]
        running = [task for task in live if task.status in ("Running", "Stopping")]
        for task in running:
            self.step_running(task)
        if self.faults.value("hold"):
            return
        free = self.slots - sum(task.status in ("Running", "Stopping") for task in live)
        earliest = time.time() - self.faults.value("start_delay")
        waiting = [task for task in self.queue(live) if task.created <= earliest]
        for task in waiting[: max(0, free)]:
            self.start(task)

    @staticmethod
    def queue(live: Iterable[Task]) -> list[Task]:
        """The pending tasks in the order in which they will start."""
        pending = [task for task in live if task.status == "Pending"]
        return sorted(pending, key=lambda task: (PRIORITIES.index(task.body.get("priority") or "medium"), task.created))

    def step_running(self, task: Task) -> None:
        """Take one running or stopping task further."""
        now = time.time()
        if task.status == "Stopping":
            if not self.alive(task):
                self.signal(task, signal.SIGKILL)
                self.set_status(task, "Stopped", "stopped by user")
            elif task.stop_asked is not None and now > task.stop_asked + self.faults.value("stop_grace"):
                self.signal(task, signal.SIGKILL)
        elif task.doom and now >= task.doom_at:
            self.strike(task)
        elif not self.alive(task):
            self.finish(task)

    def strike(self, task: Task) -> None:
        """Do to a running task what was drawn for it."""
        doom, task.doom = task.doom, ""
        if doom == "forget":
            task.forgotten = True
            self.store.save(task)
            return
        if not (doom == "node_lost" and self.faults.strikes("zombie")):
            self.signal(task, signal.SIGKILL)
        if doom == "preempt":
            self.set_status(task, "Stopped", "Preempted by a task of higher priority")
        elif doom == "node_lost":
            self.set_status(task, "Error", "NodeLost: the node does not answer")
        else:
            task.pid = None
            self.set_status(task, "Pending", "restarted after a preemption")

    def finish(self, task: Task) -> None:
        """Read the exit status that an ended task left."""
        self.children.pop(task.pid or 0, None)
        try:
            task.exit_code = int((self.store.task_folder(task) / "exit").read_text())
        except (OSError, ValueError):
            task.exit_code = -9
        if task.exit_code == 0:
            self.set_status(task, "Succeeded")
        else:
            self.set_status(task, "Failed", f"the container ended with exit code {task.exit_code}")

    def stop(self, task: Task) -> None:
        """Begin to stop a task; an ended one stays as it is."""
        if task.status in ENDED or task.status == "Stopping":
            return
        if task.status == "Pending":
            self.set_status(task, "Stopped", "stopped by user")
            return
        task.stop_asked = time.time()
        self.signal(task, signal.SIGTERM)
        self.set_status(task, "Stopping", "stopped by user")


class Simulator:
    """The calls of the API over a `Machine`."""

    def __init__(self, machine: Machine, faults: Faults, keys: tuple[str, str] | None) -> None:
        self.machine = machine
        self.faults = faults
        self.keys = keys
        self.started = time.time()
        self.scripts_used = 0

    # -- who ---------------------------------------------------------------------------------------------------------

    def authenticate(self, request: web.Request) -> str:
        """Check the signed headers and return the key id."""
        headers = request.headers
        for name in ("Randstr", "Timestamp", "AppID", "X-Region", "X-Cluster", "Signature"):
            if not headers.get(name):
                raise ApiError(401, f"header {name} is missing")
        if not re.fullmatch(r"[0-9]{10}", headers["Randstr"]) or not headers["Timestamp"].isdecimal():
            raise ApiError(401, "Randstr is 10 digits, Timestamp unix seconds")
        if abs(time.time() - int(headers["Timestamp"])) > 300:
            raise ApiError(401, "signature expired")
        self.check_signature(headers["AppID"], headers["Randstr"] + headers["Timestamp"], headers["Signature"])
        every = self.faults.value("expire")
        if every and (time.time() - self.started) % every > every - 1:
            raise ApiError(401, "signature expired")
        return headers["AppID"]

    def check_signature(self, key_id: str, nonce: str, given: str) -> None:
        """Compare a signature with the one that the secret gives."""
        known = {"AK": "SK"} if self.keys is None else {self.keys[0]: self.keys[1]}
        if key_id in known:
            wanted = hashlib.sha256((known[key_id] + nonce).encode()).hexdigest()
            good = hmac.compare_digest(wanted.encode(), given.encode("utf-8", "surrogateescape"))
        else:
            good = self.keys is None and re.fullmatch(r"[0-9a-f]{64}", given) is not None
        if not good:
            raise ApiError(401, "signature does not match")

    # -- what --------------------------------------------------------------------------------------------------------

    async def create(self, request: web.Request, owner: str) -> object:
        """Create a task."""
        body = await self.json_body(request)
        check_body(body)
        header = request.headers.get("X-Labels")
        if header:
            body.setdefault("labels", parse_labels_header(header))
        quota = self.faults.value("quota")
        if quota and sum(task.live for task in self.machine.tasks.values()) >= quota:
            raise ApiError(409, f"quota exceeded: resource pool {body['resourcePool']} allows {quota:.0f} tasks")
        if self.faults.strikes("bad_request"):
            raise ApiError(400, "namePrefix is not allowed")
        suffix = "".join(self.faults.random.choices(string.ascii_lowercase + string.digits, k=5))
        task = Task(
            uuid=str(uuids.uuid4()),
            name=f"{body['namePrefix']}-{suffix}",
            owner=owner,
            cluster=request.headers["X-Cluster"],
            body=body,
            created=time.time(),
            updated=time.time(),
            script=self.next_script(),
        )
        self.machine.tasks[task.uuid] = task
        self.machine.store.save(task)
        return task.uuid

    def next_script(self) -> list[list[Any]]:
        """The status script for the next task, if there are scripts."""
        if not self.faults.values["script"]:
            return []
        scripts = json.loads(Path(str(self.faults.values["script"])).read_text())
        self.scripts_used += 1
        chosen: list[list[Any]] = scripts[(self.scripts_used - 1) % len(scripts)]
        return chosen

    @staticmethod
    async def json_body(request: web.Request) -> dict[str, Any]:
        """The body as a JSON object."""
        try:
            body = json.loads(await request.text())
        except ValueError as error:
            raise ApiError(400, f"body is not JSON: {error}") from error
        if not isinstance(body, dict):
            raise ApiError(400, "body is not a JSON object")
        return body

    def find(self, uuid: str) -> Task:
        """The task with a uuid, or 404."""
        task = self.machine.tasks.get(uuid)
        if task is None or task.deleted:
            raise ApiError(404, f"task {uuid} not found")
        return task

    async def get(self, request: web.Request, owner: str) -> object:
        """One task, whole."""
        task = self.find(request.match_info["uuid"])
        young = time.time() < task.created + self.faults.value("get_lag")
        if task.forgotten or young or self.faults.strikes("blip_404"):
            raise ApiError(404, f"task {task.uuid} not found")
        return self.row(task, owner, self.ranks()) | self.details(task)

    async def list(self, request: web.Request, owner: str) -> object:
        """One page of the tasks that pass the filters."""
        query = request.query
        page, size = positive(query, "page", 1), positive(query, "pageSize", 10)
        size = min(size, int(self.faults.value("cap_page")) or 1000)
        seen = time.time() - self.faults.value("list_lag")
        tasks = [t for t in self.machine.tasks.values() if not t.deleted and not t.forgotten and t.created <= seen]
        if self.faults.value("blind_filter") and query.get("labels"):
            tasks = []
        if not self.faults.value("no_filter"):
            tasks = [task for task in tasks if self.passes(task, query)]
        self.order(tasks, query)
        ranks = self.ranks()
        rows = [self.row(task, owner, ranks) for task in tasks[(page - 1) * size : page * size]]
        return {"total": len(tasks), "rows": rows}

    def order(self, tasks: list[Task], query: Any) -> None:
        """Sort as asked: newest first by default."""
        keys: dict[str, Callable[[Task], Any]] = {
            "createTime": lambda task: task.created,
            "updateTime": lambda task: task.updated,
            "startTime": lambda task: task.started or 0.0,
            "endTime": lambda task: task.ended or 0.0,
            "name": lambda task: task.name,
            "status": lambda task: task.status,
        }
        column = query.get("orderBy") or "createTime"
        if column not in keys:
            raise ApiError(400, f"orderBy {column!r} is not one of {', '.join(keys)}")
        tasks.sort(key=keys[column], reverse=query.get("asc", "").lower() not in ("true", "1"))
        if self.faults.value("reorder"):
            self.faults.random.shuffle(tasks)

    def passes(self, task: Task, query: Any) -> bool:
        """Whether a task passes the filters of a list; an empty filter is none."""
        wanted = [pair.partition("=") for pair in query.get("labels", "").split(",") if pair]
        states = [word for word in query.get("status", "").split(",") if word]
        owners = [word for word in query.get("owners", "").split(",") if word]
        return (
            all(task.labels.get(key) == value for key, _, value in wanted)
            and (not states or self.shown_status(task) in states)
            and (not owners or task.owner in owners)
            and query.get("name", "") in task.name
        )

    async def pods(self, request: web.Request, owner: str) -> object:
        """The pods of a task."""
        task = self.find(request.match_info["uuid"])
        if not task.starts:
            return []
        return [
            {
                "name": f"{task.name}-0",
                "status": self.shown_status(task),
                "statusMsg": task.message,
                "node": "node-1",
                "ip": "127.0.0.1",
                "exitCode": task.exit_code,
                "startTime": wall_time(task.started),
                "endTime": wall_time(task.ended),
            }
        ]

    async def stop_one(self, request: web.Request, owner: str) -> object:
        """Stop one task."""
        self.maybe_refuse_stop()
        task = self.find(request.match_info["uuid"])
        self.machine.stop(task)
        return task.uuid

    def maybe_refuse_stop(self) -> None:
        """Fail a stop call where that fault strikes."""
        if self.faults.strikes("stop_error"):
            raise ApiError(500, "stop failed")

    async def many(self, request: web.Request) -> list[Task]:
        """The known tasks among the uuids of a body."""
        wanted = (await self.json_body(request)).get("uuids")
        if not isinstance(wanted, list) or not all(isinstance(item, str) for item in wanted):
            raise ApiError(422, "uuids must be a list of strings")
        known = self.machine.tasks
        return [known[item] for item in wanted if item in known and not known[item].deleted]

    async def stop_many(self, request: web.Request, owner: str) -> object:
        """Stop several tasks; unknown ones are left out of the answer."""
        self.maybe_refuse_stop()
        tasks = await self.many(request)
        for task in tasks:
            self.machine.stop(task)
        return [task.uuid for task in tasks]

    def remove(self, task: Task) -> str:
        """Delete a task; a live one is stopped first."""
        self.machine.stop(task)
        task.deleted = True
        self.machine.store.save(task)
        return task.uuid

    async def delete_one(self, request: web.Request, owner: str) -> object:
        """Delete one task."""
        return self.remove(self.find(request.match_info["uuid"]))

    async def delete_many(self, request: web.Request, owner: str) -> object:
        """Delete several tasks."""
        return [self.remove(task) for task in await self.many(request)]

    async def resubmit(self, request: web.Request, owner: str) -> object:
        """Put ended tasks back into the queue under their own uuid."""
        tasks = [task for task in await self.many(request) if task.status in ENDED]
        for task in tasks:
            task.pid = task.started = task.ended = task.exit_code = None
            self.machine.set_status(task, "Pending", "resubmitted")
        return [task.uuid for task in tasks]

    # -- how a task looks --------------------------------------------------------------------------------------------

    def shown_status(self, task: Task) -> str:
        """What the platform says of a task now: the truth, a script, or a fault."""
        if task.script:
            elapsed = time.time() - task.created
            for status, seconds in task.script:
                elapsed -= seconds
                if elapsed < 0:
                    return str(status)
            return str(task.script[-1][0]) if math.isinf(task.script[-1][1]) else task.status
        if task.status == "Running" and self.faults.strikes("unknown"):
            return "Unknown"
        if task.status == "Running" and self.faults.strikes("new_word"):
            return "Rescheduling"
        return task.status

    def row(self, task: Task, viewer: str, ranks: dict[str, dict[str, Any]]) -> dict[str, Any]:
        """A task as it stands in a list."""
        body = task.body
        instances = body["instances"]
        ended = task.ended or time.time()
        duration = None if task.started is None else f"{max(0, int(ended - task.started))}s"
        row = {
            "uuid": task.uuid,
            "cluster": task.cluster,
            "name": task.name,
            "resourcePool": body["resourcePool"],
            "instances": [{"name": i["name"], "countPerPod": i["countPerPod"]} for i in instances],
            "selectedInstances": [
                {"name": i["name"], "countTotal": i["countPerPod"] * max(1, int(body.get("workers") or 0))}
                for i in instances[: 1 if task.started else 0]
            ],
            "volumes": body.get("volumes") or [],
            "image": str(body["image"]),
            "imageVersion": str(body.get("imageVersion") or ""),
            "imageUrl": str(body.get("imageUrl") or ""),
            "imageType": str(body.get("imageType") or ""),
            "status": self.shown_status(task),
            "statusMsg": task.message,
            "createTime": wall_time(task.created),
            "updateTime": wall_time(task.updated),
            "startTime": wall_time(task.started),
            "endTime": wall_time(task.ended),
            "duration": duration,
            "priority": str(body.get("priority") or "medium"),
            "guarantee": bool(body.get("guarantee")),
            "queueInfo": ranks.get(task.uuid, NOT_QUEUED),
            "taskEnv": shown_env(task, viewer),
            "sharedUsers": [],
            "owner": task.owner,
            "enhancements": body.get("enhancements") or {},
        }
        if not self.faults.value("no_labels"):
            row["labels"] = task.labels
        return row

    def details(self, task: Task) -> dict[str, Any]:
        """What a single get has on top of a row."""
        body = task.body
        words = {name: str(body.get(name) or "") for name in ("product", "module", "oss", "timezone")}
        return words | {
            "namePrefix": body["namePrefix"],
            "type": body["type"],
            "workers": str(body.get("workers", 1)),
            "cmd": body["cmd"],
            "datasets": body.get("datasets") or [],
            "models": body.get("models") or [],
            "dashboardUrl": "",
        }

    def ranks(self) -> dict[str, dict[str, Any]]:
        """Where each pending task stands in its pool's queue."""
        ranks: dict[str, dict[str, Any]] = {}
        pools: dict[str, Counter[str]] = defaultdict(Counter)
        users: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        for task in self.machine.queue(self.machine.tasks.values()):
            pool = pools[task.body["resourcePool"]]
            user = users[task.body["resourcePool"], task.owner]
            ranks[task.uuid] = {
                "rankInPool": pool.total() + 1,
                "aheadInPool": {word: pool[word] for word in PRIORITIES},
                "rankInUser": user.total() + 1,
                "aheadInUser": {word: user[word] for word in PRIORITIES},
            }
            priority = task.body.get("priority") or "medium"
            pool[priority] += 1
            user[priority] += 1
        return ranks

    def history(self) -> dict[str, Any]:
        """Every call and every task since the state folder was made."""
        tasks = [
            {
                "uuid": t.uuid,
                "name": t.name,
                "labels": t.labels,
                "status": t.status,
                "created": t.created,
                "started": t.started,
                "ended": t.ended,
            }
            for t in self.machine.tasks.values()
        ]
        return {"calls": self.machine.store.calls(), "tasks": tasks}


def shown_env(task: Task, viewer: str) -> list[dict[str, Any]]:
    """The task's variables; hidden ones only for the owner."""
    return [
        item | {"envValue": "****"} if item.get("hide") and viewer != task.owner else item
        for item in task.body.get("taskEnv") or []
    ]


def positive(query: Any, name: str, default: int) -> int:
    """A query parameter that must be a positive number."""
    given = query.get(name) or str(default)
    if not given.isdecimal() or int(given) < 1:
        raise ApiError(400, f"{name} must be a positive number, not {given!r}")
    return int(given)


def parse_labels_header(text: str) -> dict[str, str]:
    """The labels of an X-Labels header."""
    try:
        labels = json.loads(text)
    except ValueError as error:
        raise ApiError(400, f"X-Labels is not JSON: {error}") from error
    if not isinstance(labels, dict):
        raise ApiError(400, "X-Labels is not a JSON object")
    return labels


def check_body(body: dict[str, Any]) -> None:
    """Check the body of a create, field by field, as the API page has it."""
    for name in ("namePrefix", "image", "type", "resourcePool", "cmd"):
        if not isinstance(body.get(name), str) or not body[name].strip():
            raise ApiError(422, f"{name} must be a string that is not empty")
    if body["type"] not in ("pod", "pytorchjob"):
        raise ApiError(422, "type must be pod or pytorchjob")
    if (body.get("priority") or "medium") not in PRIORITIES:
        raise ApiError(422, "priority must be high, medium or low")
    if not isinstance(body.get("guarantee", False), bool | None):
        raise ApiError(422, "guarantee must be true or false")
    workers = body.get("workers", 1)
    if workers is not None and (not isinstance(workers, int) or isinstance(workers, bool) or workers < 0):
        raise ApiError(422, "workers must be a whole number")
    check_list(body, "instances", {"name": str, "countPerPod": int}, least=1)
    check_list(body, "volumes", {"mountDir": str})
    if any("volumeId" not in item and "volumeName" not in item for item in body.get("volumes") or []):
        raise ApiError(422, "each of volumes needs volumeId or volumeName")
    check_list(body, "taskEnv", {"envKey": str, "envValue": str})
    check_list(body, "datasets", {})
    check_list(body, "models", {})
    labels = body.get("labels")
    if labels is not None and not (isinstance(labels, dict) and all(isinstance(v, str) for v in labels.values())):
        raise ApiError(422, "labels must be an object of strings")


def check_list(body: dict[str, Any], name: str, wanted: dict[str, type], least: int = 0) -> None:
    """Check a field that is a list of objects."""
    items = body.get(name) or []
    if not isinstance(items, list) or len(items) < least or not all(isinstance(item, dict) for item in items):
        raise ApiError(422, f"{name} must be a list of at least {least} objects")
    for item in items:
        for key, kind in wanted.items():
            if not isinstance(item.get(key), kind) or isinstance(item.get(key), bool):
                raise ApiError(422, f"each of {name} needs {key} ({kind.__name__})")


# -- the server ------------------------------------------------------------------------------------------------------

Handler = Callable[[web.Request, str], Awaitable[object]]


class Front:
    """What every call passes through: faults, signature, envelope, history."""

    def __init__(self, simulator: Simulator, faults: Faults, store: Store) -> None:
        self.simulator = simulator
        self.faults = faults
        self.store = store

    def route(self, handler: Handler) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        """Wrap a call of the simulator as a handler of the server."""

        async def handle(request: web.Request) -> web.StreamResponse:
            status = 0
            try:
                response = await self.answer(request, handler)
                status = response.status
                return response
            finally:
                self.store.log_call(request.method, request.path_qs, status)

        return handle

    async def answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Answer one call, or do what the faults want instead."""
        self.store.log_body(request.method, request.path_qs, await request.text(), dict(request.headers))
        creating = request.method == "POST" and request.path == TASKS
        try:
            await self.before(request, creating)
            owner = self.simulator.authenticate(request)
            data = await handler(request, owner)
        except ApiError as error:
            headers = {} if error.retry_after is None else {"Retry-After": f"{error.retry_after:g}"}
            body = envelope(False, str(error)) | {"data": None}
            return web.json_response(body, status=error.status, headers=headers)
        if creating and self.faults.strikes("error_after"):
            return web.json_response(envelope(False, "bad gateway"), status=502)
        if creating and self.faults.strikes("drop_post"):
            cut(request)
        return self.corrupt() or web.json_response(success(data))

    async def before(self, request: web.Request, creating: bool) -> None:
        """The faults that strike before a call is carried out."""
        faults = self.faults
        while faults.value("blackhole"):
            await asyncio.sleep(0.2)
        await asyncio.sleep(faults.value("latency") + faults.random.uniform(0, faults.value("jitter")))
        if faults.value("refuse") or faults.strikes("lose_post" if creating else "cut"):
            cut(request)
        if faults.value("outage"):
            raise ApiError(503, "service unavailable")
        if faults.strikes("too_many"):
            raise ApiError(429, "too many requests", retry_after=faults.value("retry_after"))
        if faults.strikes("error"):
            raise ApiError(faults.random.choice((500, 502, 503, 504)), "internal error")
        if faults.strikes("unauthorized"):
            raise ApiError(401, "signature expired")
        if faults.strikes("status_false"):
            raise ApiError(200, "the service is busy")

    def corrupt(self) -> web.StreamResponse | None:
        """A broken answer instead of a good one, if that strikes."""
        if self.faults.strikes("html"):
            return web.Response(text="<html><body>Sign in</body></html>", content_type="text/html")
        if self.faults.strikes("bad_json"):
            text = self.faults.random.choice(("", '{"status": true, "da', "null", "[]"))
            return web.Response(text=text, content_type="application/json")
        return None

    async def history(self, request: web.Request) -> web.Response:
        """Tell what happened; no signature needed."""
        return web.json_response(self.simulator.history())

    async def change_faults(self, request: web.Request) -> web.Response:
        """Change faults while running; no signature needed."""
        try:
            self.faults.update(await request.json())
        except ValueError as error:
            return web.json_response({"error": str(error)}, status=400)
        return web.json_response(self.faults.values)


def cut(request: web.Request) -> None:
    """Cut the connection of a call without an answer."""
    if request.transport is not None:
        request.transport.abort()
    raise asyncio.CancelledError


def envelope(good: bool, message: str) -> dict[str, Any]:
    """The frame of every answer."""
    return {"status": good, "msg": message, "traceID": uuids.uuid4().hex, "requestID": uuids.uuid4().hex}


def success(data: object) -> dict[str, Any]:
    """A good answer: a list has `total` and `rows`, all others `data`."""
    if isinstance(data, dict) and set(data) == {"total", "rows"}:
        return envelope(True, "success") | data
    return envelope(True, "success") | {"data": data}


def application(front: Front) -> web.Application:
    """The routes of the API."""
    simulator = front.simulator
    app = web.Application(client_max_size=64 * 1024 * 1024)
    app.add_routes(
        [
            web.get(f"{BASE}/__history", front.history),
            web.post(f"{BASE}/__faults", front.change_faults),
            web.post(TASKS, front.route(simulator.create)),
            web.get(TASKS, front.route(simulator.list)),
            web.post(f"{TASKS}/stop", front.route(simulator.stop_many)),
            web.get(TASKS + "/stop/{uuid}", front.route(simulator.stop_one)),
            web.post(f"{TASKS}/deletion", front.route(simulator.delete_many)),
            web.post(f"{TASKS}/resubmission", front.route(simulator.resubmit)),
            web.get(TASKS + "/{uuid}/pods", front.route(simulator.pods)),
            web.get(TASKS + "/{uuid}", front.route(simulator.get)),
            web.delete(TASKS + "/{uuid}", front.route(simulator.delete_one)),
        ]
    )
    return app


async def serve(args: argparse.Namespace) -> None:
    """Serve until SIGTERM or SIGINT; tasks live on."""
    faults = Faults(dict(args.fault), args.seed)
    store = Store(Path(args.state))
    machine = Machine(store, faults, args.slots)
    front = Front(Simulator(machine, faults, find_keys(args)), faults, store)
    runner = web.AppRunner(application(front), access_log=None, shutdown_timeout=1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", args.port)
    await site.start()
    port = runner.addresses[0][1]
    print(f"http://127.0.0.1:{port}{BASE}", flush=True)
    ending = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ending.set)
    while not ending.is_set():
        machine.step()
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(ending.wait(), args.tick)
    await runner.cleanup()
    store.close()


def find_keys(args: argparse.Namespace) -> tuple[str, str] | None:
    """The key id and secret that signatures are checked with."""
    key_id = args.access_key_id or os.environ.get("SIFLOW_ACCESS_KEY_ID")
    secret = args.access_key_secret or os.environ.get("SIFLOW_ACCESS_KEY_SECRET")
    return (key_id, secret) if key_id and secret else None


def fault(text: str) -> tuple[str, float | str]:
    """Parse NAME=VALUE; a name alone means 1."""
    name, _, value = text.partition("=")
    name = name.replace("-", "_")
    if name not in FAULTS:
        raise argparse.ArgumentTypeError(f"unknown fault {name!r}; known: {', '.join(FAULTS)}")
    if isinstance(FAULTS[name][0], str):
        return name, value
    try:
        return name, float(value or 1)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"fault {name}: {value!r} is not a number") from error


def parse(argv: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    table = "\n".join(f"  {name:<14}{text} (default {default!r})" for name, (default, text) in FAULTS.items())
    parser = argparse.ArgumentParser(
        prog=f"{shlex.quote(sys.executable)} -m tests.servers.siflow",
        description="A simulator of SiFlow.",
        epilog=f"faults (--fault NAME=VALUE, repeated):\n{table}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--port", type=int, default=0, help="0: a free one")
    parser.add_argument("--state", required=True, help="folder for the history; made if missing")
    parser.add_argument("--slots", type=int, default=8, help="tasks that run at the same time")
    parser.add_argument("--seed", type=int, default=1, help="seed of the faults")
    parser.add_argument("--tick", type=float, default=0.1, help="seconds between two looks at the tasks")
    parser.add_argument("--access-key-id")
    parser.add_argument("--access-key-secret")
    parser.add_argument("--fault", type=fault, action="append", default=[], metavar="NAME=VALUE")
    return parser.parse_args(argv)


if __name__ == "__main__":
    asyncio.run(serve(parse(sys.argv[1:])))
