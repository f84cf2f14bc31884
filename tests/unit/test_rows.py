"""Files of rows that are packed: read whole, or said to be damaged."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest
import zstandard

from potstill.errors import InputError
from potstill.rows import dumps, open_binary, read_rows

LINES = b"".join(dumps({"id": number, "text": os.urandom(20).hex()}) for number in range(5000))
PACKED = {".gz": gzip.compress(LINES), ".zst": zstandard.ZstdCompressor().compress(LINES)}


def packed_file(folder: Path, ending: str, content: bytes) -> Path:
    path = folder / f"rows.jsonl{ending}"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("ending", PACKED)
def test_appended_files_are_read_to_the_end(tmp_path: Path, ending: str) -> None:
    """`cat a.gz b.gz > c.gz` holds the rows of both; a file of nothing holds none."""
    assert open_binary(packed_file(tmp_path, ending, PACKED[ending] * 2)).read() == LINES * 2
    assert open_binary(packed_file(tmp_path, ending, b"")).read() == b""


@pytest.mark.parametrize("ending", PACKED)
@pytest.mark.parametrize("damage", ["cut", "garbage behind", "not packed", "cut behind a whole one"])
def test_a_damaged_file_is_named(tmp_path: Path, ending: str, damage: str) -> None:
    """A file that was cut off or is not packed is an error with its name; never the end of the data, never a traceback."""
    whole = PACKED[ending]
    content = {
        "cut": whole[: len(whole) // 2],
        "garbage behind": whole + b"garbage",
        "not packed": LINES,
        "cut behind a whole one": whole + whole[:40],
    }[damage]
    path = packed_file(tmp_path, ending, content)
    with pytest.raises(InputError, match=rf"rows\.jsonl{ending}: cannot be read to its end: .*; is it whole\?"):
        list(read_rows(path))


@pytest.mark.parametrize("ending", PACKED)
def test_a_place_in_a_packed_file_is_found_again(tmp_path: Path, ending: str) -> None:
    """Places count in unpacked bytes, forwards and backwards."""
    with open_binary(packed_file(tmp_path, ending, PACKED[ending])) as stream:
        for start in (200_000, 100, 0):
            stream.seek(start)
            assert stream.tell() == start
            assert stream.read(300) == LINES[start : start + 300]
