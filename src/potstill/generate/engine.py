"""The loop that keeps the wire full: a sliding window over rows, one owner of all retries.

`Engine._pump` is called whenever something changed (an answer came, a wait ended) and sends as much as the servers'
windows, gates and the rate limits let through; each request is one task that ends in `_settle`. Rows are read when
there is room for them, never before; a row that must wait for its next attempt holds no place in flight.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from potstill.config.model import Model
from potstill.errors import ConfigError, PotstillError, TryAgainError
from potstill.generate.endpoints import PROBE_EVERY_S, SUSPICIOUS, Endpoint
from potstill.generate.faults import Action, Fault
from potstill.generate.gateway import proxy_name
from potstill.generate.limits import Bucket, backoff
from potstill.generate.records import answer_record, failure_record
from potstill.generate.reply import Choice, Reply, add_usage, fault_of
from potstill.generate.requests import Job
from potstill.generate.schemas import problem_of
from potstill.generate.wire import HeldBackError

logger = logging.getLogger("potstill.generate")

#: Rows answered from the store, or not to be asked at all, in one turn of the loop.
_TURN = 256
#: Requests sent without looking at what has come in: a server that says "later" to the first is to be heard early.
_SLICE = 32
#: Seconds that a stopping job waits for answers in flight: they are paid for.
_DRAIN_S = 30.0


class Results(Protocol):
    """Where the engine's results go."""

    def keep(self, job: Job, place: int, record: dict[str, Any], *, final: bool) -> None:
        """Store a record; a final one also ends its sample."""

    def skip(self, job: Job, reason: str) -> None:
        """End all samples of a job as not asked."""


@dataclass(frozen=True)
class Limits:
    """How much, how fast, how long.

    Attributes:
        concurrency: Requests in flight, at most.
        requests_per_minute: This job's share, or None.
        tokens_per_minute: This job's share, or None.
        outage_timeout_s: How long an outage is waited out.
        in_budget: Asked before each new row: whether more may be spent.
    """

    concurrency: int
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    outage_timeout_s: float = 1800.0
    in_budget: Callable[[], bool] = lambda: True


@dataclass
class Tally:
    """What was sent and what came back, for the progress line and the tests."""

    sent: int = 0
    rate_limited: int = 0
    faults: int = 0
    in_flight: int = 0


