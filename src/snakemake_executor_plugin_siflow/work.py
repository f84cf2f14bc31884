"""The plugin's own table: pieces of work (one per job or group that Snakemake hands over) and attempts at them."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple

from . import states, wrapper


class Verdict(NamedTuple):
    """What Snakemake is told about a job, once."""

    success: bool
    message: str = ""
    log: str = ""


@dataclass(eq=False)
class Attempt:
    """One task on the platform, from the intent to create it.

    `uuid` is None while nobody knows whether the platform has accepted it. `settled` means that nothing is expected of
    it any more: its outcome was taken, it was refused, or a newer attempt has replaced it.
    """

    key: str
    number: int
    rule: str
    name: str
    log: str
    outputs: frozenset[str]
    members: dict[str, Any]
    posted_at: float
    uuid: str | None = None
    status: str = ""
    message: str = ""
    rank: int | None = None
    status_since: float = 0.0
    ended_at: float | None = None
    looks: int = 0
    not_found: int = 0
    not_found_since: float = 0.0
    last_get: float = 0.0
    stop_reason: str = ""
    stop_asked_at: float | None = None
    settled: bool = False
    inherited: bool = False
    cancelled: bool = False
    owner: Work | None = None

    @property
    def label(self) -> str:
        """The name of the attempt's files."""
        return f"{self.key}-a{self.number}"

    @property
    def live(self) -> bool:
        """Whether the platform may be running it, as far as we know."""
        return self.ended_at is None and not (self.settled and self.uuid is None)

    def see(self, status: str, message: str, rank: int | None, now: float) -> bool:
        """Take over what the platform says; returns whether that is news."""
        self.not_found = 0
        self.message, self.rank = message, rank
        news = status != self.status
        if news:
            self.status, self.status_since = status, now
        if states.is_ended(status):
            self.ended_at = self.ended_at or now
        else:
            self.ended_at = None
        return news


@dataclass(eq=False)
class Work:
    """One job or group of jobs."""

    key: str
    rule: str
    body: dict[str, Any]
    spec: dict[str, Any]
    members: dict[str, Any]
    not_before: float = 0.0
    attempt: Attempt | None = None
    blockers: list[Attempt] = field(default_factory=list)
    placed: bool = False
    infra_faults: int = 0
    refusals: int = 0
    waits_for: str = ""
    verdict: Verdict | None = None

    @property
    def outputs(self) -> frozenset[str]:
        """All files that the work makes."""
        return frozenset(self.spec["outputs"])


class Proof(Enum):
    """What an ended attempt left on the shared volume."""

    DONE = "done"
    LATE = "late"
    FAILED = "failed"
    NO_PROOF = "no_proof"
    TERMINATED = "terminated"
    NOTHING = "nothing"


def read_proof(report: dict[str, Any] | None) -> Proof:
    """Judge an attempt by its own report and by the outputs that can be seen here."""
    outcome = (report or {}).get("outcome")
    if report is not None and outcome == "done":
        return Proof.DONE if all(is_visible(path, told) for path, told in report["outputs"].items()) else Proof.LATE
    if outcome in (Proof.FAILED.value, Proof.NO_PROOF.value, Proof.TERMINATED.value):
        return Proof(outcome)
    return Proof.NOTHING


def is_visible(path: str, told: list[int] | None) -> bool:
    """Whether a file is here as the task left it; clocks and caches of a volume may differ by a little."""
    seen = wrapper.stat_of(path)
    if told is None or seen is None:
        return False
    return seen[0] == told[0] and abs(seen[1] - told[1]) < 2_000_000_000


def same_members(wanted: dict[str, Any], had: dict[str, Any]) -> bool:
    """Whether an earlier attempt does all that is wanted now, from the same inputs.

    Inputs that the earlier attempt made itself, as an earlier job of its group, are not among those it tells.
    """
    return all(
        name in had
        and had[name]["code"] == told["code"]
        and all(told["inputs"].get(path) in (None, stamp) for path, stamp in had[name]["inputs"].items())
        for name, told in wanted.items()
    )


def input_stamp(path: str) -> list[int] | None:
    """What tells one version of an input from another."""
    try:
        info = os.stat(path)  # noqa: PTH116 - thousands of plain strings
    except OSError:
        return None
    return [info.st_size, info.st_mtime_ns]
