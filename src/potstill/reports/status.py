"""How far a run is, from its files alone: while it runs, after it stopped, from another machine on the same disk."""

from __future__ import annotations

import re
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from potstill.errors import ConfigError, InputError
from potstill.generate.costs import cost_of
from potstill.reports.files import OWN_FOLDERS, read_json, round_folders, stage_ending
from potstill.reports.manifest import STAGES, find_stage_note
from potstill.reports.times import parse_time
from potstill.rows import count_lines, read_rows

if TYPE_CHECKING:
    from potstill.config.model import Prices

#: The rate is that of the last so many seconds of answers.
RATE_WINDOW_S = 300
_LOG_TAIL = 1 << 16
#: The line that the engine writes every few seconds: rows done of all rows.
_PROGRESS = re.compile(rb" INFO (\d+)(?:/\d+ \(\d+ %\))? rows, (\d+\.\d+) rows/s")
#: A job says how far it is every ten seconds; one that has said nothing for so long is not at work.
_SILENT_S = 60


class Progress(NamedTuple):
    """How far chunks are that are not done, and how many rows end in a second."""

    rows: int
    rate: float


@dataclass
class ChunkCounts:
    """What one finished chunk of answers holds."""

    answered: int = 0
    failed: int = 0
    not_asked: int = 0
    money: float = 0.0
    errors: Counter[str] = field(default_factory=Counter)
    moments: list[float] = field(default_factory=list)

    @property
    def rows(self) -> int:
        """Rows of the chunk that have their end."""
        return self.answered + self.failed + self.not_asked


@dataclass
class ModelStatus:
    """How far one model is."""

    alias: str
    stages: dict[str, tuple[int, int]]
    answered: int
    failed: int
    not_asked: int
    under_way: int
    errors: Counter[str]
    money: float | None
    currency: str
    rate: float | None
    last_answer: float | None
    merged: bool


@dataclass
class RunStatus:
    """How far a run is."""

    run_dir: Path
    rows: int | None
    samples: int
    chunks: int
    models: list[ModelStatus]
    finished: bool
    gates: str | None
    rounds: int = 1


