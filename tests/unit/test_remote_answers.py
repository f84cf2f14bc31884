"""The answer store in a bucket: what one machine was told, all others find; nothing is overwritten or lost."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("boto3", reason="the package boto3 is not installed")
pytest.importorskip("moto", reason="the package moto is not installed")

from potstill.answers import remote
from potstill.answers.place import fetch_stores, is_remote, look_up, opened_answers
from potstill.answers.store import AnswerStore
from potstill.errors import ConfigError, StoreError, TryAgainError
from tests.servers import s3
from tests.servers.handle import ROOT, Server

URL = f"s3://{s3.BUCKET}/store"


@pytest.fixture(scope="module")
def shared_server() -> Iterator[Server]:
    with s3.s3_server() as server:
        yield server


@pytest.fixture
def server(shared_server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """An empty bucket, found by the environment."""
    for name, value in s3.variables(shared_server).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    shared_server.control(fail=0, methods=["GET", "PUT", "DELETE"])
    for name in s3.names(shared_server):
        s3.client(shared_server).delete_object(Bucket=s3.BUCKET, Key=name)
    shared_server.control(reset=True)
    remote.open_bucket.cache_clear()
    yield shared_server
    remote.open_bucket.cache_clear()


def _on_machine(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Be another machine: its working copies lie elsewhere, and its journals have other names."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(machine))
    monkeypatch.setattr("potstill.answers.journal.boot_id", lambda: f"{sum(machine.name.encode()):016x}")


def _key(number: int) -> bytes:
    return random.Random(number).randbytes(32)


def _append(numbers: range, size: int = 10) -> None:
    with opened_answers(URL, "m") as folder, AnswerStore(folder, "m") as store:
        for number in numbers:
            store.append(_key(number), {"content": f"answer {number}", "finish_reason": "stop", "text": "x" * size})


def _find(number: int) -> list[Any]:
    with AnswerStore(look_up(URL, "m"), "m") as store:
        return [record["content"] for record in store.find(_key(number))]


def _objects(server: Server, folder: str = "journals") -> list[str]:
    return s3.names(server, f"store/m/{folder}/")


@pytest.mark.parametrize("place", ["s3:/b", "s3://", "gs://bucket/x", "s3://b/p?x", "s3://b u/p"])
def test_an_address_that_cannot_be_meant_is_refused(place: str) -> None:
    """A URL of another kind is an error that says what is allowed; a folder is a folder."""
    if "://" in place:
        with pytest.raises(ConfigError, match="s3://bucket/prefix"):
            is_remote(place)
    else:
        assert not is_remote(place)


def test_what_one_machine_was_told_another_finds(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job's answers are one object when it ends, and a job elsewhere finds each of them."""
    _on_machine(tmp_path / "one", monkeypatch)
    _append(range(50))
    assert len(_objects(server)) == len(_objects(server, "keys")) == 1
    _on_machine(tmp_path / "two", monkeypatch)
    assert [_find(number) for number in (0, 49, 50)] == [["answer 0"], ["answer 49"], []]


