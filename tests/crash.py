"""The crash test: SIGKILL at random moments, again and again, and nothing is lost, bought twice or unreadable.

`python -m tests.crash` runs a generate job over a teacher that answers slowly, kills it while requests are in flight,
starts it again, until all rows are answered, for several seeds. After each kill it checks what is on the disk:

- every record is whole but for a torn end; no key stands twice; output files are absent;
- no row whose answer was on the disk is ever sent again;
- what the kill cost is at most what was in flight (`concurrency`);
- in the end, the output is byte for byte that of an undisturbed run, without the fields that are times.

Between two lives it tears the journal's end (as a kill in the middle of a write does) and, in some, takes away what
was not synced (as a power cut does). It counts the kills that really cut requests off, and fails if too few did. With
`--mutants` it breaks the journal on purpose, one way after the other, and fails if one of them goes unnoticed.
"""

# ruff: noqa: D102 - the class is what is explained here; its methods say what they do by their names
from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from potstill.answers import journal as journals
from potstill.answers.key import PREFIX_BYTES
from potstill.answers.store import AnswerStore
from potstill.config.model import load_model
from potstill.errors import StoreError
from potstill.generate.requests import RequestMaker
from potstill.records import VOLATILE_FIELDS
from potstill.rows import read_rows
from potstill.stages.generate import generate_chunk
from tests.servers.handle import Server, running


class CrashTestError(AssertionError):
    """Raised when an invariant does not hold."""


