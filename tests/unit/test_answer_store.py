"""The answer store: durable, found again, whole after a crash, bounded in memory."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill.answers import journal, store
from potstill.answers.journal import Journal, encode, open_journal, places, read_hints, scan
from potstill.answers.key import KeyMaker, slug
from potstill.answers.reuse import ReusePolicy, fits, next_limit
from potstill.answers.store import AnswerStore
from potstill.errors import StoreError, TryAgainError


def _key(number: int) -> bytes:
    return random.Random(number).randbytes(32)


def _record(number: int, **fields: Any) -> dict[str, Any]:
    return {
        "sample_index": 0,
        "finish_reason": "stop",
        "content": f"answer {number}",
        "answered_at": float(number),
        **fields,
    }


def _fill(folder: Path, numbers: range) -> None:
    with AnswerStore(folder, "m") as opened:
        for number in numbers:
            opened.append(_key(number), _record(number))


def _find(folder: Path, number: int) -> list[str]:
    with AnswerStore(folder, "m") as opened:
        return [record["content"] for record in opened.find(_key(number))]


def _journal(folder: Path) -> Path:
    (path,) = (folder / "m" / "journals").glob("*.jsonl")
    return path


def test_records_are_found_again(tmp_path: Path) -> None:
    """What one process appended, the next one finds, and nothing else."""
    _fill(tmp_path, range(20))
    assert _find(tmp_path, 7) == ["answer 7"]
    assert _find(tmp_path, 99) == []


def test_a_record_is_a_line_that_people_can_read(tmp_path: Path) -> None:
    """Each line is JSON with checksum, key and answer."""
    _fill(tmp_path, range(1))
    (line,) = _journal(tmp_path).read_text().splitlines()
    assert json.loads(line)["key"] == _key(0).hex()
    assert list(json.loads(line))[:2] == ["crc", "key"]


def test_a_torn_end_is_cut_off_before_appending(tmp_path: Path) -> None:
    """What a kill in the middle of a write leaves is no answer, and the next record does not hang on to it."""
    _fill(tmp_path, range(5))
    with _journal(tmp_path).open("ab") as stream:
        stream.write(encode({"key": _key(9).hex(), **_record(9)})[:-7])
    assert _find(tmp_path, 9) == []
    _fill(tmp_path, range(5, 8))
    assert [_find(tmp_path, number) for number in (4, 5, 7)] == [["answer 4"], ["answer 5"], ["answer 7"]]
    assert len(list(scan(_journal(tmp_path)))) == 8


def test_blocks_that_a_power_cut_took_are_cut_off(tmp_path: Path) -> None:
    """An end of NUL bytes, as a power cut leaves it, is a torn end too."""
    _fill(tmp_path, range(3))
    with _journal(tmp_path).open("ab") as stream:
        stream.write(b'{"crc":"00' + b"\0" * 4000 + b"\n" + b"\0" * 100)
    _fill(tmp_path, range(3, 4))
    assert _find(tmp_path, 3) == ["answer 3"]


@pytest.mark.parametrize("with_hints", [True, False])
def test_damage_is_loud(tmp_path: Path, with_hints: bool) -> None:
    """A flipped bit in the middle is an error that names file and byte, not a lost answer."""
    _fill(tmp_path, range(5))
    path = _journal(tmp_path)
    places_before = list(scan(path))
    data = bytearray(path.read_bytes())
    data[places_before[2].offset + 120] ^= 1
    path.write_bytes(data)
    if not with_hints:
        path.with_suffix(".keys").unlink()
    with pytest.raises(StoreError, match=rf"{path.name}: byte {places_before[2].offset}: .*damaged"):
        _find(tmp_path, 2)


def test_lost_hints_are_made_again(tmp_path: Path) -> None:
    """The `.keys` file is a shortcut: without it, or with rubbish in it, everything is found from the lines."""
    _fill(tmp_path, range(10))
    hints = _journal(tmp_path).with_suffix(".keys")
    hints.write_bytes(hints.read_bytes()[:50] + b"rubbish" * 20)
    assert _find(tmp_path, 9) == ["answer 9"]
    _fill(tmp_path, range(10, 11))
    assert len(list(read_hints(_journal(tmp_path)))) == 11


def test_hints_that_outlived_their_lines_are_not_believed(tmp_path: Path) -> None:
    """Hints that point beyond the end of the journal are dropped with what they point at."""
    _fill(tmp_path, range(10))
    path = _journal(tmp_path)
    os.truncate(path, list(scan(path))[6].offset)
    _fill(tmp_path, range(20, 22))
    assert [_find(tmp_path, number) for number in (5, 6, 21)] == [["answer 5"], [], ["answer 21"]]


def test_two_processes_never_share_a_journal(tmp_path: Path) -> None:
    """While one holds a journal, another one gets its own; a free one is used again."""
    first = open_journal(tmp_path)
    second = open_journal(tmp_path)
    assert first.path != second.path
    first.close()
    third = open_journal(tmp_path)
    assert third.path == first.path
    second.close()
    third.close()


def test_a_journal_of_another_machine_is_only_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Journals made on another machine, or before a reboot, are never appended to."""
    _fill(tmp_path, range(3))
    monkeypatch.setattr(journal, "boot_id", lambda: "ffffffffffffffff")
    _fill(tmp_path, range(3, 6))
    assert len(list((tmp_path / "m" / "journals").glob("*.jsonl"))) == 2
    assert [_find(tmp_path, number) for number in (1, 4)] == [["answer 1"], ["answer 4"]]


