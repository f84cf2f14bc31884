"""Kill anything, at any moment, a hundred times; start the same command again; the dataset is the same.

`python -m tests.chaos --kills 100 --chunks 200 --seed 1` (`make chaos`) first makes a dataset that nobody disturbs.
Then it makes the same one again over a teacher that takes its time, and kills, at random:

- `controller`: Snakemake itself;
- `script`: the process of one rule (all but the first: the controller sees a job that failed);
- `worker`: a process that such a script started, a worker that runs SQL;
- `everything`: all of these at once, as a machine does that loses its power;
- `start`: Snakemake before its first job runs, while it recovers from the kill before.

After each kill the same command is started again, with no other step between; when a dataset is finished before the
last kill, it is compared and a new one begun. Checked, at the end of each dataset:

- merged, rejected and failed rows are byte for byte those of the undisturbed run;
- what was asked twice is at most what was in flight at the kills;
- after a kill of the controller none of its jobs lives on.

It fails, too, if the kills landed in idle moments: at least nine of ten must hit while a job was running (those of
`start` are meant for a moment without one, and are counted apart).
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.servers.handle import Server, running
from tests.workflow.runs import Run, find_processes, kill

#: Kind of kill -> how often, relative to the others.
KINDS = {"controller": 6, "script": 5, "worker": 3, "everything": 4, "start": 2}

CONCURRENCY = 4


class ChaosError(AssertionError):
    """Raised when an invariant does not hold."""


@dataclass
class Kill:
    """What one kill hit.

    Attributes:
        kind: One of `KINDS`.
        victims: How many processes were killed.
        rules: The rules whose scripts were running.
        in_flight: Requests that the teacher was answering.
    """

    kind: str
    victims: int
    rules: list[str]
    in_flight: int


@dataclass
class Campaign:
    """All kills over one or several datasets.

    Attributes:
        folder: Where all of it lies.
        server: The teacher.
        chance: The source of all that is random here.
        chunks: Chunks of the dataset.
        rows: Rows of the dataset.
        kills: What was hit so far.
        datasets: How many were finished and compared.
        starts: How often the command was started.
        repeated: Requests beyond one per row.
        until: No kill after this time (`time.monotonic()`).
    """

    folder: Path
    server: Server
    chance: random.Random
    chunks: int
    rows: int
    kills: list[Kill] = field(default_factory=list)
    datasets: int = 0
    starts: int = 0
    repeated: int = 0
    until: float = float("inf")

    def run(self, number: int) -> None:
        """Kill so many times, then let the last dataset come to its end."""
        calm = self.make_run("calm")
        say("a run that nobody disturbs")
        calm.snakemake("--quiet", "all")
        expected = calm.outcomes()
        while self.goes_on(number) or not self.datasets:
            self.server.control(reset=True, latency_s=1.0)
            disturbed = self.make_run(f"disturbed-{self.datasets}")
            before = len(self.kills)
            self.disturb(disturbed, number)
            self.check(disturbed, expected, self.kills[before:])
            shutil.rmtree(disturbed.folder)

    def goes_on(self, number: int) -> bool:
        """Say whether there is another kill to come."""
        return len(self.kills) < number and time.monotonic() < self.until

    def make_run(self, name: str) -> Run:
        """Return a new run in a folder of its own. The teacher says back what it is asked: the prompt is the answer."""
        folder = self.folder / name
        folder.mkdir()
        run = Run(folder, config={"chunks": {"count": self.chunks}, "generate": {"concurrency": CONCURRENCY}})
        run.write_rows(
            [
                {"id": f"{number}", "question": f"SELECT {number % 5} -- {number}", "gold_sql": f"SELECT {number % 7}"}
                for number in range(self.rows)
            ]
        )
        run.write_model(
            "model.yaml",
            {"client_config": {"base_url": self.server.url, "api_key": "none"}, "chat_config": {"model": "fake"}},
        )
        return run

    def disturb(self, run: Run, number: int) -> None:
        """Start the command again and again, and kill, until the dataset is finished or no kill is left."""
        while True:
            process = run.start("--quiet", "all")
            self.starts += 1
            if not self.goes_on(number):
                if process.wait() != 0:
                    raise ChaosError(f"the last start failed; see {run.folder / 'snakemake.log'}")
                return
            # A run that lives on, as it does when a worker dies or none was there to kill, is struck again.
            while process.poll() is None and self.goes_on(number):
                self.strike(run, process)
            if process.wait() == 0:
                return

    def strike(self, run: Run, process: subprocess.Popen[bytes]) -> None:
        """Wait for a moment and kill, if what is to be killed is there then."""
        kind = self.chance.choices(list(KINDS), list(KINDS.values()))[0]
        choose = {
            "controller": lambda: [process.pid],
            "script": lambda: self.chance.sample(
                scripts := find_processes(run.folder, is_script), min(1, len(scripts))
            ),
            "worker": lambda: self.chance.sample(
                workers := find_processes(run.folder, is_worker), min(1, len(workers))
            ),
            "everything": lambda: find_processes(run.folder, is_ours),
            "start": lambda: [process.pid],
        }[kind]
        if kind == "start":
            time.sleep(self.chance.uniform(0, 3))
        else:
            wait_for(lambda: find_processes(run.folder, is_script) or process.poll() is not None, 120)
            time.sleep(self.chance.uniform(0, 2.5))
        if kind in ("script", "worker"):
            with contextlib.suppress(ChaosError):
                wait_for(lambda: choose() or process.poll() is not None, 20, step=0.005)
        in_flight = self.server.stats()["in_flight"]
        rules = [rule for rule in map(rule_of, commands(run.folder)) if rule]
        victims = choose() if process.poll() is None else []
        if not victims:
            return
        kill(victims)
        self.kills.append(Kill(kind, len(victims), rules, in_flight))
        say(
            f"kill {len(self.kills)}: {kind}, {len(victims)} processes; running {', '.join(rules) or 'no job'}; "
            f"{in_flight} requests in flight"
        )
        self.settle(run, process, kind)

    def settle(self, run: Run, process: subprocess.Popen[bytes], kind: str) -> None:
        """Wait until what the kill ended has ended; a job that lives on without its controller is an error."""
        if kind == "script":
            process.wait(timeout=600)  # its other job comes to its end
        if kind in ("script", "worker"):
            return
        process.wait()
        wait_for(lambda: not find_processes(run.folder, is_script), 10)

    def check(self, run: Run, expected: dict[str, bytes], kills: list[Kill]) -> None:
        """Compare a finished dataset with the undisturbed one."""
        found = run.outcomes()
        for name, content in expected.items():
            if found[name] != content:
                raise ChaosError(f"{name} differs from the undisturbed run: {run.folder}")
        repeated = self.server.stats()["requests"] - self.rows
        # Two generate jobs at once, at most; a kill loses what was in flight and what was not yet durable.
        if not 0 <= repeated <= len(kills) * 2 * CONCURRENCY:
            raise ChaosError(f"{repeated} requests were repeated over {len(kills)} kills")
        self.repeated += repeated
        self.datasets += 1
        say(f"dataset {self.datasets}: identical after {len(kills)} kills, {repeated} requests repeated")

    def report(self, seed: int, seconds: float) -> bool:
        """Print the table; say whether enough kills landed in the middle of work."""
        working = [one for one in self.kills if one.kind != "start"]
        landed = sum(bool(one.rules) for one in working)
        print("\n| killed | times | while a job ran | while requests were in flight |\n|---|---|---|---|")
        for kind in KINDS:
            those = [one for one in self.kills if one.kind == kind]
            busy, asking = sum(bool(one.rules) for one in those), sum(one.in_flight > 0 for one in those)
            print(f"| {kind} | {len(those)} | {busy} | {asking} |")
        rules = collections.Counter(rule for one in self.kills for rule in one.rules)
        print(f"\nrunning at the kills: {', '.join(f'{rule} {count}' for rule, count in rules.most_common())}")
        print(
            f"seed {seed}: {len(self.kills)} kills over {self.datasets} datasets of {self.chunks} chunks "
            f"({self.rows} rows), {self.starts} starts of the same command, {self.repeated} requests repeated, "
            f"all datasets identical to the undisturbed one; {seconds:.0f} s"
        )
        if landed < 0.9 * len(working):
            print(f"only {landed} of {len(working)} kills landed while a job ran", file=sys.stderr)
        return landed >= 0.9 * len(working)


def say(text: str) -> None:
    """Report progress."""
    print(f"{time.strftime('%T')} {text}", file=sys.stderr, flush=True)


def wait_for(condition: Callable[[], object], seconds: float, step: float = 0.02) -> None:
    """Wait until a condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise ChaosError("waited in vain")
        time.sleep(step)


