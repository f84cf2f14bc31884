"""Each export is loaded by the library that it is for."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from potstill.errors import ConfigError, InputError
from potstill.exports.layout import FORMATS, get_export_files
from potstill.stages.export import export_dataset
from tests.unit.export_rows import make_error, make_row, make_wrong, read, write

needs_datasets = pytest.mark.skipif(
    importlib.util.find_spec("datasets") is None, reason="the package datasets is not installed: pip install datasets"
)

ALL = {"formats": list(FORMATS), "train_ratio": 0.6, "test_ratio": 0.2, "huggingface": {"license": "cc-by-4.0"}}


def _export(folder: Path, rows: int = 60, **settings: Any) -> Path:
    kept = write(folder / "merged.jsonl", [make_row(number) for number in range(rows)])
    bad = [make(number) for number in range(rows) for make in (make_wrong, make_error)]
    rejected = write(folder / "rejected.jsonl", bad)
    export_dataset([kept], [rejected], folder / "export", settings={**ALL, **settings})
    return folder / "export"


def _load(script: str, *args: Path) -> Any:
    """Run a loader in a process of its own: no network, no cache of ours, and its warnings are its own."""
    home = args[0].parent / "home"
    environment = {
        **{name: os.environ[name] for name in ("PATH",)},
        "HOME": str(home),
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "1",
        # A proxy that does not exist: a request to anywhere fails at once.
        "HTTPS_PROXY": "http://127.0.0.1:9",
        "HTTP_PROXY": "http://127.0.0.1:9",
    }
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, args)], env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@needs_datasets
def test_datasets_opens_the_folder_without_a_network(tmp_path: Path) -> None:
    """`datasets.load_dataset(folder)` gives the splits, the rows and the licence of the export."""
    export = _export(tmp_path)
    loaded = _load(
        "import sys, json, datasets\n"
        "d = datasets.load_dataset(sys.argv[1])\n"
        "print(json.dumps({'rows': {k: len(v) for k, v in d.items()},"
        " 'first': d['train'][0]['messages'], 'gold': d['test'][0]['gold_match'],"
        " 'score': d['test'].features['score'].dtype}))",
        export / "huggingface",
    )
    summary = json.loads((export / "summary.json").read_text())["formats"]["huggingface"]
    assert loaded["rows"] == {"train": summary["train"], "validation": summary["valid"], "test": summary["test"]}
    assert sum(summary.values()) == 60
    assert [message["role"] for message in loaded["first"]] == ["system", "user", "assistant"]
    assert loaded["gold"] is True
    assert loaded["score"].startswith("float")


@needs_datasets
def test_datasets_opens_each_jsonl_format(tmp_path: Path) -> None:
    """Each JSONL format is read by `datasets` with the columns that trainers document."""
    export = _export(tmp_path, fields=["sample_id", "score"], score_name="teacher_score")
    loaded = _load(
        "import sys, json, datasets\n"
        "from pathlib import Path\n"
        "out = {}\n"
        "for name in ('messages', 'sharegpt', 'alpaca', 'mlx', 'dpo', 'kto'):\n"
        "    path = str(Path(sys.argv[1]) / name / 'train.jsonl')\n"
        "    d = datasets.load_dataset('json', data_files=path, split='train')\n"
        "    out[name] = sorted(d.column_names)\n"
        "print(json.dumps(out))",
        export,
    )
    carried = ["sample_id", "teacher_score"]
    assert loaded["messages"] == loaded["mlx"] == sorted(["messages", *carried])
    assert loaded["sharegpt"] == sorted(["conversations", *carried])
    assert loaded["alpaca"] == sorted(["instruction", "input", "output", "system", "history", *carried])
    assert {"prompt", "chosen", "rejected"} <= set(loaded["dpo"])
    assert {"prompt", "completion", "label"} <= set(loaded["kto"])


@needs_datasets
def test_a_dataset_without_validation_rows_still_opens(tmp_path: Path) -> None:
    """One group gives one split; the card names no empty one, so the folder loads."""
    export = _export(tmp_path, rows=7, split_by="field:model", train_ratio=0.9, test_ratio=0.0)
    script = (
        "import sys, json, datasets\n"
        "print(json.dumps({k: len(v) for k, v in datasets.load_dataset(sys.argv[1]).items()}))"
    )
    assert _load(script, export / "huggingface") == {"train": 7}
    assert (export / "huggingface/data/validation.parquet").is_file()


def test_a_second_export_gives_the_same_bytes(tmp_path: Path) -> None:
    """Every file of every format is the same, byte for byte, when the export is done again elsewhere."""
    first, second = _export(tmp_path / "a"), _export(tmp_path / "b")
    files = get_export_files(ALL)
    assert sorted(files) == sorted(str(path.relative_to(first)) for path in first.rglob("*") if path.is_file())
    assert {name for name in files if (first / name).read_bytes() != (second / name).read_bytes()} == set()


def test_parquet_keeps_rows_whose_fields_disagree(tmp_path: Path) -> None:
    """A field that is a number here and a text there becomes JSON text; nested, empty and missing fields survive."""
    import pyarrow.parquet

    odd = [
        {"extra": 1, "nested": {"a": 1}, "ratio": 1, "empty": {}, "long": 2**60, "mix": 2**60, "list": [1, "a"]},
        {"extra": "two", "nested": {"b": [1.5, None]}, "ratio": 0.5, "empty": {}, "long": 1, "mix": 0.5},
        {"nested": None, "big": 2**70, "generation": "half \ud83d of a sign"},
    ]
    kept = write(tmp_path / "merged.jsonl", [make_row(number, **fields) for number, fields in enumerate(odd)])
    export_dataset([kept], [], tmp_path / "out", settings={"formats": ["parquet", "messages"], "train_ratio": 1.0})
    rows = pyarrow.parquet.read_table(tmp_path / "out/parquet/train.parquet").to_pylist()
    assert [row["extra"] for row in rows] == ["1", '"two"', None]
    assert [row["nested"] for row in rows] == [{"a": 1, "b": None}, {"a": None, "b": [1.5, None]}, None]
    assert [row["ratio"] for row in rows] == [1.0, 0.5, None]
    assert [row["empty"] for row in rows] == ["{}", "{}", None]
    assert [row["long"] for row in rows] == [2**60, 1, None]
    assert [row["mix"] for row in rows] == [str(2**60), "0.5", None]
    assert rows[0]["list"] == ["1", '"a"']
    assert rows[2]["big"] == str(2**70)
    assert rows[2]["generation"] == "half \ufffd of a sign"
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert summary["columns_as_json_text"] == ["extra", "mix", "list[]", "big"]


def test_no_rows_at_all_give_empty_files(tmp_path: Path) -> None:
    """An empty model exports empty files of every format, not an error."""
    export = _export(tmp_path, rows=0)
    assert all((export / name).is_file() for name in get_export_files(ALL))
    assert read(export / "dpo/train.jsonl") == []


def test_a_dataset_folder_needs_a_licence(tmp_path: Path) -> None:
    """Without a licence nothing is written, and the message names the key."""
    with pytest.raises(ConfigError, match=r"export\.huggingface\.license is missing"):
        _export(tmp_path, huggingface={})
    assert not (tmp_path / "export").exists()


def test_the_card_quotes_the_manifest(tmp_path: Path) -> None:
    """The card has a YAML header with licence and files, and the counts, policy and hashes of the manifest, no path."""
    kept = write(tmp_path / "merged.jsonl", [make_row(1)])
    manifest = tmp_path / "manifest.json"
    facts = {
        "model": "teacher",
        "run_id": "r-1",
        "stages": {"prepared": {"count": 9}, "generated": {"count": 8}, "rejected": {"count": 2}},
        "comparison_policy": {"row_order": "auto", "database_dir": "/home/somebody/databases"},
        "sources": {"inputs": {"/home/somebody/rows.jsonl": "abc"}},
        "code": {"potstill": "0.1.0"},
    }
    manifest.write_text(json.dumps(facts))
    settings = {"formats": ["huggingface"], "huggingface": {"license": "mit", "pretty_name": "歌手 | x"}}
    export_dataset([kept], [], tmp_path / "out", settings=settings, manifest=manifest)
    card = (tmp_path / "out/huggingface/README.md").read_text(encoding="utf-8")
    _, header, text = card.split("---\n", 2)
    assert yaml.safe_load(header)["license"] == "mit"
    assert yaml.safe_load(header)["pretty_name"] == "歌手 | x"
    assert yaml.safe_load(header)["potstill"] == {"run_id": "r-1", "model": "teacher"}
    for line in (
        "| rows prepared | 9 |",
        "| rows rejected | 2 |",
        "| comparison: row_order | auto |",
        "| run_id | r-1 |",
    ):
        assert line in text
    assert "| sha256 of inputs: rows.jsonl | abc |" in text
    assert "somebody" not in card


def test_other_ratios_leave_no_file_of_the_last_export(tmp_path: Path) -> None:
    """A test file of an earlier export goes when the new one has no test split: its rows are in train now."""
    _export(tmp_path)
    export = _export(tmp_path, test_ratio=0.0, train_ratio=1.0)
    assert not (export / "messages/test.jsonl").exists()
    assert not (export / "huggingface/data/test.parquet").exists()
    assert len(read(export / "messages/train.jsonl")) == 60


def test_a_leak_of_the_users_own_splits_fails_and_writes_nothing(tmp_path: Path) -> None:
    """Rows that name their split themselves and put one prompt into two stop the export."""
    rows = [make_row(1, split="train"), make_row(1, sample_index=1, split="test"), make_row(2, split="dev")]
    kept = write(tmp_path / "merged.jsonl", rows)
    settings = {**ALL, "split_field": "split"}
    with pytest.raises(InputError, match=r"stand in more than one split .*one prompt in train .* and in test "):
        export_dataset([kept], [], tmp_path / "out", settings=settings)
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == []


def test_the_users_own_splits_are_kept(tmp_path: Path) -> None:
    """`split_field` puts each row where it says, under any of the usual names."""
    names = ["train", "dev", "validation", "test"]
    kept = write(tmp_path / "merged.jsonl", [make_row(number, split=name) for number, name in enumerate(names)])
    counts = export_dataset([kept], [], tmp_path / "out", settings={**ALL, "split_field": "split"})
    assert counts.formats["messages"] == {"train": 1, "valid": 2, "test": 1}