def test_records_are_fetched_only_where_one_is_wanted(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job reads the keys of all objects, and of the records only those objects that hold one it looks for."""
    for machine in ("one", "two", "three"):
        _on_machine(tmp_path / machine, monkeypatch)
        first = len(_objects(server)) * 10
        _append(range(first, first + 10))
    _on_machine(tmp_path / "reader", monkeypatch)
    assert _find(15) == ["answer 15"]
    fetched = list((tmp_path / "reader").rglob("part-*.jsonl"))
    assert len(fetched) == 1
    server.control(reset=True)
    assert _find(16) == ["answer 16"]
    # What is known already is not read again: the format and the list.
    assert server.stats() == {"GET": 2}


def test_a_job_that_is_going_on_joins_its_small_objects(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forty uploads of a growing journal leave a handful of objects, and one when the job ends; all bytes are there."""
    _on_machine(tmp_path / "one", monkeypatch)
    copy = remote.WorkingCopy(URL, "m")
    copy.pull(model="m")
    most = 0
    with copy.uploading(), AnswerStore(copy.root, "m") as store:
        for number in range(200):
            store.append(_key(number), {"content": f"answer {number}"})
            if number % 5 == 0:
                copy.push()
                most = max(most, len(_objects(server)))
    assert 2 <= most <= 7
    (name,) = _objects(server)
    (journal,) = copy.folder.glob("journals/*.jsonl")
    stored = s3.client(server).get_object(Bucket=s3.BUCKET, Key=name)["Body"].read()
    assert stored == journal.read_bytes()


def test_a_reader_finds_what_was_joined_since_it_looked(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An object that was joined with others after its keys were read is found inside the larger one."""
    writer = tmp_path / "writer"
    _on_machine(writer, monkeypatch)
    copy = remote.WorkingCopy(URL, "m")
    copy.pull(model="m")
    with AnswerStore(copy.root, "m") as store:
        store.append(_key(0), {"content": "answer 0", "text": "x" * 1000})
        copy.push()
        store.append(_key(1), {"content": "answer 1"})
        copy.push()
        assert len(_objects(server)) == 2
        _on_machine(tmp_path / "reader", monkeypatch)
        reader = AnswerStore(look_up(URL, "m"), "m")
        copy.push(join=True)
        store.append(_key(2), {"content": "answer 2"})
        copy.push(join=True)
    assert len(_objects(server)) == 1
    with reader:
        assert [record["content"] for number in (0, 1) for record in reader.find(_key(number))] == [
            "answer 0",
            "answer 1",
        ]


def test_large_journals_become_objects_of_bounded_size(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No object exceeds the bound, and together they hold every record once."""
    monkeypatch.setattr(remote, "_MOST_BYTES", 4000)
    _on_machine(tmp_path / "one", monkeypatch)
    for first in range(0, 60, 20):
        _append(range(first, first + 20), size=300)
    sizes = [
        item["Size"]
        for item in s3.client(server).list_objects_v2(Bucket=s3.BUCKET, Prefix="store/m/journals/")["Contents"]
    ]
    assert len(sizes) > 5
    assert max(sizes) <= 4000
    _on_machine(tmp_path / "two", monkeypatch)
    assert [_find(number) for number in range(60)] == [[f"answer {number}"] for number in range(60)]


def test_keys_that_are_missing_or_damaged_are_read_from_the_records(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer that died between the two objects, and a damaged key object, cost no answer."""
    _on_machine(tmp_path / "one", monkeypatch)
    _append(range(10))
    (name,) = _objects(server, "keys")
    s3.client(server).put_object(Bucket=s3.BUCKET, Key=name, Body=b"\xff" * 320)
    _on_machine(tmp_path / "two", monkeypatch)
    assert _find(3) == ["answer 3"]
    s3.client(server).delete_object(Bucket=s3.BUCKET, Key=name)
    _on_machine(tmp_path / "three", monkeypatch)
    assert _find(9) == ["answer 9"]


def test_objects_that_somebody_deleted_are_an_error(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers that were there and are gone are no reason to pay again in silence."""
    _on_machine(tmp_path / "one", monkeypatch)
    _append(range(10))
    _on_machine(tmp_path / "two", monkeypatch)
    folder = look_up(URL, "m")
    for name in _objects(server):
        s3.client(server).delete_object(Bucket=s3.BUCKET, Key=name)
    with AnswerStore(folder, "m") as store, pytest.raises(StoreError, match="gone from the bucket"):
        store.find(_key(3))


def test_a_bucket_that_cannot_be_written_is_told_before_anything_is_asked(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key without the right to write is a configuration error at the start."""
    _on_machine(tmp_path / "one", monkeypatch)
    server.control(fail=403, methods=["PUT"])
    with pytest.raises(ConfigError, match=r"403 AccessDenied.*read, write and delete"), opened_answers(URL, "m"):
        pytest.fail("the block must not begin")


def test_a_bucket_that_does_not_exist_is_a_configuration_error(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message names the bucket and what it needs."""
    _on_machine(tmp_path / "one", monkeypatch)
    with pytest.raises(ConfigError, match="NoSuchBucket"):
        look_up("s3://no-such-bucket/x", "m")


def test_answers_wait_on_the_machine_while_the_service_is_away(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job whose last upload fails says try again (75) and where the answers are; the next job uploads them."""
    _on_machine(tmp_path / "one", monkeypatch)
    monkeypatch.setattr(remote, "_PATIENCE_S", 0.0)
    with pytest.raises(TryAgainError, match="the next job on this machine uploads them"), opened_answers(URL, "m") as f:
        with AnswerStore(f, "m") as store:
            store.append(_key(0), {"content": "answer 0"})
        server.control(fail=503)
    assert _objects_after(server) == []
    _append(range(0))
    assert len(_objects(server)) == 1


def _objects_after(server: Server) -> list[str]:
    server.control(fail=0)
    return _objects(server)


_CHILD = """
import os, sys, time
from potstill.answers.place import opened_answers
from potstill.answers.store import AnswerStore
with opened_answers(sys.argv[1], "m") as folder, AnswerStore(folder, "m") as store:
    for number in range(5):
        store.append(bytes([number]) * 32, {"content": f"answer {number}"})
    print("ready", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize(("number", "left"), [(signal.SIGTERM, 0), (signal.SIGKILL, 5)])
def test_a_job_that_is_ended_by_a_signal(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, left: int
) -> None:
    """SIGTERM uploads first; after SIGKILL the next job of the machine uploads what it finds."""
    _on_machine(tmp_path / "one", monkeypatch)
    child = subprocess.Popen([sys.executable, "-c", _CHILD, URL], stdout=subprocess.PIPE, cwd=ROOT)
    assert child.stdout is not None
    assert child.stdout.readline() == b"ready\n"
    child.send_signal(number)
    assert child.wait(60) == -number
    child.stdout.close()
    assert len(_objects(server)) == (0 if left else 1)
    if left:
        _append(range(0))
    _on_machine(tmp_path / "two", monkeypatch)
    with AnswerStore(look_up(URL, "m"), "m") as store:
        assert [record["content"] for key in range(5) for record in store.find(bytes([key]) * 32)] == [
            f"answer {key}" for key in range(5)
        ]


def test_all_records_can_be_read_from_the_bucket(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`potstill answers verify` and `export` see every record of every machine."""
    for number, machine in enumerate(("one", "two")):
        _on_machine(tmp_path / machine, monkeypatch)
        _append(range(number * 10, number * 10 + 10))
    _on_machine(tmp_path / "three", monkeypatch)
    with AnswerStore(fetch_stores(URL), "m") as store:
        assert sorted(record["content"] for record in store.records()) == sorted(f"answer {n}" for n in range(20))
