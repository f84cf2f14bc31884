"""What came back in a batch: each line judged as an answer on the wire would be, and kept in the answer store."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from potstill.answers.store import AnswerStore
from potstill.errors import ConfigError, PotstillError, TryAgainError
from potstill.generate.batch_files import LINES, BatchFolder, job_of
from potstill.generate.costs import by_batch
from potstill.generate.faults import Action, Fault, error_of, from_status
from potstill.generate.records import answer_record, failure_record
from potstill.generate.reply import Reply, add_usage, fault_of, read_document
from potstill.generate.requests import Job
from potstill.generate.schemas import problem_of
from potstill.generate.spending import Budget
from potstill.rows import dumps, loads

logger = logging.getLogger("potstill.generate")

#: Codes of lines that were never worked on, since their batch ended before.
_EXPIRED, _CANCELLED = "batch_expired", "batch_cancelled"


@dataclass
class Collected:
    """What became of a batch's requests.

    Attributes:
        answered: Answers.
        failed: Requests that failed for good.
        unfinished: Notes of the requests that must be asked again.
        ended: Keys of those that failed for good.
        stop: Why the job cannot go on, if it cannot.
    """

    answered: int = 0
    failed: int = 0
    unfinished: list[dict[str, Any]] = field(default_factory=list)
    ended: list[bytes] = field(default_factory=list)
    stop: PotstillError | None = None


class Collector:
    """Takes the lines of one batch.

    Args:
        batch: The batch.
        info: What the provider says of it.
        base: The provider's address.
        store: Where answers go.
        budget: Where tokens are booked.
    """

    def __init__(self, batch: BatchFolder, info: dict[str, Any], base: str, store: AnswerStore, budget: Budget) -> None:
        self.counts = Collected()
        self._info = info
        self._base = base
        self._store = store
        self._budget = budget
        self._notes_file = batch.path / LINES
        self._places: dict[str, int] = {}

    def collect(self, files: list[Path]) -> Collected:
        """Take all lines of the provider's files, and note what has none."""
        with self._notes_file.open("rb") as notes:
            self._find_places(notes)
            for file in files:
                for line in whole_lines(file):
                    place = self._places.pop(str(line.get("custom_id")), None)
                    if place is not None:
                        self._take(_note_at(notes, place), line)
            for place in self._places.values():
                self._leave(_note_at(notes, place), self._missing_fault())
        return self.counts

    def _find_places(self, notes: IO[bytes]) -> None:
        place = 0
        for line in notes:
            self._places[loads(line)["id"]] = place
            place += len(line)

    def _missing_fault(self) -> Fault:
        status = self._info.get("status")
        if is_queue_full(self._info):
            return Fault(_CANCELLED, f"the provider's queue is full: {problems_of(self._info)}")
        if status == "failed":
            return Fault("bad_request", f"the provider refused the batch: {problems_of(self._info)}")
        if status == "cancelled":
            return Fault(_CANCELLED, "the batch was cancelled")
        if status == "expired":
            return Fault(_EXPIRED, "the batch expired before this request was worked on")
        return Fault("transport", f"the batch is {status}, but has no line for this request")

    def _take(self, note: dict[str, Any], line: dict[str, Any]) -> None:
        job = job_of(note)
        if self._is_kept(job):
            self.counts.answered += 1
            return
        outcome = read_line(line)
        outcome.usage = by_batch(outcome.usage)
        if isinstance(outcome, Fault):
            self._budget.book(outcome.usage)
            self._take_fault(note, job, outcome)
        else:
            self._budget.book(outcome.usage)
            self._take_reply(note, job, outcome)

    def _is_kept(self, job: Job) -> bool:
        """Return whether an earlier start was killed after it had kept this answer."""
        mine = (self._info["id"], job.limit)
        return any((record.get("batch"), record.get("max_tokens")) == mine for record in self._store.find(job.keys[0]))

    def _take_reply(self, note: dict[str, Any], job: Job, reply: Reply) -> None:
        choice = reply.choices[0]
        job.sends += 1
        fault = fault_of(choice, reply.usage)
        if fault is None and choice.finish_reason != "length":
            problem = problem_of(choice.content, job.recipe.parameters)
            if problem is not None and job.repair is None:
                usage = add_usage(reply.usage, job.usage)
                mending = {"repair": [choice.content, problem], "usage": usage, "sends": job.sends}
                self.counts.unfinished.append({**note, **mending})
                return
            if problem is not None:
                text = f"not what response_format asks for, also after one repair: {problem}"
                fault = Fault("schema_invalid", text, 200, usage=reply.usage)
        if fault is not None:
            self._keep(job, failure_record(job, 0, fault, self._base, choice))
        else:
            # A batch's answer has no time of its own.
            record = answer_record(job, 0, choice, reply, self._base, 0.0)
            self._keep(job, {**record, "latency_s": None})

    def _take_fault(self, note: dict[str, Any], job: Job, fault: Fault) -> None:
        if fault.kind in {_EXPIRED, _CANCELLED} or fault.action is not Action.FAIL:
            self._leave(note, fault)
            return
        job.sends += 1
        self._keep(job, failure_record(job, 0, fault, self._base))

    def _keep(self, job: Job, record: dict[str, Any]) -> None:
        self._store.append(job.keys[0], {**record, "batch": self._info["id"]})
        if record.get("error_class"):
            self.counts.failed += 1
            self.counts.ended.append(job.keys[0])
        else:
            self.counts.answered += 1

    def _leave(self, note: dict[str, Any], fault: Fault) -> None:
        """Note a request that must be asked again; what nobody has worked on has cost no attempt but for expiry."""
        worked_on = fault.kind not in {_EXPIRED, _CANCELLED}
        charged = fault.kind != _CANCELLED
        if worked_on and fault.action is Action.STOP:
            self.counts.stop, charged = _stop_for(fault, self._info), False
        kind = "timeout" if fault.kind == _EXPIRED else fault.kind
        left = {
            "attempts": note["attempts"] + charged,
            "sends": note["sends"] + worked_on,
            "usage": add_usage(note["usage"], fault.usage),
            "refused": self._info.get("status") == "failed" and kind == "bad_request",
            "fault": [kind, fault.message],
        }
        self.counts.unfinished.append({**note, **left})


