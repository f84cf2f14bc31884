"""`potstill push` against a hub on loopback."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from potstill.stages.export import export_dataset
from tests.servers.hub import TOKEN, Hub, running_hub
from tests.unit.export_rows import make_row, write

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("huggingface_hub") is None,
    reason="the package huggingface_hub is not installed: pip install 'potstill[hub]'",
)


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running_hub() as server:
        yield server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    kept = write(tmp_path / "merged.jsonl", [make_row(number) for number in range(40)])
    settings = {"formats": ["huggingface"], "train_ratio": 0.8, "huggingface": {"license": "cc-by-4.0"}}
    export_dataset([kept], [], tmp_path / "export", settings=settings)
    return tmp_path / "export/huggingface"


def _push(folder: Path, endpoint: str, *flags: str, token: str = TOKEN) -> subprocess.CompletedProcess[str]:
    home = folder.parent / "home"
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), "HF_HOME": str(home), "MY_TOKEN": token}
    environment["PYTHONPATH"] = os.environ.get("PYTHONPATH", "")
    words = ["push", str(folder), "--endpoint", endpoint, "--token-env", "MY_TOKEN", "--repo-id", "me/sql", *flags]
    return subprocess.run(
        [sys.executable, "-m", "potstill", *words], env=environment, capture_output=True, text=True, timeout=120
    )


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_pushed_folder_arrives_whole(folder: Path, hub: Hub) -> None:
    """The hub has every file byte for byte in one commit of a private dataset, and nothing else."""
    (folder / "notes.txt").write_text("mine")
    done = _push(folder, hub.url, "--message", "first")
    assert done.returncode == 0, done.stderr
    repo = hub.repos["me/sql"]
    assert done.stdout.strip() == f"{hub.url}/datasets/me/sql/commit/{repo.head}"
    (folder / "notes.txt").unlink()
    assert repo.files == _files(folder)
    assert (repo.private, repo.commits) == (True, ["first"])
    assert repo.large == {"data/train.parquet", "data/validation.parquet"}


def test_a_second_push_sends_nothing_again(folder: Path, hub: Hub) -> None:
    """The same folder pushed twice makes one commit; a changed card alone is sent alone."""
    assert _push(folder, hub.url).returncode == 0
    assert _push(folder, hub.url).returncode == 0
    assert (len(hub.repos["me/sql"].commits), hub.uploads) == (1, 2)
    (folder / "README.md").write_text((folder / "README.md").read_text() + "\nMore.\n")
    assert _push(folder, hub.url, "--public").returncode == 0
    assert (len(hub.repos["me/sql"].commits), hub.uploads) == (2, 2)
    assert hub.repos["me/sql"].files == _files(folder)


@pytest.mark.parametrize(
    ("flags", "token", "said"),
    [
        ((), "hf_wrong", "the hub answered 401"),
        (("--repo-id", "somebody-else/sql"), TOKEN, "the hub answered 403"),
        (("--repo-id", "a/b/c"), TOKEN, "push: "),
        ((), "", "the variable MY_TOKEN is empty"),
    ],
)
def test_a_refusal_is_one_line_and_shows_no_token(
    folder: Path, hub: Hub, flags: tuple[str, ...], token: str, said: str
) -> None:
    """A bad token, owner or name ends with 78 and one line; the token is in none of the output."""
    done = _push(folder, hub.url, *flags, token=token)
    assert done.returncode == 78, done.stderr
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert not token or token not in done.stdout + done.stderr


def test_a_hub_that_cannot_be_reached_is_for_another_time(folder: Path) -> None:
    """Nobody at the port: status 75, one line."""
    done = _push(folder, "http://127.0.0.1:9")
    assert done.returncode == 75, done.stderr
    assert "cannot be reached" in done.stderr


def test_a_folder_that_is_no_dataset_is_refused(tmp_path: Path, hub: Hub) -> None:
    """Without card and tables nothing is sent."""
    done = _push(tmp_path, hub.url)
    assert (done.returncode, hub.requests) == (78, [])
    assert "no dataset folder" in done.stderr
