"""The provider's batch API, against a real server that behaves like it and misbehaves on demand."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from potstill.answers.store import AnswerStore
from potstill.cli import main
from potstill.errors import ConfigError, TryAgainError
from potstill.generate import batch as batches
from potstill.generate.batch_api import BatchApi
from potstill.generate.batch_files import BatchFolder, find_batches
from potstill.records import VOLATILE_FIELDS
from tests.servers.batch import DEFAULTS
from tests.servers.handle import Server, running
from tests.unit.generate_work import Work


@pytest.fixture(scope="module")
def provider() -> Iterator[Server]:
    with running("tests.servers.batch") as server:
        yield server


@pytest.fixture
def work(provider: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Work:
    provider.control(**DEFAULTS, reset=True)
    monkeypatch.setattr(batches, "_POLL_FIRST_S", 0.05)
    monkeypatch.setattr(batches, "_POLL_MOST_S", 0.1)
    monkeypatch.setattr(batches, "_SETTLE_S", 0.05)
    return Work(tmp_path, provider)


def _names(count: int) -> list[str]:
    return [f"row {number}" for number in range(count)]


def _run(work: Work, **settings: Any) -> Any:
    return work.run(mode="batch", **settings)


def _steady(work: Work, name: str = "answered") -> list[dict[str, Any]]:
    """Return the output without the fields that differ from run to run."""
    return [{key: value for key, value in row.items() if key not in VOLATILE_FIELDS} for row in work.read(name)]


def _paid(work: Work) -> dict[str, int]:
    found: dict[str, int] = work.server.stats()["answered"]
    return found


def test_a_whole_round(work: Work) -> None:
    """All rows are answered by one batch, in input order, and nothing is asked online or left behind."""
    work.rows(*_names(40))
    counts = _run(work)
    stats = work.server.stats()
    assert (counts.answered, counts.requests) == (40, 0)
    assert [row["sample_id"] for row in work.read("answered")] == [f"id-row {number}" for number in range(40)]
    assert (stats["batches"], stats["online"], set(stats["answered"].values())) == (1, {}, {1})
    assert find_batches(work.folder / "answers" / "fake") == []


def test_the_output_is_that_of_an_online_run(work: Work, tmp_path: Path) -> None:
    """Whichever way the answers came, the rows are the same but for times and endpoints."""
    work.rows("b", "a", "c", "a", "d")
    work.chat = {"seed": 5}
    _run(work, samples=2)
    by_batch = _steady(work)
    other = Work(tmp_path / "online", work.server, chat=work.chat)
    other.folder.mkdir()
    other.rows("b", "a", "c", "a", "d")
    other.run(samples=2)
    assert by_batch == _steady(other)
    assert len({row["generation"] for row in by_batch}) == 8


def test_only_what_is_missing_goes_into_a_batch(work: Work) -> None:
    """Answers of an online run are not bought again, nor are those of a batch by an online run."""
    work.rows("a", "b")
    work.run()
    work.rows("a", "b", "c")
    _run(work)
    assert _paid(work) == {"c": 1}
    assert work.run().requests == 0
    assert work.server.stats()["batches"] == 1


def test_the_limits_of_the_provider_are_kept(work: Work) -> None:
    """What is more than one batch may hold becomes several batches, by lines and by bytes."""
    work.rows(*_names(7))
    assert _run(work, batch_max_requests=3).answered == 7
    assert work.server.stats()["sizes"] == [3, 3, 1]
    work.server.control(reset=True)
    work.rows(*(f"new {number}" for number in range(4)))
    assert _run(work, batch_max_bytes=500).answered == 4
    assert work.server.stats()["sizes"] == [2, 2]
