"""How much may be in flight, and when: what the server asks for, learnt from what it answers.

Three things hold a request back: the gate (a server said "not before"), the window (how many may be in flight)
and the buckets (requests and tokens per minute that the user set). None of them costs a row an attempt.
"""

from __future__ import annotations

import math
import random

#: The share of rate limits that counts as none.
_QUIET = 0.02
#: What a shrink must save of the share to count as a help.
_HELP = 0.85
_SHRINK = 0.75


class Gate:
    """Closed until a time that the server named; without a name, for a growing while if most requests are refused."""

    def __init__(self) -> None:
        self.until = 0.0

    def close(self, now: float, seconds: float) -> None:
        """Let nothing through for some seconds from now on."""
        self.until = max(self.until, now + seconds)


class Window:
    """How many requests may be in flight at one server.

    Rate limits that strike at random are no reason to send less: sending less does not make them rarer. So when
    their share rises, a smaller window is tried for one epoch; it stays only if the share falls with it, else the
    share is taken as what this server does at any load, and the window goes back. (Plain AIMD, additive increase and
    multiplicative decrease of Chiu and Jain 1989, sinks to its floor at 20 % random 429s.)

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
        self._usual = 0.0
        self._before: tuple[float, float] | None = None

    @property
    def limit(self) -> int:
        """The number of requests that may be in flight now."""
        return max(1, int(self.size))

    def note(self, *, refused: bool) -> None:
        """Take one reply into account."""
        self._answers += 1
        self._refusals += refused
        if self._answers >= max(40, 2 * self.limit):
            self._end_epoch()

    def _end_epoch(self) -> None:
        count, share = self._answers, self._refusals / self._answers
        self._answers = self._refusals = 0
        noise = 2 * math.sqrt(max(share, _QUIET) / count)
        if self._before is not None:
            self._judge_shrink(share, noise)
        elif share > self._usual + _QUIET + noise:
            self._before = (self.size, share)
            self.size = max(self._floor, self.size * _SHRINK)
        else:
            self._usual = min(self._usual, share) if share < self._usual - noise else self._usual
            self.size = min(self._most, self.size + max(1.0, self.size * 0.1))

    def _judge_shrink(self, share: float, noise: float) -> None:
        assert self._before is not None
        size, before = self._before
        self._before = None
        if share <= max(before * _HELP, before - 2 * noise) and share < before:
            if share > self._usual + _QUIET + noise and self.size > self._floor:
                self._before = (self.size, share)
                self.size = max(self._floor, self.size * _SHRINK)
        else:
            self._usual = (before + share) / 2
            self.size = size


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
        return max(0.0, (1.0 - self._level) / self._rate) if self._level < 1.0 else 0.0

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
