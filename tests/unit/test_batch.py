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
from potstill.config.model import Prices
from potstill.errors import ConfigError, TryAgainError
from potstill.generate import batch as batches
from potstill.generate.batch_api import BatchApi
from potstill.generate.batch_files import BatchFolder, find_batches
from potstill.generate.costs import by_batch, cost_of
from potstill.generate.reply import add_usage
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
    """Return the output without the fields that differ from run to run, and without what says that it came by batch."""
    rows = [{key: value for key, value in row.items() if key not in VOLATILE_FIELDS} for row in work.read(name)]
    return [row | {"usage": row["usage"] and {**row["usage"], "batch": None}} for row in rows]


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


@pytest.mark.parametrize(
    ("fault", "error_class"),
    [(400, "bad_request"), (413, "context_too_long"), ("garbage", None), (500, None), (429, None), ("missing", None)],
)
def test_a_line_in_trouble_has_the_class_of_the_wire(work: Work, fault: Any, error_class: str | None) -> None:
    """A line's status means what it means online: some fail for good, the others go into the next batch."""
    work.server.control(rows={"bad": [fault, None]})
    work.rows("a", "bad", "c")
    counts = _run(work)
    stats = work.server.stats()
    assert stats["online"] == {}
    if error_class:
        (row,) = work.read("failed")
        assert (row["error_class"], counts.answered, stats["sizes"]) == (error_class, 2, [3])
    else:
        assert (counts.answered, stats["sizes"]) == (3, [3, 1])


def test_expired_lines_go_into_the_next_batch(work: Work) -> None:
    """What a batch had answered when it expired is kept, and only the rest is asked again."""
    work.server.control(expire=1)
    work.rows(*_names(10))
    assert _run(work).answered == 10
    assert work.server.stats()["sizes"] == [10, 5]
    assert set(_paid(work).values()) == {1}


def test_what_batches_cannot_bring_is_asked_online(work: Work) -> None:
    """After `max_retries` more batches a line that is still without an answer goes online, and only that one."""
    work.client = {"max_retries": 2}
    work.server.control(rows={"late": "expired"})
    work.rows("a", "late")
    assert _run(work).answered == 2
    stats = work.server.stats()
    assert (stats["sizes"], stats["online"]) == ([2, 1, 1], {"late": 1})


def test_what_batches_cannot_bring_fails_if_it_may_not_go_online(work: Work) -> None:
    """With `batch_fallback: none` such a row fails, with the class of its last trouble, and is remembered."""
    work.client = {"max_retries": 1}
    work.server.control(rows={"late": "expired", "odd": "null_error"})
    work.rows("a", "late", "odd")
    counts = _run(work, batch_fallback="none")
    assert (counts.answered, counts.failed) == (1, 2)
    assert [row["error_class"] for row in work.read("failed")] == ["timeout", "server"]
    assert _run(work, batch_fallback="none").failed == 2
    stats = work.server.stats()
    assert (stats["sizes"], stats["online"]) == ([3, 2], {})


def test_a_batch_that_is_refused_goes_online(work: Work) -> None:
    """A batch that fails its validation is not sent again as it is: its rows go online."""
    work.server.control(refuse=1)
    work.rows("a", "b")
    assert _run(work).answered == 2
    stats = work.server.stats()
    assert (stats["batches"], stats["online"]) == (1, {"a": 1, "b": 1})


def test_a_batch_that_is_refused_stops_a_job_that_may_not_go_online(work: Work) -> None:
    """Without the fallback the job says why the provider refused the batch."""
    work.server.control(refuse=1)
    work.rows("a")
    with pytest.raises(ConfigError, match="line 1 is no JSON"):
        _run(work, batch_fallback="none")


def test_a_full_queue_is_waited_for(work: Work) -> None:
    """A batch beyond the provider's queue ends the job with "try again", and costs its rows no attempt."""
    work.client = {"max_retries": 0}
    work.server.control(refuse=1, refuse_errors=[{"code": "token_limit_exceeded", "message": "Enqueued token limit"}])
    work.rows("a")
    with pytest.raises(TryAgainError, match="Enqueued token limit"):
        _run(work)
    assert _run(work).answered == 1
    assert work.server.stats()["online"] == {}


