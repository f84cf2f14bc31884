"""Looking after a store: count it, check it, write it out, take records out, take rows of other tools in."""

from __future__ import annotations

import collections
import contextlib
import datetime
import fcntl
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from potstill.answers.journal import Damage, boot_id, decode, find_damage
from potstill.answers.reuse import ReusePolicy
from potstill.answers.store import AnswerStore, read_format
from potstill.config.model import Model
from potstill.errors import InputError, TryAgainError
from potstill.generate.faults import Fault
from potstill.generate.reply import read_document, read_usage
from potstill.records import Row
from potstill.rows import disk_errors, loads, publish

#: A journal of another machine that changed within this many seconds may have a living writer.
_MAY_LIVE_S = 3600.0


@dataclass
class Summary:
    """What a store holds."""

    model: str
    answers: int = 0
    failures: collections.Counter[str] = field(default_factory=collections.Counter)
    finish_reasons: collections.Counter[str] = field(default_factory=collections.Counter)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    first: float | None = None
    last: float | None = None
    size: int = 0

    def text(self) -> str:
        """Return it in one line for people."""
        failures = ", ".join(f"{name} {count}" for name, count in self.failures.most_common()) or "none"
        reasons = ", ".join(f"{name} {count}" for name, count in self.finish_reasons.most_common()) or "none"
        return (
            f"{self.model}: {self.answers} answers (finish_reason: {reasons}), failures: {failures}, "
            f"tokens: {self.prompt_tokens} in, {self.completion_tokens} out, "
            f"{_day(self.first)} to {_day(self.last)}, {self.size / 1e6:.1f} MB"
        )


def _day(seconds: float | None) -> str:
    return "-" if seconds is None else datetime.datetime.fromtimestamp(seconds, datetime.UTC).date().isoformat()


def _records(folder: Path) -> Iterator[dict[str, Any]]:
    for path in sorted((folder / "journals").glob("*.jsonl")):
        with path.open("rb") as stream:
            for place in find_damage(path):
                stream.seek(place.offset)
                yield decode(stream.read(place.length), f"{path}: byte {place.offset}")


def summarise(folder: Path) -> Summary:
    """Count a store.

    Raises:
        StoreError: If a record is damaged.
    """
    summary = Summary(read_format(folder)["model"])
    for record in _records(folder):
        _count(summary, record)
    summary.size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return summary


def _count(summary: Summary, record: dict[str, Any]) -> None:
    if record.get("error_class"):
        summary.failures[record["error_class"]] += 1
    else:
        summary.answers += 1
        summary.finish_reasons[str(record["finish_reason"])] += 1
    usage = record.get("usage") or {}
    summary.prompt_tokens += usage.get("prompt_tokens") or 0
    summary.completion_tokens += usage.get("completion_tokens") or 0
    at = record["answered_at"]
    summary.first = at if summary.first is None else min(summary.first, at)
    summary.last = at if summary.last is None else max(summary.last, at)


@dataclass
class Report:
    """What `verify` found."""

    records: int = 0
    torn: int = 0
    damage: list[Damage] = field(default_factory=list)


def verify(folder: Path) -> Report:
    """Read every record of a store and name all damage, not only the first."""
    report = Report()
    for path in sorted((folder / "journals").glob("*.jsonl")):
        end = 0
        for place in find_damage(path):
            end = place.offset + place.length
            if isinstance(place, Damage):
                report.damage.append(place)
            else:
                report.records += 1
        report.torn += end < path.stat().st_size
    return report


def export(folder: Path, output: Path) -> int:
    """Write all records of a store to a JSONL file and return how many there were."""
    with publish(output) as out:
        for record in _records(folder):
            record.pop("crc", None)
            out.write(record)
    return out.count


