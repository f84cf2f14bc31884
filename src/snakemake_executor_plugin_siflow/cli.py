"""`snakemake-siflow`: look at the platform without a workflow, and clean up after one.

Takes the executor's own flags (`--siflow-base-url …`), or those that a profile sets (`--profile profiles/siflow`).
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from snakemake_interface_common.exceptions import WorkflowError
from snakemake_interface_executor_plugins.registry.plugin import Plugin  # type: ignore[import-untyped]

from . import __version__, common_settings, states, wrapper
from .client import ApiError, NotFound, Rejected, SiflowClient, TaskInfo
from .executor import Executor
from .folder import Held, RunFolder
from .redact import Redactor
from .settings import Environment, ExecutorSettings, find_keys
from .task import NAME, TaskError, TaskFactory

ROOT = Path(".snakemake/siflow")
#: The names of the packages that must be the same in the task's image as here.
PACKAGES = ("snakemake", "snakemake-interface-executor-plugins")


class Finding(NamedTuple):
    """One line of `check`."""

    good: bool
    what: str
    detail: str


def plugin() -> Plugin:
    """The plugin as Snakemake's registry has it."""
    return Plugin(
        _name="siflow", executor=Executor, common_settings=common_settings, _executor_settings_cls=ExecutorSettings
    )


def profile_flags(profile: Path | None) -> list[str]:
    """The executor's flags that a profile sets."""
    if profile is None:
        return []
    file = profile / "config.yaml" if profile.is_dir() else profile
    try:
        told = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except (OSError, yaml.YAMLError) as error:
        raise WorkflowError(f"profile {file}: {error}") from error
    flags: list[str] = []
    for name, value in told.items():
        if name.startswith("siflow-") and value is not False and value is not None:
            values = value if isinstance(value, list) else [] if value is True else [value]
            flags += [f"--{name}", *map(str, values)]
    return flags


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, ExecutorSettings]:
    """Parse the command line; flags win over the profile."""
    parser = argparse.ArgumentParser(prog="snakemake-siflow", description="SiFlow for Snakemake, without a workflow.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (text, _) in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        command.add_argument(
            "--profile", type=Path, help="folder (or file) of a Snakemake profile with siflow-… entries"
        )
        if name != "check":
            command.add_argument("--run", help="id of the run; default: the one that goes on in this folder")
        if name == "logs":
            command.add_argument("task", nargs="?", help="part of a task's name or rule; default: all")
            command.add_argument("-n", "--lines", type=int, default=20, help="lines of each log")
        if name == "check":
            command.add_argument("--no-task", action="store_true", help="send no task, only look")
            command.add_argument("--wait", type=float, default=300, help="seconds to wait for the task")
        plugin().register_cli_args(command, "executor")
    args = parser.parse_args(argv)
    merged = parser.parse_args([argv[0], *profile_flags(args.profile), *argv[1:]])
    return merged, plugin().get_settings(merged)


def connect(settings: ExecutorSettings) -> SiflowClient:
    """A client with the access key."""
    environment = Environment(settings.env_file)
    return SiflowClient(settings, lambda: find_keys(environment, settings.env_file))


def run_id(args: argparse.Namespace) -> str:
    """The run that is meant: the one given, the one that goes on, or the last one."""
    if args.run:
        return str(args.run)
    current = wrapper.read_text(ROOT / "run_id").strip()
    if current:
        return current
    runs = sorted(ROOT.glob("*/ledger.jsonl"), key=lambda path: path.stat().st_mtime)
    if not runs:
        raise WorkflowError(f"no run is known in {Path.cwd()}; give --run ID")
    return runs[-1].parent.name


def tasks_of(client: SiflowClient, run: str) -> list[TaskInfo]:
    """The tasks of a run, by their names or labels, whether or not the platform can filter."""
    found = client.list_all(labels=f"run={run}") or client.list_all()
    return [task for task in found if belongs(task, run)]


def belongs(task: TaskInfo, run: str) -> bool:
    """Whether a task is one of a run's."""
    match = NAME.fullmatch(task.name)
    return task.labels.get("run") == run or (not task.labels and match is not None and match["run"] == run[:8])


# -- the commands ----------------------------------------------------------------------------------------------------


