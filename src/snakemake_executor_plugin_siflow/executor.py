"""The executor: turns Snakemake's jobs into pieces of work for the dispatcher and tells Snakemake what became of them.

What of Snakemake's executor interface we must work around (each is pinned by a test of ours):

- an exception that leaves `check_active_jobs` or `run_job` ends the run and orphans every task: none leaves them;
- `cancel_jobs` gets an empty list when Ctrl-C falls into a check: we stop what is in our own table;
- `--wait-for-files` lets the inner Snakemake end with 0 without having run the job: it is left out, wrapper.py waits;
- SIGTERM means "finish what is running" to the scheduler, and its handler replaces any that is set before the first
  job: ours is set in the first `run_job`.
"""

from __future__ import annotations

import asyncio
import atexit
import hashlib
import os
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import AsyncGenerator, Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from snakemake_interface_common.exceptions import WorkflowError
from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo  # type: ignore[import-untyped]
from snakemake_interface_executor_plugins.executors.real import RealExecutor  # type: ignore[import-untyped]
from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor  # type: ignore[import-untyped]
from snakemake_interface_executor_plugins.settings import CommonSettings, SharedFSUsage  # type: ignore[import-untyped]

from . import wrapper
from .client import ApiError, SiflowClient, Unauthorized
from .dispatcher import Dispatcher
from .folder import Held, RunFolder
from .locks import remove_dead_locks, snakemake_lock
from .redact import Redactor
from .settings import KEY_ID, KEY_SECRET, Environment, ExecutorSettings, find_keys
from .task import TaskError, TaskFactory, job_key, label_value
from .work import Attempt, Verdict, Work, input_stamp

common_settings = CommonSettings(
    non_local_exec=True,
    implies_no_shared_fs=False,
    job_deploy_sources=False,
    pass_default_storage_provider_args=True,
    pass_default_resources_args=True,
    # Values of declared variables must not stand in the command; they travel as files.
    pass_envvar_declarations_to_cmd=False,
    # `pip install` at the start of each task would make a package registry part of every run.
    auto_deploy_default_storage_provider=False,
    init_seconds_before_status_checks=0,
    # Groups that a profile makes must be known in the task too.
    pass_group_args=True,
)

#: This argument names a folder that goes when the controller ends; a task that is taken over later would look for it.
RUNTIME_CACHE = re.compile(r"--runtime-source-cache-path (?:'[^']*'|\"[^\"]*\"|\S+)")
TAIL_LINES = 40
TAIL_BYTES = 64 * 1024


