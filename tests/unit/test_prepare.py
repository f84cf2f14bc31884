"""prepare_rows: identity, duplicates, bad lines, chunks."""

import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from potstill.config.schema import fill_defaults, load_schema
from potstill.errors import ConfigError, InputError
from potstill.prompts import Prompt
from potstill.stages import prepare
from potstill.stages.prepare import Outputs, PrepareCounts, prepare_rows

ROWS = [{"id": str(number), "question": f"question {number}"} for number in range(10)]


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def run(
    folder: Path,
    *inputs: Path,
    chunks: int = 3,
    prompt: Prompt | None = None,
    input: dict[str, Any] | None = None,
    **settings: Any,
) -> tuple[PrepareCounts, Outputs]:
    properties = load_schema("config")["properties"]
    outputs = Outputs(
        [folder / f"out/chunks/{number:04d}.jsonl" for number in range(1, chunks + 1)],
        folder / "out/rejected.jsonl",
        folder / "out/duplicates.jsonl",
        folder / "out/summary.json",
    )
    template = folder / "prompt.jinja"
    template.write_text("{{ question }}?")
    counts = prepare_rows(
        outputs,
        inputs=inputs,
        input_settings=fill_defaults({"path": "", **(input or {})}, properties["input"]),
        settings=fill_defaults({"max_bad_ratio": 1, **settings}, properties["prepare"]),
        prompt=prompt or Prompt(template, system="Be short."),
        evidence=folder / "logs/rejected.jsonl",
    )
    return counts, outputs


def rows_of(outputs: Outputs) -> list[dict[str, Any]]:
    return [row for chunk in outputs.chunks for row in read_jsonl(chunk)]


def test_rows_keep_their_order_and_fields_and_get_an_identity(tmp_path: Path) -> None:
    """Ten rows in three chunks of 4, 3 and 3, in input order, with sample_id and messages."""
    counts, outputs = run(tmp_path, write_jsonl(tmp_path / "in.jsonl", ROWS), input={"id_field": "id"})
    assert [len(read_jsonl(chunk)) for chunk in outputs.chunks] == [4, 3, 3]
    rows = rows_of(outputs)
    assert [row["id"] for row in rows] == [row["id"] for row in ROWS]
    canonical = '{"question":"question 0"}'
    assert rows[0]["sample_id"] == hashlib.sha256(canonical.encode()).hexdigest()
    assert rows[0]["messages"] == [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "question 0?"},
    ]
    summary = json.loads(outputs.summary.read_text())
    assert [entry["first_row"] for entry in summary["chunks"]] == [0, 4, 7]
    assert (counts.lines, counts.rows, summary["rows"]) == (10, 10, 10)


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    """Two runs write the same files, byte for byte."""
    path = write_jsonl(tmp_path / "in.jsonl", ROWS + ROWS[:3])
    written = []
    for _ in range(2):
        outputs = run(tmp_path, path)[1]
        files = (*outputs.chunks, outputs.rejected, outputs.duplicates, outputs.summary)
        written.append([file.read_bytes() for file in files])
    assert written[0] == written[1]


def test_every_format_gives_the_same_rows(tmp_path: Path) -> None:
    """JSONL plain, gzip and zstd (two frames), CSV and Parquet hold the same rows."""
    text = write_jsonl(tmp_path / "in.jsonl", ROWS).read_bytes()
    (tmp_path / "in.jsonl.gz").write_bytes(gzip.compress(text))
    half = text.index(b"\n", len(text) // 2) + 1
    pack = zstandard.ZstdCompressor().compress
    (tmp_path / "in.jsonl.zst").write_bytes(pack(text[:half]) + pack(text[half:]))
    (tmp_path / "in.csv").write_text("id,question\n" + "".join(f"{row['id']},{row['question']}\n" for row in ROWS))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "in.parquet")
    expected = rows_of(run(tmp_path, tmp_path / "in.jsonl")[1])
    for name in ("in.jsonl.gz", "in.jsonl.zst", "in.csv", "in.parquet"):
        assert rows_of(run(tmp_path, tmp_path / name)[1]) == expected, name


