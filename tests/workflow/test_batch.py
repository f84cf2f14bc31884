"""`generate.mode: batch` as a Snakemake user has it: handed over, looked after, collected, whatever ends in between."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.servers.batch import DEFAULTS
from tests.servers.handle import Server, running
from tests.workflow.runs import Run, find_processes, kill, run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def provider() -> Iterator[Server]:
    with running("tests.servers.batch") as server:
        yield server


def batch_run(folder: Path, provider: Server, model: dict[str, Any] | None = None, **generate: Any) -> Run:
    """Return a run of two chunks over a provider that answers every question by SELECT 1."""
    provider.control(**{**DEFAULTS, "content": "SELECT 1"}, reset=True)
    config = {
        "chunks": {"count": 2},
        "models": [{"alias": "m", "config": "batch.yaml"}],
        "generate": {"mode": "batch", **generate},
    }
    made = Run(folder, rows=14, config=config)
    client = {"base_url": provider.url, "api_key": "none", "timeout": 10, "max_retries": 0}
    made.write_model("batch.yaml", {"client_config": client, "chat_config": {"model": "fake"}, **(model or {})})
    return made


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


def check_whole(made: Run, provider: Server) -> None:
    """See to it that every question was paid once, by one batch a chunk, and the right ones are kept."""
    stats = provider.stats()
    assert stats["batches"] == 2
    assert stats["online"] == {}
    assert stats["answered"] == {f"question {number}?": 1 for number in range(14)}
    assert [row["id"] for row in made.read("merged.jsonl")] == ["1", "8"]
    assert len(made.read("rejected.jsonl")) == 12


def test_the_machine_may_be_off_between_the_steps(tmp_path: Path, provider: Server) -> None:
    """Handed over and ended, looked at and killed, collected by the same command: each question is paid once."""
    made = batch_run(tmp_path, provider, batch_wait=False)
    provider.control(hold=True)
    first = made.snakemake("--keep-going", check=False)
    assert first.returncode != 0
    assert "give the same command again later" in "".join(
        log.read_text() for log in (made.results / "logs").rglob("*.log")
    )
    assert provider.stats()["batches"] == 2

    made.config["generate"]["batch_wait"] = True
    made.write_config()
    looked = provider.stats()["calls"]
    controller = made.start("--keep-going")
    wait_for(lambda: sum(provider.stats()["calls"].values()) >= sum(looked.values()) + 2)
    kill([controller.pid, *find_processes(tmp_path, lambda command: "generate_answers" in command)])
    controller.wait(30)
    provider.control(hold=False)
    made.snakemake("--keep-going")
    check_whole(made, provider)
    assert "Nothing to be done" in made.snakemake().stdout


def test_what_a_batch_cannot_bring_goes_online_or_fails(tmp_path: Path, provider: Server) -> None:
    """An expired line is asked online, a refused one fails; the report has both prices."""
    prices = {"input": 1000, "output": 1000, "batch_discount": 0.5}
    made = batch_run(tmp_path, provider, {"prices": prices})
    provider.control(rows={"question 1?": "expired", "question 3?": 400})
    made.snakemake()
    assert provider.stats()["online"] == {"question 1?": 1}
    assert [row["id"] for row in made.read("merged.jsonl")] == ["1", "8"]
    assert [(row["id"], row["error_class"]) for row in made.read("failed.jsonl")] == [("3", "bad_request")]
    usages = {row["id"]: row["usage"] for name in ("merged", "rejected") for row in made.read(f"{name}.jsonl")}
    full = {name: (usage["prompt_tokens"] + usage["completion_tokens"]) / 1000 for name, usage in usages.items()}
    expected = sum(cost if name == "1" else cost / 2 for name, cost in full.items())
    assert sum(usage["cost"] for usage in usages.values()) == pytest.approx(expected)
    report = json.loads((made.results / "m/reports/cost_report.json").read_text())
    assert report["cost_total"] == pytest.approx(expected)
    assert report["prices"]["batch_discount"] == 0.5


def test_a_cancelled_batch_is_asked_for_again(tmp_path: Path, provider: Server) -> None:
    """`potstill batch cancel` ends the waiting jobs; what was answered is kept, the same command asks for the rest."""
    made = batch_run(tmp_path, provider)
    provider.control(hold=True)
    controller = made.start("--keep-going")
    wait_for(lambda: provider.stats()["statuses"] == ["in_progress", "in_progress"])
    done = run([sys.executable, "-m", "potstill", "batch", "cancel", "--answers-dir", "answers"], tmp_path)
    assert done.stdout.count("cancel") >= 2
    assert controller.wait(60) != 0
    provider.control(hold=False)
    made.snakemake("--keep-going")
    stats = provider.stats()
    assert set(stats["answered"].values()) == {1}
    assert [row["id"] for row in made.read("merged.jsonl")] == ["1", "8"]
