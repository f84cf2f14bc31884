"""What growth costs. Each part prints Markdown tables; `--output FILE` adds them to a file too.

`rows N …` runs the whole workflow over N rows with prompts of 1 KB and a teacher that answers at once: wall time, CPU,
the peak memory of every kind of process, files and bytes of every stage, all bytes that the run has written, and the
second run that has nothing to do. `--keep-stages false` and `--compress none` change the config.
`dag CHUNKS MODELS` compares our DAG with a bare one of five stages of the same size, in turn: a dry run and a run with
nothing to do. `jobs CHUNKS` runs both, with one row a chunk, and compares what the controller itself takes for a job.
`duplicates N …` prepares N small rows, a tenth of which repeat earlier ones.

CPU of a process is its own time in user and system mode; on a machine with other work it says more than wall time.
"""

from __future__ import annotations

import argparse
import collections
import itertools
import json
import os
import random
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
        written: Bytes that they have handed to the disk.
        own_cpu: Seconds of CPU of the command's first process alone.
        peaks: The most memory of one process, in MB, for each kind of process.
        output: What it printed.
    """

    wall: float = 0.0
    cpu: float = 0.0
    written: int = 0
    own_cpu: float = 0.0
    peaks: dict[str, float] = field(default_factory=lambda: collections.defaultdict(float))
    output: str = ""


def measure(command: list[str], folder: Path) -> Usage:
    """Run a command to its end and watch it and its children."""
    usage, done, log = Usage(), threading.Event(), folder / "command.log"
    before, started, written = os.times(), time.monotonic(), bytes_written()
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
    usage.written = bytes_written() - written
    usage.output = log.read_text()
    if code != 0:
        raise SystemExit(f"{' '.join(command)} ended with {code}:\n{usage.output[-4000:]}")
    return usage


def bytes_written() -> int:
    """Return the bytes that this process and all that it has waited for handed to the disk."""
    found = re.search(r"^write_bytes: (\d+)", Path("/proc/self/io").read_text(), re.MULTILINE)
    return int(found[1]) if found else 0


def watch(pid: int, usage: Usage, done: threading.Event) -> None:
    """Note the peaks of a process and its descendants, five times a second, and the CPU of the first one."""
    ticks = os.sysconf("SC_CLK_TCK")
    while not done.wait(0.2):
        for one in descend(pid):
            try:
                command = Path(f"/proc/{one}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                status = Path(f"/proc/{one}/status").read_text()
                fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
            except (OSError, ProcessLookupError):
                continue
            peak = re.search(r"VmHWM:\s+(\d+)", status)
            kind = "controller" if one == pid else kind_of(command)
            if peak:
                usage.peaks[kind] = max(usage.peaks[kind], int(peak[1]) / 1024)
            if one == pid and fields[0] != "Z":
                usage.own_cpu = (int(fields[11]) + int(fields[12])) / ticks


def descend(pid: int) -> Iterator[int]:
    """Yield a process and all its descendants; any of them may end at any moment."""
    yield pid
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return
    for task in tasks:
        try:
            children = (task / "children").read_text().split()
        except OSError:
            continue
        for child in children:
            yield from descend(int(child))


def kind_of(command: str) -> str:
    """Return what a process does, by its command line."""
    script = re.search(r"/scripts/(?:tmp\w+\.)?(\w+)\.py", command)
    if "sql.worker" in command:
        return "SQL worker"
    if "-m snakemake" in command:
        # A fork of the controller that is about to become a job's shell.
        return "controller"
    if script and not command.startswith(("/bin/", "/usr/bin/bash", "bash")):
        return script[1]
    return "shell" if command.startswith(("/bin/", "/usr/bin/", "bash")) else "other"


#: Words that prompts are made of: text that packs about as well as prose does.
WORDS = ["".join(random.Random(number).choices("etaoinshrdlu", k=2 + number % 9)) for number in range(4000)]


def write_input(folder: Path, rows: int, prompt_bytes: int = 1000) -> None:
    """Write rows, a prompt template and a database."""
    folder.mkdir(parents=True, exist_ok=True)
    choose = random.Random(0)
    with (folder / "rows.jsonl").open("w") as stream:
        for number in range(rows):
            words = " ".join(choose.choices(WORDS, k=prompt_bytes // 6))
            row = {
                "id": str(number),
                "question": f"question {number} {words}"[:prompt_bytes],
                "gold_sql": f"SELECT {number % 1000}",
            }
            stream.write(json.dumps(row) + "\n")
    (folder / "prompt.jinja").write_text("{{ question }}")
    with sqlite3.connect(folder / "db.sqlite") as database:
        database.execute("CREATE TABLE t (a)")
    database.close()


def write_config(folder: Path, url: str, chunks: dict[str, Any], models: int = 1) -> None:
    """Write a config in which every stage is on and every statement that runs is kept."""
    aliases = [f"m{number}" for number in range(models)]
    config: dict[str, Any] = {
        "run": "r",
        "input": {"path": "rows.jsonl", "id_field": "id"},
        "chunks": chunks,
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


@dataclass(frozen=True)
class Growth:
    """What one run over so many rows took.

    Attributes:
        rows: Rows.
        first: The run.
        second: The run after it, with nothing to do.
        again: Requests that the second run sent.
        final: Bytes of the final rows.
        left: Bytes on the disk at its end.
    """

    rows: int
    first: Usage
    second: Usage
    again: int
    final: int
    left: int


def measure_rows(folder: Path, rows: int, chunks: dict[str, Any], cores: int) -> Growth:
    """Run the workflow over so many rows, twice, and print the tables."""
    write_input(folder, rows)
    with running(answer_bytes=200, remember=False) as server:
        write_config(folder, server.url, chunks)
        first = measure([*OURS, "--cores", str(cores), "--quiet", "progress"], folder)
        asked = server.stats()["requests"]
        second = measure([*OURS, "--cores", str(cores)], folder)
        again = server.stats()["requests"] - asked
    if "Nothing to be done" not in second.output:
        raise SystemExit(f"the second run had something to do:\n{second.output[-2000:]}")
    sizes, rules = weigh(folder), read_benchmarks(folder)
    growth = Growth(rows, first, second, again, sizes["final rows"][1], sum(size for _, size in sizes.values()))
    print_stages(growth, rules, asked, cores)
    print_files(growth, sizes)
    return growth


def print_stages(growth: Growth, rules: dict[str, dict[str, float]], asked: int, cores: int) -> None:
    """Print what each rule took."""
    rows, first, second = growth.rows, growth.first, growth.second
    jobs = int(sum(rule["jobs"] for rule in rules.values()))
    say(f"\n### {rows:,} rows, {jobs} jobs, {cores} cores\n")
    say(
        f"wall {first.wall:.1f} s ({rows / first.wall:.0f} rows/s, {1000 * first.wall / rows:.3f} ms a row), "
        f"CPU {first.cpu:.1f} s ({1000 * first.cpu / rows:.3f} ms a row), of it the controller {first.own_cpu:.1f} s "
        f"({1000 * first.own_cpu / jobs:.1f} ms a job); {asked} requests. Second run: {second.wall:.1f} s wall, "
        f"{second.cpu:.1f} s CPU, {second.peaks['controller']:.0f} MB, {growth.again} requests.\n"
    )
    say("| stage | jobs | s | CPU s | peak MB |\n|---|---|---|---|---|")
    for name in sorted(rules, key=lambda name: -rules[name]["s"]):
        rule = rules[name]
        say(f"| {name} | {rule['jobs']:.0f} | {rule['s']:.1f} | {rule['cpu']:.1f} | {first.peaks.get(name, 0):.0f} |")
    for name in ("SQL worker", "controller"):
        say(f"| {name} | | | {first.own_cpu if name == 'controller' else 0:.1f} | {first.peaks.get(name, 0):.0f} |")


def print_files(growth: Growth, sizes: dict[str, tuple[int, int]]) -> None:
    """Print what lies on the disk at the end, and what was written in all."""
    say("\n| files | number | MB | of the final rows |\n|---|---|---|---|")
    for name, (count, size) in sorted(sizes.items(), key=lambda item: -item[1][1]):
        say(f"| {name} | {count} | {size / 1e6:.1f} | {size / growth.final:.2f} |")
    say(
        f"\non the disk at the end, with final rows and answers: {growth.left / growth.final:.2f} times the final rows; "
        f"written in all: {growth.first.written / growth.final:.2f} times"
    )


def print_growth(found: list[Growth]) -> None:
    """Print the sizes side by side."""
    say("\n### Growth\n")
    say("| rows | wall, ms a row | CPU, ms a row | largest process, MB | controller, MB | written | second run, s |")
    say("|---|---|---|---|---|---|---|")
    for one in found:
        largest = max((peak, name) for name, peak in one.first.peaks.items() if name != "controller")
        say(
            f"| {one.rows:,} | {1000 * one.first.wall / one.rows:.3f} | {1000 * one.first.cpu / one.rows:.3f} "
            f"| {largest[0]:.0f} ({largest[1]}) | {one.first.peaks['controller']:.0f} "
            f"| {one.first.written / one.final:.2f} x final rows | {one.second.wall:.1f}, {one.again} requests |"
        )
    for less, more in itertools.pairwise(found):
        wall = (more.first.wall / more.rows) / (less.first.wall / less.rows)
        cpu = (more.first.cpu / more.rows) / (less.first.cpu / less.rows)
        say(f"\ntime a row at {more.rows:,} against {less.rows:,}: wall {wall:.2f}, CPU {cpu:.2f}")


def measure_duplicates(folder: Path, rows: int) -> None:
    """Prepare so many small rows, of which a tenth repeat earlier ones, and print time and memory."""
    folder.mkdir(parents=True)
    with (folder / "rows.jsonl").open("w") as stream:
        for number in range(rows):
            # The last tenth repeats the first rows, as far away from them as can be.
            stream.write(f'{{"question":"question {number % (rows - rows // 10)}"}}\n')
    (folder / "prompt.jinja").write_text("{{ question }}")
    config = {
        "run": "r",
        "input": {"path": "rows.jsonl"},
        "chunks": {"count": max(1, rows // 100_000)},
        "prompt": {"template": "prompt.jinja"},
        "models": [{"alias": "m0", "config": "model.json"}],
    }
    (folder / "config.json").write_text(json.dumps(config))
    model = {"client_config": {"base_url": "http://127.0.0.1:9/v1", "api_key": "none"}, "chat_config": {"model": "m"}}
    (folder / "model.json").write_text(json.dumps(model))
    usage = measure([*OURS, "--cores", "1", "--quiet", "all", "--until", "prepare_rows"], folder)
    summary = json.loads((folder / "results/r/prepared/summary.json").read_text())
    assert (summary["rows"], summary["duplicates"]) == (rows - rows // 10, rows // 10), summary
    say(
        f"| {rows:,} | {summary['duplicates']:,} | {usage.wall:.0f} | {usage.cpu - usage.own_cpu:.0f} "
        f"| {1e6 * (usage.cpu - usage.own_cpu) / rows:.1f} | {usage.peaks['prepare_rows']:.0f} "
        f"| {usage.written / rows:.0f} |"
    )


def compare_dags(folder: Path, chunks: int, models: int, rounds: int) -> None:
    """Print a dry run and a run with nothing to do, ours and bare, in turn."""
    ours, bare = make_pair(folder, chunks, models)
    size = f"{chunks} chunks x {models} models"
    dry = compare(
        f"dry run, {size}",
        lambda: measure([*OURS, "--dry-run", "--quiet", "all"], ours),
        lambda: measure([*SNAKEMAKE, "--dry-run", "--quiet", "all"], bare),
        rounds,
    )
    for name, command in ((ours, OURS), (bare, SNAKEMAKE)):
        pretend(name, command)
    idle = compare(
        f"nothing to do, {size}",
        lambda: measure([*OURS, "--cores", "2"], ours),
        lambda: measure([*SNAKEMAKE, "--cores", "2"], bare),
        rounds,
    )
    if not all("Nothing to be done" in usage.output for usage in idle):
        raise SystemExit(f"there was something to do:\n{idle[0].output[-2000:]}\n{idle[1].output[-2000:]}")
    say(
        f"\nnothing to do, against a bare dry run: CPU {idle[0].cpu / dry[1].cpu:.2f}, wall {idle[0].wall / dry[1].wall:.2f}"
    )


def make_pair(folder: Path, chunks: int, models: int) -> tuple[Path, Path]:
    """Write our workflow's input and a bare workflow of the same size."""
    ours, bare = folder / "ours", folder / "bare"
    bare.mkdir(parents=True)
    write_input(ours, chunks, 10)
    write_config(ours, "http://127.0.0.1:9/v1", {"count": chunks}, models)
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
    measure([*command, "--touch", "--cores", "1", "--quiet", "all", "--no-hooks"], folder)