def test_a_full_disk_leaves_the_journal_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a write fails half way, what was written of it is taken back, and the error says to try again."""
    opened = open_journal(tmp_path)
    opened.append(b"a" * 16, encode({"key": "61" * 32, "content": "x"}))
    size = opened.size
    real = os.write

    class Full:
        def __getattr__(self, name: str) -> Any:
            return getattr(os, name)

        def write(self, descriptor: int, data: bytes) -> int:
            real(descriptor, data[:10])
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(journal, "os", Full())
    with pytest.raises(TryAgainError, match="No space left"):
        opened.append(b"b" * 16, encode({"key": "62" * 32, "content": "y"}))
    monkeypatch.undo()
    opened.close()
    assert opened.path.stat().st_size == size


def test_many_records_are_indexed_and_merged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond a fixed number keys live in index files, which are merged when they are many; nothing is lost by it."""
    monkeypatch.setattr(store, "_MEMORY_KEYS", 64)
    monkeypatch.setattr(store, "_SMALL", 16)
    monkeypatch.setattr(store, "_MAX_INDEXES", 3)
    _fill(tmp_path, range(1000))
    with AnswerStore(tmp_path, "m") as opened:
        assert len(opened._memory) < 64
        assert len(opened._indexes) <= 3 and not opened._own_indexes
        assert [opened.find(_key(number))[0]["content"] for number in range(1000)] == [
            f"answer {n}" for n in range(1000)
        ]
        assert opened.find(_key(5000)) == []


def test_jobs_that_merge_at_the_same_time_leave_no_heap_of_indexes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two stores that merge what both have opened end as one index that holds each record once."""
    monkeypatch.setattr(store, "_SMALL", 16)
    monkeypatch.setattr(store, "_MAX_INDEXES", 100)
    for start in range(0, 300, 100):
        _fill(tmp_path, range(start, start + 100))
    folder = tmp_path / "m" / "index"
    with AnswerStore(tmp_path, "m") as one, AnswerStore(tmp_path, "m") as other:
        one.compact()
        other.compact()
        assert len(list(folder.glob("*.idx"))) == 2
    with AnswerStore(tmp_path, "m") as opened:
        (left,) = folder.glob("*.idx")
        assert [index.path for index in opened._indexes] == [left]
        assert opened._indexes[0].entries == 300
        # An index beside it that knows the same is merged without taking room.
        _write_again(opened)
        assert opened._indexes[0].entries == 300
        assert all(opened.find(_key(number)) for number in range(300))


def _write_again(opened: AnswerStore) -> None:
    opened._indexes.append(opened._write([*opened._indexes]))
    opened.compact()


def test_a_lost_or_broken_index_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Indexes can be thrown away or cut short: the journals are the truth."""
    monkeypatch.setattr(store, "_SMALL", 16)
    for start in range(0, 300, 100):
        _fill(tmp_path, range(start, start + 100))
    first, second, *_ = sorted((tmp_path / "m" / "index").glob("*.idx"))
    first.unlink()
    second.write_bytes(second.read_bytes()[:-20])
    assert [_find(tmp_path, number) for number in (5, 150, 299)] == [["answer 5"], ["answer 150"], ["answer 299"]]


def test_a_reader_finds_what_a_living_writer_has_written(tmp_path: Path) -> None:
    """Opening a store sees the records of a job that is still running, without waiting for it."""
    with AnswerStore(tmp_path, "m") as writer:
        writer.append(_key(1), _record(1))
        assert _find(tmp_path, 1) == ["answer 1"]


