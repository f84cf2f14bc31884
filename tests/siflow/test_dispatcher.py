"""The dispatcher over a platform in memory: single behaviours, then all of them in any order."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.siflow.fake import SETTINGS, Rig

#: For a long search: SIFLOW_EXAMPLES=10000 pytest tests/siflow/test_dispatcher.py
EXAMPLES = int(os.environ.get("SIFLOW_EXAMPLES", "0"))
SHARED_MEMORY = Path("/dev/shm")


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    """A dispatcher with nothing to do."""
    made = Rig(tmp_path)
    yield made
    made.close()


def submitted(rig: Rig, name: str = "a") -> None:
    """Hand one piece of work over and let it be submitted."""
    rig.enqueue(name)
    rig.rounds(2)


def test_success_needs_proof(rig: Rig) -> None:
    """A task that ends well with its outputs there is a success."""
    submitted(rig)
    rig.finish(rig.task(rig.works["a"]))
    rig.rounds(4)
    assert rig.verdicts == {"a": [True]}
    assert len(rig.platform.tasks) == 1


@pytest.mark.parametrize("outcome", ["none", "no_proof"])
def test_exit_code_alone_is_no_success(rig: Rig, outcome: str) -> None:
    """Succeeded without proof is a fault of the platform: another task, no verdict."""
    submitted(rig)
    rig.finish(rig.task(rig.works["a"]), outcome)
    rig.rounds(12)
    assert rig.verdicts == {}
    assert len(rig.platform.tasks) == 2


def test_outputs_may_be_visible_late(rig: Rig) -> None:
    """Outputs that a volume shows a little late are waited for."""
    submitted(rig)
    task = rig.task(rig.works["a"])
    rig.finish(task)
    (rig.root / "a").rename(rig.root / "hidden")
    rig.platform.now += 0.1
    rig.round(4.1)
    assert rig.verdicts == {}
    (rig.root / "hidden").rename(rig.root / "a")
    rig.round()
    assert rig.verdicts == {"a": [True]}


def test_failure_of_the_job_is_reported(rig: Rig) -> None:
    """A job that failed by itself is a failure, once, with its log."""
    submitted(rig)
    rig.finish(rig.task(rig.works["a"]), "failed", "Failed")
    rig.rounds(5)
    assert rig.verdicts == {"a": [False]}
    assert len(rig.platform.tasks) == 1


@pytest.mark.parametrize(
    ("status", "message"),
    [("Error", "node lost"), ("Failed", "ImagePullBackOff"), ("Stopped", "Preempted by x"), ("Stopped", "任务被抢占")],
)
def test_faults_of_the_platform_cost_no_attempt(rig: Rig, status: str, message: str) -> None:
    """After a fault of the platform another task does the work."""
    submitted(rig)
    rig.finish(rig.task(rig.works["a"]), "none", status, message)
    rig.rounds(12)
    assert rig.verdicts == {}
    rig.finish(rig.task(rig.works["a"]))
    rig.rounds(5)
    assert rig.verdicts == {"a": [True]}


def test_faults_of_the_platform_come_to_an_end(tmp_path: Path) -> None:
    """After as many faults as allowed the job fails and says why."""
    rig = Rig(tmp_path, replace(SETTINGS, infra_retries=2))
    work = rig.enqueue("a")
    for _ in range(3):
        rig.rounds(12)
        rig.finish(rig.task(work), "none", "Error", "node lost")
    rig.rounds(12)
    assert rig.verdicts == {"a": [False]}
    assert work.verdict is not None and "node lost" in work.verdict.message
    rig.close()


def test_stopped_by_a_person_is_a_failure(rig: Rig) -> None:
    """A task that somebody stopped in the console is not started again behind their back."""
    submitted(rig)
    work = rig.works["a"]
    rig.finish(rig.task(work), "none", "Stopped", "stopped by zhang")
    rig.rounds(6)
    assert rig.verdicts == {"a": [False]}
    assert work.verdict is not None and "stopped by zhang" in work.verdict.message


def test_lost_answer_is_found(rig: Rig) -> None:
    """A create whose answer was lost is found in the list, not sent again."""
    rig.platform.create_mode, rig.platform.lag = "accepted", 10
    rig.enqueue("a")
    rig.rounds(2)
    rig.platform.create_mode = "ok"
    rig.rounds(60)
    assert len(rig.platform.tasks) == 1
    rig.finish(rig.task(rig.works["a"]))
    rig.rounds(5)
    assert rig.verdicts == {"a": [True]}


def test_lost_create_is_sent_again_after_the_grace(rig: Rig) -> None:
    """A create that never arrived is sent again, once the list has had its time."""
    rig.platform.create_mode = "lost"
    rig.enqueue("a")
    rig.rounds(2)
    rig.platform.create_mode = "ok"
    rig.rounds(20)
    assert not rig.platform.tasks
    rig.rounds(20)
    assert len(rig.platform.tasks) == 1


def test_found_by_name_alone(tmp_path: Path) -> None:
    """Without labels, and with a filter that hides everything, the name is enough."""
    rig = Rig(tmp_path, labels_shown=False, filter_works=False)
    rig.platform.create_mode = "accepted"
    rig.enqueue("a")
    rig.rounds(2)
    rig.platform.create_mode = "ok"
    rig.rounds(80)
    assert len(rig.platform.tasks) == 1
    rig.finish(rig.task(rig.works["a"]))
    rig.rounds(12)
    assert rig.verdicts == {"a": [True]}
    rig.close()


@pytest.mark.parametrize("mode", ["unreachable", "throttled", "quota"])
def test_certain_refusals_are_tried_again(rig: Rig, mode: str) -> None:
    """What was certainly not accepted is tried again, for as long as it takes."""
    rig.platform.create_mode = mode
    rig.enqueue("a")
    rig.rounds(100, 5)
    assert rig.verdicts == {}
    rig.platform.create_mode = "ok"
    rig.rounds(100, 5)
    assert len(rig.platform.tasks) == 1


def test_a_throttled_create_is_not_in_doubt(rig: Rig) -> None:
    """After a 429 the create comes again in seconds: nobody has to look whether it was accepted."""
    rig.platform.create_mode = "throttled"
    rig.enqueue("a")
    rig.rounds(1)
    rig.platform.create_mode = "ok"
    rig.rounds(6)
    assert len(rig.platform.tasks) == 1


def test_a_wrong_body_is_a_failure(rig: Rig) -> None:
    """A task that the platform will never take is a failed job with the platform's words."""
    rig.platform.create_mode = "bad"
    work = rig.enqueue("a")
    rig.rounds(3)
    assert rig.verdicts == {"a": [False]}
    assert work.verdict is not None and "422: image" in work.verdict.message