def _note_at(notes: IO[bytes], place: int) -> dict[str, Any]:
    notes.seek(place)
    note: dict[str, Any] = loads(notes.readline())
    return note


def _stop_for(fault: Fault, info: dict[str, Any]) -> PotstillError:
    text = f"batch {info['id']}: {fault.message}; all answers so far are kept"
    if fault.kind == "quota":
        return TryAgainError(f"{text}: add credit, then give the same command again")
    return ConfigError(
        f"{text}: check the key and chat_config.model in the model file, then give the same command again"
    )


def read_line(line: dict[str, Any]) -> Reply | Fault:
    """Return the reply of one line of an output or error file, or what is wrong with it."""
    response, error = line.get("response"), error_of({"error": line.get("error")}) if line.get("error") else {}
    code = str(error.get("code"))
    if code in {_EXPIRED, _CANCELLED}:
        return Fault(code, str(error.get("message") or code.replace("_", " ")))
    if not isinstance(response, dict):
        return Fault("server", f"the provider could not answer ({code}): {str(error.get('message') or '')[:500]}")
    body, status = response.get("body"), response.get("status_code", 200)
    raw = dumps(body)
    if status != 200:
        return from_status(status if isinstance(status, int) and status >= 300 else 500, {}, raw)
    if not isinstance(body, dict):
        return Fault("invalid_response", "HTTP 200 with a body that is no object", 200)
    return read_document(body, raw)


def whole_lines(file: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a provider's file; a line that is none counts as missing."""
    with file.open("rb") as stream:
        for line in stream:
            try:
                value = loads(line)
            except ValueError:
                value = None
            if isinstance(value, dict):
                yield value
            elif line.strip():
                logger.warning("%s: a line that is no JSON object: passed over", file.name)


def is_torn(file: Path) -> bool:
    """Return whether a file ends within a line."""
    last = b""
    with file.open("rb") as stream:
        for line in stream:
            last = line
    try:
        return bool(last) and not last.endswith(b"\n") and not isinstance(loads(last), dict)
    except ValueError:
        return True


def problems_of(info: dict[str, Any]) -> str:
    """Return the provider's reasons for refusing a batch."""
    return (
        "; ".join(str(problem.get("message") or problem.get("code")) for problem in _problems(info)[:3])
        or "no reason given"
    )


def is_queue_full(info: dict[str, Any]) -> bool:
    """Return whether a batch was refused only because too much is queued already."""
    return any(problem.get("code") == "token_limit_exceeded" for problem in _problems(info))


def _problems(info: dict[str, Any]) -> list[dict[str, Any]]:
    errors = info.get("errors")
    data = errors.get("data") if isinstance(errors, dict) else None
    return [problem for problem in data or [] if isinstance(problem, dict)]
