"""Batches on the disk: what was handed to the provider, how far it is, and what is still to be asked.

One folder per batch under the answer store, shared by all jobs of the model: a batch outlives the job that wrote it,
and whichever job needs one of its answers next takes it further. `state.json` appears when the requests are on the
disk and is written anew before and after each step, so that a kill at any moment leaves it known what was done:

`written` → `uploaded` → `creating` → `created` → `collected`

In `creating` the provider may have the batch or not; its list of batches settles that before another one is created.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potstill.answers.key import PREFIX_BYTES
from potstill.generate.batch_api import ENDPOINT
from potstill.generate.requests import Job, Recipe
from potstill.rows import RowWriter, disk_errors, dumps, loads, publish, publish_json, read_rows

INPUT, LINES, UNFINISHED = "input.jsonl", "lines.jsonl", "unfinished.jsonl"
_STATE, _LOCK = "state.json", "lock"


@dataclass(frozen=True)
class BatchFolder:
    """One batch.

    Attributes:
        path: Its folder; the name is the one that the provider is told.
    """

    path: Path

    @contextlib.contextmanager
    def locked(self) -> Iterator[bool]:
        """Hold the batch while a step is made; yields False if another process does."""
        with disk_errors(self.path):
            try:
                descriptor = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            except FileNotFoundError:
                yield False
                return
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
        finally:
            os.close(descriptor)

    def state(self) -> dict[str, Any] | None:
        """Return how far the batch is, or None if it is gone or was never written to its end."""
        try:
            found: dict[str, Any] = loads((self.path / _STATE).read_bytes())
        except (FileNotFoundError, ValueError):
            return None
        return found

    def save(self, state: dict[str, Any], **changes: Any) -> dict[str, Any]:
        """Write down how far it is and return that."""
        state = {**state, **changes}
        publish_json(self.path / _STATE, state)
        return state

    @property
    def is_open(self) -> bool:
        """Whether its answers are still to be collected."""
        state = self.state()
        return state is not None and state["step"] != "collected"

    def drop(self) -> None:
        """Take it away."""
        (self.path / _STATE).unlink(missing_ok=True)
        shutil.rmtree(self.path, ignore_errors=True)

    def read_keys(self) -> Iterator[str]:
        """Yield the keys of its requests."""
        with contextlib.suppress(FileNotFoundError), (self.path / LINES).open("rb") as notes:
            for line in notes:
                yield loads(line)["key"]

    def unfinished(self) -> Iterator[dict[str, Any]]:
        """Yield the requests that it left without an answer."""
        if (self.path / UNFINISHED).exists():
            yield from read_rows(self.path / UNFINISHED)


def find_batches(store: Path) -> list[BatchFolder]:
    """Return the batches of a model in the order in which they were made; torn ones are taken away."""
    batches = []
    for path in sorted((store / "batches").glob("*/")):
        batch = BatchFolder(path)
        if batch.state() is not None:
            batches.append(batch)
            continue
        with batch.locked() as held:
            if held and batch.state() is None:
                batch.drop()
    return batches


class BatchWriter:
    """Writes requests into as many new batches as the provider's limits ask for.

    Args:
        store: The folder of the model's answers.
        about: What each batch's state says of its origin.
        most_lines: Requests per batch.
        most_bytes: Bytes per batch.
    """

    def __init__(self, store: Path, about: dict[str, Any], most_lines: int, most_bytes: int) -> None:
        self.written: list[BatchFolder] = []
        self._folder = store / "batches"
        self._about = about
        self._most_lines, self._most_bytes = most_lines, most_bytes
        self._scope = contextlib.ExitStack()
        self._batch: BatchFolder | None = None
        self._lines = self._bytes = 0

    def add(self, job: Job, attempts: int) -> None:
        """Write one request."""
        name = custom_id(job.keys[0], job.rung)
        line = b'{"custom_id":"%b","method":"POST","url":"%b","body":%b}\n' % (
            name.encode(),
            ENDPOINT.encode(),
            _body(job),
        )
        if self._batch is not None and (self._lines >= self._most_lines or self._bytes + len(line) > self._most_bytes):
            self.finish()
        if self._batch is None:
            self._begin()
        self._input.write_line(line)
        self._notes.write(note_of(job, name, attempts))
        self._lines += 1
        self._bytes += len(line)

    def _begin(self) -> None:
        self._scope = contextlib.ExitStack()
        batch = _new_folder(self._folder)
        while not self._scope.enter_context(batch.locked()):
            # Another process took it for a torn one in the moment between its making and its lock.
            batch = _new_folder(self._folder)
        self._input: RowWriter = self._scope.enter_context(publish(batch.path / INPUT))
        self._notes: RowWriter = self._scope.enter_context(publish(batch.path / LINES))
        self._batch, self._lines, self._bytes = batch, 0, 0

    def finish(self) -> None:
        """Bring the batch that is being written onto the disk."""
        if self._batch is None:
            return
        self._scope.close()
        self._batch.save({}, step="written", requests=self._lines, written_at=round(time.time(), 3), **self._about)
        self.written.append(self._batch)
        self._batch = None

    def abandon(self, error: BaseException) -> None:
        """Leave the batch that is being written; it never appears."""
        self._scope.__exit__(type(error), error, error.__traceback__)


def _new_folder(folder: Path) -> BatchFolder:
    now = time.time_ns()
    day = time.strftime("%Y%m%dT%H%M%S", time.gmtime(now // 10**9))
    batch = BatchFolder(folder / f"{day}-{now % 10**9:09d}-{secrets.token_hex(6)}")
    with disk_errors(batch.path):
        batch.path.mkdir(parents=True)
    return batch


def custom_id(key: bytes, rung: int) -> str:
    """Return a request's name in its batch: short enough for every provider (64 characters).

    >>> custom_id(bytes(32), 1)
    '00000000000000000000000000000000-1'
    """
    return f"{key[:PREFIX_BYTES].hex()}-{rung}"


def _body(job: Job) -> bytes:
    body = job.body()
    if job.recipe.parameters.get("stream") is None and "stream_options" not in job.recipe.parameters:
        return body
    # How an answer travels is no part of it, and nothing streams out of a batch.
    kept = {name: value for name, value in loads(body).items() if name not in {"stream", "stream_options"}}
    return dumps(kept).rstrip(b"\n")


def note_of(job: Job, name: str, attempts: int) -> dict[str, Any]:
    """Return what must be known of a request to judge its answer, without its row."""
    return {
        "id": name,
        "key": job.keys[0].hex(),
        "sample": job.samples[0],
        "rung": job.rung,
        "limits": job.recipe.limits,
        "form": job.recipe.parameters.get("response_format"),
        "attempts": attempts,
        "sends": job.sends,
        "usage": job.usage,
        "repair": job.repair,
    }


def job_of(note: dict[str, Any]) -> Job:
    """Return the job of a note, without its row."""
    first, *ladder = note["limits"]
    recipe = Recipe({"response_format": note["form"]}, first, "max_tokens", ladder)
    repair = tuple(note["repair"]) if note["repair"] else None
    return Job(
        {},
        (),
        (note["sample"],),
        [bytes.fromhex(note["key"])],
        recipe,
        rung=note["rung"],
        sends=note["sends"],
        usage=note["usage"],
        repair=repair,
    )