def test_restart_takes_over(rig: Rig) -> None:
    """A new controller takes a living task over, and a finished one too."""
    submitted(rig, "a")
    submitted(rig, "b")
    rig.finish(rig.task(rig.works["b"]))
    rig.crash()
    rig.rounds(3)
    assert rig.verdicts == {"b": [True]}
    rig.finish(rig.task(rig.works["a"]))
    rig.rounds(5)
    assert rig.verdicts == {"a": [True], "b": [True]}
    assert len(rig.platform.tasks) == 2


def test_restart_with_a_torn_ledger(rig: Rig) -> None:
    """Half a line at the ledger's end is cut off; the task that it was about is found by its name."""
    submitted(rig)
    ledger = rig.folder.path / "ledger.jsonl"
    content = ledger.read_bytes()
    ledger.write_bytes(content[: content.rstrip().rfind(b"\n") + 10])
    rig.crash()
    rig.rounds(5)
    assert len(rig.platform.tasks) == 1
    assert rig.works["a"].attempt is not None and rig.works["a"].attempt.uuid == "u0"


def test_restart_without_a_ledger(rig: Rig) -> None:
    """Without any line of the ledger, a living task of the run is still taken over."""
    submitted(rig)
    (rig.folder.path / "ledger.jsonl").write_bytes(b"")
    rig.crash()
    rig.rounds(8)
    assert len([task for task in rig.platform.tasks.values() if task.live]) == 1