class StatusReader:
    """Reads the state of a run; a file that has not changed is not read again.

    Args:
        run_dir: The folder of the run.

    Raises:
        InputError: If the folder is not there.
    """

    def __init__(self, run_dir: Path) -> None:
        if not run_dir.is_dir():
            raise InputError(f"{run_dir}: no such folder; give the folder of a run: output_dir/run")
        self._run_dir = run_dir
        self._ending = ".jsonl"
        self._lines: dict[Path, tuple[tuple[int, int], int]] = {}
        self._chunks: dict[Path, tuple[tuple[int, int], ChunkCounts]] = {}

    def read(self) -> RunStatus:
        """Return the state of the run now."""
        config = self._config()
        summary_path = self._run_dir / "prepared" / "summary.json"
        summary = read_json(summary_path) if summary_path.is_file() else {}
        names = [str(entry["chunk"]) for entry in summary.get("chunks", [])]
        rounds = (config.get("rounds") or {}).get("max", 1)
        self._ending = stage_ending(config)
        models = [self._model(alias, names, rounds) for alias in self._aliases(config)]
        gates = self._run_dir / "gates.json"
        return RunStatus(
            run_dir=self._run_dir,
            rows=summary.get("rows"),
            samples=(config.get("generate") or {}).get("samples", 1),
            chunks=len(names),
            models=models,
            finished=bool(models) and all(model.merged for model in models),
            gates=("met" if read_json(gates)["met"] else "not met") if gates.is_file() else None,
            rounds=rounds,
        )

    def _config(self) -> dict[str, Any]:
        import yaml

        path = self._run_dir / "config.yaml"
        return (yaml.safe_load(path.read_text()) or {}) if path.is_file() else {}

    def _aliases(self, config: Mapping[str, Any]) -> list[str]:
        named = [model["alias"] for model in config.get("models", [])]
        found = [
            folder.name
            for folder in sorted(self._run_dir.iterdir())
            if folder.name not in OWN_FOLDERS and (folder / "generated").is_dir()
        ]
        return list(dict.fromkeys([*named, *found]))

    def _model(self, alias: str, chunks: Sequence[str], rounds: int) -> ModelStatus:
        folder = self._run_dir / alias
        parts = round_folders(folder, rounds)
        prices = _prices(folder / "model.yaml")
        found = (self._chunk(part / "generated", chunk, prices) for part in parts for chunk in chunks)
        done = [counts for counts in found if counts is not None]
        under_way = self._under_way(alias, chunks, rounds)
        moments = sorted(moment for counts in done for moment in counts.moments)
        stages = {"generated": (len(done), sum(counts.rows for counts in done))}
        for stage in [*STAGES[1:], "filtered"]:
            if (folder / stage).is_dir():
                stages[stage] = self._stage([part / stage for part in parts], chunks)
        return ModelStatus(
            alias=alias,
            stages=stages,
            answered=sum(counts.answered for counts in done),
            failed=sum(counts.failed for counts in done),
            not_asked=sum(counts.not_asked for counts in done),
            under_way=under_way.rows,
            errors=sum((counts.errors for counts in done), Counter()),
            money=sum(counts.money for counts in done) if prices else None,
            currency=prices.currency if prices else "",
            rate=under_way.rate or _rate(moments),
            last_answer=moments[-1] if moments else None,
            merged=(folder / "merged.jsonl").is_file(),
        )

    def _chunk(self, folder: Path, chunk: str, prices: Prices | None) -> ChunkCounts | None:
        """Return the counts of a chunk of answers, or None where it is not done."""
        path = folder / f"{chunk}{self._ending}"
        if not path.is_file():
            return None
        state = _state(path)
        known = self._chunks.get(path)
        if known is None or known[0] != state:
            self._chunks[path] = known = (state, _count_chunk(folder, chunk, self._ending, prices))
        return known[1]

    def _under_way(self, alias: str, chunks: Sequence[str], rounds: int) -> Progress:
        """Return the rows that have their end in chunks that are not done, and their rate, as the jobs' logs last said."""
        logs = round_folders(self._run_dir / "logs" / "generate_answers" / alias, rounds)
        folders = round_folders(self._run_dir / alias, rounds)
        found = [
            _last_progress(log / f"{chunk}.log")
            for log, folder in zip(logs, folders, strict=True)
            for chunk in chunks
            if not (folder / "generated" / f"{chunk}{self._ending}").is_file()
        ]
        return Progress(sum(one.rows for one in found), sum(one.rate for one in found))

    def _stage(self, folders: Sequence[Path], chunks: Sequence[str]) -> tuple[int, int]:
        """Return how many chunks of a stage are done, and the rows in them."""
        verdicts = (".kept", ".rejected") if folders[0].name == "filtered" else ("",)
        found = [
            [self._count_rows(folder / f"{chunk}{verdict}{self._ending}") for verdict in verdicts]
            for folder in folders
            for chunk in chunks
        ]
        done = [[count for count in counts if count is not None] for counts in found if counts[-1] is not None]
        return len(done), sum(sum(counts) for counts in done)

    def _count_rows(self, path: Path) -> int | None:
        """Return the rows of a stage's file, as its job has noted them where the file is gone; None where it never was."""
        if not path.is_file():
            note = find_stage_note(self._run_dir, path)
            return None if note is None else int(note["rows"])
        state = _state(path)
        known = self._lines.get(path)
        if known is None or known[0] != state:
            self._lines[path] = known = (state, count_lines(path))
        return known[1]


