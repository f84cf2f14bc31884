"""What jobs note of the files of rows that they write."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from snakemake.settings.types import MaxJobsPerTimespan, SchedulingSettings

from potstill.contents import find_note, noted, notes_file
from potstill.reports.manifest import describe_stage
from potstill.rows import count_lines, dumps, publish, publish_json, publish_rows, read_content
from potstill.workflow import lift_job_rate, plan_run

ROWS = [
    {"sample_id": f"{number:03}", "text": "å" * number, **({"odd": 1} if number % 2 else {})} for number in range(9)
]


def write_noted(run_dir: Path, ending: str) -> list[Path]:
    """Write two chunks of a stage with notes, the second one line by line, and return them."""
    files = [run_dir / "m" / "cleaned" / f"000{number}{ending}" for number in (1, 2)]
    for path, rows in zip(files, (ROWS[:4], ROWS[4:]), strict=True):
        with noted(notes_file(run_dir / "logs" / "clean_answers" / "m" / f"{path.name[:4]}.log")), publish(path) as out:
            for row in rows:
                out.write_line(dumps(row)) if path is files[1] else out.write(row)
    return files


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz", ".jsonl.zst"])
def test_notes_say_what_is_in_the_files(tmp_path: Path, ending: str) -> None:
    """By notes or by reading, plain or packed, the entry of a stage is the same, hash included."""
    files = write_noted(tmp_path / "run", ending)
    by_notes = describe_stage(tmp_path / "run", files, by_notes=True)
    assert by_notes == describe_stage(tmp_path / "run", files)
    assert (by_notes["count"], by_notes["min_sample_id"], by_notes["max_sample_id"]) == (9, "000", "008")
    assert by_notes["columns"] == ["odd", "sample_id", "text"]
    plain = tmp_path / "plain.jsonl"
    publish_rows(plain, ROWS[:4])
    assert read_content(plain) == read_content(files[0])
    assert count_lines(files[1]) == 5


def test_a_note_of_another_file_is_not_believed(tmp_path: Path) -> None:
    """A file that was changed after its job is read; one that is gone is as it was noted."""
    first, second = write_noted(tmp_path, ".jsonl")
    as_it_was = describe_stage(tmp_path, [second], by_notes=True)
    publish_rows(first, ROWS[:1])
    second.unlink()
    assert describe_stage(tmp_path, [first], by_notes=True)["count"] == 1
    assert describe_stage(tmp_path, [second], by_notes=True) == as_it_was


def test_a_touched_file_is_read_again(tmp_path: Path) -> None:
    """Size and time must both be those of the note."""
    first, _ = write_noted(tmp_path, ".jsonl")
    notes = notes_file(tmp_path / "logs/clean_answers/m/0001.log")
    assert find_note(notes, first) is not None
    os.utime(first, (1, 1))
    assert find_note(notes, first) is None


def test_a_job_that_fails_leaves_no_notes(tmp_path: Path) -> None:
    """Neither its own nor those of the start before it."""
    notes = tmp_path / "job.files.json"
    publish_json(notes, {"files": {}})
    with pytest.raises(KeyError), noted(notes):
        publish_rows(tmp_path / "a.jsonl", ROWS)
        raise KeyError
    assert not notes.exists()


def test_files_that_hold_no_rows_are_not_noted(tmp_path: Path) -> None:
    """A report or a scratch file is none of them."""
    notes = tmp_path / "job.files.json"
    with noted(notes):
        publish_json(tmp_path / "report.json", {"a": 1})
        publish_rows(tmp_path / "rows.zst", ROWS)
    assert notes.read_text().split() == ["{", '"files":', "{}", "}"]


def test_a_failed_write_of_a_packed_file_leaves_nothing(tmp_path: Path) -> None:
    """What was buffered for the packer goes with the temporary file, silently."""
    with pytest.raises(KeyError), publish(tmp_path / "a.jsonl.zst") as out:
        out.write({"a": 1})
        raise KeyError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("given", "left"), [(MaxJobsPerTimespan(100), None), (MaxJobsPerTimespan(100, "1s"), None), (None, None)]
)
def test_the_default_limit_of_jobs_is_lifted(given: MaxJobsPerTimespan | None, left: None) -> None:
    """Snakemake's 100 jobs a second cost more than they save."""
    settings = SchedulingSettings(max_jobs_per_timespan=given)
    lift_job_rate(settings)
    assert settings.max_jobs_per_timespan is left
    lift_job_rate(None)


def test_a_limit_of_the_users_stays(tmp_path: Path) -> None:
    """Fewer jobs a second, or the same in another span of time, were asked for."""
    for limit in (MaxJobsPerTimespan(5, "1s"), MaxJobsPerTimespan(100, "1m")):
        settings = SchedulingSettings(max_jobs_per_timespan=limit)
        lift_job_rate(settings)
        assert settings.max_jobs_per_timespan is limit


@pytest.mark.parametrize(
    ("megabytes", "compress", "ending"),
    [(1, "auto", ".jsonl"), (5, "auto", ".jsonl.zst"), (5, "none", ".jsonl"), (1, "zst", ".jsonl.zst")],
)
def test_large_inputs_are_packed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, megabytes: int, compress: str, ending: str
) -> None:
    """From 4 MB of input on, unless the config says otherwise; the run's config says which it was."""
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_bytes(b'{"messages": []}'.ljust(megabytes << 20))
    Path("model.yaml").write_text("client_config: {base_url: http://x/v1, api_key: none}\nchat_config: {model: m}\n")
    plan = plan_run(
        {
            "input": {"path": "rows.jsonl"},
            "chunks": {"compress": compress},
            "models": [{"alias": "m", "config": "model.yaml"}],
        }
    )
    assert plan.ending == ending
    assert plan.config["chunks"] == {"count": 4, "compress": "zst" if "zst" in ending else "none", "keep_stages": True}
