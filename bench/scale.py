"""What growth costs. `python bench/scale.py rows 10000 100000`, `… dag 1000 2` and `… jobs 200` print Markdown tables.

`rows N …` runs the whole workflow over N rows with prompts of 1 KB and a teacher that answers at once: wall time, CPU,
the peak memory of every kind of process, files and bytes of every stage, and the second run that has nothing to do.
`dag CHUNKS MODELS` compares our DAG with a bare one of five stages of the same size: a dry run and a run with nothing
to do. `jobs CHUNKS` runs both, with one row a chunk, and compares what the controller itself takes for a job.

CPU of a process is its own time in user and system mode; on a machine with other work it says more than wall time.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from tests.servers.handle import running  # noqa: E402 - the path must be set first

SNAKEMAKE = [sys.executable, "-m", "snakemake"]
OURS = [*SNAKEMAKE, "--snakefile", str(ROOT / "Snakefile"), "--configfile", "config.json"]

#: A workflow of the same shape with nothing in it: what Snakemake itself costs.
BARE = """
CHUNKS = [f"{{number:04}}" for number in range(1, {chunks} + 1)]
MODELS = {models}
rule all:
    input: expand("merged/{{model}}.jsonl", model=MODELS)
rule prepare:
    output: expand("prepared/{{chunk}}.jsonl", chunk=CHUNKS)
    shell: "touch {{output}}"
rule generate:
    input: "prepared/{{chunk}}.jsonl"
    output: "{{model}}/generated/{{chunk}}.jsonl"
    shell: "cp {{input}} {{output}}"
rule clean:
    input: "{{model}}/generated/{{chunk}}.jsonl"
    output: "{{model}}/cleaned/{{chunk}}.jsonl"
    shell: "cp {{input}} {{output}}"
rule execute:
    input: "{{model}}/cleaned/{{chunk}}.jsonl"
    output: "{{model}}/executed/{{chunk}}.jsonl"
    shell: "cp {{input}} {{output}}"
rule score:
    input: "{{model}}/executed/{{chunk}}.jsonl"
    output: "{{model}}/scored/{{chunk}}.jsonl"
    shell: "cp {{input}} {{output}}"
rule filter:
    input: "{{model}}/scored/{{chunk}}.jsonl"
    output: "{{model}}/filtered/{{chunk}}.jsonl"
    shell: "cp {{input}} {{output}}"
rule merge:
    input: expand("{{{{model}}}}/filtered/{{chunk}}.jsonl", chunk=CHUNKS)
    output: "merged/{{model}}.jsonl"
    shell: "touch {{output}}"
