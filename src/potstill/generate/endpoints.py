"""The servers of a model as they are now: what is in flight, what they asked for, whether they are there at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from potstill.config.model import Address, Model
from potstill.generate.client import Client
from potstill.generate.faults import Action, Fault, retry_after
from potstill.generate.limits import Gate, Window, backoff
from potstill.generate.requests import Job

#: Seconds between two looks at a server that is out.
PROBE_EVERY_S = 5.0
#: Failed connections in a row that make an outage; no row is to blame for one.
_CONNECT_FAILURES = 3
#: Failures in a row, of whatever kind, after which GET /models is asked whether the server is there.
SUSPICIOUS = 5
#: Different rows that fail in a row make an outage, whatever GET /models says.
_MOST_ROWS = 30


@dataclass
class Streak:
    """Failures in a row at one server, without a success in between.

    Attributes:
        count: How many.
        connects: How many of them were connections that could not be made.
        away: The jobs for which a gateway said that there is no server behind it.
        jobs: The attempts and the seconds in flight that jobs were charged with: an outage gives them back.
    """

    count: int = 0
    connects: int = 0
    away: set[Job] = field(default_factory=set)
    jobs: dict[Job, tuple[int, float]] = field(default_factory=dict)


class Endpoint:
    """One server.

    Args:
        model: How it is asked.
        address: Where it listens.
        most: The most requests in flight.
    """

    def __init__(self, model: Model, address: Address, most: int) -> None:
        self.address = address
        self.gate = Gate()
        self.window = Window(most)
        self.in_flight = 0
        self.streak = Streak()
        self.out_since: float | None = None
        self.checked = False
        self.last_success = 0.0
        self._next_probe = 0.0
        self._probe_wait = 0.5
        self._refusals = 0
        self._clock: Callable[[], float] = float
        self.client = Client(model, address, self._may_leave, self._hear)

    def start(self, clock: Callable[[], float]) -> None:
        """Use a clock: that of the running loop."""
        self._clock = clock
        self.last_success = clock()

    def _may_leave(self) -> bool:
        return self._clock() >= self.gate.until

    def _hear(self, status: int, headers: Mapping[str, str]) -> None:
        """Close the gate while the refusal is still being read: what has come with it may set off new requests."""
        wait = retry_after(headers) if status in {429, 503, 529} else None
        if wait is not None:
            self.gate.close(self._clock(), wait)

    def opens_at(self, now: float) -> float | None:
        """Return when the next request may go: now or earlier, a later time, or None if one must come back first."""
        if self.out_since is not None:
            return max(self._next_probe, self.gate.until) if self.in_flight == 0 else None
        if self.in_flight >= self.window.limit:
            return None
        return max(now, self.gate.until) if self.gate.until > now else now

    def sent(self, now: float) -> None:
        """Count a request that leaves."""
        self.in_flight += 1
        if self.out_since is not None:
            self._probe_wait = min(PROBE_EVERY_S, self._probe_wait * 2)
            self._next_probe = now + self._probe_wait

    def succeeded(self, now: float) -> None:
        """Take an answer into account: the server is there."""
        self.window.note(now, refused=False)
        self._refusals = 0
        self.last_success = now
        if self.streak.count:
            self.streak = Streak()
        self.checked = False
        if self.out_since is not None:
            self.set_in()

    def set_in(self) -> None:
        """Send again: the server is there."""
        self.out_since, self.streak, self.checked, self._probe_wait = None, Streak(), False, 0.5

    def refused(self, now: float, wait: float | None) -> None:
        """Take a rate limit into account: close the gate as told, and for a growing while if all is refused."""
        self.window.note(now, refused=True)
        self._refusals += 1
        most = max(4, self.window.limit // 2)
        if self._refusals > most:
            # It refuses everything, whatever it says of the time.
            wait = max(wait or 0.0, backoff(self._refusals // most, first=1.0, most=60.0))
        if wait is not None:
            self.gate.close(now, wait)
        if self.out_since is not None:
            # It answers, if only with "later".
            self.set_in()

    def failed(self, job: Job, now: float, elapsed: float, fault: Fault, *, charged: bool) -> None:
        """Take a failure into account, unless the server has answered others since the request was sent."""
        if now - elapsed < self.last_success:
            return
        self.streak.count += 1
        connect = fault.action is Action.OUTAGE
        self.streak.connects += connect
        if fault.is_away:
            self.streak.away.add(job)
        if charged or not connect:
            attempts, seconds = self.streak.jobs.get(job, (0, 0.0))
            self.streak.jobs[job] = (attempts + charged, seconds + (elapsed if charged else 0.0))

    @property
    def looks_out(self) -> bool:
        """Whether the failures in a row are an outage beyond doubt."""
        streak = self.streak
        return streak.connects >= _CONNECT_FAILURES or len(streak.away) >= SUSPICIOUS or len(streak.jobs) >= _MOST_ROWS

    def set_out(self, now: float) -> None:
        """Stop sending, and give back the attempts and the time that the failures in a row have cost."""
        for job, (attempts, seconds) in self.streak.jobs.items():
            job.attempts -= attempts
            job.in_flight_s -= seconds
        self.streak.jobs.clear()
        self.streak.away.clear()
        self.out_since = now
        self._probe_wait = 0.5
        self._next_probe = now + self._probe_wait
