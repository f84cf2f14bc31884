"""The ends of what a machine gives: a full disk, thousands of cancelled requests, many rows."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from potstill.config.model import Address, load_model
from potstill.generate.client import Client
from potstill.generate.reply import Reply
from tests.servers.handle import ROOT, Server, running


@pytest.fixture(scope="module")
def teacher() -> Iterator[Server]:
    with running(latency_s=0.05, remember=False) as server:
        yield server


def _files(folder: Path, url: str, rows: int) -> None:
    with (folder / "rows.jsonl").open("w") as stream:
        for number in range(rows):
            stream.write(json.dumps({"messages": [{"role": "user", "content": f"row {number} " + "x" * 300}]}) + "\n")
    model = {"client_config": {"base_url": url, "timeout": 5}, "chat_config": {"model": "fake"}}
    (folder / "model.yaml").write_text(json.dumps(model))


@pytest.mark.parametrize("bytes_allowed", [5_000, 60_000, 110_000])
def test_a_full_disk_is_exit_75_and_nothing_is_lost(teacher: Server, tmp_path: Path, bytes_allowed: int) -> None:
    """When no more can be written the command ends with 75; with room again it goes on, and nothing is corrupt."""
    teacher.control(latency_s=0.01, reset=True)
    _files(tmp_path, teacher.url, 300)
    words = ["generate", "--input-path", "rows.jsonl", "--output-path", "out", "--model-config", "model.yaml"]
    # A file size limit stands for the full disk: EFBIG where a disk says ENOSPC.
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({bytes_allowed},) * 2)"
    )
    # -B: a module compiled under the limit would be cut too, and break whoever imports it next.
    full = [sys.executable, "-B", "-c", f"{code}\nfrom potstill.cli import main\nsys.exit(main({words!r}))"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(full, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 75, done.stderr
    assert "cannot be written" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "out").glob("*.jsonl"))
    again = [sys.executable, "-m", "potstill", *words]
    subprocess.run(again, cwd=tmp_path, env=environment, capture_output=True, check=True, timeout=60)
    assert len((tmp_path / "out/rows.jsonl").read_text().splitlines()) == 300
    verify = [sys.executable, "-m", "potstill", "answers", "verify", "--answers-dir", "out/answers"]
    checked = subprocess.run(
        verify, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    assert "300 records whole, 0 damaged" in checked.stdout


def _can_mount() -> bool:
    words = ["unshare", "--user", "--map-root-user", "--mount", "true"]
    return (
        shutil.which("unshare") is not None and subprocess.run(words, capture_output=True, check=False).returncode == 0
    )


@pytest.mark.slow
@pytest.mark.skipif(not _can_mount(), reason="no mount without root here")
@pytest.mark.parametrize("kilobytes", [40, 120, 400])
def test_a_disk_that_is_really_full(teacher: Server, tmp_path: Path, kilobytes: int) -> None:
    """On a small filesystem of its own the command ends with 75; with room again it goes on, and nothing is corrupt."""
    teacher.control(latency_s=0.01, reset=True)
    _files(tmp_path, teacher.url, 600)
    words = [sys.executable, "-m", "potstill", "generate", "--input-path", "rows.jsonl", "--output-path", "disk/out"]
    command = shlex.join([*words, "--model-config", "model.yaml"])
    verify = shlex.join([sys.executable, "-m", "potstill", "answers", "verify", "--answers-dir", "disk/out/answers"])
    (tmp_path / "disk").mkdir()
    script = f"""
    mount -t tmpfs -o size={kilobytes}k tmpfs disk || exit 99
    {command}; echo "first: $?"
    ls disk/out
    {command}; echo "second: $?"
    mount -o remount,size=64m disk
    {command}; echo "third: $?"
    {verify}
    wc -l disk/out/rows.jsonl
    """
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert "first: 75" in done.stdout and "second: 75" in done.stdout, done.stdout + done.stderr
    assert "third: 0" in done.stdout, done.stdout + done.stderr
    assert "cannot be written" in done.stderr
    assert "Traceback" not in done.stderr
    assert " 0 damaged" in done.stdout
    assert "600 disk/out/rows.jsonl" in done.stdout
    assert "\nrows.jsonl" not in done.stdout.partition("second")[0]


@pytest.mark.slow
def test_cancelled_requests_leave_a_working_client(teacher: Server, tmp_path: Path) -> None:
    """After 30,000 cancelled requests the next one is answered at once, and no socket is left behind."""
    teacher.control(latency_s=5.0, reset=True)
    _files(tmp_path, teacher.url, 0)
    model = load_model(tmp_path / "model.yaml")
    body = json.dumps({"model": "fake", "messages": [{"role": "user", "content": "x"}]}).encode()

    async def churn() -> int:
        client = Client(model, Address(teacher.url), lambda: True)
        client.use_key(None)
        await client.open()
        for _ in range(60):
            tasks = [asyncio.create_task(client.ask(body, 5.0)) for _ in range(500)]
            await asyncio.sleep(0.02)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        teacher.control(latency_s=0.0)
        async with asyncio.timeout(5):
            assert isinstance(await client.ask(body, 5.0), Reply)
        await asyncio.sleep(0.1)
        count = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - a count of descriptors
        await client.close()
        return count

    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    assert asyncio.run(churn()) <= before + 8