@dataclass
class Case:
    """One job over one store.

    Attributes:
        folder: Where all of it lies.
        server: The teacher.
        concurrency: Requests in flight.
        mutant: What to break in each life, or None.
    """

    folder: Path
    server: Server
    concurrency: int
    mutant: Callable[[], None] | None = None
    landed: int = 0
    kills: int = 0
    torn: int = 0
    repeats: int = 0
    seen: set[str] = field(default_factory=set)

    @property
    def rows(self) -> Path:
        return self.folder / "rows.jsonl"

    @property
    def output(self) -> Path:
        return self.folder / "out" / "answered.jsonl"

    @property
    def answers(self) -> Path:
        return self.folder / "answers"

    def prepare(self, count: int) -> None:
        """Write the input and the model file."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.rows.open("w") as stream:
            for number in range(count):
                row = {"sample_id": f"{number:064x}", "messages": [{"role": "user", "content": f"row {number}"}]}
                stream.write(json.dumps(row) + "\n")
        client = {"base_url": self.server.url, "timeout": 30}
        model = {"client_config": client, "chat_config": {"model": "fake", "temperature": 0.5}}
        (self.folder / "model.yaml").write_text(json.dumps(model))

    def live(self) -> None:
        """Run the job to its end, in this process."""
        model = load_model(self.folder / "model.yaml")
        generate_chunk(
            self.rows,
            self.output,
            self.output.with_name("failed.jsonl"),
            self.output.with_name("not_asked.jsonl"),
            model=model,
            settings={},
            concurrency=self.concurrency,
            answers_dir=self.answers,
        )

    def start(self) -> int:
        """Run the job in a child and return its process id; modules are loaded already, so it is at work at once."""
        pid = os.fork()
        if pid:
            return pid
        status = 1
        try:
            if self.mutant is not None:
                self.mutant()
            _record_syncs(self.folder)
            self.live()
            status = 0
        except BaseException as error:  # noqa: BLE001 - a child must end here, whatever happens
            (self.folder / "child-error.txt").write_text(f"{type(error).__name__}: {error}")
        finally:
            os._exit(status)

    def journal_files(self) -> list[Path]:
        return sorted((self.answers / "fake" / "journals").glob("*.jsonl"))

    def keys_on_disk(self) -> set[str]:
        """Return the beginnings of the keys of all whole records, after checking that nothing is damaged and no key stands twice."""
        keys: set[str] = set()
        for path in self.journal_files():
            for place in journals.find_damage(path):
                if isinstance(place, journals.Damage):
                    raise CrashTestError(f"{path.name}: byte {place.offset}: an unreadable record")
                key = place.prefix.hex()
                if key in keys:
                    raise CrashTestError(f"{path.name}: the answer of {key[:12]} was bought twice")
                keys.add(key)
        return keys


def _record_syncs(folder: Path) -> None:
    """Have this process write down how much of each file it has synced: what a power cut would leave."""
    real = os.fdatasync

    def fdatasync(descriptor: int) -> None:
        size = os.fstat(descriptor).st_size
        real(descriptor)
        name = Path(f"/proc/self/fd/{descriptor}").readlink().name
        (folder / "synced" / name).write_text(str(size))

    (folder / "synced").mkdir(exist_ok=True)
    os.fdatasync = fdatasync


def kill_once(case: Case, rng: random.Random, target: int, keys: dict[str, str]) -> bool:
    """Run one life and kill it after some answers; return whether it ended by itself before that."""
    before, sends_before = case.server.stats(), case.server.get("/rows")["sends"]
    pid = case.start()
    goal, quiet = before["answers"] + max(1, int(rng.expovariate(1 / target))), time.monotonic() + 60
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return _end_of_life(case, status)
        now = case.server.stats()
        if (now["answers"] >= goal and now["in_flight"] > 0) or time.monotonic() > quiet:
            break
        time.sleep(0.001)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    time.sleep(0.02)  # the teacher sees the closed connections
    after = case.server.stats()
    case.kills += 1
    cut = after["cut"] - before["cut"]
    case.landed += cut > 0
    _check_after_kill(case, after["answers"] - before["answers"], cut, sends_before, keys)
    return False


def _end_of_life(case: Case, status: int) -> bool:
    if status != 0:
        raise CrashTestError(f"a life ended with an error: {(case.folder / 'child-error.txt').read_text()}")
    return True


def _check_after_kill(case: Case, answered: int, cut: int, sends_before: dict[str, int], keys: dict[str, str]) -> None:
    if case.output.exists():
        raise CrashTestError("the output was there before the job had ended")
    known = case.keys_on_disk()
    if lost := case.seen - known:
        raise CrashTestError(f"{len(lost)} answers that were on the disk are gone")
    # What the teacher had answered in this life, and the kill took before it was written, was in flight for the client.
    cost = answered - len(known - case.seen) + cut
    case.repeats += cost
    if cost > case.concurrency:
        raise CrashTestError(f"a kill cost {cost} requests, more than the {case.concurrency} that may be in flight")
    sends = case.server.get("/rows")["sends"]
    for key in case.seen:
        if sends[keys[key]] != sends_before[keys[key]]:
            raise CrashTestError(f"{keys[key]} was sent again although its answer was on the disk")
    case.seen = known


def damage_between_lives(case: Case, rng: random.Random, power_cuts: bool) -> None:
    """Tear the end of a journal as a kill in the middle of a write does, or take away what was not synced."""
    for path in case.journal_files():
        if not power_cuts and rng.random() < 0.3:
            record = journals.encode({"key": f"{rng.getrandbits(256):064x}", "content": "x" * rng.randrange(4000)})
            with path.open("ab") as stream:
                stream.write(record[: rng.randrange(1, len(record))])
            case.torn += 1
        if power_cuts:
            _cut_power(case, path)


def _cut_power(case: Case, path: Path) -> None:
    """Leave of a journal only what an fsync has covered; that may cost a group of answers, never more."""
    note = case.folder / "synced" / path.name
    synced = int(note.read_text()) if note.exists() else 0
    os.truncate(path, min(synced, path.stat().st_size))
    kept = case.keys_on_disk()
    # One group waits for its fsync while the next one gathers: two groups, and what came in during the sync.
    if len(case.seen - kept) > 2 * 64 + case.concurrency:
        raise CrashTestError(f"a power cut cost {len(case.seen - kept)} answers")
    case.seen = kept


def campaign(case: Case, rows: int, kills: int, seed: int, expected: bytes, *, power_cuts: bool) -> None:
    """Kill, check and start again until all is answered; then compare."""
    rng = random.Random(seed)
    case.prepare(rows)
    keys = _keys_of(case)
    ended = False
    while not ended and case.kills < kills:
        left = rows - len(case.seen)
        ended = kill_once(case, rng, max(1, left // (kills - case.kills + 1)), keys)
        if not ended:
            damage_between_lives(case, rng, power_cuts)
    if not ended:
        _, status = os.waitpid(case.start(), 0)
        _end_of_life(case, status)
    if len(case.keys_on_disk()) != rows:
        raise CrashTestError(f"{len(case.keys_on_disk())} answers in the store for {rows} rows")
    if stable_bytes(case.output) != expected:
        raise CrashTestError("the output differs from that of an undisturbed run")


def _keys_of(case: Case) -> dict[str, str]:
    """Return the beginning of each key -> the name under which the teacher counts the row."""
    maker = RequestMaker(load_model(case.folder / "model.yaml"))
    jobs = (maker.job(row, (0,), 0) for row in read_rows(case.rows))
    return {job.keys[0][:PREFIX_BYTES].hex(): job.row["messages"][0]["content"] for job in jobs}


def stable_bytes(path: Path) -> bytes:
    """Return a file's rows without the fields that differ between two runs."""
    rows = ({name: value for name, value in row.items() if name not in VOLATILE_FIELDS} for row in read_rows(path))
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