class Executor(RemoteExecutor):  # type: ignore[misc]  # untyped upstream
    """Runs jobs as tasks of SiFlow."""

    # -- start -------------------------------------------------------------------------------------------------------

    def __init__(self, workflow: Any, logger: Any) -> None:
        # The base class starts its thread in its constructor, and that thread calls us: all it needs is made before.
        self.workflow = workflow
        self.logger = logger
        self._stopping = threading.Event()
        self._ended = False
        self._signals_set = False
        self._works: dict[int, Work] = {}
        self._settings: ExecutorSettings = workflow.executor_settings or ExecutorSettings()
        refuse_what_cannot_work(workflow)
        self._environment = Environment(self._settings.env_file)
        self._keys = find_keys(self._environment, self._settings.env_file)
        try:
            self._factory = TaskFactory(self._settings)
        except TaskError as error:
            raise WorkflowError(f"SiFlow: {error}") from error
        self._folder = RunFolder.current(Path(".snakemake/siflow").absolute())
        try:
            self._lock_file = self._folder.hold()
        except Held as error:
            raise WorkflowError(f"SiFlow: {error} runs a workflow in this folder; wait for it or stop it.") from error
        # The run may have ended before we held it: read it again, now that it is ours.
        self._folder = RunFolder.current(self._folder.root)
        self._secrets: dict[str, str] = {}
        self._body_env: list[dict[str, Any]] = []
        self._snakemake_lock: AbstractContextManager[None] = nullcontext()
        try:
            self._begin(workflow, logger)
        except BaseException:
            self._stopping.set()
            self._snakemake_lock.__exit__(None, None, None)
            self._lock_file.close()
            raise

    def _begin(self, workflow: Any, logger: Any) -> None:
        """Make what must be given back if the start fails."""
        remove_dead_locks(self._folder.root.parent)
        lock = snakemake_lock(workflow.persistence, taken=workflow.execution_settings.lock)
        lock.__enter__()
        self._snakemake_lock = lock
        self._folder.prepare()
        self._client = SiflowClient(self._settings, self._find_keys)
        self._check_access()
        super().__init__(workflow, logger)

    def __post_init__(self) -> None:
        """Finish the start, now that Snakemake's part is there; the base class's thread is running already."""
        self._collect_secrets()
        self._redact = Redactor([*self._secrets.values(), self._keys.secret, *(e["envValue"] for e in self._body_env)])
        patience = max(1.0, float(self.workflow.execution_settings.latency_wait))
        self._dispatcher = Dispatcher(
            self._client, self._folder, self._settings, RedactingLog(self.logger, self), patience
        )
        atexit.register(self._at_exit)
        self.logger.info(f"SiFlow run {self._folder.run}: {self._settings.effective_base_url}, {self._settings.region}")
        self._warn_about_volumes()

    def _find_keys(self) -> Any:
        """The access key, read again if its file has changed."""
        try:
            self._keys = find_keys(self._environment, self._settings.env_file)
        except WorkflowError:
            # The file is just being replaced; go on with what we have.
            return self._keys
        return self._keys

    def _check_access(self) -> None:
        """Find out now, not after the first job, that the key is wrong; a platform that is away is waited for."""
        for pause in (0.5, 1.0, 1.5):
            try:
                self._client.list_page(1, labels=f"run={self._folder.run}")
            except Unauthorized:
                time.sleep(pause)
            except ApiError as error:
                self.logger.warning(f"SiFlow does not answer yet ({error}); going on and waiting for it.")
                return
            else:
                return
        raise WorkflowError(
            f"SiFlow refuses the access key {self._keys.key_id[:4]}…: check {KEY_ID} and {KEY_SECRET}, and region "
            f"{self._settings.region}, cluster {self._settings.effective_cluster}, {self._settings.effective_base_url}."
        )

    def _warn_about_volumes(self) -> None:
        """Say it if no volume is mounted where the working directory is."""
        mounts = [volume.mount for volume in self._settings.parsed_volumes]
        here = Path.cwd()
        if mounts and not any(here.is_relative_to(mount) for mount in mounts):
            self.logger.info(
                f"SiFlow: {here} is below none of the mounts {', '.join(mounts)}; the tasks must see it all the same."
            )

    # -- secrets -----------------------------------------------------------------------------------------------------

    def _collect_secrets(self) -> None:
        """Put secrets where the tasks find them; called again when the env file has changed."""
        names = list(self._settings.secret_env or [])
        hidden = {name.rstrip("?") for name in self._settings.env_in_body or []}
        declared = {name: value for name, value in self.envvars().items() if name not in hidden}
        self._secrets = {**declared, **self._named_values(names)}
        for name, value in self._secrets.items():
            self._folder.write_secret(name, os.fsencode(value))
        values = self._named_values(list(self._settings.env_in_body or []))
        self._body_env = [{"envKey": name, "envValue": value, "hide": True} for name, value in values.items()]
        if values:
            self.logger.warning(
                f"SiFlow: the platform is told the values of {', '.join(values)} (--siflow-env-in-body)."
            )

    def _named_values(self, names: Iterable[str]) -> dict[str, str]:
        """The values of named variables; a missing one is an error unless its name ends in `?`."""
        values = {}
        for name in names:
            value = self._environment.get(name.rstrip("?"))
            if value is not None:
                values[name.rstrip("?")] = value
            elif not name.endswith("?"):
                raise WorkflowError(
                    f"SiFlow: variable {name} is not set (--siflow-secret-env); set it, or write {name}?."
                )
        return values

    def _refresh_secrets(self) -> None:
        """Take a changed env file over: new keys, new secrets for the tasks."""
        if self._environment.refresh():
            self._collect_secrets()
            self._redact = Redactor(
                [*self._secrets.values(), self._keys.secret, *(e["envValue"] for e in self._body_env)]
            )

    def _plain_env(self) -> dict[str, str]:
        """Variables for the tasks that are no secrets."""
        env = {}
        if not self._settings.python and os.environ.get("PYTHONPATH"):
            env["PYTHONPATH"] = os.pathsep.join(
                str(Path(part).absolute()) for part in os.environ["PYTHONPATH"].split(os.pathsep) if part
            )
        for text in self._settings.env or []:
            name, given, value = text.partition("=")
            env[name] = value if given else os.environ.get(name, "")
        return env

    # -- jobs --------------------------------------------------------------------------------------------------------

    def run_job(self, job: Any) -> None:
        """Hand a job to the dispatcher. Nothing is sent from here, so the scheduler never waits."""
        self._set_signals()
        info = SubmittedJobInfo(job)
        try:
            work = self._make_work(job)
        except (TaskError, WorkflowError) as error:
            self.report_job_error(info, msg=f"SiFlow: {error}. ")
            return
        except Exception as error:  # noqa: BLE001 - an exception from here would cancel all other jobs
            self.report_job_error(info, msg=f"SiFlow: cannot be submitted: {type(error).__name__}: {error}. ")
            return
        info.aux = {"work": work}
        self._dispatcher.enqueue(work)
        self.report_job_submission(info)

    def _make_work(self, job: Any) -> Work:
        """Describe a job: the body of its task and the spec for the wrapper."""
        members = list(job.jobs) if job.is_group() else [job]
        rule = label_value(str(job.groupid) if job.is_group() else job.rule.name)
        outputs = sorted({absolute(file) for member in members for file in member.output if must_exist(file, job)})
        own = sorted({absolute(file) for file in job.output})
        key = job_key(self._folder.run, own, f"{rule} {job.get_target_spec()}")
        body = self._factory.body(dict(job.resources.items()), max(1, int(job.threads)), rule)
        body["taskEnv"] = [*body.get("taskEnv", []), *self._body_env]
        work = Work(key=key, rule=rule, body=body, spec={}, members={})
        work.members = {self._member_name(member): self._member(member, job) for member in members}
        work.spec = {
            "folder": str(self._folder.path),
            "key": key,
            "rule": rule,
            "workdir": str(Path.cwd()),
            "python": self.get_python_executable(),
            "command": self._inner_command(job),
            "outputs": outputs,
            "inputs": sorted({absolute(file) for file in job.get_wait_for_files()}),
            "updated": sorted({absolute(f) for m in members for f in m.output if flagged(f, "update")}),
            "env": self._plain_env(),
            "secrets": sorted(self._secrets),
            "lease": self._settings.lease,
            "input_wait": self._settings.input_wait,
        }
        if job.attempt > 1:
            # Snakemake tries again at once; a fault outside of the job often needs a moment to pass.
            work.not_before = time.monotonic() + self._settings.retry_delay * (job.attempt - 1)
        return work

    def _inner_command(self, job: Any) -> str:
        """The call of the inner Snakemake."""
        return RUNTIME_CACHE.sub("", self.format_job_exec(job))

    @staticmethod
    def _member_name(member: Any) -> str:
        """What names one job in every controller of the run."""
        return f"{member.rule.name} {sorted(member.wildcards_dict.items())}"

    def _member(self, member: Any, job: Any) -> dict[str, Any]:
        """What one job does and from which inputs: by it a later controller knows whether a task does its work."""
        made_here = {str(file) for other in (job.jobs if job.is_group() else [job]) for file in other.output}
        inputs = [str(file) for file in member.input if str(file) not in made_here]
        return {"code": self._fingerprint(member), "inputs": {path: input_stamp(path) for path in inputs}}

    def _fingerprint(self, member: Any) -> str:
        """What Snakemake itself would rerun a job for: code, parameters, names of inputs, configuration."""
        script = member.rule.script or member.rule.notebook or member.rule.wrapper or ""
        params = self.workflow.persistence._params(member)
        parts = [
            member.rule.name,
            member.shellcmd,
            script,
            params,
            sorted(map(str, member.input)),
            sorted(map(str, member.output)),
        ]
        return hashlib.sha256(repr(parts).encode("utf-8", "surrogateescape")).hexdigest()[:16]

    def get_job_args(self, job: Any, **kwargs: Any) -> str:
        """The arguments for one job, without `--wait-for-files`: wrapper.py waits, and fails if nothing comes."""
        return str(RealExecutor.get_job_args(self, job, **kwargs))

    def get_python_executable(self) -> str:
        """The interpreter in the task: the one that runs now, which lies on the shared volume, or the one set."""
        return self._settings.python or sys.executable

    # -- checks ------------------------------------------------------------------------------------------------------

    async def check_active_jobs(self, active_jobs: list[SubmittedJobInfo]) -> AsyncGenerator[SubmittedJobInfo, None]:
        """Take all tasks one step further; each job is yielded or reported, exactly one of them."""
        try:
            self._refresh_secrets()
            self._dispatcher.round()
        except Exception as error:  # noqa: BLE001 - what leaves this method ends the run and orphans every task
            self.logger.warning(f"SiFlow: {type(error).__name__}: {error}")
        for info in active_jobs:
            if not self._report(info):
                yield info

    def _report(self, info: SubmittedJobInfo) -> bool:
        """Tell Snakemake about a job that has a verdict; returns whether it had one."""
        work: Work = (info.aux or {})["work"]
        if work.attempt is not None:
            info.external_jobid = work.attempt.uuid
        verdict = self._dispatcher.verdict(work)
        if verdict is None:
            return False
        if verdict.success:
            self.report_job_success(info)
            return True
        try:
            self._report_failure(info, verdict)
        except Exception as error:  # noqa: BLE001 - the job must end even if its error cannot be printed
            self.logger.warning(f"SiFlow: {type(error).__name__} while reporting an error: {error}")
            self.workflow.scheduler.error_callback(info.job)
        return True

    def _report_failure(self, info: SubmittedJobInfo, verdict: Verdict) -> None:
        """Report a failed job with the end of its log."""
        tail = self._write_tail(verdict.log)
        shown = self.workflow.output_settings.show_failed_logs and all(Path(file).exists() for file in info.job.log)
        if tail and not shown:
            # Snakemake shows the logs only if it was told to, and none after one that is missing.
            self.logger.error(f"Last lines of {verdict.log}:\n{tail.read_text(encoding='utf-8')}")
        self.report_job_error(
            info, msg=f"SiFlow: {self._redact(verdict.message)}. ", aux_logs=[str(tail)] if tail else []
        )

    def _write_tail(self, log: str) -> Path | None:
        """Write the last lines of a log, without secrets, beside it; None where there is nothing to show."""
        if not log or not Path(log).is_file():
            return None
        with Path(log).open("rb") as file:
            file.seek(max(0, Path(log).stat().st_size - TAIL_BYTES))
            text = self._redact(file.read().decode("utf-8", "replace"))
        tail = Path(f"{log}.tail")
        tail.write_text("\n".join(text.splitlines()[-TAIL_LINES:]) + "\n", encoding="utf-8")
        return tail

    async def sleep(self) -> None:
        """Wait until the next round is due; a stop ends the wait."""
        pause = self._dispatcher.pause
        while pause > 0 and not self._stopping.is_set():
            await asyncio.sleep(min(pause, 0.1))
            pause -= 0.1

    async def _wait_for_jobs(self) -> None:
        """Let the base class's thread wait until the start is finished."""
        while not hasattr(self, "_dispatcher"):
            if self._stopping.is_set() or not threading.main_thread().is_alive():
                return
            await asyncio.sleep(0.01)
        await super()._wait_for_jobs()

    # -- end ---------------------------------------------------------------------------------------------------------

    def _set_signals(self) -> None:
        """Let SIGTERM end the run as Ctrl-C does; the scheduler's own handler would wait for all jobs."""
        if self._signals_set or threading.current_thread() is not threading.main_thread():
            return
        self._signals_set = True
        signal.signal(signal.SIGTERM, self._on_sigterm)

    def _on_sigterm(self, *_: object) -> None:
        """Handle SIGTERM."""
        if not self._ended:
            raise SystemExit(128 + signal.SIGTERM)

    def cancel_jobs(self, active_jobs: list[SubmittedJobInfo]) -> None:
        """Stop all live tasks, or leave them: whatever `active_jobs` says, it may be empty while tasks live."""
        self._end_tasks()

    def _end_tasks(self) -> None:
        """Stop or detach, once; a second Ctrl-C meanwhile is not heard, this takes ten seconds at most."""
        if self._ended or not hasattr(self, "_dispatcher"):
            return
        self._ended = True
        self._stopping.set()
        before = self._quiet_signals()
        try:
            if self._settings.on_exit == "detach":
                self._detach()
            else:
                self._stop_tasks()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @staticmethod
    def _quiet_signals() -> dict[int, Any]:
        """Ignore Ctrl-C and SIGTERM while tasks are being stopped; returns the handlers that were set."""
        if threading.current_thread() is not threading.main_thread():
            return {}
        return {
            number: signal.signal(number, signal.SIG_IGN) or signal.SIG_DFL
            for number in (signal.SIGINT, signal.SIGTERM)
        }

    def _detach(self) -> None:
        """Leave the tasks running."""
        number = self._dispatcher.detach()
        if number:
            self.logger.info(
                f"SiFlow: {number} task(s) go on without us; the same command takes them over, "
                f"`snakemake-siflow stop --run {self._folder.run}` stops them."
            )

    def _stop_tasks(self) -> None:
        """Stop the tasks and say which could not be stopped."""
        live = len(self._dispatcher.live_attempts())
        if live:
            self.logger.info(f"SiFlow: stopping {live} task(s)…")
        left = self._dispatcher.cancel()
        if left:
            self.logger.error(
                f"SiFlow: could not make sure that these stop: {name_them(left)}. "
                f"`snakemake-siflow reap --run {self._folder.run}` tries again."
            )
        elif live:
            self.logger.info("SiFlow: all tasks are stopped.")

    def shutdown(self) -> None:
        """End: also called, as the only hook, when the executor itself has failed. Never waits long for a thread."""
        if hasattr(self, "_dispatcher") and not self._ended:
            self._end_unfinished()
        self._stopping.set()
        with self.lock:
            self.wait = False
        self.wait_thread.join(timeout=3)
        shutil.rmtree(self.tmpdir, ignore_errors=True)
        self._close()

    def _end_unfinished(self) -> None:
        """At the end of a run nothing should live; what does (a failed executor, tasks nobody asked for) is ended."""
        if self._dispatcher.live_attempts():
            self._end_tasks()
        self._ended = True

    def _close(self) -> None:
        """Remove what must not stay and let go of the run."""
        atexit.unregister(self._at_exit)
        if hasattr(self, "_dispatcher"):
            if not self._dispatcher.live_attempts():
                self._folder.remove_secrets()
            self._dispatcher.close()
        self._snakemake_lock.__exit__(None, None, None)
        self._lock_file.close()

    def _at_exit(self) -> None:
        """Last resort: an exit that went past `cancel` and `shutdown`."""
        if not self._ended:
            self._end_tasks()
            self._close()