def test_identity_is_stable_for_numbers_and_key_order(tmp_path: Path) -> None:
    """1 and 1.0 are one number, the order of keys does not count, True and 1 differ."""
    rows = [{"question": 1, "a": 2}, {"a": 2.0, "question": 1.0}, {"question": True, "a": 2}]
    counts, outputs = run(tmp_path, write_jsonl(tmp_path / "in.jsonl", rows), chunks=1)
    assert (counts.rows, counts.duplicates) == (2, 1)
    assert len(read_jsonl(outputs.duplicates)) == 1


def test_numbers_and_text_of_the_user_pass_through_untouched(tmp_path: Path) -> None:
    """Integers beyond 64 bits, lone surrogates and unicode come out as they went in."""
    line = '{"question":"\\ud83d 张","big":123456789012345678901234567890,"float":1.5}'
    (tmp_path / "in.jsonl").write_text(line + "\n")
    row = rows_of(run(tmp_path, tmp_path / "in.jsonl", chunks=1)[1])[0]
    assert (row["question"], row["big"], row["float"]) == ("\ud83d 张", 123456789012345678901234567890, 1.5)


@pytest.mark.parametrize(("mode", "kept", "dropped"), [(True, 10, 2), ("drop", 10, 2), ("mark", 12, 0), (False, 12, 0)])
def test_repeated_rows_are_dropped_marked_or_kept(tmp_path: Path, mode: Any, kept: int, dropped: int) -> None:
    """A repeated row goes, or stays with an identity of its own; either way no sample_id stands twice."""
    rows = [*ROWS, ROWS[0], ROWS[0]]
    counts, outputs = run(tmp_path, write_jsonl(tmp_path / "in.jsonl", rows), deduplicate=mode)
    found = rows_of(outputs)
    assert (len(found), counts.duplicates, counts.repeated) == (kept, dropped, 2)
    assert len({row["sample_id"] for row in found}) == kept
    if mode == "mark":
        first = found[0]["sample_id"]
        canonical = json.dumps(ROWS[0], sort_keys=True, separators=(",", ":"))
        assert [row["sample_id"] for row in found if row.get("duplicate_of") == first] == [
            hashlib.sha256(f"{canonical}#{number}".encode()).hexdigest() for number in (1, 2)
        ]


