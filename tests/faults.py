"""A campaign of faults against the generation engine: `python -m tests.faults [--rows 10000] [--seed 1]`.

Three parts, each against a teacher in a process of its own. It prints what it counted, and ends with 1 if a bound is
broken or a fault did not strike as often as it should have.

- *mixed*: 20 % 429, 5 % 500, 2 % resets, 1 % blackholes, 1 % truncated bodies, 1 % garbage. Every row ends, none by a
  rate limit, few more attempts than the faults force, nothing sent before Retry-After by the server's own clock.
- *limits*: 20 % random 429s alone, beside a bare loop that knows nothing but the Retry-After gate.
- *outages*: the server is away for ten minutes, in four ways, on a clock that runs 100 times as fast: no row fails,
  it is looked at no more than once in 5 s, and all is at full speed again within 30 s.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import json
import selectors
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import aiohttp

from tests.servers.handle import Server, running
from tests.unit.generate_work import Work

MIXED = {"429": 0.2, "500": 0.05, "reset": 0.02, "blackhole": 0.01, "truncated": 0.01, "garbage": 0.01}
OUTAGES = ("refuse", "503", "500", "blackhole")
#: Attempts a row beside rate limits: the faults alone force 1.14.
MOST_ATTEMPTS = 1.16
#: What a request that is on its way may take to hear of a 429, here where client and server share the machine.
GRACE_S = 0.1
SPEED = 100.0


@dataclass
class Campaign:
    """What was found.

    Attributes:
        folder: For the jobs' files.
        rows: Rows of each part.
        seed: Which rows meet which faults.
        patience: What bounds of time are multiplied by, on a machine that other work shares.
        broken: The bounds that do not hold.
    """

    folder: Path
    rows: int
    seed: int
    patience: float = 1.0
    broken: list[str] = field(default_factory=list)

    @property
    def grace_s(self) -> float:
        """Seconds for which requests may be on their way after a 429 has left."""
        return GRACE_S * self.patience

    def expect(self, what: str, found: float, *, most: float | None = None, least: float | None = None) -> None:
        """Print one number, and note it if it is out of bounds."""
        good = (most is None or found <= most) and (least is None or found >= least)
        bound = (
            ""
            if most is None and least is None
            else f"  (at most {most:g})"
            if most is not None
            else f"  (at least {least:g})"
        )
        print(f"  {what}: {found:g}{bound}{'' if good else '  <-- BROKEN'}", flush=True)
        if not good:
            self.broken.append(what)

    def work(self, server: Server, name: str, rows: int, **client: Any) -> Work:
        """Return a job with so many rows."""
        folder = self.folder / name
        folder.mkdir()
        work = Work(folder, server, client=client)
        work.rows(*(f"row {number}" for number in range(rows)))
        return work

    # -- the parts --------------------------------------------------------------------------------------------

    def mixed(self) -> None:
        """All faults at once."""
        print(f"mixed faults, {self.rows} rows, 256 in flight")
        with running(
            faults=MIXED,
            seed=self.seed,
            retry_after=f"{5 * self.grace_s:g}",
            latency_s=0.05,
            sigma=0.5,
            grace_s=self.grace_s,
        ) as server:
            work = self.work(server, "mixed", self.rows, timeout=3.0)
            started = time.monotonic()
            counts = work.run(concurrency=256)
            stats = server.stats()
            print(f"  {time.monotonic() - started:.1f} s; the server: {stats['statuses']}")
        failed = collections.Counter(row["error_class"] for row in work.read("failed"))
        self.expect("rows that did not end", self.rows - counts.answered - counts.failed, most=0)
        self.expect("rows failed", counts.failed, most=max(1, self.rows // 1000))
        self.expect("of them by a rate limit", failed["rate_limit"], most=0)
        sent = stats["requests"] - stats["statuses"].get("429", 0)
        self.expect("attempts a row beside rate limits", round(sent / self.rows, 4), most=MOST_ATTEMPTS)
        self.expect(f"sent before Retry-After (word said {self.grace_s:g} s ago)", stats["early"], most=0)
        self.expect("slowest to hear of a 429, s", stats["slowest_reaction_s"], most=self.grace_s)
        self.expect("the server itself did not run, s", stats["stalled_s"])
        for name, share in MIXED.items():
            self.expect(f"{name} struck", stats["statuses"].get(name, 0), least=0.7 * share * self.rows)

    def limits(self) -> None:
        """Random rate limits, beside the least that any client must do about them."""
        rows = self.rows // 4
        for wait in ("0.1", "1"):
            print(f"20 % random 429, Retry-After {wait} s, {rows} rows, 256 in flight")
            knobs = {"faults": {"429": 0.2}, "seed": self.seed, "retry_after": wait, "latency_s": 0.1, "sigma": 0.5}
            with running(**knobs, grace_s=self.grace_s) as server:
                bare = rows / asyncio.run(gate_alone(server.url, rows, 256))
            with running(**knobs, grace_s=self.grace_s) as server:
                work = self.work(server, f"limits-{wait}", rows)
                started = time.monotonic()
                counts = work.run(concurrency=256)
                ours = rows / (time.monotonic() - started)
                stats = server.stats()
            print(f"  rows a second: ours {ours:.0f}, the gate alone {bare:.0f}")
            self.expect("share of what the gate alone allows", round(ours / bare, 2), least=0.5)
            self.expect("rows failed", counts.failed, most=0)
            self.expect("sent before Retry-After", stats["early"], most=0)

    def outages(self) -> None:
        """Ten minutes without a server, in each way that it can be away."""
        for way in OUTAGES:
            print(f"an outage of 10 minutes ({way}), on a clock {SPEED:g} times as fast")
            with running(latency_s=0.01) as server:
                work = self.work(server, f"outage-{way}", 1500, max_retries=1, timeout=60, connect_timeout_s=10)
                clock = Outage(server, way)
                clock.start()
                with fast_clock():
                    counts = work.run(concurrency=16, outage_timeout_s=1200)
                clock.join()
                self.expect("rows failed", counts.failed, most=0)
                self.expect("rows answered", counts.answered, least=1500)
                # What was in flight when it went away, one look in 5 s, and each row's own attempts before that.
                self.expect("requests while it was away", clock.sent, most=10 * 60 / 5 * 2 + 16 * 4)
                self.expect("seconds until it was in use again", round(clock.back_s, 1), most=30 * self.patience)


class Outage(threading.Thread):
    """Takes the server away in the middle of the work, for ten minutes of the fast clock."""

    def __init__(self, server: Server, way: str) -> None:
        super().__init__(daemon=True)
        self.sent = 0
        self.back_s = float("inf")
        self._server = server
        self._way = way

    def run(self) -> None:
        """Wait until the work has begun; take the server away, bring it back, and see when it is asked again."""
        while self._server.stats()["answers"] < 200:
            time.sleep(0.005)
        self._server.control(down=self._way)
        before = self._asked()
        time.sleep(600 / SPEED)
        self.sent = self._asked() - before
        answers = self._server.stats()["answers"]
        self._server.control(down=None)
        since = time.monotonic()
        while self._server.stats()["answers"] < answers + 64:
            time.sleep(0.002)
        self.back_s = (time.monotonic() - since) * SPEED

    def _asked(self) -> int:
        stats = self._server.stats()
        return int(stats["requests"] + stats["other"].get("models", 0))


class _FastLoop(asyncio.SelectorEventLoop):
    """A loop for which time passes faster."""

    def __init__(self) -> None:
        super().__init__(_PatientSelector())

    def time(self) -> float:
        """Return the fast time."""
        return super().time() * SPEED


class _PatientSelector(selectors.DefaultSelector):  # type: ignore[misc,valid-type]
    def select(self, timeout: float | None = None) -> Any:
        return super().select(timeout / SPEED if timeout else timeout)


@contextlib.contextmanager
def fast_clock() -> Iterator[None]:
    """Have the engine run on a fast clock."""
    with mock.patch("uvloop.new_event_loop", _FastLoop):
        yield


async def gate_alone(url: str, rows: int, concurrency: int) -> float:
    """Ask all rows by a bare loop that honours Retry-After and does nothing else; return the seconds."""
    until, waiting = 0.0, collections.deque(range(rows))
    loop = asyncio.get_running_loop()

    async def worker(session: aiohttp.ClientSession) -> None:
        nonlocal until
        while waiting:
            row = waiting.popleft()
            while (seconds := until - loop.time()) > 0:
                await asyncio.sleep(seconds)
            body = {"model": "fake", "messages": [{"role": "user", "content": f"row {row}"}]}
            async with session.post(f"{url}/chat/completions", json=body) as response:
                await response.read()
                if response.status == 429:
                    until = max(until, loop.time() + float(response.headers["Retry-After"]))
                    waiting.append(row)

    started = time.monotonic()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await asyncio.gather(*(worker(session) for _ in range(concurrency)))
    return time.monotonic() - started


PARTS: dict[str, Callable[[Campaign], None]] = {
    "mixed": Campaign.mixed,
    "limits": Campaign.limits,
    "outages": Campaign.outages,
}


def main() -> int:
    """Run the campaign."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--part", action="append", choices=list(PARTS), help="only this part; may be repeated")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="potstill-faults-"))
    campaign = Campaign(folder, args.rows, args.seed)
    try:
        for part in args.part or PARTS:
            PARTS[part](campaign)
    finally:
        shutil.rmtree(folder)
    print(json.dumps({"rows": args.rows, "seed": args.seed, "broken": campaign.broken}))
    return 1 if campaign.broken else 0


if __name__ == "__main__":
    sys.exit(main())
