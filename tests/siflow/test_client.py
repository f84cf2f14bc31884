"""The client against the simulator: signatures, envelopes, pages, and one class for each kind of error."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import requests

from snakemake_executor_plugin_siflow.client import (
    ApiError,
    Doubtful,
    NotFound,
    Pacer,
    Rejected,
    SiflowClient,
    Throttled,
    Unauthorized,
    Unreachable,
    open_envelope,
    parse_retry_after,
    read_task,
)
from snakemake_executor_plugin_siflow.settings import ExecutorSettings, Keys
from tests.siflow.rig import KEYS, Simulator

BODY: dict[str, Any] = {
    "namePrefix": "t",
    "image": "i",
    "type": "pod",
    "workers": 1,
    "resourcePool": "p",
    "cmd": "sleep 30",
    "volumes": [],
    "instances": [{"name": "sci.c23-2", "countPerPod": 1}],
    "labels": {"run": "x"},
}
GOOD = Keys(*KEYS.values())


def client(url: str, keys: Keys = GOOD, **settings: Any) -> SiflowClient:
    """A client for a simulator."""
    return SiflowClient(
        ExecutorSettings(base_url=url, request_timeout=3, max_calls_per_second=1000, **settings), lambda: keys
    )


def test_create_get_list_stop(simulator: Simulator) -> None:
    """A task can be created, looked at, found in the list and stopped."""
    api = client(simulator.url)
    uuid = api.create(BODY)
    assert api.get(uuid).name.startswith("t-")
    assert [task.uuid for task in api.list_all(labels="run=x")] == [uuid]
    assert api.list_all(labels="run=y") == []
    api.stop([uuid])
    assert api.get(uuid).status in ("Stopping", "Stopped")
    api.close()


def test_wire_is_that_of_the_page(simulator: Simulator) -> None:
    """The headers of a call are signed as the platform wants it."""
    api = client(simulator.url)
    api.create(BODY)
    api.close()

    sent = json.loads(simulator.bodies().splitlines()[0])["headers"]
    text = KEYS["SIFLOW_ACCESS_KEY_SECRET"] + sent["Randstr"] + sent["Timestamp"]
    assert sent["Signature"] == hashlib.sha256(text.encode()).hexdigest()
    assert (sent["AppID"], sent["X-Region"], sent["X-Cluster"]) == (GOOD.key_id, "cn-beijing", "auriga")
    assert json.loads(sent["X-Labels"]) == {"run": "x"}
    assert len(sent["Randstr"]) == 10 and sent["Randstr"].isdecimal()


def test_wrong_secret_is_refused(simulator: Simulator) -> None:
    """A wrong secret is `Unauthorized`, whatever the call."""
    api = client(simulator.url, Keys(GOOD.key_id, "wrong"))
    with pytest.raises(Unauthorized, match="signature"):
        api.list_page(1)
    api.close()


def test_keys_are_read_again_after_401(simulator: Simulator) -> None:
    """After a refused signature the key is asked for again, and the call goes through."""
    found = iter([Keys(GOOD.key_id, "old"), GOOD, GOOD])
    api = SiflowClient(ExecutorSettings(base_url=simulator.url), lambda: next(found))
    assert api.list_page(1).total == 0
    api.close()


def test_unknown_task_is_not_found(simulator: Simulator) -> None:
    """A task that the platform does not know is `NotFound`."""
    api = client(simulator.url)
    with pytest.raises(NotFound):
        api.get("no-such-task")
    api.close()


@pytest.mark.parametrize(
    ("fault", "value"), [("html", 1), ("bad_json", 1), ("error", 1), ("drop_post", 1), ("error_after", 1)]
)
def test_answer_of_a_create_in_doubt(tmp_path: Path, fault: str, value: float) -> None:
    """Whatever is no answer of the API leaves a create in doubt, and it is sent once."""
    with Simulator(tmp_path / "platform", **{fault: value}) as running:
        api = client(running.url)
        with pytest.raises(Doubtful):
            api.create(BODY)
        api.close()
        assert len([call for call in running.history()["calls"] if call["method"] == "POST"]) == 1


def test_refused_create_is_not_in_doubt(tmp_path: Path) -> None:
    """A 400 and a full quota are certain refusals with the platform's own text."""
    with Simulator(tmp_path / "platform", quota=1) as running:
        api = client(running.url)
        api.create(BODY)
        with pytest.raises(Rejected, match="quota"):
            api.create(BODY)
        with pytest.raises(Rejected, match="image must be"):
            api.create({**BODY, "image": ""})
        api.close()