class Engine:
    """Asks the jobs of one chunk.

    Args:
        model: The teacher.
        jobs: Yields the jobs in input order, and None for each row that needs no request.
        results: Takes what comes of them.
        limits: How much, how fast, how long.
    """

    def __init__(self, model: Model, jobs: Iterator[Job | None], results: Results, limits: Limits) -> None:
        self.tally = Tally()
        self._model = model
        self._jobs = jobs
        self._results = results
        self._limits = limits
        self._endpoints = [Endpoint(model, address, limits.concurrency) for address in model.addresses]
        self._requests = Bucket(limits.requests_per_minute)
        self._tokens = Bucket(limits.tokens_per_minute)
        self._guess = 500.0
        self._ready: deque[Job] = deque()
        self._later: list[tuple[float, int, Job]] = []
        self._number = itertools.count()
        self._suspects: list[tuple[Job, Fault, str]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._read_all = False
        self._turn_asked = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._stop: PotstillError | None = None
        self._key: str | None = None
        self._answered = False
        self._most_waiting = max(64, 4 * limits.concurrency)

    # -- life -------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Ask everything.

        Raises:
            TryAgainError: After an outage that was too long, without credit, or with a full disk.
            ConfigError: If the key is refused or the address is wrong.
        """
        self._loop = asyncio.get_running_loop()
        self._done: asyncio.Future[None] = self._loop.create_future()
        self._key = self._model.key.read()
        for endpoint in self._endpoints:
            endpoint.client.use_key(self._key)
            endpoint.start(self._loop.time)
            await endpoint.client.open()
        try:
            self._pump()
            await self._done
        finally:
            await self._close()
        if self._stop is not None:
            raise self._stop

    async def _close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for endpoint in self._endpoints:
            await endpoint.client.close()

    def stop(self, error: PotstillError, *, drain: bool = True) -> None:
        """End the run with an error: nothing more is sent, answers in flight are waited for if that makes sense."""
        if self._stop is None:
            self._stop = error
            self._loop.call_later(_DRAIN_S if drain else 0, self._finish)
        self._end_if_idle()

    def _finish(self) -> None:
        if not self._done.done():
            self._done.set_result(None)

    def _end_if_idle(self) -> None:
        if not self._tasks and (self._stop is not None or self._is_empty()):
            self._finish()

    def _is_empty(self) -> bool:
        return self._read_all and not self._ready and not self._later and not self._suspects

    # -- sending ----------------------------------------------------------------------------------------------

    def _pump(self) -> None:
        """Send all that may be sent now, and see to it that this is called again when more may."""
        try:
            self._send_all()
        except PotstillError as error:
            self.stop(error)
        except Exception as error:  # noqa: BLE001 - a callback of the loop: what escapes here would be lost, and the run would hang
            self.fail(error)

    def _send_all(self) -> None:
        for _ in range(_SLICE):
            if (pair := self._next_request()) is None:
                break
            self._start_task(self._work(*pair))
        else:
            self._ask_for_a_turn()
        if self._read_all and not (self._ready or self._later or self._tasks) and self._suspects:
            self._give_verdicts()
            self._loop.call_soon(self._pump)
        self._end_if_idle()

    def _next_request(self) -> tuple[Job, Endpoint] | None:
        """Return what may be sent now, counted as in flight already, or None."""
        if self._stop is not None or self._done.done() or self.tally.in_flight >= self._limits.concurrency:
            return None
        now = self._loop.time()
        endpoint = self._choose(now)
        job = self._next_job(now) if endpoint is not None else None
        if job is None or endpoint is None:
            return None
        endpoint.sent(now)
        self._requests.spend(1)
        self._tokens.spend(self._guess)
        self.tally.in_flight += 1
        self.tally.sent += 1
        return job, endpoint

    async def _work(self, job: Job, endpoint: Endpoint) -> None:
        """Send a request, and then the next one: a task for each would cost more than the rest of the bookkeeping."""
        while True:
            await self._ask(job, endpoint)
            following = self._next_request()
            if following is None:
                return
            job, endpoint = following
            if endpoint.in_flight < endpoint.window.limit and self.tally.in_flight < self._limits.concurrency:
                self._pump()  # the window has grown: there is room for more than this one

    def _choose(self, now: float) -> Endpoint | None:
        """Return the server with the most room for its weight, or None and a timer for when there is one."""
        wait = max(self._requests.wait(now), self._tokens.wait(now))
        if wait > 0:
            self._wake_at(now + wait)
            return None
        if len(self._endpoints) == 1:
            endpoint = self._endpoints[0]
            opens = endpoint.opens_at(now)
            if opens is not None and opens <= now:
                return endpoint
        else:
            times = [(opens, endpoint) for endpoint in self._endpoints if (opens := endpoint.opens_at(now)) is not None]
            free = [endpoint for opens, endpoint in times if opens <= now]
            if free:
                return min(
                    free,
                    key=lambda endpoint: (endpoint.out_since is None, endpoint.in_flight / endpoint.address.weight),
                )
            opens = min((opens for opens, _ in times), default=None)
        if opens is not None:
            self._wake_at(opens)
        return None

    def _wake_at(self, when: float) -> None:
        if self._timer is not None:
            if self._timer_at <= when:
                return
            self._timer.cancel()
        self._timer, self._timer_at = self._loop.call_at(when, self._wake), when

    def _wake(self) -> None:
        self._timer = None
        # First what has come in: timers run before the sockets are read, and one of these may say "not yet".
        self._loop.call_soon(self._loop.call_soon, self._pump)

    def _next_job(self, now: float) -> Job | None:
        """Return what to ask next: what was put back, what has waited long enough, or a new row."""
        if self._ready:
            return self._ready.popleft()
        if self._later and self._later[0][0] <= now:
            return heapq.heappop(self._later)[2]
        if not self._read_all and len(self._later) < self._most_waiting:
            job = self._read_job()
            if job is not None or not self._read_all:
                return job
        if self._later:
            self._wake_at(self._later[0][0])
        return None

    def _read_job(self) -> Job | None:
        """Return the next job of the input; None at its end, or after many rows that need no request."""
        for _ in range(_TURN):
            try:
                job = next(self._jobs)
            except StopIteration:
                self._read_all = True
                return None
            if job is not None:
                if self._limits.in_budget():
                    return job
                self._results.skip(job, "budget")
        # Let answers in before going on.
        self._ask_for_a_turn()
        return None

    def _ask_for_a_turn(self) -> None:
        if not self._turn_asked:
            self._turn_asked = True
            self._loop.call_soon(self._next_turn)

    def _next_turn(self) -> None:
        self._turn_asked = False
        self._pump()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self.fail(error)
        self._pump()

    def fail(self, error: BaseException) -> None:
        """End the run at once: an answer cannot be kept any more, or this is a bug."""
        if isinstance(error, PotstillError):
            self.stop(error, drain=False)
        elif not self._done.done():
            self._done.set_exception(error)

    async def _ask(self, job: Job, endpoint: Endpoint) -> None:
        clocks, key, started = self._model.timeouts, self._key, self._loop.time()
        seconds = max(0.001, min(clocks.attempt, clocks.row - job.in_flight_s))
        probe = endpoint.out_since is not None
        try:
            outcome = await endpoint.client.ask(job.body(), seconds, len(job.samples), fresh=job.resent)
        except HeldBackError:
            self._put_back(job)
            self._tokens.spend(-self._guess)
            self.tally.sent -= 1
            return
        finally:
            endpoint.in_flight -= 1
            self.tally.in_flight -= 1
        job.sends += 1
        elapsed = self._loop.time() - started
        if isinstance(outcome, Reply):
            endpoint.succeeded(self._loop.time())
            self._take_reply(job, outcome, endpoint, elapsed)
        else:
            self.tally.faults += 1
            self._take_fault(job, outcome, endpoint, elapsed, key, probe=probe)

    def _put_back(self, job: Job) -> None:
        """Ask a job again as soon as something may be sent; it is not its fault that it was not answered."""
        self._ready.append(job)

    def _ask_later(self, job: Job, seconds: float) -> None:
        heapq.heappush(self._later, (self._loop.time() + seconds, next(self._number), job))

    # -- answers ----------------------------------------------------------------------------------------------

    def _take_reply(self, job: Job, reply: Reply, endpoint: Endpoint, elapsed: float) -> None:
        self._answered = True
        if self._suspects:
            self._give_verdicts()
        job.in_flight_s += elapsed
        self._book_tokens(reply.usage)
        for place, choice in enumerate(reply.choices[: len(job.samples)]):
            self._take_choice(job, place, choice, reply, endpoint, elapsed)
        if len(reply.choices) < len(job.samples):
            # A server that does not know `n` gives one choice: ask for the others.
            self._put_back(job.split(range(len(reply.choices), len(job.samples))))

    def _book_tokens(self, usage: dict[str, Any] | None) -> None:
        if self._limits.tokens_per_minute is None or usage is None:
            return
        used = (usage.get("prompt_tokens") or 0) + (usage.get("completion_tokens") or 0)
        self._tokens.spend(used - self._guess)
        self._guess += 0.1 * (used - self._guess)

    def _take_choice(
        self, job: Job, place: int, choice: Choice, reply: Reply, endpoint: Endpoint, elapsed: float
    ) -> None:
        fault = fault_of(choice, reply.usage)
        base = endpoint.address.base
        longer = choice.finish_reason == "length" and job.rung + 1 < len(job.recipe.limits)
        if fault is None and not longer:
            problem = problem_of(choice.content, job.recipe.parameters)
            if problem is not None and choice.finish_reason != "length":
                self._mend(job, place, choice, reply, endpoint, problem)
                return
        if fault is not None:
            record = failure_record(job, place, fault, base, choice)
        else:
            record = answer_record(job, place, choice, reply, base, elapsed)
        self._results.keep(job, place, record, final=not longer)
        if longer:
            next_job = job.split([place])
            next_job.rung += 1
            self._put_back(next_job)

    def _mend(self, job: Job, place: int, choice: Choice, reply: Reply, endpoint: Endpoint, problem: str) -> None:
        """Ask once for a corrected answer; the second one that does not fit is a failure."""
        paid = add_usage(reply.usage, job.usage) if place == 0 else None
        if job.repair is None:
            again = job.split([place])
            again.repair, again.usage = (choice.content, problem), paid
            self._put_back(again)
            return
        fault = Fault(
            "schema_invalid",
            f"not what response_format asks for, also after one repair: {problem}",
            200,
            usage=reply.usage,
        )
        self._results.keep(job, place, failure_record(job, place, fault, endpoint.address.base, choice), final=True)

    # -- faults -----------------------------------------------------------------------------------------------

    def _take_fault(
        self, job: Job, fault: Fault, endpoint: Endpoint, elapsed: float, key: str | None, *, probe: bool
    ) -> None:
        self._tokens.spend(-self._guess)
        action = fault.action
        if fault.kind == "not_found" and self._answered:
            # It was there a moment ago: a gateway that is being restarted.
            action = Action.RETRY
        if action is Action.WAIT:
            self._wait_for_limit(job, fault, endpoint)
        elif action is Action.STOP:
            self._stop_or_go_on(job, fault, endpoint, key)
        elif action is Action.FAIL:
            endpoint.succeeded(self._loop.time())
            job.in_flight_s += elapsed
            if fault.kind == "bad_request" and len(job.samples) > 1:
                # A server that takes no `n`, or none so great (llama.cpp: its slots), is asked one by one.
                self._ready.extend(job.split([place]) for place in range(len(job.samples)))
            else:
                self._fail(job, fault, endpoint.address.base)
        else:
            self._retry(job, fault, endpoint, elapsed, probe=probe)

    def _wait_for_limit(self, job: Job, fault: Fault, endpoint: Endpoint) -> None:
        now = self._loop.time()
        self.tally.rate_limited += 1
        endpoint.refused(now, fault.retry_after)
        job.waits += 1
        patience = self._limits.outage_timeout_s
        if (fault.retry_after or 0) > patience or now - endpoint.last_success > max(
            patience, 2 * (fault.retry_after or 0)
        ):
            self.stop(
                TryAgainError(
                    f"{endpoint.address.base} has answered with nothing but rate limits for "
                    f"{now - endpoint.last_success:.0f} s (last: {fault.message}); "
                    "all answers so far are kept: give the same command again later"
                )
            )
        if fault.retry_after is not None:
            self._put_back(job)
        else:
            self._ask_later(job, backoff(min(job.waits, 6), first=0.5, most=20.0))

    def _stop_or_go_on(self, job: Job, fault: Fault, endpoint: Endpoint, key: str | None) -> None:
        self._put_back(job)
        if self._stop is not None:
            return
        base = endpoint.address.base
        if fault.kind == "auth":
            if key == self._key and not self._reload_key():
                self.stop(
                    KeyRefusedError(
                        f"{base} refuses the key of {self._model.key.describe()} ({fault.message}); put a valid key "
                        "there, then give the same command again",
                        base,
                        key,
                    )
                )
        elif fault.kind == "quota":
            self.stop(
                TryAgainError(
                    f"{base} has no credit left ({fault.message}); all answers so far are kept: "
                    "add credit, then give the same command again"
                )
            )
        elif fault.kind == "tls":
            self.stop(ConfigError(f"{base}: {fault.message} in {self._model.file}"))
        elif fault.kind == "proxy":
            self.stop(
                ConfigError(
                    f"the proxy {proxy_name(endpoint.client.proxy or '')} lets nothing through to {base} ({fault.message}); "
                    "check its address and login (client_config.proxy, HTTPS_PROXY), or put the server into NO_PROXY"
                )
            )
        else:
            self.stop(
                ConfigError(
                    f"{base} does not serve {self._model.name} ({fault.message}); "
                    "check client_config.base_url (up to and with /v1) and "
                    f"chat_config.model in {self._model.file}"
                )
            )

    def _reload_key(self) -> bool:
        """Read the key again and return whether it has changed: somebody may have renewed it."""
        key = self._model.key.read()
        if key == self._key:
            return False
        self._key = key
        for endpoint in self._endpoints:
            endpoint.client.use_key(key)
        return True

    def _retry(self, job: Job, fault: Fault, endpoint: Endpoint, elapsed: float, *, probe: bool) -> None:
        now = self._loop.time()
        connect = fault.action is Action.OUTAGE
        out = probe or endpoint.out_since is not None
        if fault.unsent and not job.resent and not out and elapsed < 1.0:
            # The server closed an idle connection just as we used it: no attempt was made.
            job.resent = True
            endpoint.failed(job, now, elapsed, fault, charged=False)
            self._put_back(job)
            self._look_for_outage(endpoint, now)
            return
        charged = not connect and not out
        job.attempts += charged
        job.in_flight_s += elapsed if charged else 0.0
        job.usage = add_usage(job.usage, fault.usage)
        endpoint.failed(job, now, elapsed, fault, charged=charged)
        if charged and self._is_spent(job):
            self._suspects.append((job, fault, endpoint.address.base))
        elif charged:
            self._ask_later(job, backoff(job.attempts - 1))
        else:
            self._put_back(job)
        self._look_for_outage(endpoint, now)

    def _is_spent(self, job: Job) -> bool:
        return job.attempts > self._model.max_retries or job.in_flight_s >= self._model.timeouts.row

    def _give_verdicts(self) -> None:
        """Fail the rows whose attempts are spent: the server answers others, so it is not an outage that they met."""
        suspects, self._suspects = self._suspects, []
        for job, fault, base in suspects:
            if self._is_spent(job):
                self._fail(job, fault, base)
            else:
                self._put_back(job)

    def _fail(self, job: Job, fault: Fault, base: str) -> None:
        for place in range(len(job.samples)):
            self._results.keep(job, place, failure_record(job, place, fault, base), final=True)

    # -- outages ----------------------------------------------------------------------------------------------

    def _look_for_outage(self, endpoint: Endpoint, now: float) -> None:
        if endpoint.out_since is not None:
            self._check_patience(now)
        elif endpoint.looks_out:
            self._set_out(endpoint, now)
        elif endpoint.streak.count >= SUSPICIOUS and not endpoint.checked:
            endpoint.checked = True
            self._start_task(self._check_life(endpoint))

    async def _check_life(self, endpoint: Endpoint) -> None:
        streak = endpoint.streak
        alive = await endpoint.client.is_alive()
        if not alive and endpoint.streak is streak and streak.count >= 2 * SUSPICIOUS and endpoint.out_since is None:
            self._set_out(endpoint, self._loop.time())
        elif not alive:
            endpoint.checked = False

    def _set_out(self, endpoint: Endpoint, now: float) -> None:
        logger.warning("%s does not answer: waiting for it, no row is to blame", endpoint.address.base)
        endpoint.set_out(now)
        suspects, self._suspects = self._suspects, []
        for job, fault, base in suspects:
            if base == endpoint.address.base or not self._is_spent(job):
                self._put_back(job)
            else:
                self._suspects.append((job, fault, base))
        self._watch(endpoint)

    def _watch(self, endpoint: Endpoint) -> None:
        """Look at a server that is out from time to time, also while a request to it hangs."""
        if endpoint.out_since is None or self._done.done():
            return
        self._check_patience(self._loop.time())
        if self._stop is not None:
            return
        if endpoint.in_flight:
            self._start_task(self._look_behind_hanging(endpoint))
        self._loop.call_later(PROBE_EVERY_S, self._watch, endpoint)
        self._pump()

    async def _look_behind_hanging(self, endpoint: Endpoint) -> None:
        if await endpoint.client.is_alive() and endpoint.out_since is not None:
            endpoint.set_in()

    def _start_task(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _check_patience(self, now: float) -> None:
        if any(endpoint.out_since is None for endpoint in self._endpoints):
            return
        waited = now - max(endpoint.last_success for endpoint in self._endpoints)
        if waited >= self._limits.outage_timeout_s:
            names = ", ".join(endpoint.address.base for endpoint in self._endpoints)
            self.stop(
                TryAgainError(
                    f"{names} has not answered for {waited:.0f} s "
                    f"(generate.outage_timeout_s: {self._limits.outage_timeout_s:g}); "
                    "all answers so far are kept: give the same command again later"
                ),
                drain=False,
            )


class KeyRefusedError(ConfigError):
    """Raised when a server refuses the key, also after it was read again."""

    def __init__(self, message: str, base: str, key: str | None) -> None:
        super().__init__(message)
        self.base = base
        self.key = key