def rule_of(command: str) -> str | None:
    """Return the script that a command line runs, by its name; None if it runs none."""
    found = re.search(r"/scripts/(?:tmp\w+\.)?(\w+)\.py", command)
    return (
        found[1]
        if found
        and "snakemake -" not in command
        and not command.startswith(("/bin/sh", "/usr/bin/bash", "bash", "sh "))
        else None
    )


def is_script(command: str) -> bool:
    """Say whether a command line is that of a rule's script."""
    return rule_of(command) is not None


def is_worker(command: str) -> bool:
    """Say whether a command line is that of a process which runs SQL for a script."""
    return "potstill.sql.worker" in command


def is_ours(command: str) -> bool:
    """Say whether a command line belongs to the run."""
    return any(word in command for word in ("snakemake", "/scripts/", "potstill"))


def commands(folder: Path) -> Iterator[str]:
    """Yield the command lines of the processes that work in a folder."""
    for pid in find_processes(folder, lambda _: True):
        with contextlib.suppress(OSError):
            yield Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")


def main() -> int:
    """Run a campaign and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--chunks", type=int, default=200)
    parser.add_argument("--rows", type=int, help="rows of the dataset; five a chunk by default")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="no kill after so many minutes")
    parser.add_argument("--keep", action="store_true", help="leave the folder behind")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="potstill-chaos-"))
    say(f"in {folder}")
    started = time.monotonic()
    with running(echo=True) as server:
        campaign = Campaign(folder, server, random.Random(args.seed), args.chunks, args.rows or 5 * args.chunks)
        campaign.until = started + 60 * args.minutes
        campaign.run(args.kills)
    landed = campaign.report(args.seed, time.monotonic() - started)
    if not args.keep:
        shutil.rmtree(folder)
    return 0 if landed else 1


if __name__ == "__main__":
    sys.exit(main())
