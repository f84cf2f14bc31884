"""What the reports cost: the time of each over the time of reading the rows once, and the memory at the end.

python bench/reports.py [ROWS]
"""

from __future__ import annotations

import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from potstill.reports.cost import write_cost_report
from potstill.reports.files import ModelFiles
from potstill.reports.manifest import find_stage_files, write_manifest
from potstill.reports.page import write_page
from potstill.reports.quality import write_quality_report
from potstill.reports.timing import write_timing_report
from potstill.rows import read_rows
from tests.unit.report_runs import make_config, make_run


def measure(name: str, work: Callable[[], object], unit: float | None = None) -> float:
    started = time.perf_counter()
    work()
    seconds = time.perf_counter() - started
    print(f"{name:<10} {seconds:7.2f} s" + (f"  {seconds / unit:5.2f} x reading" if unit else ""))
    return seconds


def main(rows: int) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        run_dir = Path(scratch)
        # Made by a process of its own: the memory below is that of the reports.
        maker = multiprocessing.get_context("spawn").Process(target=make_run, args=(run_dir, rows))
        maker.start()
        maker.join()
        files, reports = ModelFiles.of(run_dir / "teacher"), run_dir / "teacher" / "reports"
        summary, before = run_dir / "prepared" / "summary.json", memory_mb()
        unit = measure("reading", lambda: sum(1 for path in files[:4] for _ in read_rows(path)))
        quality, timing, cost = (reports / f"{name}_report.json" for name in ("quality", "timing", "cost"))
        measure("quality", lambda: write_quality_report(quality, model="teacher", files=files, summary=summary), unit)
        measure("timing", lambda: write_timing_report(timing, model="teacher", files=files), unit)
        measure("cost", lambda: write_cost_report(cost, model="teacher", files=files, prices=None), unit)
        stages, config = find_stage_files(run_dir, "teacher", ["0001"]), make_config(["teacher"])
        manifest = reports / "manifest.json"
        measure(
            "manifest",
            lambda: write_manifest(
                manifest, model="teacher", run_dir=run_dir, stages=stages, sources={}, config=config
            ),
            unit,
        )
        page = run_dir / "report.html"
        measure("page", lambda: write_page(page, model_folders=[run_dir / "teacher"], config=config), unit)
        print(f"{rows} rows; page {page.stat().st_size / 1e6:.2f} MB; memory {memory_mb()} MB ({before} MB before)")


def memory_mb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)