@dataclass(frozen=True)
class Prune:
    """What to take out.

    Attributes:
        damaged: Records that cannot be read.
        failures: Rows that failed.
        superseded: Records that another of the same request replaces.
        before: Answers from before this day (ISO).
    """

    damaged: bool = False
    failures: bool = False
    superseded: bool = False
    before: str | None = None

    @property
    def before_s(self) -> float:
        """The day as seconds since 1970.

        Raises:
            InputError: If it is no date.
        """
        if self.before is None:
            return 0.0
        try:
            return datetime.datetime.fromisoformat(self.before).replace(tzinfo=datetime.UTC).timestamp()
        except ValueError as error:
            raise InputError(f"--before {self.before}: a day such as 2026-01-31 was expected") from error


@dataclass
class PruneCounts:
    """How many records were, or would be, taken out."""

    dropped: int = 0
    kept: int = 0


def prune(folder: Path, what: Prune, *, do: bool) -> PruneCounts:
    """Take records out of a store that no job is using.

    Args:
        folder: The store.
        what: What to take out.
        do: Whether to do it; else it is only counted.

    Raises:
        InputError: If nothing is named.
        TryAgainError: If a job is writing to the store.
        StoreError: If a record is damaged and `what.damaged` is not set.
    """
    if what == Prune():
        raise InputError("name what to take out: --damaged, --failures, --superseded or --before DATE")
    before, counts = what.before_s, PruneCounts()
    journals = sorted((folder / "journals").glob("*.jsonl"))
    best = _best(folder, what) if what.superseded else {}
    with _held(journals):
        for path in journals:
            keep = [line for line, record in _lines(path, what) if _stays(record, what, before, best, counts)]
            if do:
                _rewrite(path, keep)
        if do:
            # The places of records have changed: the next start makes the index again.
            for file in (*(folder / "index").glob("*.idx"), *(folder / "journals").glob("*.keys")):
                file.unlink()
    return counts


def _held(journals: list[Path]) -> contextlib.ExitStack:
    """Hold all journals, so that no job appends to one meanwhile."""
    scope = contextlib.ExitStack()
    for path in journals:
        stream = scope.enter_context(path.open("rb"))
        if not _is_free(path, stream):
            scope.close()
            raise TryAgainError(f"{path}: a job is writing to this store; prune it when no run is going on")
    return scope


def _is_free(path: Path, stream: IO[bytes]) -> bool:
    """Return whether no job holds a journal: by its lock on this machine, by its age on another."""
    if not path.name.startswith(boot_id()):
        return time.time() - path.stat().st_mtime >= _MAY_LIVE_S
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _lines(path: Path, what: Prune) -> Iterator[tuple[bytes, dict[str, Any] | None]]:
    with path.open("rb") as stream:
        for place in find_damage(path):
            stream.seek(place.offset)
            line = stream.read(place.length)
            if isinstance(place, Damage) and what.damaged:
                yield line, None
            else:
                yield line, decode(line, f"{path}: byte {place.offset}")


def _best(folder: Path, what: Prune) -> dict[str, float]:
    """Return for each request the time of the record that serves it, where there are several."""
    times: dict[str, list[dict[str, Any]]] = collections.defaultdict(list)
    for path in sorted((folder / "journals").glob("*.jsonl")):
        for _, record in _lines(path, what):
            if record is not None:
                brief = {
                    name: record.get(name)
                    for name in ("error_class", "finish_reason", "answered_at", "max_tokens", "usage")
                }
                times[record["key"]].append(brief)
    policy = ReusePolicy()
    return {
        key: chosen["answered_at"]
        for key, records in times.items()
        if len(records) > 1 and (chosen := policy.choose(records, [records[-1]["max_tokens"]])) is not None
    }


def _stays(
    record: dict[str, Any] | None, what: Prune, before: float, best: dict[str, float], counts: PruneCounts
) -> bool:
    drop = record is None or bool(
        (what.failures and record.get("error_class"))
        or record["answered_at"] < before
        or (record["key"] in best and record["answered_at"] != best[record["key"]])
    )
    counts.dropped += drop
    counts.kept += not drop
    return not drop


