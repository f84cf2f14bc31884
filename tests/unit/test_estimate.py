"""`potstill estimate`: tokens and money before a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from potstill.cli import main
from potstill.generate.estimate import estimate
from tests.servers.handle import Server, running
from tests.unit.generate_work import Work


def test_a_pilot_makes_the_estimate_exact(tmp_path: Path) -> None:
    """Without answers the range is wide; after a pilot it is narrow, and holds what the whole run then costs."""
    with running(answer_bytes=800) as teacher:
        work = Work(tmp_path, teacher, more={"prices": {"input": 1000, "output": 2000}})
        names = [f"row {number} " + "x" * 200 for number in range(60)]
        work.rows(*names)
        rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
        before = estimate(work.model(), rows, 60, tmp_path / "answers")
        work.run(max_rows=20)
        after = estimate(work.model(), rows, 60, tmp_path / "answers")
        cost = work.run().cost
    assert before.cost is not None and after.cost is not None
    assert (before.requests, after.requests, after.reused) == (60, 40, 20)
    assert before.cost[1] - before.cost[0] > 3 * (after.cost[1] - after.cost[0])
    assert after.cost[0] <= cost <= after.cost[1]


def test_batches_are_estimated_at_their_price(tmp_path: Path) -> None:
    """With a discount for batches, an estimate of a run in batches is so much lower."""
    prices = {"input": 1000, "output": 2000, "batch_discount": 0.25}
    work = Work(tmp_path, Server("http://127.0.0.1:9/v1", None), more={"prices": prices})  # type: ignore[arg-type]
    rows = [{"messages": [{"role": "user", "content": f"row {number}"}]} for number in range(9)]
    online = estimate(work.model(), rows, 9, tmp_path / "answers").cost
    batch = estimate(work.model(), rows, 9, tmp_path / "answers", batch=True).cost
    assert online is not None and batch == pytest.approx([0.75 * online[0], 0.75 * online[1]])


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The command prints one estimate per model of a config and sends nothing."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"id": n, "q": "x" * 90}) + "\n" for n in range(30)))
    (tmp_path / "t.jinja").write_text("Question: {{ q }}")
    model = {
        "client_config": {"base_url": "http://127.0.0.1:9/v1"},
        "chat_config": {"model": "m"},
        "prices": {"input": 1, "output": 2},
    }
    (tmp_path / "m.yaml").write_text(json.dumps(model))
    config = {
        "run": "r",
        "input": {"path": "rows.jsonl"},
        "prompt": {"template": "t.jinja"},
        "models": [{"alias": "a", "config": "m.yaml"}],
        "generate": {"samples": 2},
    }
    (tmp_path / "c.yaml").write_text(json.dumps(config))
    assert main(["estimate", "c.yaml"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("m: 60 requests (0 answers are in the store), tokens in ")
    assert "USD" in out
    assert not (tmp_path / "answers").exists()