def ps(args: argparse.Namespace, settings: ExecutorSettings) -> int:
    """List the tasks of a run."""
    tasks = sorted(tasks_of(connect(settings), run_id(args)), key=lambda task: (task.create_time, task.name))
    for task in tasks:
        rank = f" (place {task.rank})" if task.rank and task.status in states.WAITING else ""
        print(
            f"{task.status + rank:<22} {task.labels.get('rule', ''):<24} {task.create_time:<20} "
            f"{task.name}  {task.uuid}  {task.message}"
        )
    print(f"{len(tasks)} task(s), {sum(not states.is_ended(task.status) for task in tasks)} live", file=sys.stderr)
    return 0


def logs(args: argparse.Namespace, settings: ExecutorSettings) -> int:
    """Show the ends of the tasks' logs from the shared volume."""
    folder = ROOT / run_id(args) / "logs"
    secrets = RunFolder(ROOT, run_id(args)).path / "secrets"
    known = [file.read_text(errors="replace") for file in secrets.glob("*")] if secrets.is_dir() else []
    redact = Redactor(known)
    files = sorted(file for file in folder.glob("*.log") if not args.task or task_word(args.task) in file.name)
    for file in files:
        print(f"==> {file} <==")
        print("\n".join(redact(file.read_text(errors="replace")).splitlines()[-args.lines :]))
    if not files:
        print(
            f"snakemake-siflow: no log in {folder} fits {args.task!r}" if args.task else f"no log in {folder}",
            file=sys.stderr,
        )
    return 0 if files else 1


def task_word(given: str) -> str:
    """What stands in a log's name of a task: key and attempt of a task's name, or the word as it is."""
    match = NAME.fullmatch(given)
    return f"{match['key']}-a{match['attempt']}" if match else given


def stop(args: argparse.Namespace, settings: ExecutorSettings) -> int:
    """Stop the live tasks of a run, once."""
    client = connect(settings)
    live = [task for task in tasks_of(client, run_id(args)) if not states.is_ended(task.status)]
    failed = [task for task in live if not stop_one(client, task)]
    print(f"asked {len(live) - len(failed)} of {len(live)} live task(s) to stop")
    return 1 if failed else 0


def stop_one(client: SiflowClient, task: TaskInfo) -> bool:
    """Stop one task; returns whether the platform took it."""
    try:
        client.stop_one(task.uuid)
    except NotFound:
        return True
    except ApiError as error:
        print(f"snakemake-siflow: {task.name}: {error}", file=sys.stderr)
        return False
    return True


def reap(args: argparse.Namespace, settings: ExecutorSettings) -> int:
    """Stop the tasks of a run until none lives, through the platform and through the fence on the shared volume."""
    run = run_id(args)
    folder = RunFolder(ROOT, run)
    if (folder.path / "fence").is_dir():
        try:
            folder.hold().close()
        except Held as error:
            raise WorkflowError(
                f"{error} works on this run; end it first (Ctrl-C), it stops its tasks itself"
            ) from error
        folder.cancel_generation(folder.generation())
    client = connect(settings)
    for _ in range(30):
        live = [task for task in tasks_of(client, run) if not states.is_ended(task.status)]
        if not live:
            print("no task of the run lives")
            return 0
        for task in live:
            if task.status != "Stopping":
                stop_one(client, task)
        time.sleep(1)
    print("\n".join(f"still {task.status}: {task.name} {task.uuid}" for task in live), file=sys.stderr)
    return 1


# -- check -----------------------------------------------------------------------------------------------------------


def check(args: argparse.Namespace, settings: ExecutorSettings) -> int:
    """Try credentials, pool, instance, volume and versions with one tiny task."""
    findings: list[Finding] = []
    try:
        client = connect(settings)
        client.list_page(1)
        findings.append(Finding(True, "credentials", f"{settings.effective_base_url} answers, the key is accepted"))
        body = TaskFactory(settings).body({}, 1, "check")
        findings.append(
            Finding(True, "settings", f"pool {body['resourcePool']}, {body['instances']}, image {body['image']}")
        )
        if not args.no_task:
            findings += try_task(client, settings, body, args.wait)
    except (ApiError, WorkflowError, TaskError) as error:
        findings.append(Finding(False, type(error).__name__, str(error)))
    for finding in findings:
        print(f"{'ok  ' if finding.good else 'FAIL'} {finding.what}: {finding.detail}")
    return 0 if all(finding.good for finding in findings) else 1