@pytest.mark.parametrize("fault", ["lose_create", "lose_create_500", "create_500"])
def test_a_lost_reply_makes_no_second_batch(work: Work, fault: str) -> None:
    """When the reply to a creation is lost, the provider's list, page by page, says whether there is a batch."""
    work.rows("early")
    for text in ("x", "y", "z"):  # more batches than a page holds
        work.rows(text)
        _run(work)
    work.server.control(**{fault: 2 if fault == "create_500" else 1})
    work.rows("a", "b")
    assert _run(work).answered == 2
    assert work.server.stats()["batches"] == 4
    assert set(_paid(work).values()) == {1}


@pytest.mark.parametrize("status", [429, 500])
def test_trouble_on_the_way_is_waited_out(work: Work, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rate limits and errors of the API itself cost no row an attempt, whichever request they strike."""
    monkeypatch.setattr("potstill.generate.batch_api.backoff", lambda *_, **__: 0.01)
    work.client = {"max_retries": 0}
    for strikes in (1, 2, 3):
        work.server.control(trouble=strikes, trouble_status=status)
        work.rows(f"a{strikes}")
        assert _run(work).answered == 1
    assert (work.server.stats()["batches"], work.server.stats()["online"]) == (3, {})


def test_an_outage_that_lasts_ends_the_job_and_keeps_the_batch(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    """A provider that is away too long ends the job with "try again"; the batch is there when it comes back."""
    monkeypatch.setattr("potstill.generate.batch_api.backoff", lambda *_, **__: 0.05)
    work.rows("a")
    with pytest.raises(TryAgainError, match="not finished yet"):
        _run(work, batch_wait=False)
    work.server.control(trouble=10**6, trouble_status=500)
    with pytest.raises(TryAgainError, match="no success"):
        _run(work, outage_timeout_s=0.3)
    work.server.control(trouble=0)
    assert _run(work).answered == 1
    assert work.server.stats()["batches"] == 1


def test_a_torn_download_is_fetched_again(work: Work) -> None:
    """A file that ends within a line is not taken for the whole."""
    work.server.control(torn_downloads=2)
    work.rows(*_names(5))
    assert _run(work).answered == 5
    assert work.server.stats()["sizes"] == [5]


def test_a_job_that_does_not_wait_ends_and_goes_on_later(work: Work) -> None:
    """With `batch_wait: false` the machine may be off between handing over and collecting; nothing is asked twice."""
    work.server.control(hold=True)
    work.rows(*_names(6))
    for _ in range(2):
        with pytest.raises(TryAgainError, match="2 batches are running"):
            _run(work, batch_wait=False, batch_max_requests=3)
    work.server.control(hold=False)
    time.sleep(0.3)
    assert _run(work, batch_wait=False, batch_max_requests=3).answered == 6
    stats = work.server.stats()
    assert (stats["batches"], stats["uploads"], set(stats["answered"].values())) == (2, 2, {1})


def test_a_running_batch_serves_other_jobs(work: Work) -> None:
    """A batch belongs to the store: rows that were cut into other chunks meanwhile wait for it, and pay nothing."""
    work.rows("a", "b", "c")
    with pytest.raises(TryAgainError):
        _run(work, batch_wait=False)
    other = Work(work.folder / "other", work.server)
    other.folder.mkdir()
    (other.folder / "answers").symlink_to(work.folder / "answers")
    other.rows("c", "d")
    assert _run(other).answered == 2
    assert _run(work).answered == 3
    assert work.server.stats()["sizes"] == [3, 1]


def test_two_jobs_at_once_share_a_batch(work: Work) -> None:
    """Two jobs that wait for the same batch take turns in looking at it; each row is paid once."""
    work.server.control(hold=True)
    work.rows(*_names(20))
    with pytest.raises(TryAgainError):
        _run(work, batch_wait=False)
    other = Work(work.folder / "other", work.server)
    other.folder.mkdir()
    (other.folder / "answers").symlink_to(work.folder / "answers")
    other.rows(*_names(20))
    pids = [_start(work, lambda: _run(work)), _start(work, lambda: _run(other))]
    time.sleep(0.3)
    work.server.control(hold=False)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0, 0]
    assert _steady(work) == _steady(other)
    stats = work.server.stats()
    assert (stats["batches"], set(stats["answered"].values()), stats["online"]) == (1, {1}, {})


def test_cancel_keeps_what_was_answered(work: Work, capsys: pytest.CaptureFixture[str]) -> None:
    """`potstill batch cancel` ends the batch at the provider; the next run collects its part and asks for the rest."""
    work.server.control(hold=True)
    work.rows(*_names(8))
    with pytest.raises(TryAgainError):
        _run(work, batch_wait=False)
    folder = str(work.folder / "answers")
    assert main(["batch", "list", "--answers-dir", folder]) == 0
    assert "8 requests" in capsys.readouterr().out
    assert main(["batch", "cancel", "--answers-dir", folder]) == 0
    assert "cancelling" in capsys.readouterr().out
    work.server.control(hold=False)
    assert _run(work).answered == 8
    assert work.server.stats()["sizes"] == [8, 4]
    assert set(_paid(work).values()) == {1}
    assert main(["batch", "cancel", "--answers-dir", folder]) == 0
    assert "no batch is open" in capsys.readouterr().out


def test_a_waiting_job_ends_when_its_batch_is_cancelled(work: Work) -> None:
    """A job whose batch is cancelled under it keeps the answers and stops; it does not hand over the rest unasked."""
    work.server.control(hold=True, seconds=0.4)
    work.rows(*_names(4))
    pid = _start(work, lambda: _run(work))
    _until(lambda: work.server.stats()["statuses"] == ["in_progress"])
    time.sleep(0.3)
    assert main(["batch", "cancel", "--answers-dir", str(work.folder / "answers")]) == 0
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 75
    assert work.server.stats()["sizes"] == [4]
    work.server.control(hold=False)
    assert _run(work).answered == 4
    assert work.server.stats()["sizes"] == [4, 2]


def test_a_longer_limit_is_tried_in_the_next_batch(work: Work) -> None:
    """An answer that was cut off climbs the ladder from batch to batch, and what it cost is kept."""
    work.server.control(rows={"long": ["length", None]})
    work.rows("a", "long")
    assert _run(work, max_tokens_ladder=[200]).answered == 2
    assert [body["max_tokens"] for body in work.server.get("/bodies")] == [100, 100, 200]
    assert [row["finish_reason"] for row in work.read("answered")] == ["stop", "stop"]


def test_an_answer_of_the_wrong_form_is_mended_in_the_next_batch(work: Work) -> None:
    """`response_format` is checked, one repair goes into the next batch, and the tokens of both are booked."""
    work.chat = {"response_format": {"type": "json_object"}}
    work.server.control(content=["no JSON", '{"a": 1}'])
    work.rows("a")
    assert _run(work).answered == 1
    (row,) = work.read("answered")
    assert (row["generation"], row["usage"]["completion_tokens"], row["attempts"]) == ('{"a": 1}', 20, 2)
    assert len(work.server.get("/bodies")[1]["messages"]) == 3


def test_nothing_streams_out_of_a_batch(work: Work) -> None:
    """A model file that asks for streams is served all the same, and its answers are those of other runs."""
    work.rows("a")
    work.chat = {"stream": True}
    assert _run(work).answered == 1
    (body,) = work.server.get("/bodies")
    assert "stream" not in body
    assert "stream_options" not in body


def test_money_is_booked_and_bounds_new_batches(work: Work) -> None:
    """What a batch cost counts for the budget; once that is spent, nothing more is handed over."""
    work.more = {"prices": {"input": 1.0, "output": 1.0}}
    work.rows("a", "b")
    assert _run(work, budget=0.00005).cost == pytest.approx(0.00006)
    work.rows("a", "b", "c")
    counts = _run(work, budget=0.00005)
    assert (counts.answered, counts.not_asked, work.server.stats()["sizes"]) == (2, 1, [2])


def test_batches_are_cheaper(work: Work) -> None:
    """`batch_discount` is taken off what a batch brought, and off nothing that was asked online."""
    work.client = {"max_retries": 0}
    work.more = {"prices": {"input": 1000, "output": 2000, "batch_discount": 0.5}}
    work.server.control(rows={"late": "expired"})
    work.rows("a", "late")
    counts = _run(work)
    cheap, full = (row["usage"] for row in work.read("answered"))
    assert cheap["cost"] == pytest.approx(0.5 * (cheap["prompt_tokens"] * 1e-3 + cheap["completion_tokens"] * 2e-3))
    assert full["cost"] == pytest.approx(full["prompt_tokens"] * 1e-3 + full["completion_tokens"] * 2e-3)
    assert counts.cost == pytest.approx(cheap["cost"] + full["cost"])


def test_an_answer_bought_both_ways_has_both_prices(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch's answer that is mended online is paid at the batch's price and at the full one."""
    usage = by_batch({"prompt_tokens": 10, "completion_tokens": None})
    both = add_usage(usage, {"prompt_tokens": 100, "completion_tokens": 4})
    twice = add_usage(both, usage)
    assert both == {
        "prompt_tokens": 110,
        "completion_tokens": 4,
        "batch": {"prompt_tokens": 10, "completion_tokens": None},
    }
    assert twice is not None and twice["batch"]["prompt_tokens"] == 20
    prices = Prices(input=1e6, output=1e6, batch_discount=0.4)
    assert cost_of(twice, prices) == pytest.approx(120 + 4 - 0.4 * 20)


def test_later_rounds_have_samples_of_their_own(work: Work) -> None:
    """A round asks in batches for its own samples, not again for those of the first one."""
    work.rows("a")
    _run(work, samples=2)
    _run(work, samples=2, first_sample=2)
    assert [row["sample_index"] for row in work.read("answered")] == [2, 3]
    stats = work.server.stats()
    assert (stats["sizes"], stats["online"]) == ([2, 2], {})


def test_a_pilot_and_offline_send_no_more_than_they_may(work: Work) -> None:
    """`max_rows` holds for batches too, and `offline` hands nothing over."""
    work.rows("a", "b", "c")
    assert _run(work, max_rows=1).not_asked == 2
    assert work.server.stats()["sizes"] == [1]
    calls = work.server.stats()["calls"]
    assert work.run(mode="batch", max_rows=1, offline=True).answered == 1
    assert work.server.stats()["calls"] == calls


def test_failed_rows_are_asked_again_when_told(work: Work) -> None:
    """`retry_failed` puts the rows that failed, and only those, into a batch."""
    work.server.control(rows={"bad": [400, None]})
    work.rows("a", "bad")
    assert _run(work).failed == 1
    assert _run(work).failed == 1
    assert _run(work, retry_failed=True).answered == 2
    assert work.server.stats()["sizes"] == [2, 1]


def test_a_server_without_a_batch_api_is_named(work: Work) -> None:
    """The message says what to set."""
    work.server.control(no_batches=True)
    work.rows("a")
    with pytest.raises(ConfigError, match=r"generate\.mode: online"):
        _run(work)


def test_a_wrong_key_stops_and_shows_nothing(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refused key ends the job with the variable's name, and stands in no file of the store."""
    monkeypatch.setenv("BATCH_KEY", "canary-canary-canary")
    work.client = {"api_key_env": "BATCH_KEY"}
    work.server.control(key="another")
    work.rows("a")
    with pytest.raises(ConfigError, match="BATCH_KEY"):
        _run(work)
    work.server.control(key="canary-canary-canary")
    assert _run(work).answered == 1
    texts = [path.read_bytes() for path in work.folder.rglob("*") if path.is_file()]
    assert not [text for text in texts if b"canary-canary" in text]


# -- kills ----------------------------------------------------------------------------------------------------


def _start(work: Work, life: Callable[[], Any]) -> int:
    """Run a job in a child that ends with the job's exit status."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        life()
        status = 0
    except TryAgainError as error:
        status = error.exit_status
    finally:
        os._exit(status)


def _until(true: Callable[[], bool]) -> None:
    for _ in range(400):
        if true():
            return
        time.sleep(0.02)
    raise AssertionError("it never came true")


def _die_before(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
    monkeypatch.setattr(owner, name, lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))


def _die_after(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
    real = getattr(owner, name)

    async def deadly(*args: Any, **options: Any) -> None:
        await real(*args, **options)
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(owner, name, deadly)


def _die_at_state(monkeypatch: pytest.MonkeyPatch, step: str, *, after: bool) -> None:
    real = BatchFolder.save

    def deadly(self: BatchFolder, state: dict[str, Any], **changes: Any) -> dict[str, Any]:
        hit = changes.get("step") == step
        if hit and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        saved = real(self, state, **changes)
        if hit:
            os.kill(os.getpid(), signal.SIGKILL)
        return saved

    monkeypatch.setattr(BatchFolder, "save", deadly)


_STEPS = ("written", "uploaded", "creating", "created", "collected")
_MOMENTS = [
    *(f"{when} {step}" for step in _STEPS for when in ("before", "after")),
    "after upload",
    "after create",
    "after retrieve",
    "after download",
    "amid appends",
]


def _arm(monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    when, _, what = moment.partition(" ")
    if what in _STEPS:
        _die_at_state(monkeypatch, what, after=when == "after")
    elif what == "appends":
        real, calls = AnswerStore.append, iter(range(100))

        def deadly(self: AnswerStore, key: bytes, record: dict[str, Any]) -> None:
            if next(calls) == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            real(self, key, record)

        monkeypatch.setattr(AnswerStore, "append", deadly)
    else:
        _die_after(monkeypatch, BatchApi, what)


@pytest.mark.parametrize("moment", _MOMENTS)
def test_a_kill_at_any_moment_pays_nothing_twice(work: Work, moment: str) -> None:
    """After SIGKILL before or after any step the same command goes on: one batch, each row paid once, all answered."""
    work.rows(*_names(8))

    def life() -> None:
        with pytest.MonkeyPatch.context() as monkeypatch:
            _arm(monkeypatch, moment)
            _run(work)

    assert os.waitstatus_to_exitcode(os.waitpid(_start(work, life), 0)[1]) == -signal.SIGKILL
    assert not (work.folder / "answered.jsonl").exists()
    assert _run(work).answered == 8
    stats = work.server.stats()
    assert (stats["batches"], stats["online"], set(stats["answered"].values())) == (1, {}, {1})
    with AnswerStore(work.folder / "answers", "fake") as store:
        assert len(list(store.records())) == 8
    assert find_batches(work.folder / "answers" / "fake") == []
    assert not list((work.folder / "answers" / "fake" / "batches").iterdir())


def test_kills_between_two_batches_keep_the_count_of_attempts(work: Work) -> None:
    """What one batch left over is known after a kill: a row that expires again and again does not start anew."""
    work.client = {"max_retries": 1}
    work.server.control(rows={"late": "expired"})
    work.rows("a", "late")
    for _ in range(2):

        def life() -> None:
            with pytest.MonkeyPatch.context() as monkeypatch:
                _arm(monkeypatch, "after collected")
                _run(work)

        assert os.waitstatus_to_exitcode(os.waitpid(_start(work, life), 0)[1]) == -signal.SIGKILL
    assert _run(work).answered == 2
    stats = work.server.stats()
    assert (stats["sizes"], stats["online"], _paid(work)) == ([2, 1], {"late": 1}, {"a": 1})


def test_json_state_names_no_secret_and_every_step(work: Work) -> None:
    """The state on the disk can be read by people: where, what, how far."""
    work.server.control(hold=True)
    work.rows("a")
    with pytest.raises(TryAgainError):
        _run(work, batch_wait=False)
    (batch,) = find_batches(work.folder / "answers" / "fake")
    state = json.loads((batch.path / "state.json").read_text())
    assert (state["step"], state["requests"], state["base"]) == ("created", 1, work.server.url)
    assert state["batch_id"].startswith("batch_")
    assert work.server.stats()["metadata"] == [{"potstill_batch": batch.path.name}]
