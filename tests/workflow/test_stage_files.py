"""The files of chunks: packed or plain, kept or removed, the results are the same bytes."""

import json
from pathlib import Path
from typing import Any

import pytest

from potstill.reports.manifest import REMOVED, verify_manifest
from tests.workflow.runs import Run

#: Ten rows, of two chunks.
CHUNKS = {"count": 2}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[float, dict[str, bytes]]:
    """What a run with plain files that stay ends with, by its lowest score."""
    found = {}
    for score in (1.0, 0.5):
        run = Run(tmp_path_factory.mktemp("plain"), rows=10, config=settings(score, compress="none"))
        run.snakemake()
        found[score] = run.outcomes()
    return found


def settings(score: float, **chunks: Any) -> dict[str, Any]:
    """Return the config of a run with a lowest score and something said of its chunks' files."""
    return {"chunks": {**CHUNKS, **chunks}, "filter": {"min_score": score}}


@pytest.mark.parametrize("compress", ["none", "zst"])
@pytest.mark.parametrize("keep", [True, False])
def test_results_are_the_same_however_files_are_kept(
    tmp_path: Path, plain: dict[float, dict[str, bytes]], compress: str, keep: bool
) -> None:
    """Same bytes, nothing to do in a second run, the manifest holds, and a changed threshold asks nothing again."""
    run = Run(tmp_path, rows=10, config=settings(1.0, compress=compress, keep_stages=keep))
    run.snakemake()
    assert run.outcomes() == plain[1.0]
    assert "Nothing to be done" in run.snakemake().stdout
    left = {path.parent.name for path in run.results.rglob("*.jsonl*") if path.parent.parent.name == "m"}
    assert left == {"generated"} | ({"cleaned", "executed", "scored", "filtered"} if keep else set()) | {"export"}
    check_manifest(run, compress)
    run.config |= settings(0.5, compress=compress, keep_stages=keep)
    run.write_config()
    run.snakemake("--until", "merge_answers")
    assert run.outcomes() == plain[0.5] != plain[1.0]
    # The generate jobs did not even run again: these are the logs of the first run.
    assert run.requests() == 10


def check_manifest(run: Run, compress: str) -> None:
    """Check that the manifest names the files of all stages, also of those that are gone, and is true."""
    path = run.results / "m/reports/manifest.json"
    stages = json.loads(path.read_text())["stages"]
    assert {name: entry["count"] for name, entry in stages.items() if name in ("scored", "generated")} == {
        "scored": 10,
        "generated": 10,
    }
    assert all(name.endswith(".zst") == (compress == "zst") for name in stages["scored"]["files"])
    problems = verify_manifest(path, run.results)
    # Sources are named from the working directory, which is not this one.
    assert [problem for problem in problems if "No such file" not in problem] == []
    stages_gone = [
        stage for stage in stages if not all((run.results / name).is_file() for name in stages[stage]["files"])
    ]
    assert set(stages_gone) <= set(REMOVED)


def test_a_lost_chunk_is_made_again_without_a_request(tmp_path: Path, plain: dict[float, dict[str, bytes]]) -> None:
    """Merged rows that were lost come again from the answers of the chunks."""
    run = Run(tmp_path, rows=10, config=settings(1.0, keep_stages=False))
    run.snakemake()
    (run.results / "m/merged.jsonl").unlink()
    (run.results / "m/generated/0002.jsonl").unlink()
    run.snakemake("--until", "merge_answers")
    assert run.outcomes() == plain[1.0]
    logs = run.results / "logs/generate_answers/m"
    assert "from the store: 5; requests sent: 0" in (logs / "0002.log").read_text()