def compare(name: str, ours: Callable[[], Usage], bare: Callable[[], Usage], rounds: int) -> tuple[Usage, Usage]:
    """Print one line of a table, the least CPU of some rounds in turn, and return both."""
    found: dict[str, list[Usage]] = {"ours": [], "bare": []}
    for _ in range(rounds):
        found["ours"].append(ours())
        found["bare"].append(bare())
    best = {which: min(usages, key=lambda usage: usage.cpu) for which, usages in found.items()}
    peak = {which: max(usage.peaks["controller"] for usage in usages) for which, usages in found.items()}
    say(
        f"| {name} | {best['ours'].cpu:.1f} | {best['bare'].cpu:.1f} | {best['ours'].cpu / best['bare'].cpu:.2f} | "
        f"{peak['ours']:.0f} | {peak['bare']:.0f} | {peak['ours'] / peak['bare']:.2f} |"
    )
    return best["ours"], best["bare"]


def compare_jobs(folder: Path, chunks: int) -> None:
    """Run both workflows, one row a chunk, and print what the controller itself takes for a job."""
    ours, bare = make_pair(folder, chunks, 1)
    with running(answer_bytes=64, remember=False) as server:
        write_config(ours, server.url, {"count": chunks})
        found = {
            "ours": measure([*OURS, "--cores", "2", "--quiet", "all"], ours),
            "bare": measure([*SNAKEMAKE, "--cores", "2", "--quiet", "all"], bare),
        }
    jobs = {"ours": sum(rule["jobs"] for rule in read_benchmarks(ours).values()), "bare": 5 * chunks + 2}
    each = {which: 1000 * usage.own_cpu / jobs[which] for which, usage in found.items()}
    wall = {which: 1000 * usage.wall / jobs[which] for which, usage in found.items()}
    peak = {which: usage.peaks["controller"] for which, usage in found.items()}
    say(
        f"| {chunks} | {jobs['ours']:.0f}, {jobs['bare']} | {each['ours']:.1f} | {each['bare']:.1f} "
        f"| {each['ours'] / each['bare']:.2f} | {peak['ours'] / peak['bare']:.2f} "
        f"| {wall['ours']:.0f}, {wall['bare']:.0f} |"
    )


