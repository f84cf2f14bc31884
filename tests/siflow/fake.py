"""A platform in memory with a clock in memory: what the client would do, every fault at hand, no waiting."""

from __future__ import annotations

import json
import random
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from snakemake_executor_plugin_siflow import states
from snakemake_executor_plugin_siflow.client import (
    Doubtful,
    NotFound,
    Rejected,
    TaskInfo,
    Throttled,
    Unreachable,
)
from snakemake_executor_plugin_siflow.dispatcher import Clocks, Dispatcher
from snakemake_executor_plugin_siflow.folder import RunFolder
from snakemake_executor_plugin_siflow.settings import ExecutorSettings
from snakemake_executor_plugin_siflow.task import NAME, job_key
from snakemake_executor_plugin_siflow.work import Work

SETTINGS = ExecutorSettings(
    poll_seconds=1,
    poll_seconds_max=4,
    list_grace=30,
    lost_after=60,
    unknown_after=500,
    infra_retries=50,
    infra_backoff=1,
    image="i",
    resource_pool="p",
    instance=["x"],
)


@dataclass
class FakeTask:
    """A task of the platform."""

    uuid: str
    name: str
    labels: dict[str, str]
    created: float
    status: str = "Pending"
    message: str = ""
    forgotten: bool = False

    @property
    def key(self) -> str:
        """The work it is for."""
        match = NAME.fullmatch(self.name)
        assert match is not None
        return match["key"]

    @property
    def number(self) -> int:
        """The attempt that it is."""
        match = NAME.fullmatch(self.name)
        assert match is not None
        return int(match["attempt"])

    @property
    def live(self) -> bool:
        """Whether it may run."""
        return not states.is_ended(self.status)


@dataclass
class FakePlatform:
    """The client's calls, with a mode for each that says what goes wrong next."""

    now: float = 1000.0
    tasks: dict[str, FakeTask] = field(default_factory=dict)
    create_mode: str = "ok"
    list_mode: str = "ok"
    get_mode: str = "ok"
    stop_mode: str = "ok"
    lag: float = 0.0
    labels_shown: bool = True
    filter_works: bool = True
    #: Creates while a live task of the same work existed.
    doubled: list[str] = field(default_factory=list)
    random: random.Random = field(default_factory=lambda: random.Random(1))
    lock: threading.Lock = field(default_factory=threading.Lock)
    calls: int = 0

    def create(self, body: dict[str, Any]) -> str:
        """Create a task, or not, and answer, or not."""
        with self.lock:
            self.calls += 1
            errors = {"unreachable": Unreachable("no route"), "throttled": Throttled("429", 1), "lost": Doubtful("cut")}
            if self.create_mode in errors:
                raise errors[self.create_mode]
            if self.create_mode == "quota":
                raise Rejected("HTTP 409: quota exceeded", 409)
            if self.create_mode == "bad":
                raise Rejected("HTTP 422: image", 422)
            uuid = f"u{len(self.tasks)}"
            task = FakeTask(uuid, f"{body['namePrefix']}-x{len(self.tasks)}", body["labels"], self.now)
            self.doubled += [task.name for other in self.tasks.values() if other.key == task.key and other.live]
            self.tasks[uuid] = task
            if self.create_mode == "accepted":
                raise Doubtful("cut after the work was done")
            return uuid

    def info(self, task: FakeTask) -> TaskInfo:
        """A task as the client reads it."""
        return TaskInfo(
            task.uuid, task.name, task.status, task.message, task.labels if self.labels_shown else {}, 1, ""
        )

    def list_all(self, labels: str = "", name: str = "", most: int = 0) -> list[TaskInfo]:
        """The tasks that a list shows now."""
        self.calls += 1
        if self.list_mode == "error":
            raise Doubtful("HTTP 500")
        if labels and not self.filter_works:
            return []
        shown = [task for task in self.tasks.values() if task.created + self.lag <= self.now and not task.forgotten]
        if self.list_mode == "holes":
            shown = [task for task in shown if self.random.random() < 0.5]
        self.random.shuffle(shown)
        return [self.info(task) for task in shown]

    def get(self, uuid: str) -> TaskInfo:
        """One task."""
        self.calls += 1
        if self.get_mode == "error":
            raise Doubtful("HTTP 502")
        if self.get_mode == "404" or self.tasks[uuid].forgotten:
            raise NotFound("HTTP 404")
        return self.info(self.tasks[uuid])

    def stop(self, uuids: list[str]) -> None:
        """Stop several tasks."""
        self.calls += 1
        if self.stop_mode == "error":
            raise Doubtful("HTTP 500")
        if self.stop_mode == "one by one":
            raise Rejected("HTTP 405", 405)
        for uuid in uuids:
            self.stop_one(uuid)

    def stop_one(self, uuid: str) -> None:
        """Stop one task."""
        if self.tasks[uuid].live:
            self.tasks[uuid].status, self.tasks[uuid].message = "Stopped", "by user"

    def hurry(self, timeout: float) -> None:
        """Nothing waits here."""

    def close(self) -> None:
        """Nothing is open here."""


