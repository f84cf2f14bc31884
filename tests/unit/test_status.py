"""How far a run is, from its files alone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from potstill.cli import main
from potstill.contents import noted
from potstill.errors import InputError
from potstill.reports.status import StatusReader, describe
from potstill.rows import publish_json, publish_rows, read_rows
from tests.unit.report_runs import make_config, make_rows

MODEL_FILE = """
client_config: {base_url: "http://127.0.0.1:1/v1", api_key: none}
chat_config: {model: m}
prices: {input: 1000000, output: 0}
"""


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run in which one of three chunks is answered, and two of its rows failed."""
    ends = make_rows(90)
    config = make_config(["teacher"])
    folder = tmp_path / "results" / "sample"
    publish_json(
        folder / "prepared" / "summary.json",
        {"rows": 90, "chunks": [{"chunk": f"000{n}", "rows": 30} for n in (1, 2, 3)]},
    )
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    generated = folder / "teacher" / "generated"
    generated.mkdir(parents=True)
    (folder / "teacher" / "model.yaml").write_text(MODEL_FILE)
    publish_rows(generated / "0001.failed.jsonl", ends["failed"][:2])
    publish_rows(generated / "0001.not_asked.jsonl", ends["not_asked"][:1])
    publish_rows(generated / "0001.jsonl", ends["kept"][:27])
    publish_rows(folder / "teacher" / "cleaned" / "0001.jsonl", ends["kept"][:27])
    log = folder / "logs" / "generate_answers" / "teacher" / "0002.log"
    log.parent.mkdir(parents=True)
    log.write_text(
        "2026-05-04T09:00:00Z INFO asking\n"
        "2026-05-04T09:00:10Z INFO 4/30 (13 %) rows, 0.4 rows/s, 0 failed, 0 retried, 0 from the store, 3 in flight\n"
        "2026-05-04T09:00:20Z INFO 9/30 (30 %) rows, 0.5 rows/s, 1 failed, 0 retried, 0 from the store, 3 in flight\n"
    )
    return folder


def test_status_counts_chunks_and_rows(run_dir: Path) -> None:
    """Finished chunks are counted by stage, rows by their end, and the chunk at work by its log."""
    status = StatusReader(run_dir).read()
    assert (status.rows, status.chunks, status.finished) == (90, 3, False)
    teacher = status.models[0]
    assert (teacher.answered, teacher.failed, teacher.not_asked) == (27, 2, 1)
    assert teacher.stages == {"generated": (1, 30), "cleaned": (1, 27)}
    assert (teacher.under_way, teacher.rate) == (9, 0.5)
    assert dict(teacher.errors) == {"timeout": 2}
    assert teacher.money == pytest.approx(sum(row["usage"]["prompt_tokens"] for row in make_rows(90)["kept"][:27]))


def test_status_lines(run_dir: Path) -> None:
    """The lines for people hold all of it, with the rows that are left."""
    text = "\n".join(describe(StatusReader(run_dir).read(), now=1777885260.0))
    assert "generated       1 of 3 chunks (33 %), 30 rows" in text
    assert "answered 27, failed 2, not asked 1, under way 9" in text
    assert "errors: timeout 2" in text
    assert "left: 51 rows" in text
    assert "USD" in text


def test_status_of_a_silent_run(run_dir: Path) -> None:
    """Where no job is at work the rate is that of the finished chunks' last answers."""
    log = run_dir / "logs" / "generate_answers" / "teacher" / "0002.log"
    os.utime(log, (1777885220, 1777885220))
    teacher = StatusReader(run_dir).read().models[0]
    assert teacher.under_way == 9
    assert teacher.rate is not None
    assert teacher.rate > 1


def test_status_of_a_run_that_has_just_begun(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder without anything in it yet is a state, not an error."""
    assert main(["status", str(tmp_path)]) == 0
    assert "rows not prepared yet" in capsys.readouterr().out


def test_status_without_prices(run_dir: Path) -> None:
    """Without a model file money is not known; the rest is."""
    (run_dir / "teacher" / "model.yaml").unlink()
    status = StatusReader(run_dir).read()
    assert status.models[0].money is None
    assert status.models[0].answered == 27


def test_status_reads_only_what_changed(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With --watch a file that has not changed is not read again."""
    reader = StatusReader(run_dir)
    first = reader.read()
    path = run_dir / "teacher" / "generated" / "0001.jsonl"
    state = path.stat()
    path.write_bytes(b"x" * state.st_size)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert reader.read() == first


def test_watch_ends_with_the_run(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--watch ends by itself when every model is merged."""
    publish_rows(run_dir / "teacher" / "merged.jsonl", [])
    assert main(["status", str(run_dir), "--watch", "0.2"]) == 0
    assert "teacher: merged" in capsys.readouterr().out


def test_status_of_no_folder(tmp_path: Path) -> None:
    """A folder that is not there is named."""
    with pytest.raises(InputError, match="no such folder"):
        StatusReader(tmp_path / "nowhere")


def test_packed_and_removed_files_are_counted(run_dir: Path) -> None:
    """Packed chunks count like plain ones, and a stage whose files are gone counts by its jobs' notes."""
    config = make_config(["teacher"]) | {"chunks": {"count": 3, "compress": "zst", "keep_stages": False}}
    (run_dir / "config.yaml").write_text(yaml.safe_dump(config))
    for path in list((run_dir / "teacher").rglob("*.jsonl")):
        publish_rows(path.with_name(f"{path.name}.zst"), list(read_rows(path)))
        path.unlink()
    cleaned = run_dir / "teacher" / "cleaned" / "0001.jsonl.zst"
    with noted(run_dir / "logs" / "clean_answers" / "teacher" / "0001.files.json"):
        publish_rows(cleaned, list(read_rows(cleaned)))
    before = StatusReader(run_dir).read().models[0]
    cleaned.unlink()
    after = StatusReader(run_dir).read().models[0]
    assert after.stages == before.stages == {"generated": (1, 30), "cleaned": (1, 27)}
    assert (after.answered, after.failed, after.not_asked) == (27, 2, 1)