#: The file that tables go to besides the terminal.
_output: list[Path] = []


def say(line: str) -> None:
    """Print a line, and add it to the output file."""
    print(line, flush=True)
    for path in _output:
        with path.open("a") as stream:
            stream.write(f"{line}\n")


def main() -> None:
    """Run the part that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("rows", "dag", "jobs", "duplicates"))
    parser.add_argument("numbers", nargs="+", type=int)
    parser.add_argument("--chunk-rows", type=int, default=2000)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--compress", default="auto")
    parser.add_argument("--keep-stages", type=json.loads, default=True)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    if args.output is not None:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        _output.append(args.output.resolve())
    with tempfile.TemporaryDirectory(prefix="potstill-scale-") as name:
        run(args, Path(name))


def run(args: argparse.Namespace, folder: Path) -> None:
    """Run the part that was asked for in a folder."""
    if args.what == "rows":
        chunks = {"rows": args.chunk_rows, "compress": args.compress, "keep_stages": args.keep_stages}
        found = []
        for rows in args.numbers:
            found.append(measure_rows(folder / str(rows), rows, chunks, args.cores))
            shutil.rmtree(folder / str(rows))
        print_growth(found)
    elif args.what == "dag":
        say("\n| | ours, CPU s | bare, CPU s | ratio | ours, MB | bare, MB | ratio |\n|---|---|---|---|---|---|---|")
        compare_dags(folder, *args.numbers, args.rounds)
    elif args.what == "jobs":
        say("\n| chunks | jobs | controller, ms CPU a job | bare | ratio | memory, ratio | wall, ms a job |")
        say("|---|---|---|---|---|---|---|")
        for chunks in args.numbers:
            compare_jobs(folder / str(chunks), chunks)
    else:
        say(
            "\n| rows | repeated | wall s | CPU s | µs a row | peak MB | bytes written a row |\n|---|---|---|---|---|---|---|"
        )
        for rows in args.numbers:
            measure_duplicates(folder / str(rows), rows)
            shutil.rmtree(folder / str(rows))


if __name__ == "__main__":
    main()