"""


@dataclass
class Usage:
    """What a command took.

    Attributes:
        wall: Seconds.
        cpu: Seconds of CPU, of the command and all its children.
        own_cpu: Seconds of CPU of the command's first process alone.
        peaks: The most memory of one process, in MB, for each kind of process.
        output: What it printed.
    """

    wall: float = 0.0
    cpu: float = 0.0
    own_cpu: float = 0.0
    peaks: dict[str, float] = field(default_factory=lambda: collections.defaultdict(float))
    output: str = ""


def measure(command: list[str], folder: Path) -> Usage:
    """Run a command to its end and watch it and its children."""
    usage, done, log = Usage(), threading.Event(), folder / "command.log"
    before, started = os.times(), time.monotonic()
    with log.open("w") as stream:
        process = subprocess.Popen(command, cwd=folder, stdout=stream, stderr=subprocess.STDOUT)
        watcher = threading.Thread(target=watch, args=(process.pid, usage, done))
        watcher.start()
        code = process.wait()
    done.set()
    watcher.join()
    after = os.times()
    usage.wall = time.monotonic() - started
    usage.cpu = after.children_user + after.children_system - before.children_user - before.children_system
    usage.output = log.read_text()
    if code != 0:
        raise SystemExit(f"{' '.join(command)} ended with {code}:\n{usage.output[-4000:]}")
    return usage


def watch(pid: int, usage: Usage, done: threading.Event) -> None:
    """Note the peaks of a process and its descendants, five times a second, and the CPU of the first one."""
    ticks = os.sysconf("SC_CLK_TCK")
    while not done.wait(0.2):
        for one in descend(pid):
            try:
                command = Path(f"/proc/{one}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                status = Path(f"/proc/{one}/status").read_text()
                fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            peak = re.search(r"VmHWM:\s+(\d+)", status)
            kind = "controller" if one == pid else kind_of(command)
            if peak:
                usage.peaks[kind] = max(usage.peaks[kind], int(peak[1]) / 1024)
            if one == pid and fields[0] != "Z":
                usage.own_cpu = (int(fields[11]) + int(fields[12])) / ticks


def descend(pid: int) -> Iterator[int]:
    """Yield a process and all its descendants."""
    yield pid
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = task.read_text().split()
        except OSError:
            continue
        for child in children:
            yield from descend(int(child))


def kind_of(command: str) -> str:
    """Return what a process does, by its command line."""
    script = re.search(r"/scripts/(?:tmp\w+\.)?(\w+)\.py", command)
    if "sql.worker" in command:
        return "SQL worker"
    if script and not command.startswith(("/bin/", "/usr/bin/bash", "bash")):
        return script[1]
    return "shell" if command.startswith(("/bin/", "/usr/bin/", "bash")) else "other"


def write_input(folder: Path, rows: int, prompt_bytes: int = 1000) -> None:
    """Write rows, a prompt template and a database."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "rows.jsonl").open("w") as stream:
        for number in range(rows):
            row = {
                "id": str(number),
                "question": f"question {number} ".ljust(prompt_bytes, "x"),
                "gold_sql": f"SELECT {number % 1000}",
            }
            stream.write(json.dumps(row) + "\n")
    (folder / "prompt.jinja").write_text("{{ question }}")
    with sqlite3.connect(folder / "db.sqlite") as database:
        database.execute("CREATE TABLE t (a)")
    database.close()


def write_config(folder: Path, url: str, chunks: int, models: int = 1) -> None:
    """Write a config in which every stage is on and every statement that runs is kept."""
    aliases = [f"m{number}" for number in range(models)]
    config: dict[str, Any] = {
        "run": "r",
        "input": {"path": "rows.jsonl", "id_field": "id"},
        "chunks": {"count": chunks},
        "prompt": {"template": "prompt.jinja"},
        "models": [{"alias": alias, "config": "model.json"} for alias in aliases],
        "generate": {"concurrency": 128},
        "execute": {"database": "db.sqlite"},
        "filter": {"min_score": 0.5},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.json").write_text(
        json.dumps({"client_config": {"base_url": url, "api_key": "none"}, "chat_config": {"model": "fake"}})
    )


def weigh(folder: Path) -> dict[str, tuple[int, int]]:
    """Return the files and bytes of each part of a run."""
    sizes: dict[str, list[int]] = collections.defaultdict(list)
    results = folder / "results/r"
    for path in results.rglob("*"):
        if path.is_file():
            parts = path.relative_to(results).parts
            name = parts[1] if parts[0].startswith("m0") and len(parts) > 2 else parts[0] if len(parts) > 1 else "run"
            sizes["final rows" if parts[0] == "m0" and len(parts) == 2 else name].append(path.stat().st_size)
    for name in ("answers", ".snakemake"):
        sizes[name] += [path.stat().st_size for path in (folder / name).rglob("*") if path.is_file()]
    return {name: (len(found), sum(found)) for name, found in sizes.items()}