def test_changed_work_is_not_taken_over(rig: Rig) -> None:
    """A task that does something else to the same files is stopped first, and only then replaced."""
    submitted(rig)
    old = rig.task(rig.works["a"])
    rig.works.clear()
    rig.crash()
    rig.enqueue("a", code="changed")
    rig.rounds(8)
    assert old.status == "Stopped"
    assert len(rig.platform.tasks) == 2
    assert not rig.platform.doubled


def test_not_found_is_not_lost_at_once(rig: Rig) -> None:
    """A 404, or an empty list, for a while is not the end of a task."""
    submitted(rig)
    rig.platform.tasks["u0"].forgotten = True
    rig.rounds(50)
    rig.platform.tasks["u0"].forgotten = False
    rig.rounds(50)
    assert len(rig.platform.tasks) == 1
    assert rig.verdicts == {}


def test_lost_for_good_is_replaced_and_fenced(rig: Rig) -> None:
    """A task that the platform forgets is replaced, and the fence shuts it out should it live on."""
    submitted(rig)
    lost = rig.task(rig.works["a"])
    lost.forgotten = True
    rig.rounds(200)
    assert len(rig.platform.tasks) == 2
    assert rig.fence(lost) == 2
    lost.forgotten = False
    rig.rounds(20)
    assert lost.status == "Stopped"


def test_forgotten_but_finished(rig: Rig) -> None:
    """A task that the platform forgets after it has done its work has done its work."""
    submitted(rig)
    task = rig.task(rig.works["a"])
    rig.finish(task)
    task.forgotten = True
    rig.rounds(200)
    assert rig.verdicts == {"a": [True]}
    assert len(rig.platform.tasks) == 1


def test_unclear_for_too_long_is_stopped_and_replaced(rig: Rig) -> None:
    """A task that is Unknown for ever is stopped, and only then submitted again."""
    submitted(rig)
    rig.platform.tasks["u0"].status = "Unknown"
    rig.rounds(200, 5)
    assert rig.platform.tasks["u0"].status == "Stopped"
    assert len(rig.platform.tasks) == 2
    assert not rig.platform.doubled
    assert rig.verdicts == {}


def test_two_tasks_of_one_attempt(rig: Rig) -> None:
    """Of two tasks of one attempt the first stays, the second is stopped."""
    submitted(rig)
    first = rig.task(rig.works["a"])
    rig.platform.tasks["u9"] = replace(first, uuid="u9", name=first.name.rpartition("-")[0] + "-twin")
    rig.rounds(8)
    assert (first.live, rig.platform.tasks["u9"].live) == (True, False)


@pytest.mark.parametrize("labels_shown", [True, False])
def test_a_foreign_task_is_not_touched(rig: Rig, labels_shown: bool) -> None:
    """Tasks of other runs, however they are listed, are neither followed nor stopped."""
    rig.platform.labels_shown = labels_shown
    submitted(rig)
    mine = rig.task(rig.works["a"])
    rig.platform.tasks["f"] = replace(mine, uuid="f", name="other-aaaaaaaa-bbbbbbbbbbbb-a1-x", labels={"run": "other"})
    rig.rounds(8)
    assert rig.dispatcher.cancel(seconds=2) == []
    assert rig.platform.tasks["f"].live
    assert not mine.live


