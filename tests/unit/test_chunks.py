"""`potstill split` and `potstill merge`."""

import gzip
import json
from pathlib import Path

import pytest

from potstill.chunks import chunk_names, merge_files, split_file
from potstill.cli import main


def write(path: Path, lines: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def test_names_are_padded_to_four_digits_or_more() -> None:
    """Nine chunks have four digits, twelve thousand five."""
    assert (chunk_names(9)[0], chunk_names(12000)[-1]) == ("0001", "12000")


def test_sizes_differ_by_one_row_and_merging_gives_the_input_back(tmp_path: Path) -> None:
    """Ten rows in four chunks: 3, 3, 2, 2; merged in order, they are the file again."""
    source = write(tmp_path / "in.jsonl", [f'{{"n":{number}}}' for number in range(10)])
    files = split_file(source, tmp_path / "out", chunks=4)
    assert [file.name for file in files] == [f"in_split_000{number}.jsonl" for number in (1, 2, 3, 4)]
    assert [len(file.read_text().splitlines()) for file in files] == [3, 3, 2, 2]
    merge_files([tmp_path / "out"], tmp_path / "merged.jsonl")
    assert (tmp_path / "merged.jsonl").read_bytes() == source.read_bytes()


def test_rows_per_chunk_is_a_maximum(tmp_path: Path) -> None:
    """Ten rows with at most four in a chunk are three chunks."""
    source = write(tmp_path / "in.jsonl", ["{}"] * 10)
    assert len(split_file(source, tmp_path / "out", rows=4)) == 3


def test_a_packed_file_without_a_last_newline_is_split(tmp_path: Path) -> None:
    """Gzip is unpacked on the way, and the last line gets its newline."""
    source = tmp_path / "in.jsonl.gz"
    source.write_bytes(gzip.compress(b"1\n2\n3"))
    assert [file.read_text() for file in split_file(source, tmp_path / "out", chunks=2)] == ["1\n2\n", "3\n"]


def test_folders_are_merged_by_the_numbers_in_their_names(tmp_path: Path) -> None:
    """part_10 comes after part_9; error files go to a file of their own; the output is never its own input."""
    for number in (10, 9, 1):
        write(tmp_path / f"in/part_{number}.jsonl", [str(number)])
        write(tmp_path / f"in/part_{number}_error.jsonl", [f"e{number}"])
    for _ in range(2):
        merged = merge_files([tmp_path / "in"], tmp_path / "in/all.jsonl")
        assert merged.output.read_text().split() == ["1", "9", "10"]
        assert merged.errors is not None
        assert merged.errors.read_text().split() == ["e1", "e9", "e10"]


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["split", "nowhere.jsonl", "--output-dir", "o", "--chunks", "2"], 1, "nowhere.jsonl: no such file"),
        (
            ["split", "x", "--output-dir", "o", "--chunks", "0"],
            2,
            "a whole number of 1 or more was expected, found '0'",
        ),
        (["split", "x", "--output-dir", "o"], 2, "one of the arguments --chunks --rows is required"),
        (["merge", "nowhere", "--output", "o"], 1, "nowhere: no such file or folder"),
        (["brew"], 2, "invalid choice: 'brew'"),
    ],
)
def test_a_users_mistake_is_one_line_and_an_exit_status(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    status: int,
    message: str,
) -> None:
    """1 for an error, 2 for usage; no traceback."""
    monkeypatch.chdir(tmp_path)
    try:
        found = main(words)
    except SystemExit as exit:
        found = exit.code  # type: ignore[assignment]
    assert found == status
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_init_makes_a_folder_that_validates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What `potstill init` writes can be previewed as it stands, and is never overwritten."""
    assert main(["init", str(tmp_path / "mine")]) == 0
    monkeypatch.chdir(tmp_path / "mine")
    assert main(["preview", "config.yaml", "-n", "1"]) == 0
    output = capsys.readouterr().out
    assert "What is a pot still?" in output
    assert json.loads(output[output.index("{\n") :])["model"] == "my-model"
    assert main(["init", str(tmp_path / "mine")]) == 1
