"""How much may be in flight, and when: what the server asks for, learnt from what it answers.

Three things hold a request back: the gate (a server said "not before"), the window (how many may be in flight)
and the buckets (requests and tokens per minute that the user set). None of them costs a row an attempt.
"""

from __future__ import annotations

import math
import random

#: Less than this is rounding.
_DUST = 1e-9
#: The share of rate limits that counts as none.
_QUIET = 0.02
_SHRINK = 0.75
_GROWTH = 0.1
#: Between what a window of three quarters brings where it is the bound (0.75) and where it is not (1).
_AS_MANY = 0.88
#: Fewer answers say nothing about a rate.
_LEAST_ANSWERS = 40
#: Epochs between two trials of a smaller window while rate limits go on: at first, and at most.
_TRY_AGAIN = (8, 64)


class Gate:
    """Closed until a time that the server named; without a name, for a growing while if most requests are refused."""

    def __init__(self) -> None:
        self.until = 0.0

    def close(self, now: float, seconds: float) -> None:
        """Let nothing through for some seconds from now on."""
        self.until = max(self.until, now + seconds)


class Window:
    """How many requests may be in flight at one server.

    Rate limits that strike at random are no reason to send less: sending less only brings less. So when their share
    rises, a smaller window is tried for one epoch; it stays if as many answers a second come with it (then the load was
    more than the server takes), else the share is what this server does at any load, and the window goes back. (Plain
    AIMD, additive increase and multiplicative decrease of Chiu and Jain 1989, sinks to its floor at 20 % random 429s.)

    Args:
        most: The window's greatest and first size.
        floor: The least.
    """

    def __init__(self, most: int, floor: int = 1) -> None:
        self.size = float(most)
        self._most = float(most)
        self._floor = float(min(floor, most))
        self._answers = 0
        self._refusals = 0
        self._began: float | None = None
        self._usual = 0.0
        self._before: tuple[float, float] | None = None
        self._rest, self._pause = 0, _TRY_AGAIN[0]

    @property
    def limit(self) -> int:
        """The number of requests that may be in flight now."""
        return max(1, int(self.size))

    def note(self, now: float, *, refused: bool) -> None:
        """Take one reply into account."""
        if self._began is None:
            self._began = now
        self._answers += not refused
        self._refusals += refused
        replies = self._answers + self._refusals
        if replies >= 2 * self.limit and (self._answers >= _LEAST_ANSWERS or replies >= 10 * _LEAST_ANSWERS):
            self._end_epoch(now)

    def _end_epoch(self, now: float) -> None:
        assert self._began is not None
        replies = self._answers + self._refusals
        share, rate = self._refusals / replies, self._answers / max(now - self._began, 1e-6)
        self._answers = self._refusals = 0
        self._began = now
        if self._before is not None and not self._has_helped(rate):
            self.size = self._before[0]
            self._before, self._usual = None, share
            self._rest, self._pause = self._pause, min(2 * self._pause, _TRY_AGAIN[1])
        elif self._is_too_much(share, replies) and self.size > self._floor:
            if self._before is not None:
                self._pause = _TRY_AGAIN[0]
            self._before = (self.size, rate)
            self.size = max(self._floor, self.size * _SHRINK)
        else:
            self._before = None
            self._rest -= 1
            self._usual = min(self._usual, share)
            if share <= self._usual + _QUIET:
                self.size = min(self._most, self.size + max(1.0, self.size * _GROWTH))

    def _is_too_much(self, share: float, replies: int) -> bool:
        """Return whether to try a smaller window: the share has risen, or is high and the last trial is long ago."""
        noise = _QUIET + 2 * math.sqrt(share / replies)
        return share > self._usual + noise or (share > noise and self._rest <= 0)

    def _has_helped(self, rate: float) -> bool:
        assert self._before is not None
        return rate >= _AS_MANY * self._before[1]


class Bucket:
    """A token bucket: so many units a minute, spent evenly, at most a second's worth at once.

    Args:
        per_minute: The rate, or None for no limit.
    """

    def __init__(self, per_minute: float | None) -> None:
        self._rate = per_minute / 60 if per_minute else None
        self._level = 0.0 if self._rate is None else max(1.0, self._rate)
        self._at: float | None = None

    def wait(self, now: float) -> float:
        """Return the seconds until something may be spent; 0 for now."""
        if self._rate is None:
            return 0.0
        self._fill(now)
        # A debt (an answer that was longer than was guessed) is waited out.
        missing = 1.0 - self._level
        return missing / self._rate if missing > _DUST else 0.0

    def spend(self, amount: float) -> None:
        """Take units out; a negative amount gives back what was guessed too high."""
        if self._rate is not None:
            self._level -= amount

    def _fill(self, now: float) -> None:
        assert self._rate is not None
        if self._at is not None:
            self._level = min(max(1.0, self._rate), self._level + (now - self._at) * self._rate)
        self._at = now


def backoff(attempt: int, *, first: float = 0.5, most: float = 30.0) -> float:
    """Return the seconds before the next attempt: full jitter over a doubling span (AWS Architecture Blog, 2015)."""
    return random.uniform(0.0, min(most, first * 2 ** min(attempt, 16)))