@pytest.mark.parametrize("mode", ["ok", "one by one"])
def test_cancel_stops_all_from_its_own_table(rig: Rig, mode: str) -> None:
    """Cancel stops every task, also one whose create is in doubt."""
    submitted(rig, "a")
    rig.platform.create_mode, rig.platform.lag = "accepted", 5
    submitted(rig, "b")
    rig.platform.stop_mode = mode
    assert rig.dispatcher.cancel() == []
    assert not any(task.live for task in rig.platform.tasks.values())


def test_cancel_says_what_it_could_not_stop(rig: Rig) -> None:
    """If the platform does not answer, cancel ends in time, names the tasks, and the fence stops what runs."""
    submitted(rig)
    rig.platform.stop_mode = rig.platform.list_mode = "error"
    before = rig.platform.now
    left = rig.dispatcher.cancel(seconds=8)
    assert [attempt.uuid for attempt in left] == ["u0"]
    assert rig.platform.now - before < 10
    assert (rig.folder.path / "fence" / "all").read_text() == "1"


def test_after_a_cancel_work_starts_anew(rig: Rig) -> None:
    """What a cancelled run left alive is stopped, not taken over: it is about to stop itself."""
    submitted(rig)
    rig.platform.stop_mode = "error"
    rig.dispatcher.cancel(seconds=2)
    rig.platform.stop_mode = "ok"
    rig.crash()
    rig.rounds(8)
    assert [task.live for task in rig.platform.tasks.values()] == [False, True]


def test_polling_is_one_list(rig: Rig) -> None:
    """A look at many tasks is one list and nothing else."""
    for number in range(60):
        rig.enqueue(f"w{number}")
    rig.rounds(60)
    rig.platform.calls = 0
    rig.rounds(1, 10)
    assert rig.platform.calls == 1


def test_a_filter_that_hides_all_is_given_up(tmp_path: Path) -> None:
    """If a filtered list hides tasks that are known to live, the list is read whole from then on."""
    rig = Rig(tmp_path, filter_works=False)
    for number in range(60):
        rig.enqueue(f"w{number}")
    rig.rounds(60)
    rig.platform.calls = 0
    rig.rounds(1, 10)
    assert rig.platform.calls == 1
    rig.close()


def test_status_line(rig: Rig) -> None:
    """Once a minute one line tells the states and the longest wait."""
    submitted(rig)
    rig.rounds(70)
    lines = [text for text in rig.log.said if "1 Pending" in text]
    assert len(lines) == 1
    assert "longest pending" in lines[0] and "place 1 in the queue" in lines[0]


STATUSES = st.sampled_from(
    [
        "Pending",
        "PartialPending",
        "Running",
        "Stopping",
        "Succeeded",
        "Failed",
        "Error",
        "Unknown",
        "",
        "Evicting",
        "succeeded",
    ]
)


@settings(max_examples=EXAMPLES or 100, deadline=None, suppress_health_check=list(HealthCheck))
@given(words=st.lists(st.tuples(STATUSES, st.integers(1, 40)), max_size=12), proof=st.booleans())
def test_any_sequence_of_words(words: list[tuple[str, int]], proof: bool) -> None:
    """Whatever a platform says, in whatever order: a success has its proof, a failure never comes from words alone."""
    folder = Path(tempfile.mkdtemp(dir=SHARED_MEMORY if SHARED_MEMORY.is_dir() else None))
    rig = Rig(folder)
    try:
        submitted(rig)
        for word, seconds in words:
            for task in rig.platform.tasks.values():
                task.status = word
            rig.rounds(2, seconds / 2)
            assert rig.verdicts == {}, "a verdict without any report"
        if proof and "a" in rig.works:
            rig.rounds(30, 2)
            rig.finish(rig.task(rig.works["a"]), status="Succeeded")
            rig.rounds(12)
            newest = max(task.number for task in rig.platform.tasks.values())
            assert rig.verdicts == {"a": [True]} or rig.fence(rig.task(rig.works["a"])) >= newest
    finally:
        rig.close()
        shutil.rmtree(folder)


