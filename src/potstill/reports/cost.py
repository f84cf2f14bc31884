"""cost_report.json: the tokens of one model's answers by kind, and what they cost by the model file's price table.

Failed rows that were paid for count too, and so does a judge. Without prices the tokens are counted and every sum of
money is null. An answer that was there before the run began cost nothing in this run: the answer store saved it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from potstill.generate.costs import cost_of
from potstill.records import Row
from potstill.reports.files import ModelFiles
from potstill.reports.numbers import as_number, ratio
from potstill.reports.rounds import Rounds
from potstill.reports.times import parse_time
from potstill.rows import publish_json, read_rows

if TYPE_CHECKING:
    from potstill.config.model import Prices

TOKENS = ("prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens")
JUDGE_TOKENS = ("prompt_tokens", "completion_tokens")
#: No answer has more tokens; a larger number is a fault of the server.
MOST_TOKENS = 1 << 40
_ENDS = ("kept", "rejected", "failed")


class _Spent:
    """Tokens and money of the rows of one end."""

    def __init__(self, prices: Prices | None, started: float | None) -> None:
        self._prices, self._started = prices, started
        self.rows = self.without_usage = self.reused = 0
        self.tokens = dict.fromkeys(TOKENS, 0)
        self.money = self.saved = 0.0
        self.judge_tokens = dict.fromkeys(JUDGE_TOKENS, 0)
        self.judge_money: float | None = 0.0

    def add(self, row: Row, times: Row) -> float:
        """Add a row and return what it has cost, its judge's answers included where their cost is known."""
        self.rows += 1
        answered_at = parse_time(times.get("answered_at"))
        reused = None not in (self._started, answered_at) and answered_at < self._started  # type: ignore[operator]
        self.reused += reused
        judged = row.get("judge_usage")
        judge_money = self._add_judge(judged) if isinstance(judged, dict) else 0.0
        usage = row.get("usage")
        if not isinstance(usage, dict):
            self.without_usage += 1
            return judge_money
        tokens: dict[str, Any] = {kind: count_tokens(usage, kind) for kind in TOKENS}
        for kind in TOKENS:
            self.tokens[kind] += tokens[kind]
        if isinstance(batch := usage.get("batch"), dict):
            tokens["batch"] = {kind: count_tokens(batch, kind) for kind in TOKENS}
        money = cost_of(tokens, self._prices)
        self.money += money
        self.saved += money if reused else 0.0
        return money + judge_money

    def _add_judge(self, usage: Mapping[str, Any]) -> float:
        """Add what the judge took, and return its cost (0 if unknown); its answers carry their cost where its model file has prices."""
        for kind in JUDGE_TOKENS:
            self.judge_tokens[kind] += count_tokens(usage, kind)
        cost = as_number(usage.get("cost"))
        self.judge_money = None if cost is None or self.judge_money is None else self.judge_money + cost
        return cost or 0.0


def count_tokens(usage: Mapping[str, Any], kind: str) -> int:
    """Return the tokens of one kind; 0 where the server did not count them, or said something impossible."""
    number = as_number(usage.get(kind))
    return int(number) if number is not None and 0 <= number < MOST_TOKENS else 0


def with_times(files: ModelFiles) -> Iterator[tuple[str, Row, Row]]:
    """Yield each kept, rejected and failed row, its end first, with its line of timings.jsonl last.

    The lines stand in the order of the files' rows, so one pass over all four does: each line belongs to the row that
    is next in one of the three. A row without a line has none of its times.
    """
    streams = {end: read_rows(getattr(files, end)) for end in _ENDS}
    heads = {end: next(stream, None) for end, stream in streams.items()}
    for line in read_rows(files.timings):
        end = next((end for end, row in heads.items() if row is not None and _key(row) == _key(line)), None)
        if end is not None and (row := heads[end]) is not None:
            yield end, row, line
            heads[end] = next(streams[end], None)
    for end, stream in streams.items():
        rest = itertools.chain([head] if (head := heads[end]) is not None else [], stream)
        yield from ((end, row, {}) for row in rest)


def _key(row: Row) -> tuple[object, object]:
    return row.get("sample_id"), row.get("sample_index", 0)


def find_start(logs: Iterable[Path]) -> float | None:
    """Return when the first of some jobs began, by the line that opens its log; None where none has it."""
    return min((start for path in logs if (start := _first_moment(path)) is not None), default=None)


def _first_moment(path: Path) -> float | None:
    try:
        with path.open(encoding="utf-8", errors="replace") as stream:
            stamp, _, rest = stream.readline(64).partition(" ")
        if rest.strip() != "INFO begun":
            return None
        return datetime.strptime(stamp, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp()
    except (OSError, ValueError):
        return None


def write_cost_report(
    output: Path,
    *,
    model: str,
    files: ModelFiles,
    prices: Prices | None,
    logs: Iterable[Path] = (),
    rounds: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write cost_report.json of one model and return it.

    Args:
        output: The report.
        model: The model's alias.
        files: The model's merged files.
        prices: The model file's price table; None where it has none.
        logs: The logs of the jobs that asked the teacher: an answer older than all of them was not paid by this run.
        rounds: The config's `rounds`; None where rows are asked once.
    """
    started = find_start(logs)
    spent = {end: _Spent(prices, started) for end in _ENDS}
    known = started is not None
    by_round = Rounds(rounds, priced=prices is not None) if rounds else None
    for end, row, times in with_times(files):
        money = spent[end].add(row, times)
        if by_round is not None:
            by_round.add(end, row, money)
    report = {"model": model, "prices": asdict(prices) if prices else None, **_sums(spent, prices is not None, known)}
    if by_round is not None:
        report["rounds"] = by_round.as_list()
    publish_json(output, report)
    return report


def _sums(spent: Mapping[str, _Spent], priced: bool, start_known: bool) -> dict[str, Any]:
    judge_parts = [end.judge_money for end in spent.values()]
    judge = None if None in judge_parts else sum(part or 0.0 for part in judge_parts)
    total = sum(end.money for end in spent.values()) + judge if priced and judge is not None else None
    answered, kept = spent["kept"].rows + spent["rejected"].rows, spent["kept"].rows
    tokens = {kind: sum(end.tokens[kind] for end in spent.values()) for kind in TOKENS}
    return {
        **tokens,
        "answered": answered,
        "kept": kept,
        "rows_without_usage": sum(end.without_usage for end in spent.values()),
        **{f"judge_{kind}": sum(end.judge_tokens[kind] for end in spent.values()) for kind in JUDGE_TOKENS},
        "cost_total": total,
        "cost_judge": judge,
        **{f"cost_{end}": spent[end].money if priced else None for end in _ENDS},
        "cost_per_row": ratio(total, answered),
        "cost_per_accepted_row": ratio(total, kept),
        "completion_tokens_per_accepted_row": ratio(tokens["completion_tokens"], kept),
        "answers_from_store": sum(end.reused for end in spent.values()) if start_known else None,
        "cost_saved_by_store": sum(end.saved for end in spent.values()) if priced and start_known else None,
    }