def test_nobody_listens() -> None:
    """Without a connection nothing was sent, and that is certain."""
    api = client("http://127.0.0.1:9/sfapi")
    with pytest.raises(Unreachable):
        api.create(BODY)
    api.close()


def test_pages_are_read_to_the_end(simulator: Simulator) -> None:
    """All pages are read, also when the server cuts them shorter than asked."""
    api = client(simulator.url, page_size=10)
    uuids = {api.create({**BODY, "cmd": "true"}) for _ in range(23)}
    assert {task.uuid for task in api.list_all()} == uuids
    simulator.set_faults(cap_page=4)
    assert {task.uuid for task in api.list_all()} == uuids
    api.close()


def test_throttled_closes_the_gate(tmp_path: Path) -> None:
    """After a 429 no call leaves before its Retry-After, which may be a fraction."""
    with Simulator(tmp_path / "platform", too_many=1, retry_after=0.4) as running:
        api = client(running.url)
        with pytest.raises(Throttled):
            api.list_page(1)
        running.set_faults(too_many=0)
        api.list_page(1)
        api.close()
        first, second = [call["t"] for call in running.history()["calls"]]
        assert second - first >= 0.4


@pytest.mark.parametrize(
    ("text", "seconds"),
    [(None, 1.0), ("2", 2.0), ("0.25", 0.25), ("soon", 1.0), ("-3", 0.0), ("nan", 1.0), ("9e9", 300.0)],
)
def test_retry_after(text: str | None, seconds: float) -> None:
    """Retry-After may be missing, whole, a fraction or nonsense."""
    assert parse_retry_after(text) == seconds


@pytest.mark.parametrize(
    ("status", "text", "error"),
    [
        (200, b'{"status": false, "msg": "busy"}', Rejected),
        (200, b"<html>", Doubtful),
        (200, b"[]", Doubtful),
        (200, b"", Doubtful),
        (200, b'{"data": "x"}', Doubtful),
        (302, b"", Doubtful),
        (400, b'{"status": false, "msg": "no"}', Rejected),
        (403, b"<html>", Doubtful),
        (404, b"<html>", Doubtful),
        (404, b'{"status": false, "msg": "gone"}', NotFound),
        (401, b"", Unauthorized),
        (429, b"", Throttled),
        (500, b'{"status": false, "msg": "oops"}', Doubtful),
        (503, b"", Doubtful),
    ],
)
def test_each_answer_has_one_class(status: int, text: bytes, error: type[ApiError]) -> None:
    """Answers are classified by status and form, never by their words."""
    with pytest.raises(error):
        open_envelope(status, text, None)


@pytest.mark.parametrize("row", [None, [], "x", {}, {"uuid": 1, "status": "Running"}, {"uuid": "u"}])
def test_rows_that_are_no_tasks(row: object) -> None:
    """A row that is no task is left out, not an error."""
    assert read_task(row) is None


def test_pacer_keeps_the_rate() -> None:
    """Beyond the burst, calls come no faster than allowed."""
    now = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    pacer = Pacer(10, lambda: now, sleep)
    for _ in range(110):
        pacer.wait()
    assert now == pytest.approx(10, rel=0.01)


def test_simulator_checks_signatures(simulator: Simulator) -> None:
    """A call without the signed headers is refused with an envelope."""
    answer = requests.get(f"{simulator.url}/task-service/v1/tasks", timeout=5)
    assert answer.status_code == 401
    assert answer.json()["status"] is False
    assert set(answer.json()) >= {"status", "msg", "traceID", "requestID"}


@pytest.mark.parametrize(
    ("answer", "total"),
    [({"rows": None, "total": 0}, 0), ({"rows": [], "total": "0"}, 0), ({"rows": []}, None)],
)
def test_an_empty_list_in_any_form(answer: dict[str, Any], total: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """No rows may come as null, and the total as a text or not at all."""
    api = client("http://127.0.0.1:9/sfapi")
    monkeypatch.setattr(api, "_repeated", lambda method, path: answer)
    assert api.list_page(1) == ([], total)


def test_an_answer_without_rows_is_no_list(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that has no rows at all is not taken for an empty list."""
    api = client("http://127.0.0.1:9/sfapi")
    monkeypatch.setattr(api, "_repeated", lambda method, path: {"status": True, "data": None})
    with pytest.raises(Doubtful, match="no rows"):
        api.list_page(1)