def _rewrite(path: Path, lines: Iterable[bytes]) -> None:
    """Write a journal anew under its own name."""
    temporary = path.with_suffix(".pruned")
    with disk_errors(path):
        with temporary.open("wb") as stream:
            stream.writelines(lines)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)


@dataclass
class ImportCounts:
    """What became of the rows of other tools."""

    taken: int = 0
    known: int = 0
    bad: list[str] = field(default_factory=list)


def import_rows(
    files: list[Path],
    model: Model,
    answers_dir: Path,
    messages_field: str | None = None,
    response_field: str = "response",
) -> ImportCounts:
    """Take over answers that were paid for with other tools.

    Args:
        files: JSONL files of rows.
        model: The model and the parameters that the rows were asked with: they make the keys.
        answers_dir: The folder of all stores.
        messages_field: The conversation, by default `final_messages`, else `messages`; if it ends with the assistant's
            turn and there is no response, that is the answer.
        response_field: The answer: its text, or a whole reply of a server.
    """
    from potstill.generate.requests import RequestMaker
    from potstill.readers import read_input

    maker, counts = RequestMaker(model), ImportCounts()
    with AnswerStore(answers_dir, model.name) as store:
        for path in files:
            for line in read_input(path, 64 << 20):
                where = f"{path}: line {line.number}"
                if line.row is None:
                    counts.bad.append(f"{where}: {line.reason}")
                    continue
                try:
                    _take(line.row, maker, store, counts, messages_field, response_field)
                except ValueError as error:
                    counts.bad.append(f"{where}: {error}")
    return counts


def _take(
    row: Row, maker: Any, store: AnswerStore, counts: ImportCounts, messages_field: str | None, response_field: str
) -> None:
    name = messages_field or ("final_messages" if "final_messages" in row else "messages")
    messages, response = row.get(name), row.get(response_field)
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"no conversation in {name!r}")
    last = messages[-1] if isinstance(messages[-1], dict) else {}
    if last.get("role") == "assistant":
        # `final_messages` of the older tool: the conversation with its answer at the end.
        messages = messages[:-1]
        response = last.get("content") if response is None else response
    record = _record_of(response, row)
    sample = row.get("sample_index", 0)
    job = maker.job({**row, "messages": messages}, (sample if isinstance(sample, int) else 0,), 0)
    if store.find(job.keys[0]):
        counts.known += 1
        return
    store.append(job.keys[0], {"sample_index": job.samples[0], "max_tokens": job.limit, **record})
    counts.taken += 1


def _record_of(response: Any, row: Row) -> dict[str, Any]:
    """Return the record of an answer that is a text or a whole reply.

    Raises:
        ValueError: If it is neither, or empty.
    """
    usage, served, reasoning, tool_calls, finish = (
        read_usage(row.get("usage")),
        None,
        row.get("reasoning"),
        None,
        row.get("finish_reason"),
    )
    if isinstance(response, str) and response.startswith('{"') and '"choices"' in response:
        response = loads(response)
    if isinstance(response, dict):
        reply = read_document(response, b"")
        if isinstance(reply, Fault):
            raise ValueError(f"the reply is no answer: {reply.message}")  # noqa: TRY004 - a bad row, not a bad type
        choice, usage, served = reply.choices[0], reply.usage, reply.served_model
        response, reasoning, tool_calls, finish = (
            choice.content,
            choice.reasoning,
            choice.tool_calls,
            choice.finish_reason,
        )
    if not isinstance(response, str) or not (response.strip() or tool_calls):
        raise ValueError("no answer in the row")
    return {
        "finish_reason": finish or "stop",
        "content": response,
        "reasoning": reasoning if isinstance(reasoning, str) else None,
        "tool_calls": tool_calls,
        "usage": usage,
        "served_model": served,
        "system_fingerprint": None,
        "endpoint": "imported",
        "latency_s": None,
        "attempts": 0,
        "answered_at": round(time.time(), 3),
    }