def _state(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _last_progress(log: Path) -> Progress:
    """Return what the last progress line in the end of a log says; a job that has fallen silent has no rate."""
    if not log.is_file():
        return Progress(0, 0.0)
    state = log.stat()
    with log.open("rb") as stream:
        stream.seek(max(0, state.st_size - _LOG_TAIL))
        found = _PROGRESS.findall(stream.read())
    if not found:
        return Progress(0, 0.0)
    rows, rate = found[-1]
    return Progress(int(rows), float(rate) if time.time() - state.st_mtime < _SILENT_S else 0.0)


def _prices(model_file: Path) -> Prices | None:
    """Return the price table of the run's copy of a model's file, or None where there is none."""
    from potstill.config.model import load_model

    if not model_file.is_file():
        return None
    try:
        return load_model(model_file).prices
    except ConfigError:
        # Status must not fail because of the model file; the run itself says what is wrong with it.
        return None


def _count_chunk(folder: Path, chunk: str, ending: str, prices: Prices | None) -> ChunkCounts:
    counts = ChunkCounts()
    for row in read_rows(folder / f"{chunk}{ending}"):
        counts.answered += 1
        _add_times_and_money(counts, row, prices)
    if (path := folder / f"{chunk}.failed{ending}").is_file():
        for row in read_rows(path):
            counts.failed += 1
            counts.errors[str(row.get("error_class") or "unknown")[:80]] += 1
            _add_times_and_money(counts, row, prices)
    if (path := folder / f"{chunk}.not_asked{ending}").is_file():
        counts.not_asked = count_lines(path)
    return counts


def _add_times_and_money(counts: ChunkCounts, row: Mapping[str, Any], prices: Prices | None) -> None:
    if isinstance(usage := row.get("usage"), dict):
        counts.money += cost_of(usage, prices)
    if (moment := parse_time(row.get("answered_at"))) is not None:
        counts.moments.append(moment)


def _rate(moments: Sequence[float]) -> float | None:
    """Return answers per second over the last minutes of answering; None where too few came."""
    if len(moments) < 2:
        return None
    first = bisect_left(moments, moments[-1] - RATE_WINDOW_S)
    seconds = moments[-1] - moments[first]
    return (len(moments) - 1 - first) / seconds if seconds > 0 else None


def describe(status: RunStatus, now: float | None = None) -> Iterator[str]:
    """Yield the state as lines for people."""
    now = time.time() if now is None else now
    asked = None if status.rows is None else status.rows * status.samples
    rows = "rows not prepared yet" if status.rows is None else f"{status.rows} rows"
    samples = f" x {status.samples} samples" if status.samples > 1 else ""
    of_rounds = f" x {status.rounds} rounds" if status.rounds > 1 else ""
    yield f"{status.run_dir}: {rows}{samples}, {status.chunks} chunks{of_rounds}, {len(status.models)} models"
    jobs = status.chunks * status.rounds
    for model in status.models:
        yield f"\n{model.alias}{': merged' if model.merged else ''}"
        for stage, (chunks, count) in model.stages.items():
            share = f" ({100 * chunks / jobs:.0f} %)" if jobs else ""
            yield f"  {stage:<10} {chunks:>6} of {jobs} chunks{share}, {count} rows"
        under_way = f", under way {model.under_way}" if model.under_way else ""
        yield f"  answered {model.answered}, failed {model.failed}, not asked {model.not_asked}{under_way}"
        yield from _details(model, asked, now)
    if status.gates is not None:
        yield f"\ngates: {status.gates}"


def _details(model: ModelStatus, asked: int | None, now: float) -> Iterator[str]:
    if model.errors:
        yield "  errors: " + ", ".join(f"{name} {count}" for name, count in model.errors.most_common(8))
    if model.money is not None:
        yield f"  money so far: {model.money:.6g} {model.currency}".rstrip()
    if model.rate is not None:
        yield f"  rate: {model.rate:.3g} answers per second"
    if model.merged:
        return
    if model.last_answer is not None:
        yield f"  last answer of a finished chunk: {_span(now - model.last_answer)} ago"
    if asked is not None and model.rate:
        left = asked - model.answered - model.failed - model.not_asked - model.under_way
        yield f"  left: {left} rows, about {_span(left / model.rate)} at this rate"


def _span(seconds: float) -> str:
    seconds = max(0, round(seconds))
    hours, rest = divmod(seconds, 3600)
    if hours:
        return f"{hours} h {rest // 60} min"
    return f"{rest // 60} min {rest % 60} s" if rest >= 60 else f"{rest} s"
