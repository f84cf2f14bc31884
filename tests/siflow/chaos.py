"""The chaos campaign: the scorecard's rows E1-E7 and S1-S3, each with its seed, on the simulator.

```
python -m tests.siflow.chaos [--short | --full] [--only E1,E4] [--seed 1] [--output FILE.md]
```
Prints a table for RELIABILITY.md and ends with 1 if a row misses its target. Every row proves that its fault landed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from tests.siflow.rig import (
    ROOT,
    Controller,
    Simulator,
    arguments,
    chunks_snakefile,
    clean_env,
    expected_merge,
    run,
    workdir,
)


class Row(NamedTuple):
    """One line of the scorecard."""

    name: str
    what: str
    faults: str
    result: str
    good: bool


class Size(NamedTuple):
    """How long a campaign is."""

    chunks: int
    kills: int
    interrupts: int
    tasks: int
    trials: int
    outage: float


FULL = Size(chunks=100, kills=100, interrupts=100, tasks=2000, trials=100, outage=600)
MEDIUM = Size(chunks=40, kills=25, interrupts=20, tasks=2000, trials=20, outage=60)
SHORT = Size(chunks=8, kills=5, interrupts=4, tasks=600, trials=4, outage=8)


def per_key(tasks: list[dict[str, Any]]) -> Counter[str]:
    """How many tasks were created for each piece of work."""
    return Counter(task["labels"]["key"] for task in tasks)


def live_together(tasks: list[dict[str, Any]]) -> int:
    """How many pairs of tasks of the same work ran at the same moment."""
    pairs = 0
    for i, one in enumerate(tasks):
        for other in tasks[i + 1 :]:
            if one["labels"]["key"] == other["labels"]["key"] and one["started"] and other["started"]:
                pairs += one["started"] < (other["ended"] or 9e18) and other["started"] < (one["ended"] or 9e18)
    return pairs


def e1_kills(folder: Path, size: Size, seed: int) -> Row:
    """The controller is killed again and again; nothing is created twice, nothing is lost."""
    rng = random.Random(seed)
    work = workdir(folder / "work", chunks_snakefile(size.chunks, seconds=1.0))
    kills = in_flight = 0
    with Simulator(folder / "state", slots=6, seed=seed) as platform:
        command = arguments(platform.url)
        while True:
            controller = Controller(work, command)
            deadline = time.monotonic() + rng.uniform(0.5, 6.0) if kills < size.kills else float("inf")
            while controller.process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.05)
            if controller.process.poll() is not None:
                break
            in_flight += bool(platform.live())
            controller.kill()
            kills += 1
        tasks = platform.tasks()
        left = platform.live()
    wanted = 2 * size.chunks + 1
    good = controller.process.returncode == 0 and (work / "merged.txt").read_text() == expected_merge(size.chunks)
    doubled = sum(number > 1 for number in per_key(tasks).values())
    good = good and len(tasks) == wanted and not left and not doubled
    status = controller.process.returncode
    text = f"{wanted} jobs, {len(tasks)} tasks created, {doubled} doubled, {len(left)} orphans, exit {status}"
    return Row("E1", "controller SIGKILL", f"{kills} kills, {in_flight} with tasks live", text, good)


def e2_lost_answers(folder: Path, size: Size, seed: int) -> Row:
    """Creates are accepted and their answers lost; no task is created twice."""
    work = workdir(folder / "work", chunks_snakefile(size.chunks))
    with Simulator(folder / "state", slots=6, seed=seed, drop_post=0.3, list_lag=1.0) as platform:
        controller = run(work, platform.url, "--retries", "0", timeout=900)
        history = platform.history()
    dropped = sum(call["method"] == "POST" and call["status"] == 0 for call in history["calls"])
    doubled = sum(number > 1 for number in per_key(history["tasks"]).values())
    good = (
        controller.process.returncode == 0
        and not doubled
        and len(history["tasks"]) == 2 * size.chunks + 1
        and dropped > 0
    )
    status = controller.process.returncode
    text = f"{2 * size.chunks + 1} jobs, {len(history['tasks'])} tasks, {doubled} doubled, exit {status}"
    return Row("E2", "30 % of creates accepted, answer lost; list lags 1 s", f"{dropped} answers lost", text, good)


def e3_bad_api(folder: Path, size: Size, seed: int) -> Row:
    """The API fails in every way and then is away; no job fails and none is dropped."""
    work = workdir(folder / "work", chunks_snakefile(size.chunks, seconds=0.5))
    bad = {"error": 0.12, "html": 0.06, "bad_json": 0.06, "cut": 0.06, "expire": 20, "blip_404": 0.05, "reorder": 1}
    with Simulator(folder / "state", slots=6, seed=seed, **bad) as platform:
        controller = Controller(work, arguments(platform.url, "--retries", "0"))
        while controller.process.poll() is None and not any(t["status"] == "Succeeded" for t in platform.tasks()):
            time.sleep(0.2)
        platform.set_faults(outage=1)
        time.sleep(size.outage)
        platform.set_faults(outage=0, list_lag=1)
        status = controller.wait(900)
        history = platform.history()
    broken = sum(call["status"] not in (200,) for call in history["calls"])
    failed = controller.text().count("Error in ")
    good = status == 0 and failed == 0 and live_together(history["tasks"]) == 0
    created = f"{len(history['tasks'])} tasks for {2 * size.chunks + 1} jobs"
    text = f"exit {status}, {failed} false failures, {created}, none at the same time as its double"
    return Row(
        "E3",
        f"30 % errors, HTML, 404 blips, expiring signatures, {size.outage:.0f} s outage",
        f"{broken} calls failed",
        text,
        good,
    )


def e3b_no_proof(folder: Path, size: Size, seed: int) -> Row:
    """An inner Snakemake that ends with 0 without working is never taken for a success."""
    stale = accepted = 0
    fake = folder / "python"
    folder.mkdir(parents=True, exist_ok=True)
    # The interpreter in the task runs the wrapper, but any inner Snakemake under it does nothing and says 0.
    fake.write_text(f'#!/bin/sh\ncase "$*" in *snakemake*--mode*) exit 0;; esac\nexec {sys.executable} "$@"\n')
    fake.chmod(0o755)
    snakefile = "rule one:\n    input: 'in'\n    output: 'out'\n    shell: 'cat {input} > {output}'\n"
    with Simulator(folder / "state", seed=seed) as platform:
        for trial in range(size.trials):
            work = workdir(folder / f"work{trial}", snakefile)
            (work / "out").write_text("old")
            time.sleep(0.02)
            (work / "in").write_text("new")
            controller = run(work, platform.url, python=str(fake), infra_retries=1)
            stale += (work / "out").exists() and (work / "out").read_text() == "old"
            accepted += controller.process.returncode == 0
        ran = len(platform.tasks())
    return Row(
        "E3b",
        "inner Snakemake ends with 0 without having worked",
        f"{ran} such tasks",
        f"{accepted} of {size.trials} runs green",
        accepted == 0,
    )


def e4_interrupts(folder: Path, size: Size, seed: int) -> Row:
    """Ctrl-C at a random moment stops every task within ten seconds."""
    rng = random.Random(seed)
    slow, orphans, with_tasks = 0.0, 0, 0
    snakefile = chunks_snakefile(8, seconds=60)
    with Simulator(folder / "state", slots=6, seed=seed, latency=0.3, jitter=0.4, stop_grace=2) as platform:
        for trial in range(size.interrupts):
            work = workdir(folder / f"work{trial}", snakefile)
            controller = Controller(work, arguments(platform.url))
            until = time.monotonic() + 15
            while time.monotonic() < until and not platform.live() and controller.process.poll() is None:
                time.sleep(0.05)
            time.sleep(rng.uniform(0.0, 2.5))
            with_tasks += bool(platform.live())
            started = time.monotonic()
            os.kill(controller.process.pid, signal.SIGINT)
            controller.wait(60)
            slow = max(slow, time.monotonic() - started)
            time.sleep(0.3)
            orphans += len([task for task in platform.live() if task["status"] != "Stopping"])
            while platform.live():
                time.sleep(0.1)
            shutil.rmtree(work)
    good = orphans == 0 and slow <= 12 and with_tasks >= 0.95 * size.interrupts
    text = f"{orphans} orphans, slowest exit {slow:.1f} s"
    return Row(
        "E4",
        "SIGINT at a random moment, API latency 0.3-0.7 s",
        f"{size.interrupts} interrupts, {with_tasks} with tasks live",
        text,
        good,
    )


def e5_polling_cost(folder: Path, size: Size, seed: int) -> Row:
    """Following many tasks costs one list per look."""
    snakefile = (
        f"rule all:\n    input: expand('o/{{i}}', i=range({size.tasks}))\n"
        "rule one:\n    output: 'o/{i}'\n    shell: 'echo 1 > {output}'\n"
    )
    work = workdir(folder / "work", snakefile)
    with Simulator(folder / "state", seed=seed, hold=1) as platform:
        command = arguments(platform.url, "--jobs", str(size.tasks), max_calls_per_second=200, poll_seconds_max=5)
        controller = Controller(work, command)
        until = time.monotonic() + 240
        while len(platform.live()) < size.tasks and controller.process.poll() is None and time.monotonic() < until:
            time.sleep(1)
        submitted = len(platform.live())
        time.sleep(10)
        start = time.time()
        time.sleep(30)
        calls = [call for call in platform.history()["calls"] if call["t"] > start]
        memory = peak_memory(controller.process.pid)
        os.kill(controller.process.pid, signal.SIGINT)
        controller.wait(60)
        left = [task for task in platform.live() if task["status"] != "Stopping"]
    lists = [call for call in calls if "?page=" in call["path"]]
    rounds = sum("?page=1&" in call["path"] for call in lists) or 1
    pages = -(-size.tasks // 100)
    good = submitted == size.tasks and len(calls) <= rounds * (pages + 2) and memory < 300 and not left
    cost = f"{len(calls) / rounds:.1f} calls a look (limit {pages + 2})"
    text = f"{cost}, controller {memory:.0f} MB, all stopped: {not left}"
    return Row("E5", f"{size.tasks} tasks pending", f"{submitted} created, {rounds} looks", text, good)


def peak_memory(pid: int) -> float:
    """The most memory that a process has had, in MB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return float(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def e6_reaction(folder: Path, size: Size, seed: int) -> Row:
    """Snakemake knows of an end soon."""
    work = workdir(folder / "work", chunks_snakefile(size.chunks, seconds=1.0))
    with Simulator(folder / "state", slots=4, seed=seed) as platform:
        controller = run(work, platform.url, timeout=900, poll_seconds=2, poll_seconds_max=30)
        ended = {task["uuid"]: task["ended"] for task in platform.tasks()}
    ledger = next((work / ".snakemake/siflow").glob("*/ledger.jsonl")).read_text().splitlines()
    uuids: dict[str, str] = {}
    late = []
    for line in ledger:
        event = json.loads(line)
        label = f"{event['key']}-a{event['attempt']}"
        if event["event"] == "submitted":
            uuids[label] = event["data"]["uuid"]
        elif event["event"] == "settled":
            late.append(event["data"]["t"] - ended[uuids[label]])
    p99 = sorted(late)[int(len(late) * 0.99)]
    good = controller.process.returncode == 0 and p99 <= 4 and len(late) == 2 * size.chunks + 1
    return Row(
        "E6",
        "time from a task's end to its verdict, poll interval 2 s",
        f"{len(late)} tasks",
        f"p99 {p99:.1f} s (limit 4 s)",
        good,
    )


def e7_status_words(folder: Path, size: Size, seed: int) -> Row:
    """Whatever words the platform shows, the outcome is that of the work."""
    rng = random.Random(seed)
    words = ["Unknown", "PartialPending", "Stopping", "Pending", "Running", "Rescheduling", "", "succeeded?", "Failed?"]
    scripts = [[[rng.choice(words), rng.uniform(0, 1.5)] for _ in range(rng.randint(1, 6))] for _ in range(200)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "scripts.json").write_text(json.dumps(scripts))
    work = workdir(folder / "work", chunks_snakefile(size.chunks))
    with Simulator(folder / "state", slots=6, seed=seed, script=str(folder / "scripts.json")) as platform:
        controller = run(work, platform.url, "--retries", "0", timeout=900)
        created = len(platform.tasks())
    good = controller.process.returncode == 0 and created == 2 * size.chunks + 1
    text = f"exit {controller.process.returncode}, {created} tasks for {2 * size.chunks + 1} jobs"
    return Row(
        "E7",
        "status words in any order, unknown ones too (10,000 sequences more in test_dispatcher.py)",
        f"{len(scripts)} scripts",
        text,
        good,
    )


def e8_platform_faults(folder: Path, size: Size, seed: int) -> Row:
    """Preemption, lost nodes, image errors, restarts and quota cost no attempt."""
    work = workdir(folder / "work", chunks_snakefile(size.chunks, seconds=0.5))
    bad = {
        "preempt": 0.1,
        "node_lost": 0.1,
        "image_pull": 0.1,
        "restart": 0.1,
        "forget": 0.03,
        "zombie": 0.5,
        "quota": 20,
        "fault_after": 3,
    }
    with Simulator(folder / "state", slots=6, seed=seed, **bad) as platform:
        controller = run(work, platform.url, "--retries", "0", timeout=900)
        counts = platform.counts()
        created = len(platform.tasks())
    right = (work / "merged.txt").exists() and (work / "merged.txt").read_text() == expected_merge(size.chunks)
    struck = created - (2 * size.chunks + 1)
    good = controller.process.returncode == 0 and right and struck > 0
    text = f"exit {controller.process.returncode} with --retries 0, output right: {right}, {dict(counts)}"
    return Row(
        "E8*",
        "preemption, node loss (half with zombies), image pull, restarts, forgotten tasks, quota",
        f"{struck} tasks struck",
        text,
        good,
    )


#: Two canaries: a plain one, and one with every character that shells and quoting get wrong.
CANARIES = {"CANARY_ONE": "plainCanary0123456789", "CANARY_TWO": 'it\'s "a" $HOME \\ $(x) `y` canary \u00e9 %s {z}'}
SECRETS_SNAKEFILE = """
import os
rule all:
    input: "seen.bin", "two.bin"
rule one:
    output: "seen.bin"
    log: "logs/one.log"
    shell: "{PY} -c 'import os; open(\\"seen.bin\\",\\"wb\\").write(os.environb[b\\"CANARY_TWO\\"])' 2> {log}; sleep 1"
rule two:
    output: "two.bin"
    log: "logs/two.log"
    shell: "{PY} -c 'import os; open(\\"two.bin\\",\\"wb\\").write(os.environb[b\\"CANARY_ONE\\"])' 2> {log}; sleep 1"
rule fails:
    output: "never"
    shell: "echo key is $CANARY_ONE; echo again \\"$CANARY_TWO\\"; exit 3"
""".replace("{PY}", sys.executable)


def s1_s2_secrets(folder: Path, size: Size, seed: int) -> tuple[Row, Row]:
    """Keys arrive byte for byte, and are seen nowhere else."""
    work = workdir(folder / "work", SECRETS_SNAKEFILE)
    more = ["--verbose", "--printshellcmds", "--show-failed-logs", "--keep-going"]
    hits: list[str] = []
    looks = scenarios = right = 0
    variants: list[dict[str, Any]] = [
        {},
        {"unauthorized": 0.3},
        {"error": 0.3},
        {"html": 0.3},
        {"drop_post": 0.5},
        {"node_lost": 0.4},
    ]
    for variant in variants[: 2 if size is SHORT else len(variants)]:
        for target in (["all"], ["all", "fails"]):
            scenarios += 1
            state = folder / f"state{scenarios}"
            with Simulator(state, seed=seed, fault_after=0.5, **variant) as platform:
                command = arguments(platform.url, *target, "--forceall", *more, secret_env=list(CANARIES))
                controller = Controller(work, command, **CANARIES)
                while controller.process.poll() is None:
                    hits += search_processes()
                    looks += 1
                    time.sleep(0.05)
                right += arrived(work / "seen.bin") == CANARIES["CANARY_TWO"].encode()
                right += arrived(work / "two.bin") == CANARIES["CANARY_ONE"].encode()
            (work / "seen.bin").unlink(missing_ok=True)
            (work / "two.bin").unlink(missing_ok=True)
            hits += search_files(folder)
    # The rule that fails prints its keys into its own task's log, on purpose; that file is the task's, not ours.
    hits = [hit for hit in hits if not hit.endswith(".log") or "siflow/" not in hit]
    first = Row(
        "S1",
        "two canary keys, all output at its loudest",
        f"{scenarios} scenarios, {looks} looks at all command lines",
        f"{len(hits)} hits {hits[:3] or ''}",
        not hits,
    )
    return first, Row(
        "S2",
        "keys with quotes, $, backslash, blanks",
        f"{2 * scenarios} arrivals",
        f"{right} byte-identical",
        right == 2 * scenarios,
    )


def arrived(file: Path) -> bytes:
    """What a task has written of its key."""
    return file.read_bytes() if file.exists() else b""


def search_processes() -> list[str]:
    """Canaries on command lines."""
    hits = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = file.read_bytes()
        except OSError:
            continue
        hits += [f"{file}: {line[:80]!r}" for value in CANARIES.values() if value.encode() in line]
    return hits


def search_files(folder: Path) -> list[str]:
    """Canaries in files, but for the two that are made of them."""
    needles = [
        form.encode() for value in CANARIES.values() for form in (value, json.dumps(value)[1:-1], repr(value)[1:-1])
    ]
    places = [folder, Path.home() / ".cache" / "snakemake"]
    files = (
        file
        for place in places
        for file in place.rglob("*")
        if file.is_file() and file.name not in ("seen.bin", "two.bin")
    )
    return [str(file) for file in files if any(needle in file.read_bytes() for needle in needles)]


def s3_rotation(folder: Path, size: Size, seed: int) -> Row:
    """A key changed in the env file reaches running and new tasks, and nothing is run again."""
    snakefile = (
        "rule all:\n    input: 'a.txt', 'b.txt'\n"
        "rule a:\n    output: 'a.txt'\n    shell: 'for i in $(seq 100); do cat $ROTATING_FILE > a.tmp; "
        "grep -q new a.tmp && break; sleep 0.2; done; mv a.tmp {output}'\n"
        "rule b:\n    input: 'a.txt'\n    output: 'b.txt'\n    shell: 'echo $ROTATING > {output}'\n"
    )
    work = workdir(folder / "work", snakefile)
    keys = work / "keys.env"
    keys.write_text("ROTATING=old-key\n")
    with Simulator(folder / "state", seed=seed) as platform:
        controller = Controller(work, arguments(platform.url, env_file=str(keys), secret_env=["ROTATING"]))
        while not platform.live() and controller.process.poll() is None:
            time.sleep(0.1)
        time.sleep(2)
        changed = time.monotonic()
        keys.write_text("ROTATING=new-key\n")
        while not (work / "a.txt").exists() and controller.process.poll() is None:
            time.sleep(0.1)
        took = time.monotonic() - changed
        status = controller.wait(60)
        created = len(platform.tasks())
    texts = [(work / name).read_text().strip() for name in ("a.txt", "b.txt")]
    good = status == 0 and texts == ["new-key", "new-key"] and created == 2 and took <= 60
    return Row(
        "S3",
        "key rotated while tasks run",
        "1 rotation",
        f"running task saw it after {took:.1f} s, next task too, {created} tasks for 2 jobs",
        good,
    )


def mutants(folder: Path, size: Size, seed: int) -> Row:
    """The plugin is broken on purpose; each break must be caught by a test."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/siflow/test_mutants.py"]
    command += ["-k", "caught", "--timeout", "280"]
    env = clean_env(SIFLOW_MUTANTS="1")
    result = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    return Row(
        "M",
        "the plugin is broken in known ways",
        "one break each",
        result.stdout.splitlines()[-1],
        result.returncode == 0,
    )


CAMPAIGN: dict[str, Callable[[Path, Size, int], Row | tuple[Row, Row]]] = {
    "E1": e1_kills,
    "E2": e2_lost_answers,
    "E3": e3_bad_api,
    "E3b": e3b_no_proof,
    "E4": e4_interrupts,
    "E5": e5_polling_cost,
    "E6": e6_reaction,
    "E7": e7_status_words,
    "E8*": e8_platform_faults,
    "S1": s1_s2_secrets,
    "S3": s3_rotation,
    "M": mutants,
}


def table(rows: list[Row], seed: int) -> str:
    """The scorecard as Markdown."""
    lines = ["| # | what happens | faults that landed | result | met |", "| --- | --- | --- | --- | --- |"]
    lines += [f"| {r.name} | {r.what} | {r.faults} | {r.result} | {'yes' if r.good else '**no**'} |" for r in rows]
    return "\n".join([*lines, "", f"Seed {seed}."])


def main() -> int:
    """Run the campaign."""
    parser = argparse.ArgumentParser(description="The chaos campaign of the SiFlow executor.")
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--short", action="store_true", help="some two minutes, for CI")
    sizes.add_argument("--full", action="store_true", help="hours, the numbers of the scorecard")
    parser.add_argument("--only", default="", help="rows, separated by commas")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    os.environ.update({k: v for k, v in clean_env().items() if k.startswith("SIFLOW_")})
    size = SHORT if args.short else FULL if args.full else MEDIUM
    wanted = [name for name in args.only.split(",") if name] or list(CAMPAIGN)
    rows: list[Row] = []
    for name in wanted:
        with tempfile.TemporaryDirectory(prefix="siflow-chaos-") as folder:
            found = CAMPAIGN[name](Path(folder) / "run", size, args.seed)
        for row in (found,) if isinstance(found, Row) else found:
            rows.append(row)
            print(f"{row.name:4} {'ok  ' if row.good else 'MISS'} {row.faults}: {row.result}", flush=True)
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(table(rows, args.seed) + "\n")
    return 0 if all(row.good for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