class Life(RuleBasedStateMachine):
    """Jobs, faults and crashes in any order.

    The list lags less than the grace, as the settings promise. Then: no work ever has two live tasks that could both
    write, each job has one verdict, and in the end, when all faults are gone, every job has one and nothing lives.
    """

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(dir=SHARED_MEMORY if SHARED_MEMORY.is_dir() else None))
        self.rig = Rig(self.folder)
        self.jobs = 0

    @rule(lag=st.sampled_from([0.0, 3.0, 20.0]))
    def list_lags(self, lag: float) -> None:
        """The list shows new tasks late."""
        self.rig.platform.lag = lag

    @precondition(lambda self: self.jobs < 5)
    @rule()
    def new_job(self) -> None:
        """Snakemake hands a job over."""
        self.rig.enqueue(f"job{self.jobs}")
        self.jobs += 1

    @rule(mode=st.sampled_from(["ok", "accepted", "lost", "unreachable", "throttled", "quota"]))
    def creates(self, mode: str) -> None:
        """What happens to creates from now on."""
        self.rig.platform.create_mode = mode

    @rule(mode=st.sampled_from(["ok", "error", "holes"]), get=st.sampled_from(["ok", "error"]))
    def looks(self, mode: str, get: str) -> None:
        """What happens to lists and gets from now on."""
        self.rig.platform.list_mode, self.rig.platform.get_mode = mode, get

    @rule(count=st.integers(1, 15), seconds=st.sampled_from([0.2, 1.0, 5.0]))
    def time_passes(self, count: int, seconds: float) -> None:
        """The controller goes on."""
        self.rig.rounds(count, seconds)

    @precondition(lambda self: any(task.live for task in self.rig.platform.tasks.values()))
    @rule(
        pick=st.integers(0, 100),
        end=st.sampled_from(
            [("done", "Succeeded"), ("done", "Error"), ("none", "Error"), ("none", "Succeeded"), ("no_proof", "Failed")]
        ),
    )
    def a_task_ends(self, pick: int, end: tuple[str, str]) -> None:
        """A task ends, well or not."""
        live = [task for task in self.rig.platform.tasks.values() if task.live]
        self.rig.finish(live[pick % len(live)], *end)

    @precondition(lambda self: any(task.live for task in self.rig.platform.tasks.values()))
    @rule(
        pick=st.integers(0, 100), word=st.sampled_from(["Running", "Unknown", "Whatever", "Stopping", "PartialPending"])
    )
    def a_task_changes(self, pick: int, word: str) -> None:
        """A task is shown in another state."""
        live = [task for task in self.rig.platform.tasks.values() if task.live]
        live[pick % len(live)].status = word

    @rule()
    def crash(self) -> None:
        """The controller is killed and started again."""
        self.rig.crash()

    @invariant()
    def never_two_writers(self) -> None:
        """No create ever came while a task of the same work lived."""
        assert not self.rig.platform.doubled

    @invariant()
    def one_verdict_each(self) -> None:
        """No job has two verdicts, and none has failed: no fault here is the job's."""
        assert all(verdicts == [True] for verdicts in self.rig.verdicts.values())

    @invariant()
    def success_has_outputs(self) -> None:
        """What is called done is there."""
        assert all((self.folder / name).read_text() == "result" for name in self.rig.verdicts)

    def teardown(self) -> None:
        """Without faults everything comes to its end."""
        platform = self.rig.platform
        platform.create_mode = platform.list_mode = platform.get_mode = "ok"
        for _ in range(60):
            self.rig.rounds(4, 5)
            for task in platform.tasks.values():
                if task.live:
                    self.rig.finish(task)
            if not self.rig.works:
                break
        assert not self.rig.works, "a job without a verdict"
        assert len(self.rig.verdicts) == self.jobs
        self.never_two_writers()
        self.rig.close()
        shutil.rmtree(self.folder)


TestLife = Life.TestCase
TestLife.settings = settings(
    max_examples=EXAMPLES or 40, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
