"""One clock for all requests in flight: a timer for each would cost more CPU than the checks of its answer."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")

#: How late a deadline may be noticed, at most, as a share of the time it allows, and in seconds.
_SHARE = 0.05
_MOST_S = 0.5


class Deadlines:
    """Cancels what takes too long and says so by `TimeoutError`, as `asyncio.timeout` does, within a few percent."""

    def __init__(self) -> None:
        self._running: dict[asyncio.Task[Any], float] = {}
        self._late: set[asyncio.Task[Any]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._period = _MOST_S

    async def within(self, seconds: float, work: Coroutine[Any, Any, Result]) -> Result:
        """Return what some work returns, if it ends in time.

        Raises:
            TimeoutError: If it does not.
        """
        task = asyncio.current_task()
        assert task is not None
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        if self._timer is None or seconds * _SHARE < self._period:
            self._schedule(seconds)
        self._running[task] = self._loop.time() + seconds
        try:
            return await work
        except asyncio.CancelledError:
            if task not in self._late:
                raise
            if task.uncancel() > 0:
                raise  # somebody else has cancelled it too: that goes first
            raise TimeoutError(f"no whole reply within {seconds:g} s") from None
        finally:
            del self._running[task]
            self._late.discard(task)

    def _schedule(self, seconds: float) -> None:
        assert self._loop is not None
        self._period = max(0.001, min(self._period, seconds * _SHARE))
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(self._period, self._look)

    def _look(self) -> None:
        assert self._loop is not None
        now = self._loop.time()
        for task, deadline in self._running.items():
            if deadline <= now and task not in self._late:
                self._late.add(task)
                task.cancel()
        self._timer = self._loop.call_later(self._period, self._look) if self._running else None

    def close(self) -> None:
        """Stop the clock."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