# -- mutants ------------------------------------------------------------------------------------------------------


def _append_after_a_tear() -> None:
    journals.os = _Os(ftruncate=lambda *_: None)  # type: ignore[attr-defined]


def _write_in_groups() -> None:
    append, waiting = journals.Journal.append, []

    def buffered(self: journals.Journal, prefix: bytes, line: bytes) -> journals.Place:
        waiting.append((prefix, line))
        place = journals.Place(prefix, self.size, len(line))
        if len(waiting) >= 64:
            for item in waiting:
                place = append(self, *item)
            waiting.clear()
        return place

    journals.Journal.append = buffered  # type: ignore[method-assign]


def _never_sync() -> None:
    # What `_record_syncs` finds to wrap: a sync that does nothing is not written down as one either.
    journals.os = _Os(fdatasync=lambda *_: None)  # type: ignore[attr-defined]


def _write_output_in_place() -> None:
    Path.replace = lambda self, target: target  # type: ignore[method-assign,assignment,return-value]
    with_name = Path.with_name
    Path.with_name = lambda self, name: self if name.endswith(".tmp") else with_name(self, name)  # type: ignore[method-assign]


def _trust_nothing() -> None:
    """Forget what the journals hold: every life asks everything again."""
    AnswerStore.find = lambda self, key: []  # type: ignore[method-assign]


def _skip_checksums() -> None:
    journals.is_intact = lambda line: line[-1:] == b"\n"


def _ignore_locks() -> None:
    class Fcntl:
        LOCK_EX = LOCK_NB = 0

        @staticmethod
        def flock(*_: Any) -> None:
            return None

    journals.fcntl = Fcntl  # type: ignore[attr-defined,assignment]


class _Os:
    """The module `os` with some functions replaced."""

    def __init__(self, **changes: Any) -> None:
        self.__dict__.update(changes)

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)


MUTANTS: dict[str, Callable[[], None]] = {
    "append after a torn end": _append_after_a_tear,
    "write answers in groups": _write_in_groups,
    "never sync": _never_sync,
    "write the output in place": _write_output_in_place,
    "forget the journals": _trust_nothing,
    "skip checksums": _skip_checksums,
    "ignore locks": _ignore_locks,
}


