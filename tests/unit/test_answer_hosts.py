"""One answer store and several machines, on a filesystem whose locks, sizes and pages are not to be trusted."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from potstill.answers import journal
from potstill.answers.store import AnswerStore
from potstill.cli import main
from potstill.errors import StoreError
from tests.servers.handle import ROOT, running
from tests.unit.generate_work import Work

#: A job on a machine of its own: another boot id, and locks that everybody gets at once.
JOB = """
import fcntl, sys
from pathlib import Path
fcntl.flock = fcntl.lockf = lambda *words: None
from potstill.answers import journal
journal.boot_id = lambda: sys.argv[1]
journal.FULL_BYTES = 20_000
from potstill.config.model import load_model
from potstill.stages.generate import generate_chunk
out = Path(sys.argv[1])
out.mkdir()
generate_chunk(
    Path(sys.argv[2]), *(out / f"{name}.jsonl" for name in ("answered", "failed", "not_asked")),
    model=load_model(Path("model.yaml")), settings={}, concurrency=8, answers_dir=Path("answers"),
)
"""


def _record(number: int) -> dict[str, object]:
    return {"sample_index": 0, "finish_reason": "stop", "content": f"answer {number}", "answered_at": 1.0}


def _key(number: int) -> bytes:
    return bytes([number]) * 32


def _journal(folder: Path) -> Path:
    (path,) = (folder / "m" / "journals").glob("*.jsonl")
    return path


def test_jobs_on_several_machines_share_a_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without any lock between them, jobs of three machines write journals of their own, and nothing is lost or torn."""
    with running(latency_s=0.01, sigma=0.8, nondeterministic=True) as server:
        work = Work(tmp_path, server)
        work.model()
        machines = [f"{letter * 16}" for letter in "abc"]
        jobs = []
        for number, machine in enumerate(machines):
            # Each has rows of its own, and some that the next one has too.
            work.rows(*(f"row {row}" for row in range(100 * number, 100 * number + 150)))
            (tmp_path / "rows.jsonl").rename(tmp_path / f"rows-{machine}.jsonl")
            words = [sys.executable, "-c", JOB, machine, f"rows-{machine}.jsonl"]
            jobs.append(subprocess.Popen(words, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT / "src")}))
        assert [job.wait(60) for job in jobs] == [0, 0, 0]
        names = {path.name for path in (tmp_path / "answers/fake/journals").glob("*.jsonl")}
        assert {name.partition("-")[0] for name in names} == set(machines)
        assert len(names) > 3  # they went on to further journals
        for machine in machines:
            assert len((tmp_path / machine / "answered.jsonl").read_text().splitlines()) == 150
        sent = server.stats()["requests"]
        assert 350 <= sent <= 450  # what two asked for at once may have been paid twice, nothing else
        work.rows(*(f"row {row}" for row in range(350)))
        assert work.run().requests == 0
    assert main(["answers", "verify", "--answers-dir", str(tmp_path / "answers")]) == 0
    assert f"{sent} records whole, 0 damaged" in capsys.readouterr().out


def test_a_page_that_has_not_arrived(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A hole in what another machine is writing is no damage: what stands behind it is found once it is filled."""
    with AnswerStore(tmp_path, "m") as store:
        for number in range(5):
            store.append(_key(number), _record(number))
    path = _journal(tmp_path)
    path.with_suffix(".keys").unlink()
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    start = len(lines[0]) + 20
    path.write_bytes(whole[:start] + bytes(len(lines[1])) + whole[start + len(lines[1]) :])
    with pytest.raises(StoreError, match="byte"):
        AnswerStore(tmp_path, "m")  # on this machine, pages do not come in parts
    monkeypatch.setattr(journal, "boot_id", lambda: "f" * 16)
    caplog.set_level(logging.WARNING)
    with AnswerStore(tmp_path, "m") as store:
        assert [len(store.find(_key(number))) for number in range(5)] == [1, 0, 0, 0, 0]
    assert "not there (yet)" in caplog.text
    path.write_bytes(whole)
    with AnswerStore(tmp_path, "m") as store:
        assert [len(store.find(_key(number))) for number in range(5)] == [1] * 5


def test_a_record_with_a_flipped_bit_is_loud_on_every_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Damage that is no hole is an error, whichever machine looks."""
    with AnswerStore(tmp_path, "m") as store:
        for number in range(3):
            store.append(_key(number), _record(number))
    path = _journal(tmp_path)
    path.with_suffix(".keys").unlink()
    path.write_bytes(path.read_bytes().replace(b"answer 1", b"answer 2", 1))
    monkeypatch.setattr(journal, "boot_id", lambda: "f" * 16)
    with pytest.raises(StoreError, match="damaged"):
        AnswerStore(tmp_path, "m")


def test_an_old_size_of_an_open_file(tmp_path: Path) -> None:
    """Where an open file shows an old size, it is opened anew before anything is called damaged."""
    with AnswerStore(tmp_path, "m") as store:
        store.append(_key(1), _record(1))
        store.append(_key(2), _record(2))
    path = _journal(tmp_path)
    old = tmp_path / "old"
    old.write_bytes(path.read_bytes()[:100])
    with AnswerStore(tmp_path, "m") as store:
        store._files[path.name] = os.open(old, os.O_RDONLY)  # what a client of such a filesystem would show
        assert [record["content"] for record in store.find(_key(2))] == ["answer 2"]
