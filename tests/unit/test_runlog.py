"""One log of a run, in time order."""

from __future__ import annotations

from pathlib import Path

import pytest

from potstill.reports import runlog
from potstill.reports.runlog import write_run_log


def write(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize("group", [200, 2])
def test_lines_of_all_jobs_stand_in_time_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group: int) -> None:
    """Lines are in time order with the job that wrote them; a traceback stays with its line."""
    monkeypatch.setattr(runlog, "_GROUP", group)
    write(
        tmp_path, "prepare_rows/prepare_rows.log", "2026-05-04T09:00:00Z INFO begun\n2026-05-04T09:00:03Z INFO done\n"
    )
    write(tmp_path, "generate_answers/a/0001.log", "2026-05-04T09:00:04Z INFO begun\n2026-05-04T09:00:09Z INFO done")
    write(
        tmp_path,
        "clean_answers/a/0001.log",
        "2026-05-04T09:00:05Z ERROR bug\nTraceback:\n  line 1\n2026-05-04T09:00:06Z INFO done\n",
    )
    write(tmp_path, "odd/odd.log", "no stamp at all\n")
    write(tmp_path, "empty/empty.log", "")
    assert write_run_log(tmp_path).read_text().splitlines() == [
        "    no stamp at all",
        "2026-05-04T09:00:00Z prepare_rows/prepare_rows INFO begun",
        "2026-05-04T09:00:03Z prepare_rows/prepare_rows INFO done",
        "2026-05-04T09:00:04Z generate_answers/a/0001 INFO begun",
        "2026-05-04T09:00:05Z clean_answers/a/0001 ERROR bug",
        "    Traceback:",
        "      line 1",
        "2026-05-04T09:00:06Z clean_answers/a/0001 INFO done",
        "2026-05-04T09:00:09Z generate_answers/a/0001 INFO done",
    ]


def test_it_may_be_written_again(tmp_path: Path) -> None:
    """The file itself is no log of a job: a second time gives the same."""
    write(tmp_path, "a/a.log", "2026-05-04T09:00:00Z INFO done\n")
    first = write_run_log(tmp_path).read_text()
    assert write_run_log(tmp_path).read_text() == first
    assert {path.name for path in tmp_path.iterdir()} == {"a", "run.log"}
