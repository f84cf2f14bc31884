"""The page of memory on which a worker says what it is doing; who watches it reads it at any moment.

Its words are written one by one, each in one piece (which `struct` does not promise: it clears all of them first). While
a word changes, the time says that nothing is running, so that no mixture of two states looks like an old statement.
"""

from __future__ import annotations

import math
import time
from mmap import mmap
from typing import NamedTuple

_NUMBER, _SINCE, _PHASE = range(3)
#: Bytes of the page that are used.
SIZE = 24


class Place(NamedTuple):
    """What a worker is at: the number of a task, and the phase of a row's task."""

    number: int
    phase: int


class Page:
    """The number of the task being done (0 = none), its phase, and when its present statement was started.

    Args:
        descriptor: The file that both processes map.
    """

    def __init__(self, descriptor: int) -> None:
        self._map = mmap(descriptor, SIZE)
        self._bytes = memoryview(self._map)
        self._words = self._bytes.cast("Q")
        self._times = self._bytes.cast("d")

    def close(self) -> None:
        """Let go of the memory."""
        for view in (self._words, self._times, self._bytes):
            view.release()
        self._map.close()

    def rest(self, number: int) -> None:
        """Say which task is at hand, none of its statements running."""
        self._times[_SINCE] = math.inf
        self._words[_NUMBER] = number
        self._words[_PHASE] = 0

    def enter(self, phase: int) -> None:
        """Say that a statement of the task begins now, the first of a phase."""
        self._times[_SINCE] = math.inf
        self._words[_PHASE] = phase
        self._times[_SINCE] = time.monotonic()

    def restart(self) -> None:
        """Say that the next statement of the same phase begins now."""
        self._times[_SINCE] = time.monotonic()

    def place(self) -> Place:
        """Return what the worker is at."""
        return Place(self._words[_NUMBER], self._words[_PHASE])

    def overdue(self, seconds: float) -> Place | None:
        """Return what the worker is at, if one statement has been running for longer than so many seconds."""
        since = self._times[_SINCE]
        place = self.place()
        if not place.number or time.monotonic() - since <= seconds or self._times[_SINCE] != since:
            return None
        return place
