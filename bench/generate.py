"""How fast is the engine? `python bench/generate.py` runs a bare aiohttp loop and ours in turn and prints ratios.

The teacher is a process of its own. The bare loop is what a careful person writes in an afternoon: a window of
workers, std json, `resp.read()`, answers appended to a list and written at the end; nothing is checked, kept or
retried. Ours is `generate_chunk` as the rule calls it, with everything on: request hash, strict checks, journal with
checksums, fsync, ordered output.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from tests.servers.handle import running  # noqa: E402 - the path must be set first


def write_rows(path: Path, rows: int, prompt_bytes: int) -> None:
    with path.open("w") as stream:
        for number in range(rows):
            text = f"row {number} " + "x" * prompt_bytes
            stream.write(
                json.dumps(
                    {
                        "sample_id": hashlib.sha256(b"%d" % number).hexdigest(),
                        "messages": [{"role": "user", "content": text}],
                    }
                )
                + "\n"
            )


def bare(source: Path, target: Path, url: str, concurrency: int) -> None:
    """The loop to compare with."""
    import asyncio

    import aiohttp

    async def main() -> None:
        answers: dict[int, str] = {}
        with source.open() as lines:
            rows = enumerate(lines)
            connector = aiohttp.TCPConnector(limit=0)
            async with aiohttp.ClientSession(connector=connector) as session:

                async def work() -> None:
                    for number, line in rows:
                        row = json.loads(line)
                        body = {"model": "fake", "temperature": 0.5, "max_tokens": 100, "messages": row["messages"]}
                        async with session.post(f"{url}/chat/completions", json=body) as response:
                            data = json.loads(await response.read())
                        row["generation"] = data["choices"][0]["message"]["content"]
                        answers[number] = json.dumps(row)

                await asyncio.gather(*(work() for _ in range(concurrency)))
        target.write_text("\n".join(answers[number] for number in sorted(answers)) + "\n")

    asyncio.run(main())


def ours(source: Path, target: Path, url: str, concurrency: int) -> None:
    """`generate_chunk`, everything on."""
    from potstill.config.model import load_model
    from potstill.stages.generate import generate_chunk

    folder = target.parent
    model = folder / "model.yaml"
    model.write_text(
        json.dumps(
            {
                "client_config": {"base_url": url},
                "chat_config": {"model": "fake", "temperature": 0.5, "max_tokens": 100},
            }
        )
    )
    generate_chunk(
        source,
        target,
        folder / "failed.jsonl",
        folder / "not_asked.jsonl",
        model=load_model(model),
        settings={},
        concurrency=concurrency,
        answers_dir=folder / "answers",
    )


def measure_here(which: str, source: Path, target: Path, url: str, concurrency: int) -> None:
    """Run one of the two in this process and print what it took, as JSON; imports are not counted."""
    import aiohttp  # noqa: F401 - both need it

    import potstill.stages.generate  # noqa: F401

    before = resource.getrusage(resource.RUSAGE_SELF)
    started = time.perf_counter()
    {"bare": bare, "ours": ours}[which](source, target, url, concurrency)
    wall = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(json.dumps({"wall": wall, "cpu": cpu, "rss_mb": after.ru_maxrss / 1024}))


def measure(which: str, source: Path, url: str, concurrency: int) -> dict[str, Any]:
    """Run one of the two in a fresh process and return what it took."""
    with tempfile.TemporaryDirectory(dir=source.parent) as folder:
        target = Path(folder) / "out.jsonl"
        command = [sys.executable, __file__, "--measure", which, str(source), str(target), url, str(concurrency)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        lines = sum(1 for _ in target.open("rb"))
        result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        result["rows"] = lines
        return result


def compare(
    name: str, folder: Path, rows: int, concurrency: int, rounds: int, prompt_bytes: int, **teacher: Any
) -> None:
    """Print the ratios of one setting."""
    source = folder / f"rows-{rows}.jsonl"
    write_rows(source, rows, prompt_bytes)
    found: dict[str, list[dict[str, Any]]] = {"bare": [], "ours": []}
    with running(**teacher, remember=False) as server:
        for number in range(rounds):
            for which in ("bare", "ours") if number % 2 == 0 else ("ours", "bare"):
                server.control(reset=True)
                result = measure(which, source, server.url, concurrency)
                assert result["rows"] == rows, result
                found[which].append(result)
    walls = {which: statistics.median(result["wall"] for result in results) for which, results in found.items()}
    cpus = {
        which: 1000 * statistics.median(result["cpu"] for result in results) / rows for which, results in found.items()
    }
    pairs = statistics.median(o["wall"] / b["wall"] for o, b in zip(found["ours"], found["bare"], strict=True))
    print(
        f"{name}: {rows} rows, {concurrency} in flight: bare {walls['bare']:.2f} s ({rows / walls['bare']:.0f}/s, "
        f"{cpus['bare']:.3f} ms CPU a row), ours {walls['ours']:.2f} s ({rows / walls['ours']:.0f}/s, {cpus['ours']:.3f} ms CPU a row, "
        f"{max(r['rss_mb'] for r in found['ours']):.0f} MB); wall ratio {pairs:.3f}, rate ratio {1 / pairs:.3f}",
        flush=True,
    )


def memory(folder: Path, sizes: list[int]) -> None:
    """Print the slope of memory over the number of rows."""
    peaks = []
    for rows in sizes:
        source = folder / "memory.jsonl"
        write_rows(source, rows, 200)
        with running(remember=False) as server:
            peaks.append(measure("ours", source, server.url, 256)["rss_mb"])
        print(f"memory: {rows} rows: {peaks[-1]:.1f} MB", flush=True)
    slope = (peaks[-1] - peaks[0]) / (sizes[-1] - sizes[0]) * 100_000
    print(f"memory: slope {slope:.2f} MB per 100,000 rows")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measure", nargs=5, help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=8000)
    parser.add_argument("--only", choices=["zero", "256", "1024", "memory"])
    parser.add_argument("--memory-rows", type=int, nargs="+", default=[100_000, 300_000])
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    args = parser.parse_args()
    if args.measure:
        which, source, target, url, concurrency = args.measure
        measure_here(which, Path(source), Path(target), url, int(concurrency))
        return
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        if args.only in (None, "zero"):
            compare("no latency", folder, args.rows, 64, args.rounds, 300)
        for concurrency in (256, 1024):
            if args.only in (None, str(concurrency)):
                compare(
                    "log-normal latency (0.2 s, sigma 0.8)",
                    folder,
                    args.rows,
                    concurrency,
                    args.rounds,
                    300,
                    latency_s=0.2,
                    sigma=0.8,
                )
        if args.only in (None, "memory"):
            memory(folder, args.memory_rows)


if __name__ == "__main__":
    main()