def test_duplicates_are_found_when_the_digests_are_spilled_to_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a buffer of eight rows, repeats far apart are found just the same, and in input order."""
    monkeypatch.setattr("potstill.duplicates._BUFFERED_ROWS", 8)
    rows = [{"question": number % 300} for number in range(1000)]
    counts, outputs = run(tmp_path, write_jsonl(tmp_path / "in.jsonl", rows), chunks=1)
    assert (counts.rows, counts.duplicates) == (300, 700)
    assert [row["question"] for row in rows_of(outputs)] == list(range(300))


def test_rows_that_differ_in_id_alone_are_two_when_the_id_counts(tmp_path: Path) -> None:
    """`id_in_hash` keeps rows apart that are alike but for their id."""
    rows = [{"id": "a", "question": "same"}, {"id": "b", "question": "same"}]
    path = write_jsonl(tmp_path / "in.jsonl", rows)
    assert run(tmp_path, path, input={"id_field": "id"})[0].rows == 1
    assert run(tmp_path, path, input={"id_field": "id"}, id_in_hash=True)[0].rows == 2


BAD_LINES = {
    b"not json": "not JSON",
    b'[{"question": 1}]': "not a JSON object but list",
    b'{"question": NaN}': "not JSON: NaN",
    b'{"question": "\xff"}': "not UTF-8",
    b'{"question": "a\x00b"}': "a NUL byte",
    b'{"other": 1}': "missing field: 'question'",
    b'{"question": "' + b"x" * 5000 + b'"}': "longer than prepare.max_line_bytes",
    b'{"question": ' * 3 + b"1" + b"}" * 2: "not JSON",
}


def test_bad_lines_are_written_out_with_file_line_and_reason(tmp_path: Path) -> None:
    """Each kind of bad line has its reason; the good lines around it go on."""
    good = json.dumps(ROWS[0]).encode()
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"\n".join([good, *BAD_LINES, b"", json.dumps(ROWS[1]).encode()]))
    counts, outputs = run(tmp_path, path, max_line_bytes=2000)
    rejected = read_jsonl(outputs.rejected)
    assert counts.rows == 2
    assert [(bad["file"], bad["line"]) for bad in rejected] == [
        (str(path), number) for number in range(2, 2 + len(BAD_LINES))
    ]
    for bad, reason in zip(rejected, BAD_LINES.values(), strict=True):
        assert reason in bad["reason"]


def test_too_many_bad_lines_stop_the_run_and_leave_their_evidence(tmp_path: Path) -> None:
    """The error says how many, how many are allowed, the first reasons, and where the rest is."""
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"bad\n" + b"".join(json.dumps(row).encode() + b"\n" for row in ROWS))
    with pytest.raises(
        InputError, match=r"1 of 11 input lines are bad.*max_bad_ratio \(0\.01\).*in\.jsonl: line 1: not JSON"
    ):
        run(tmp_path, path, max_bad_ratio=0.01)
    assert len(read_jsonl(tmp_path / "logs/rejected.jsonl")) == 1


def test_a_field_with_one_of_our_names_is_an_error_that_names_its_cure(tmp_path: Path) -> None:
    """`score` is ours; renamed on the way in, it passes."""
    path = write_jsonl(tmp_path / "in.jsonl", [{"question": "q", "score": 3}])
    with pytest.raises(ConfigError, match=r"line 1: the field 'score' .* `input: \{rename: \{score: their_score\}\}`"):
        run(tmp_path, path)
    row = rows_of(run(tmp_path, path, input={"rename": {"score": "their_score"}})[1])[0]
    assert row["their_score"] == 3


def test_a_given_conversation_is_sent_as_it_is(tmp_path: Path) -> None:
    """Tool roles, tool calls and content parts pass; what is no conversation is a bad line."""
    conversation = [
        {"role": "user", "content": [{"type": "text", "text": "hi"}]},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
        {"role": "tool", "tool_call_id": "1", "content": "4"},
    ]
    rows = [{"messages": conversation}, {"messages": []}, {"messages": [{"role": "robot"}]}, {"messages": "hi"}, {}]
    counts, outputs = run(tmp_path, write_jsonl(tmp_path / "in.jsonl", rows), prompt=Prompt())
    assert rows_of(outputs)[0]["messages"] == conversation
    assert (counts.rows, counts.rejected) == (1, 4)


def test_chunks_of_an_earlier_larger_count_are_removed(tmp_path: Path) -> None:
    """After five chunks became two, no stale chunk file is left to be merged."""
    path = write_jsonl(tmp_path / "in.jsonl", ROWS)
    run(tmp_path, path, chunks=5)
    outputs = run(tmp_path, path, chunks=2)[1]
    assert sorted(file.name for file in (tmp_path / "out/chunks").iterdir()) == ["0001.jsonl", "0002.jsonl"]
    assert len(rows_of(outputs)) == 10


def test_an_empty_input_gives_empty_chunks(tmp_path: Path) -> None:
    """No rows are no error: every declared output exists."""
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"")
    counts, outputs = run(tmp_path, path)
    assert (counts.rows, rows_of(outputs)) == (0, [])


def test_a_broken_archive_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    """A gzip file that was cut off stops the run: half an input is not the input."""
    path = tmp_path / "in.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(ROWS[0]).encode() * 100)[:-20])
    with pytest.raises(InputError, match=r"in\.jsonl\.gz: cannot be read to its end"):
        run(tmp_path, path)


def test_nothing_is_left_of_the_spool(tmp_path: Path) -> None:
    """After a run, and after a failed one, only the outputs remain."""
    run(tmp_path, write_jsonl(tmp_path / "in.jsonl", ROWS))
    assert not [path for path in (tmp_path / "out").rglob("*") if path.name.startswith(".")]


def test_the_template_error_names_file_and_line(tmp_path: Path) -> None:
    """A template that is no Jinja2 is a config error."""
    template = tmp_path / "bad.jinja"
    template.write_text("a\n{% if %}")
    with pytest.raises(ConfigError, match=r"bad\.jinja: line 2: "):
        Prompt(template)


def test_module_has_no_heavy_imports() -> None:
    """The stage imports neither pandas nor pyarrow until it needs them."""
    assert not {"pandas", "pyarrow"} & set(vars(prepare))