class RedactingLog:
    """Snakemake's logger, without secrets in it."""

    def __init__(self, logger: Any, executor: Executor) -> None:
        self._logger = logger
        self._executor = executor

    def info(self, message: str, /) -> None:
        """Say something."""
        self._logger.info(self._executor._redact(message))

    def warning(self, message: str, /) -> None:
        """Say that something is odd."""
        self._logger.warning(self._executor._redact(message))


def name_them(attempts: list[Attempt]) -> str:
    """Some tasks by name and uuid."""
    names = [
        f"{attempt.name} ({attempt.uuid or 'uuid not known'}, {attempt.status or 'state not known'})"
        for attempt in attempts
    ]
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")


def refuse_what_cannot_work(workflow: Any) -> None:
    """Refuse options of Snakemake with which outputs could be lost or spoiled.

    Raises:
        WorkflowError: Which option, and why.
    """
    if workflow.execution_settings.keep_incomplete:
        raise WorkflowError(
            "SiFlow: --keep-incomplete makes Snakemake take a half-written output for a whole one; leave it out."
        )
    if workflow.remote_execution_settings.immediate_submit:
        raise WorkflowError(
            "SiFlow: --immediate-submit is not possible: the platform knows no dependencies between tasks."
        )
    usage = workflow.storage_settings.shared_fs_usage
    needed = {
        SharedFSUsage.INPUT_OUTPUT: "input-output",
        SharedFSUsage.PERSISTENCE: "persistence",
        SharedFSUsage.SOURCES: "sources",
    }
    missing = [name for item, name in needed.items() if item not in usage]
    if missing:
        raise WorkflowError(
            f"SiFlow: the tasks work on a shared volume; --shared-fs-usage must have {', '.join(missing)}."
        )


def absolute(file: Any) -> str:
    """A file of a job as an absolute path."""
    return os.path.abspath(str(file))  # noqa: PTH100 - `Path.absolute` would leave `..` in


def flagged(file: Any, flag: str) -> bool:
    """Whether a file of a job has a flag such as `temp`."""
    return bool(getattr(file, "flags", {}).get(flag))


def must_exist(file: Any, job: Any) -> bool:
    """Whether a file must be there when the task has ended."""
    if getattr(file, "is_storage", False) or any(flagged(file, flag) for flag in ("pipe", "service", "nodelocal")):
        return False
    return not (flagged(file, "temp") and job.is_group())


__all__ = ["Executor", "ExecutorSettings", "common_settings", "wrapper"]