def check_flipped_bits(case: Case, rng: random.Random) -> None:
    """A flipped bit in the middle of a journal is a loud error that names file and byte."""
    path = max(case.journal_files(), key=lambda file: file.stat().st_size)
    data = bytearray(path.read_bytes())
    at = data.index(b'"content"', len(data) // 2) + 14
    data[at] ^= 1 << rng.randrange(3)
    path.write_bytes(data)
    shutil.rmtree(case.output.parent)
    _, status = os.waitpid(case.start(), 0)
    message = (case.folder / "child-error.txt").read_text() if status else ""
    if StoreError.__name__ not in message or path.name not in message or "byte " not in message:
        raise CrashTestError(f"a flipped bit went unnoticed, or without file and byte: {message!r}")


def check_two_writers(case: Case, rows: int) -> None:
    """Two jobs that write into one store at once leave it whole."""
    case.prepare(rows)
    other = Case(case.folder / "other", case.server, case.concurrency, case.mutant)
    other.prepare(rows)
    text = other.rows.read_text().replace('"row ', '"other row ')
    # Some rows come again: they are looked up where this process itself has put their answers.
    other.rows.write_text(text + "".join(text.splitlines(keepends=True)[:50]))
    (other.folder / "answers").symlink_to(case.answers)
    case.answers.mkdir(parents=True)
    first = case.start()
    while not case.journal_files():
        time.sleep(0.001)
    second = other.start()
    for writer, pid in ((case, first), (other, second)):
        _end_of_life(writer, os.waitpid(pid, 0)[1])
    if len(case.keys_on_disk()) != 2 * rows:
        raise CrashTestError("two writers lost answers")
    with AnswerStore(case.answers, "fake") as store:
        maker = RequestMaker(load_model(case.folder / "model.yaml"))
        for row in read_rows(case.rows):
            try:
                found = store.find(maker.job(row, (0,), 0).keys[0])
            except StoreError as error:
                raise CrashTestError(f"after two writers: {error}") from error
            if not found:
                raise CrashTestError("an answer cannot be found after two writers")


def run_seed(
    folder: Path, server: Server, args: argparse.Namespace, seed: int, mutant: Callable[[], None] | None
) -> Case:
    """Run all checks for one seed and return the counts."""
    server.control(reset=True, seed=seed)
    quiet = Case(folder / "undisturbed", server, args.concurrency)
    quiet.prepare(args.rows)
    quiet.live()
    server.control(reset=True)
    case = Case(folder / "killed", server, args.concurrency, mutant)
    campaign(case, args.rows, args.kills, seed, stable_bytes(quiet.output), power_cuts=False)
    if case.landed < 0.95 * case.kills:
        raise CrashTestError(f"only {case.landed} of {case.kills} kills cut a request off: the test proves nothing")
    server.control(reset=True)
    # Few in flight, so that what a group may cost stands out from what a kill may cost.
    power, few = Case(folder / "power", server, 32, mutant), min(1000, args.rows)
    expected = b"".join(stable_bytes(quiet.output).splitlines(keepends=True)[:few])
    campaign(power, few, max(8, args.kills // 10), seed, expected, power_cuts=True)
    check_flipped_bits(case, random.Random(seed))
    check_two_writers(Case(folder / "two", server, args.concurrency, mutant), 1500)
    return case


def main(argv: list[str] | None = None) -> int:
    """Run the campaign and print one line per seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=200, help="per seed")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--concurrency", type=int, default=256)
    parser.add_argument("--mutants", action="store_true", help="break the journal on purpose; each way must be noticed")
    args = parser.parse_args(argv)
    failed = 0
    with running(latency_s=0.05, sigma=0.5, answer_bytes=1500, remember=False) as server:
        for seed in range(args.seeds):
            failed += not _report(f"seed {seed}", args, seed, server, None)
        for name, mutant in MUTANTS.items() if args.mutants else ():
            small = argparse.Namespace(rows=1500, kills=15, concurrency=128)
            noticed = not _report(f"mutant: {name}", small, 0, server, mutant)
            failed += not noticed
            print(f"mutant: {name}: {'noticed' if noticed else 'NOT NOTICED'}", flush=True)
    return 1 if failed else 0


def _report(name: str, args: argparse.Namespace, seed: int, server: Server, mutant: Callable[[], None] | None) -> bool:
    folder = Path(tempfile.mkdtemp(prefix="crash-"))
    started = time.monotonic()
    try:
        case = run_seed(folder, server, args, seed, mutant)
    except CrashTestError as error:
        print(f"{name}: FAILED: {error}", flush=True)
        return False
    finally:
        shutil.rmtree(folder)
    print(
        f"{name}: {args.rows} rows, {case.kills} kills ({case.landed} cut requests off), {case.torn} torn ends, "
        f"{case.repeats} requests repeated ({case.repeats / max(case.kills, 1):.0f} a kill, at most {args.concurrency}): "
        f"0 lost, 0 twice, 0 unreadable, same bytes ({time.monotonic() - started:.0f} s)",
        flush=True,
    )
    return True


if __name__ == "__main__":
    sys.exit(main())
