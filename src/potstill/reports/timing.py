"""timing_report.json: how long the stages, the teacher and the SQL took.

Two sources: the benchmark files that Snakemake writes for each job, and the rows' own times (timings.jsonl).
All durations are seconds.
"""

from __future__ import annotations

import csv
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from potstill.records import Row
from potstill.reports.cost import count_tokens
from potstill.reports.files import ModelFiles, round_folders
from potstill.reports.numbers import Names, Numbers, as_number, ratio
from potstill.reports.times import format_time, parse_time
from potstill.rows import publish_json, read_rows

#: A longer time without any request in flight is a pause of the run, and none of the teacher's time.
PAUSE_S = 300
#: Points of the curve over time on the page.
SERIES_POINTS = 60


def read_benchmarks(paths: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """Return, for each rule, the summary of its jobs' wall times and the largest memory of a job (MB).

    Args:
        paths: Benchmark files `benchmarks/{rule}/….tsv`; a rule's folder names it.
    """
    seconds: dict[str, Numbers] = {}
    memory: dict[str, Numbers] = {}
    for path in paths:
        rule = _rule_of(path)
        for line in _read_benchmark(path):
            seconds.setdefault(rule, Numbers()).add(_float(line.get("s")))
            memory.setdefault(rule, Numbers()).add(_float(line.get("max_rss")))
    return {
        rule: {**times.summary(), "total": times.total(), "max_rss_mb": memory[rule].summary()["max"]}
        for rule, times in sorted(seconds.items())
    }


def _rule_of(path: Path) -> str:
    parts = path.parts
    return parts[parts.index("benchmarks") + 1] if "benchmarks" in parts[:-2] else path.parent.name


def _read_benchmark(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream, delimiter="\t"))


def _float(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None


class _Active(NamedTuple):
    seconds: float
    first: float | None
    last: float | None


class Teacher:
    """The teacher's answers in time: each was in flight from `answered_at - latency_s` to `answered_at`."""

    def __init__(self) -> None:
        self.latency, self.attempts = Numbers(), Numbers()
        self.endpoints, self.served_models = Names(), Names()
        self._ends, self._latencies = array("d"), array("d")

    def add(self, row: Row) -> None:
        """Add one line of timings.jsonl."""
        latency = as_number(row.get("latency_s"))
        end = parse_time(row.get("answered_at"))
        self.attempts.add(row.get("attempts"))
        if latency is None or end is None:
            return
        self.latency.add(latency)
        self.endpoints.add(row.get("endpoint"))
        self.served_models.add(row.get("served_model"))
        self._ends.append(end)
        self._latencies.append(latency)

    def intervals(self) -> Iterator[tuple[float, float]]:
        """Yield when each request was in flight, in the order of their starts; a list of all would be 140 bytes each."""
        starts = array("d", (end - latency for end, latency in zip(self._ends, self._latencies, strict=True)))
        for number in sorted(range(len(starts)), key=starts.__getitem__):
            yield starts[number], self._ends[number]

    def active(self) -> _Active:
        """Return the time from the first request to the last answer, without the pauses in which nothing was asked."""
        first = reach = None
        total = 0.0
        for start, end in self.intervals():
            if first is None or reach is None:
                first = reach = start
            gap = max(0.0, start - reach)
            total += (gap if gap <= PAUSE_S else 0.0) + max(0.0, end - max(start, reach))
            reach = max(reach, end)
        return _Active(total, first, reach)

    def series(self) -> list[dict[str, float | None]]:
        """Return answers per second and latency over time, in equal steps from the first request to the last."""
        if not self._ends:
            return []
        first, last = min(self._ends), max(self._ends)
        step = (last - first) / SERIES_POINTS or 1.0
        bins = [Numbers() for _ in range(SERIES_POINTS)]
        for end, latency in zip(self._ends, self._latencies, strict=True):
            bins[min(int((end - first) / step), SERIES_POINTS - 1)].add(latency)
        return [_point(first + i * step, step, latencies) for i, latencies in enumerate(bins)]


def _point(start: float, step: float, latencies: Numbers) -> dict[str, float | None]:
    summary = latencies.summary()
    return {
        "at": start,
        "answers": summary["count"],
        "answers_per_s": len(latencies) / step,
        "latency_p50": summary["p50"],
        "latency_p95": summary["p95"],
    }


def write_timing_report(
    output: Path, *, model: str, files: ModelFiles, benchmarks: Iterable[Path] = ()
) -> dict[str, Any]:
    """Write timing_report.json of one model and return it.

    Args:
        output: The report.
        model: The model's alias.
        files: The model's merged files.
        benchmarks: Snakemake's benchmark files of this model's jobs and of the run's shared ones.
    """
    teacher, execution = Teacher(), Numbers()
    for row in read_rows(files.timings):
        teacher.add(row)
        execution.add(row.get("exec_s"))
    kept, tokens = _count_kept_and_tokens(files)
    stages = read_benchmarks(benchmarks)
    report = {
        "model": model,
        "stages": stages,
        "overall_job_s": sum(stage["total"] for stage in stages.values()) if stages else None,
        "execution_s": execution.summary(),
        **_teacher_report(teacher, kept, tokens),
    }
    publish_json(output, report)
    return report


def _count_kept_and_tokens(files: ModelFiles) -> tuple[int, int]:
    kept_rows, tokens = 0, 0
    for kept, row in files.answered():
        kept_rows += kept
        usage = row.get("usage")
        tokens += count_tokens(usage, "completion_tokens") if isinstance(usage, dict) else 0
    return kept_rows, tokens


def _teacher_report(teacher: Teacher, kept: int, tokens: int) -> dict[str, Any]:
    active = teacher.active()
    answers = len(teacher.latency)
    return {
        "latency_s": teacher.latency.summary(),
        "attempts": teacher.attempts.summary(),
        "teacher_first_request_at": format_time(active.first),
        "teacher_last_answer_at": format_time(active.last),
        "teacher_active_s": active.seconds,
        "answers": answers,
        "answers_per_s": ratio(answers, active.seconds),
        "completion_tokens_per_s": ratio(tokens, active.seconds),
        "requests_in_flight_mean": ratio(teacher.latency.total(), active.seconds),
        "kept_per_hour": ratio(kept, active.seconds / 3600),
        "endpoint_counts": teacher.endpoints.as_dict(),
        "served_model_counts": teacher.served_models.as_dict(),
        "series": teacher.series(),
    }


def model_benchmarks(run_dir: Path, model: str, chunks: Sequence[str], rounds: int = 1) -> Iterator[Path]:
    """Yield the benchmark files of a run that belong to one model or to all models.

    Files lie as `{rule}/{model}/{chunk}.tsv`, `{rule}/{model}.tsv` or, for a rule that all models share,
    `{rule}/{rule}.tsv`. Those of chunks that are no more (there were others once) are left out.
    """
    for rule in sorted((run_dir / "benchmarks").glob("*")):
        names = [part / chunk for part in round_folders(rule / model, rounds) for chunk in chunks]
        paths = (name.with_name(f"{name.name}.tsv") for name in [*names, rule / model, rule / rule.name])
        yield from (path for path in paths if path.is_file())