def read_benchmarks(folder: Path) -> dict[str, dict[str, float]]:
    """Return jobs, seconds and CPU seconds of each rule, by Snakemake's benchmark files."""
    found: dict[str, dict[str, float]] = {}
    for path in (folder / "results/r/benchmarks").rglob("*.tsv"):
        names, values = (line.split("\t") for line in path.read_text().splitlines()[:2])
        row = dict(zip(names, values, strict=True))
        rule = found.setdefault(
            path.relative_to(folder / "results/r/benchmarks").parts[0], {"jobs": 0, "s": 0, "cpu": 0}
        )
        rule["jobs"] += 1
        rule["s"] += float(row["s"])
        rule["cpu"] += float(row["cpu_time"]) if row["cpu_time"] not in ("NA", "-") else 0
    return found


def measure_rows(folder: Path, rows: int, chunk_rows: int, cores: int) -> None:
    """Run the workflow over so many rows, twice, and print the tables."""
    write_input(folder, rows)
    chunks = max(1, -(-rows // chunk_rows))
    with running(answer_bytes=200, remember=False) as server:
        write_config(folder, server.url, chunks)
        first = measure([*OURS, "--cores", str(cores), "--quiet", "all"], folder)
        asked = server.stats()["requests"]
        second = measure([*OURS, "--cores", str(cores)], folder)
        asked_again = server.stats()["requests"] - asked
    assert "Nothing to be done" in second.output, second.output[-2000:]
    sizes, rules = weigh(folder), read_benchmarks(folder)
    jobs = int(sum(rule["jobs"] for rule in rules.values()))
    final = sizes["final rows"][1]
    intermediate = sum(size for name, (_, size) in sizes.items() if name not in ("final rows", "answers"))
    print(f"\n### {rows:,} rows in {chunks} chunks, {jobs} jobs, {cores} cores\n")
    print(
        f"wall {first.wall:.1f} s ({rows / first.wall:.0f} rows/s, {1000 * first.wall / rows:.3f} ms a row), "
        f"CPU {first.cpu:.1f} s ({1000 * first.cpu / rows:.3f} ms a row), of it the controller {first.own_cpu:.1f} s "
        f"({1000 * first.own_cpu / jobs:.1f} ms a job); {asked} requests. Second run: {second.wall:.1f} s wall, "
        f"{second.cpu:.1f} s CPU, {second.peaks['controller']:.0f} MB, {asked_again} requests.\n"
    )
    print("| stage | jobs | s | CPU s | peak MB |\n|---|---|---|---|---|")
    for name in sorted(rules, key=lambda name: -rules[name]["s"]):
        print(
            f"| {name} | {rules[name]['jobs']:.0f} | {rules[name]['s']:.1f} | {rules[name]['cpu']:.1f} "
            f"| {first.peaks.get(name, 0):.0f} |"
        )
    for name in ("SQL worker", "controller"):
        print(f"| {name} | | | {first.own_cpu if name == 'controller' else 0:.1f} | {first.peaks.get(name, 0):.0f} |")
    print("\n| files | number | MB | of the final rows |\n|---|---|---|---|")
    for name, (count, size) in sorted(sizes.items(), key=lambda item: -item[1][1]):
        print(f"| {name} | {count} | {size / 1e6:.1f} | {size / final:.2f} |")
    print(f"\nwithout the final rows and the answer store: {intermediate / final:.2f} times the final rows", flush=True)


def compare_dags(folder: Path, chunks: int, models: int, rounds: int) -> None:
    """Print a dry run and a run with nothing to do, ours and bare, in turn."""
    ours, bare = make_pair(folder, chunks, models)
    compare(
        f"dry run, {chunks} chunks x {models} models",
        lambda: measure([*OURS, "--dry-run", "--quiet", "all"], ours),
        lambda: measure([*SNAKEMAKE, "--dry-run", "--quiet", "all"], bare),
        rounds,
    )
    for name, command in ((ours, OURS), (bare, SNAKEMAKE)):
        pretend(name, command)
    compare(
        f"nothing to do, {chunks} chunks x {models} models",
        lambda: measure([*OURS, "--cores", "2", "--quiet", "all"], ours),
        lambda: measure([*SNAKEMAKE, "--cores", "2", "--quiet", "all"], bare),
        rounds,
    )


def make_pair(folder: Path, chunks: int, models: int) -> tuple[Path, Path]:
    """Write our workflow's input and a bare workflow of the same size."""
    ours, bare = folder / "ours", folder / "bare"
    write_input(ours, chunks, 10)
    write_config(ours, "http://127.0.0.1:9/v1", chunks, models)
    bare.mkdir(exist_ok=True)
    (bare / "Snakefile").write_text(BARE.format(chunks=chunks, models=[f"m{number}" for number in range(models)]))
    return ours, bare


def pretend(folder: Path, command: list[str]) -> None:
    """Make every output of a workflow by hand, empty, and let Snakemake take them as finished."""
    summary = measure([*command, "--detailed-summary", "--quiet", "all"], folder).output
    for line in summary.splitlines():
        name = line.split("\t")[0]
        if "\t" in line and "/" in name:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).touch()
    measure([*command, "--touch", "--cores", "1", "--quiet", "all"], folder)


def compare(name: str, ours: Callable[[], Usage], bare: Callable[[], Usage], rounds: int) -> None:
    """Print one line of a table: the least CPU of some rounds, in turn."""
    found: dict[str, list[Usage]] = {"ours": [], "bare": []}
    for _ in range(rounds):
        found["ours"].append(ours())
        found["bare"].append(bare())
    best = {which: min(usages, key=lambda usage: usage.cpu) for which, usages in found.items()}
    peak = {which: max(usage.peaks["controller"] for usage in usages) for which, usages in found.items()}
    print(
        f"| {name} | {best['ours'].cpu:.1f} | {best['bare'].cpu:.1f} | {best['ours'].cpu / best['bare'].cpu:.2f} | "
        f"{peak['ours']:.0f} | {peak['bare']:.0f} | {peak['ours'] / peak['bare']:.2f} |",
        flush=True,
    )


def compare_jobs(folder: Path, chunks: int) -> None:
    """Run both workflows, one row a chunk, and print what the controller itself takes for a job."""
    ours, bare = make_pair(folder, chunks, 1)
    with running(answer_bytes=64, remember=False) as server:
        write_config(ours, server.url, chunks)
        found = {
            "ours": measure([*OURS, "--cores", "2", "--quiet", "all"], ours),
            "bare": measure([*SNAKEMAKE, "--cores", "2", "--quiet", "all"], bare),
        }
    jobs = {"ours": sum(rule["jobs"] for rule in read_benchmarks(ours).values()), "bare": 5 * chunks + 2}
    each = {which: 1000 * usage.own_cpu / jobs[which] for which, usage in found.items()}
    print(
        f"\ncontroller: ours {each['ours']:.1f} ms CPU a job over {jobs['ours']:.0f} jobs, bare {each['bare']:.1f} ms "
        f"over {jobs['bare']}; ratio {each['ours'] / each['bare']:.2f}"
    )
    print(
        f"wall a job: ours {1000 * found['ours'].wall / jobs['ours']:.0f} ms, "
        f"bare {1000 * found['bare'].wall / jobs['bare']:.0f} ms",
        flush=True,
    )


def main() -> None:
    """Run the part that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("rows", "dag", "jobs"))
    parser.add_argument("numbers", nargs="+", type=int)
    parser.add_argument("--chunk-rows", type=int, default=2000)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="potstill-scale-") as name:
        folder = Path(name)
        if args.what == "rows":
            for rows in args.numbers:
                measure_rows(folder / str(rows), rows, args.chunk_rows, args.cores)
                shutil.rmtree(folder / str(rows))
        elif args.what == "dag":
            print(
                "| | ours, CPU s | bare, CPU s | ratio | ours, MB | bare, MB | ratio |\n|---|---|---|---|---|---|---|"
            )
            compare_dags(folder, *args.numbers, args.rounds)
        else:
            compare_jobs(folder, *args.numbers)


if __name__ == "__main__":
    main()
