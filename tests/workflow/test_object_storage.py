"""Outputs and answers in a bucket of a real S3 server: the same bytes as on disk, and no answer is paid for twice."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("snakemake_storage_plugin_s3", reason="the package snakemake-storage-plugin-s3 is not installed")
pytest.importorskip("moto", reason="the package moto is not installed")

from tests.servers import s3
from tests.servers.handle import Server, running
from tests.workflow.runs import Run

STORAGE = ("--default-storage-provider", "s3", "--default-storage-prefix", f"s3://{s3.BUCKET}/runs")
MERGED = "results/r/m/merged.jsonl"
OUTCOMES = ("merged", "rejected", "failed")
MODEL = {"chat_config": {"model": "fake", "max_tokens": 100}}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with s3.s3_server() as server:
        yield server


@pytest.fixture(scope="module")
def teacher() -> Iterator[Server]:
    """A teacher that gives every seventh row what its gold query gives, and counts what it is asked."""
    with running(content="SELECT 1") as teacher:
        yield teacher


@pytest.fixture(autouse=True)
def _environment(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in s3.variables(server).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "machine-1"))


def _run(folder: Path, teacher: Server, **config: object) -> Run:
    folder.mkdir()
    run = Run(folder, rows=30, config={"chunks": {"count": 2}, **config})
    run.write_model("model.yaml", {**MODEL, "client_config": {"base_url": teacher.url, "timeout": 30}})
    return run


def _fetched(server: Server, name: str) -> bytes:
    body = s3.client(server).get_object(Bucket=s3.BUCKET, Key=f"runs/results/r/m/{name}.jsonl")["Body"]
    data: bytes = body.read()
    return data


def _delete(server: Server, prefix: str) -> None:
    for name in s3.names(server, prefix):
        s3.client(server).delete_object(Bucket=s3.BUCKET, Key=name)


def _asked(teacher: Server) -> int:
    count: int = teacher.stats()["requests"]
    return count


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_in_a_bucket(server: Server, teacher: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bytes are those of a run on disk; run again, or anew elsewhere in other chunks, nothing is asked."""
    local = _run(tmp_path / "local", teacher)
    local.snakemake()
    expected = local.outcomes()
    assert expected["merged"]
    assert expected["rejected"]

    before = _asked(teacher)
    stored = _run(tmp_path / "stored", teacher, answers_dir=f"s3://{s3.BUCKET}/answers")
    stored.snakemake(*STORAGE)
    assert {name: _fetched(server, name) for name in OUTCOMES} == expected
    assert _asked(teacher) - before == 30
    assert not (stored.folder / "answers").exists()
    # One object a job at most: jobs of one machine go on with one journal.
    assert 1 <= len(s3.names(server, "answers/fake/journals/")) <= 2

    again = stored.snakemake(*STORAGE)
    assert "Nothing to be done" in again.stdout
    assert _asked(teacher) - before == 30

    # Another machine, without a working copy, after the outputs are gone; 2 chunks become 3.
    _delete(server, "runs/")
    shutil.rmtree(stored.folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "machine-2"))
    anew = _run(tmp_path / "anew", teacher, answers_dir=f"s3://{s3.BUCKET}/answers", chunks={"count": 3})
    anew.snakemake(*STORAGE, MERGED)
    assert {name: _fetched(server, name) for name in OUTCOMES} == expected
    assert _asked(teacher) - before == 30


@pytest.mark.slow
def test_jobs_whose_machine_is_gone_after_each(
    server: Server, teacher: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As pods do: each job begins with an empty disk, and finds what others were told a moment ago."""
    run = _run(tmp_path / "pods", teacher, answers_dir=f"s3://{s3.BUCKET}/pods", chunks={"count": 3})
    before = _asked(teacher)
    for chunk in ("0001", "0002", "0003"):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / f"pod-{chunk}"))
        run.snakemake(f"results/r/m/generated/{chunk}.jsonl")
    assert len(s3.names(server, "pods/fake/journals/")) == 3
    assert _asked(teacher) - before == 30
    shutil.rmtree(run.results)
    run.config["chunks"] = {"count": 5}
    run.write_config()
    for chunk in ("0001", "0004"):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / f"later-{chunk}"))
        run.snakemake(f"results/r/m/generated/{chunk}.jsonl")
    assert _asked(teacher) - before == 30