class Quiet:
    """A log that keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def info(self, message: str, /) -> None:
        """Keep it."""
        self.said.append(message)

    def warning(self, message: str, /) -> None:
        """Keep it."""
        self.said.append(message)


class Rig:
    """A dispatcher over a fake platform, which can crash and start again."""

    def __init__(self, root: Path, settings: ExecutorSettings = SETTINGS, **platform: Any) -> None:
        self.root = root
        self.settings = settings
        self.platform = FakePlatform(**platform)
        self.works: dict[str, Work] = {}
        self.log = Quiet()
        self.verdicts: dict[str, list[bool]] = {}
        self.start()

    def start(self) -> None:
        """Start a controller over what is on disk; all open work is handed over again."""
        self.folder = RunFolder.current(self.root / "siflow")
        self.folder.prepare()
        fake = self.platform
        clocks = Clocks(clock=lambda: fake.now, wall=lambda: fake.now + 1e9, sleep=self.sleep, jitter=random.Random(1))
        self.dispatcher = Dispatcher(fake, self.folder, self.settings, self.log, 2.0, clocks)  # type: ignore[arg-type]
        for name in list(self.works):
            self.enqueue(name)

    def crash(self) -> None:
        """Forget everything that is not on disk."""
        self.dispatcher._ledger.close()
        self.start()

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.platform.now += seconds

    def enqueue(self, name: str, code: str = "c") -> Work:
        """Hand a piece of work over."""
        output = str(self.root / name)
        key = job_key(self.folder.run, [output], "")
        spec = {
            "key": key,
            "rule": "r",
            "workdir": str(self.root),
            "python": "python",
            "outputs": [output],
            "inputs": [],
        }
        work = Work(key=key, rule="r", body={}, spec=spec, members={name: {"code": code, "inputs": {}}})
        self.works[name] = work
        self.dispatcher.enqueue(work)
        return work

    def round(self, seconds: float = 1.0) -> None:
        """Let time pass and take one round; verdicts are collected."""
        self.platform.now += seconds
        self.dispatcher.round()
        for name, work in list(self.works.items()):
            verdict = self.dispatcher.verdict(work)
            if verdict is not None:
                self.verdicts.setdefault(name, []).append(verdict.success)
                del self.works[name]

    def rounds(self, number: int, seconds: float = 1.0) -> None:
        """Several rounds."""
        for _ in range(number):
            self.round(seconds)

    def task(self, work: Work) -> FakeTask:
        """The newest task of a piece of work."""
        return [task for task in self.platform.tasks.values() if task.key == work.key][-1]

    def fence(self, task: FakeTask) -> int:
        """The newest attempt at a task's work."""
        return int((self.folder.path / "fence" / task.key).read_text())

    def finish(self, task: FakeTask, outcome: str = "done", status: str = "Succeeded", message: str = "") -> None:
        """Let a task end as the wrapper would: with a report and outputs, if it is not fenced."""
        if outcome != "none" and self.fence(task) == task.number:
            spec = self.folder.read_json("tasks", f"{task.key}-a{task.number}") or {}
            report: dict[str, Any] = {"outcome": outcome}
            if outcome == "done":
                report["outputs"] = {}
                for path in spec["outputs"]:
                    Path(path).write_text("result")
                    info = Path(path).stat()
                    report["outputs"][path] = [info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino]
            (self.folder.path / "reports" / f"{task.key}-a{task.number}.json").write_text(json.dumps(report))
        task.status, task.message = status, message

    def close(self) -> None:
        """Close what is open."""
        self.dispatcher._ledger.close()