PROBE = """
import json, sys
from importlib import metadata
def version(name):
    try: return metadata.version(name)
    except metadata.PackageNotFoundError: return None
told = {"python": sys.version.split()[0], "versions": {name: version(name) for name in %r}}
try:
    import snakemake_executor_plugin_siflow as plugin
    told["plugin"] = plugin.__version__
except ImportError:
    told["plugin"] = None
open(%r, "w").write(json.dumps(told))
"""


def try_task(client: SiflowClient, settings: ExecutorSettings, body: dict[str, Any], wait: float) -> list[Finding]:
    """Create one tiny task that writes beside us what it sees."""
    ROOT.mkdir(parents=True, exist_ok=True)
    name = f"{settings.name_prefix}-check-{uuid.uuid4().hex[:8]}"
    answer, probe = (ROOT / f"{name}.json").absolute(), (ROOT / f"{name}.py").absolute()
    probe.write_text(PROBE % (PACKAGES, str(answer)))
    python = shlex.quote(settings.python or sys.executable)
    command = f"cd {shlex.quote(str(Path.cwd()))} && exec {python} {shlex.quote(str(probe))}\n"
    try:
        created = client.create({**body, "namePrefix": name, "cmd": command, "labels": {"run": "check"}})
        findings = [Finding(True, "create", f"task {name}, uuid {created}")]
        return findings + judge_probe(*wait_for_end(client, created, wait), answer)
    except Rejected as error:
        return [Finding(False, "create", str(error))]
    finally:
        probe.unlink(missing_ok=True)
        answer.unlink(missing_ok=True)


def wait_for_end(client: SiflowClient, created: str, wait: float) -> tuple[str, str]:
    """Wait until a task ends; status and message. A task that takes too long is stopped."""
    deadline = time.monotonic() + wait
    status, message = "not found", ""
    while time.monotonic() < deadline:
        try:
            task = client.get(created)
            status, message = task.status, task.message
        except ApiError as error:
            message = str(error)
        if states.is_ended(status):
            return status, message
        time.sleep(1)
    client.stop_one(created)
    return status, f"{message}; not ended after {wait:.0f} s, stopped"


def judge_probe(status: str, message: str, answer: Path) -> list[Finding]:
    """What the tiny task has shown."""
    findings = [Finding(status == states.SUCCEEDED, "task", f"ended as {status} {message}".strip())]
    for _ in range(20):
        if answer.exists() or status != states.SUCCEEDED:
            break
        time.sleep(0.5)
    if not answer.exists():
        return [
            *findings,
            Finding(False, "volume", f"the task wrote nothing into {answer.parent}: is it on a mounted volume?"),
        ]
    told = json.loads(answer.read_text())
    findings.append(Finding(True, "volume", f"{answer.parent} is the same folder inside the task"))
    for name in PACKAGES:
        here, there = metadata.version(name), told["versions"][name]
        findings.append(Finding(here == there, name, f"{here} here, {there or 'missing'} in the task"))
    there = told["plugin"]
    what = f"{__version__} here, {there or 'not installed'} in the task"
    return [
        *findings,
        Finding(there in (None, __version__), "plugin", what + ("" if there else ", where it is not needed")),
    ]


Command = Callable[[argparse.Namespace, ExecutorSettings], int]
COMMANDS: dict[str, tuple[str, Command]] = {
    "check": ("try credentials, pool, instance, volume and versions with one tiny task", check),
    "ps": ("list the tasks of a run", ps),
    "logs": ("show the ends of the tasks' logs, without secrets", logs),
    "stop": ("ask the live tasks of a run to stop", stop),
    "reap": ("stop the tasks of a run until none lives", reap),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: The words after `snakemake-siflow`; those of the process by default.

    Returns:
        0 done, 1 something is not as it should be, 2 usage.
    """
    try:
        args, settings = parse(list(sys.argv[1:] if argv is None else argv))
        return COMMANDS[args.command][1](args, settings)
    except (WorkflowError, ApiError) as error:
        print(f"snakemake-siflow: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
