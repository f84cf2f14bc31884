"""What the plugin depends on in Snakemake itself: if an upgrade changes one of these, look at the plugin again."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

from snakemake.executors import local
from snakemake.jobs import Job
from snakemake.persistence import PersistenceBase
from snakemake.persistence.file import FilePersistence
from snakemake.scheduling.job_scheduler import JobScheduler
from snakemake.spawn_jobs import SpawnedJobArgsFactory
from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo
from snakemake_interface_executor_plugins.executors.real import RealExecutor
from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor

from tests.siflow.rig import clean_env


def source(thing: object) -> str:
    """The source of something, without its spaces."""
    return re.sub(r"\s+", " ", inspect.getsource(thing))  # type: ignore[arg-type]


def test_active_jobs_are_empty_during_a_check() -> None:
    """A cancel during a check gets an empty list; so we keep our own table."""
    assert "self.active_jobs.clear()" in source(RemoteExecutor._wait_for_jobs)


def test_an_exception_in_a_check_ends_the_run() -> None:
    """What leaves `check_active_jobs` goes to the scheduler as an executor error; so nothing leaves ours."""
    assert "executor_error_callback" in source(RemoteExecutor._wait_thread)
    assert "self._executor.shutdown()" in source(JobScheduler.schedule)


def test_jobs_must_be_yielded() -> None:
    """A job that is neither yielded nor reported is dropped; so we do one of them for each."""
    assert "self.active_jobs.extend(still_active_jobs)" in source(RemoteExecutor._wait_for_jobs)


def test_retries_come_at_once() -> None:
    """Snakemake retries without a pause; so we hold a retried job back."""
    assert "job.attempt += 1" in source(JobScheduler._handle_error)
    assert "sleep" not in source(JobScheduler._handle_error)


def test_sigterm_waits_for_jobs() -> None:
    """The scheduler's SIGTERM handler waits for all jobs and is set after the executor is made; so is ours."""
    made = source(JobScheduler.__init__)
    assert made.index("executor_plugin.executor(") < made.index("signal.signal(signal.SIGTERM")
    assert "graceful" in source(JobScheduler.exit_gracefully)


def test_a_job_may_be_submitted_later() -> None:
    """A job can be active without an external id; so nothing is sent from `run_job`."""
    assert SubmittedJobInfo(None).external_jobid is None
    assert "self.active_jobs.append(job_info)" in source(RemoteExecutor.report_job_submission)


def test_the_inner_process_overwrites_the_external_id() -> None:
    """In the task the marker of Snakemake is written again without our id; so we do not rely on it."""
    assert "self.report_job_submission( SubmittedJobInfo(job=job)" in source(local.Executor.run_job_pre) or (
        "SubmittedJobInfo(job=job)" in source(local.Executor)
    )
    assert "external_jobid" in source(FilePersistence)


def test_wait_for_files_is_an_argument_of_the_remote_executor_alone() -> None:
    """`--wait-for-files` comes from `RemoteExecutor.get_job_args`; so calling the base's leaves it out."""
    assert "--wait-for-files" in source(RemoteExecutor.get_job_args)
    assert "--wait-for-files" not in source(RealExecutor.get_job_args)


def test_zero_is_not_proof_of_work(tmp_path: Path) -> None:
    """An inner Snakemake that does not see a file to wait for ends with 0 and has done nothing; so we want proof."""
    (tmp_path / "Snakefile").write_text("rule a:\n    output: 'a'\n    shell: 'touch a'\n")
    command = [sys.executable, "-m", "snakemake", "--cores", "1", "--wait-for-files", "nowhere", "--latency-wait", "1"]
    result = subprocess.run(command, cwd=tmp_path, env=clean_env(), capture_output=True, text=True, check=False)
    assert result.returncode == 0
    assert not (tmp_path / "a").exists()


def test_keep_incomplete_completes_a_failed_output(tmp_path: Path) -> None:
    """With `--keep-incomplete` a half-written output counts as made; so we refuse it."""
    (tmp_path / "Snakefile").write_text("rule a:\n    output: 'a'\n    shell: 'echo half > a; exit 1'\n")
    command = [sys.executable, "-m", "snakemake", "--cores", "1"]
    options = {"cwd": tmp_path, "env": clean_env(), "capture_output": True, "text": True, "check": False}
    subprocess.run([*command, "--keep-incomplete"], **options)  # type: ignore[call-overload]
    second = subprocess.run(command, **options)  # type: ignore[call-overload]
    assert "Nothing to be done" in second.stdout + second.stderr


def test_values_of_variables_would_stand_in_the_command() -> None:
    """By default the values of declared variables are in the command; so we switch that off."""
    assert "pass_envvar_declarations_to_cmd" in source(RealExecutor.get_envvar_declarations)
    assert "value!r" in source(RealExecutor.get_envvar_declarations)


def test_the_source_cache_is_an_argument() -> None:
    """The controller's temporary cache stands in the command of every task; so we take it out."""
    assert '"--runtime-source-cache-path"' in source(SpawnedJobArgsFactory.general_args)


def test_locks_can_be_taken_under_nolock() -> None:
    """`--nolock` replaces `lock` of the instance, not of the class; so the plugin can take it itself."""
    assert "self.lock = self.noop" in source(PersistenceBase.__init__)
    assert "self.locked" in source(PersistenceBase.lock)


def test_params_as_snakemake_sees_them() -> None:
    """What Snakemake compares to find changed parameters is there for us too."""
    assert list(inspect.signature(PersistenceBase._params).parameters) == ["self", "job"]
    assert hasattr(Job, "non_derived_params")