def test_a_journal_that_another_process_has_used_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that was opened before another process wrote, and goes on in its journal, indexes what that one wrote."""
    monkeypatch.setattr(store, "_SMALL", 1)
    _fill(tmp_path, range(3))
    with AnswerStore(tmp_path, "m") as early:
        _fill(tmp_path, range(3, 6))
        early.append(_key(6), _record(6))
    assert [_find(tmp_path, number) for number in range(7)] == [[f"answer {number}"] for number in range(7)]


def test_another_format_is_refused(tmp_path: Path) -> None:
    """A store of a later version is left alone, with a message."""
    _fill(tmp_path, range(1))
    (tmp_path / "m" / "FORMAT.json").write_text('{"format": 99, "model": "m"}')
    with pytest.raises(StoreError, match="format 99"):
        AnswerStore(tmp_path, "m")


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["append", "sync", "tear", "cut", "reopen", "drop hints"]), st.integers(1, 60)),
        max_size=25,
    )
)
def test_any_history_of_crashes_leaves_the_journal_readable(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int]]
) -> None:
    """Whatever was appended, torn, cut and reopened: what was synced is there, in order, and nothing is invented."""
    folder = tmp_path_factory.mktemp("journal")
    opened = open_journal(folder)
    written: list[bytes] = []
    synced = 0
    for step, size in steps:
        if step == "append":
            prefix = len(written).to_bytes(16, "big")
            opened.append(prefix, encode({"key": prefix.hex() * 2, "content": "x" * size}))
            written.append(prefix)
        elif step == "sync":
            opened.finish_sync(opened.begin_sync())
            synced = len(written)
        else:
            opened = _crash(opened, step, size)
            written = written[: len(list(places(opened.path, 0)))]
            assert len(written) >= synced
    opened.close()
    assert [place.prefix for place in places(opened.path, 0)] == written


def _crash(opened: Journal, step: str, size: int) -> Journal:
    """Let the holder die, do what the step says to the files, and open the journal again."""
    os.close(opened._descriptor)
    if step == "tear":
        with opened.path.open("ab") as stream:
            stream.write(encode({"key": "00" * 32, "content": "x" * 60})[:size])
    elif step == "cut":
        os.truncate(opened.path, max(opened.synced, opened.path.stat().st_size - size))
    elif step == "drop hints":
        opened.path.with_suffix(".keys").unlink(missing_ok=True)
    return open_journal(opened.path.parent)


def test_what_belongs_to_the_identity_of_an_answer() -> None:
    """Model, messages, parameters and sample make the key; numbers compare as numbers, the order of keys is nothing."""
    messages = [{"role": "user", "content": "a"}]
    base = KeyMaker({"model": "m", "temperature": 1.0, "top_p": 0.5}).keys(messages, (0, 1))
    assert base[0] != base[1]
    assert (
        KeyMaker({"top_p": 0.5, "model": "m", "temperature": 1, "stream": True, "max_tokens": 5, "n": 3}).keys(
            messages, (0,)
        )
        == base[:1]
    )
    assert KeyMaker({"model": "m", "temperature": 0.9, "top_p": 0.5}).keys(messages, (0,)) != base[:1]
    assert (
        KeyMaker({"model": "m", "temperature": 1.0, "top_p": 0.5}).keys([{"content": "a", "role": "user"}], (0,))
        == base[:1]
    )
    assert KeyMaker({"model": "m"}).keys([{"role": "user", "content": "\ud83d"}], (0,))


@pytest.mark.parametrize(("one", "other"), [("a/b", "a_b"), ("Model", "model"), ("..", ".")])
def test_two_models_never_share_a_folder(one: str, other: str) -> None:
    """Names that look alike once they are cleaned keep apart, and none leads out of the store."""
    assert slug(one).lower() != slug(other).lower()
    assert "/" not in slug(one) and not slug(one).startswith(".")


@pytest.mark.parametrize(
    ("record", "limit", "expected"),
    [
        ({"finish_reason": "stop", "max_tokens": 100}, 200, True),
        ({"finish_reason": "stop", "max_tokens": 100}, None, True),
        ({"finish_reason": "stop", "max_tokens": 100, "usage": {"completion_tokens": 40}}, 50, True),
        ({"finish_reason": "stop", "max_tokens": 100, "usage": {"completion_tokens": 60}}, 50, False),
        ({"finish_reason": "stop", "max_tokens": 100, "usage": None}, 50, False),
        ({"finish_reason": "stop", "max_tokens": None, "usage": {"completion_tokens": 60}}, 50, False),
        ({"finish_reason": "length", "max_tokens": 100}, 100, True),
        ({"finish_reason": "length", "max_tokens": 100}, 200, False),
        ({"finish_reason": "length", "max_tokens": 100}, None, False),
        ({"finish_reason": "length", "max_tokens": 100, "error_class": "truncated"}, 200, False),
        ({"finish_reason": None, "max_tokens": 100, "error_class": "bad_request"}, 200, True),
    ],
)
def test_which_limit_an_answer_serves(record: dict[str, Any], limit: int | None, expected: bool) -> None:
    """An answer that finished serves any limit that it fits, one that was cut off only the limit that cut it."""
    assert fits(record, limit) is expected


def test_an_answer_is_preferred_to_a_failure_and_to_a_cut() -> None:
    """Of several records of one request the best serves: an answer, then a cut answer, then a failure."""
    failure = {"error_class": "timeout", "finish_reason": None, "max_tokens": 10, "answered_at": 9.0}
    cut = {"finish_reason": "length", "max_tokens": 10, "answered_at": 5.0}
    whole = {"finish_reason": "stop", "max_tokens": 10, "answered_at": 1.0}
    policy = ReusePolicy()
    assert policy.choose([failure, cut, whole], [10]) == whole
    assert policy.choose([failure, cut], [10]) == cut
    assert ReusePolicy(retry_failed=frozenset({"length"}), since=6.0).choose([cut], [10]) is None
    assert next_limit([cut], [10, 20, 40]) == 1
