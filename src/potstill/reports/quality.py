"""quality_report.json: what became of every row of one model.

`total` counts prepared rows; `kept + rejected + failed + not_asked = total x samples`. Rates are over answered
rows (kept + rejected), `gold_match_rate` over those of them that have usable gold. A rate of nothing is null.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from potstill.records import Row
from potstill.reports.agreement import Agreement
from potstill.reports.files import ModelFiles, read_json
from potstill.reports.numbers import Names, Numbers, histogram, ratio
from potstill.reports.rounds import Rounds
from potstill.rows import publish_json, read_rows
from potstill.stages.filter import LOW_SCORE, REQUIREMENTS

#: The slider has a step for every distinct score up to this many, else equal steps.
MAX_STEPS = 101


class Group:
    """The counts of one database, one difficulty, or all rows."""

    def __init__(self) -> None:
        self.counts = dict.fromkeys(("kept", "rejected", "failed", "not_asked"), 0)
        self.executed = self.exec_pass = self.gold_known = self.gold_match = 0
        self.scores = Numbers()

    def add_answer(self, kept: bool, row: Row) -> None:
        """Count an answered row."""
        self.counts["kept" if kept else "rejected"] += 1
        self.executed += isinstance(row.get("exec_pass"), bool)
        self.exec_pass += row.get("exec_pass") is True
        self.gold_known += isinstance(row.get("gold_match"), bool)
        self.gold_match += row.get("gold_match") is True
        self.scores.add(row.get("score"))

    @property
    def answered(self) -> int:
        """How many rows the teacher answered."""
        return self.counts["kept"] + self.counts["rejected"]

    def as_dict(self) -> dict[str, float | None]:
        """Return counts and rates; a stage that did not run has a null rate."""
        return {
            "answered": self.answered,
            **self.counts,
            "p_keep": ratio(self.counts["kept"], self.answered),
            "failed_ratio": ratio(self.counts["failed"], self.answered + self.counts["failed"]),
            "exec_pass": self.exec_pass,
            "exec_pass_rate": ratio(self.exec_pass, self.answered) if self.executed else None,
            "gold_usable": self.gold_known,
            "gold_match": self.gold_match,
            "gold_match_rate": ratio(self.gold_match, self.gold_known),
            "score_mean": self.scores.mean(),
        }


class Groups:
    """Groups by the value of a field, bounded in number; rows without the field are left out."""

    def __init__(self, field: str | None) -> None:
        self._field = field
        self._names = Names()
        self._groups: dict[str, Group] = {}

    def of(self, row: Row) -> Group | None:
        """Return the group of a row."""
        value = row.get(self._field) if self._field else None
        if value is None or isinstance(value, dict | list):
            return None
        name = self._names.key(value)
        self._names.add(name)
        return self._groups.setdefault(name, Group())

    def as_dict(self) -> dict[str, dict[str, float | None]]:
        """Return the groups by name."""
        return {name: group.as_dict() for name, group in sorted(self._groups.items())}


class Checks:
    """Why rows were rejected: the first reason, every reason, and the rows that one reason alone removed."""

    def __init__(self) -> None:
        self.first, self.every, self.only = Names(), Names(), Names()

    def add(self, row: Row) -> None:
        """Count a rejected row."""
        reasons = list(dict.fromkeys(row.get("reject_reasons") or []))
        self.first.add(row.get("reject_reason"))
        for reason in reasons:
            self.every.add(reason)
        if len(reasons) == 1:
            self.only.add(reasons[0])


#: Report key -> what of an answered row is counted by name; None is not counted.
_ANSWER_COUNTS: dict[str, Callable[[Row], Any]] = {
    "exec_error_counts": lambda row: row.get("exec_error_class"),
    "finish_reason_counts": lambda row: row.get("finish_reason") or "unknown",
    "gold_status_counts": lambda row: row.get("gold_status"),
    "clean_method_counts": lambda row: row.get("clean_method"),
    "clean_note_counts": lambda row: row["clean_note"].split(", ") if row.get("clean_note") else None,
}
#: Flags of an answered row that are counted where they are true.
_FLAGS = ("empty_result", "truncated", "gold_unstable", "used_clock", "used_random")


def score_reasons(require: Sequence[str]) -> frozenset[str]:
    """Return the reasons that stand for a low score: itself, and its cause unless that is required anyway.

    Args:
        require: The config key `filter.require`.
    """
    reasons = {LOW_SCORE}
    if not require:
        reasons.add(REQUIREMENTS["exec_pass"])
    if "gold_match" not in require:
        reasons.add(REQUIREMENTS["gold_match"])
    return frozenset(reasons)


class _Quality:
    """One pass over a model's rows."""

    def __init__(
        self, database_field: str | None, samples: int, require: Sequence[str], rounds: Mapping[str, Any] | None
    ) -> None:
        self._score_reasons = score_reasons(require)
        self.score_alone = 0
        self.all = Group()
        self.groups = {"by_database": Groups(database_field), "by_difficulty": Groups("difficulty")}
        self.checks = Checks()
        self.answer_names = {key: Names() for key in _ANSWER_COUNTS}
        self.flags = dict.fromkeys(_FLAGS, 0)
        self.judge = Numbers()
        self.free_scores = Numbers()
        self.error_classes, self.not_asked_reasons = Names(), Names()
        self.agreement = Agreement() if samples > 1 else None
        self.rounds = Rounds(rounds, priced=False) if rounds else None

    def _all_groups(self, row: Row) -> list[Group]:
        return [self.all, *(found for groups in self.groups.values() if (found := groups.of(row)) is not None)]

    def add_answer(self, kept: bool, row: Row) -> None:
        for group in self._all_groups(row):
            group.add_answer(kept, row)
        self.judge.add(row.get("judge_score"))
        for key, names in self.answer_names.items():
            if (name := _ANSWER_COUNTS[key](row)) is not None:
                for part in name if isinstance(name, list) else [name]:
                    names.add(part)
        for flag in _FLAGS:
            self.flags[flag] += row.get(flag) is True
        if not kept:
            self.checks.add(row)
        if self._score_reasons.issuperset(row.get("reject_reasons") or []):
            self.score_alone += not kept
            self.free_scores.add(row.get("score"))
        if self.agreement is not None:
            self.agreement.add(row)
        if self.rounds is not None:
            self.rounds.add("kept" if kept else "rejected", row)

    def add_other(self, count: str, row: Row) -> None:
        for group in self._all_groups(row):
            group.counts[count] += 1
        if count == "failed":
            if self.rounds is not None:
                self.rounds.add(count, row)
            self.error_classes.add(row.get("error_class"))
        else:
            self.not_asked_reasons.add(row.get("not_asked_reason"))

    def as_dict(self) -> dict[str, Any]:
        scores, judge = self.all.scores.in_order(), self.judge.summary()
        return {
            **self.all.as_dict(),
            "score_min": scores[0] if scores else None,
            "score_max": scores[-1] if scores else None,
            "score_histogram": histogram(scores),
            **{f"judge_score_{name}": judge[name] for name in ("count", "min", "mean", "max")},
            "reject_reason_counts": self.checks.first.as_dict(),
            "reject_any_counts": self.checks.every.as_dict(),
            "reject_only_counts": self.checks.only.as_dict(),
            "rejected_by_score_alone": self.score_alone,
            "error_class_counts": self.error_classes.as_dict(),
            "not_asked_reason_counts": self.not_asked_reasons.as_dict(),
            **{key: names.as_dict() for key, names in self.answer_names.items()},
            **self.flags,
            "kept_at_min_score": count_kept(self.free_scores.in_order()),
            **(self.agreement.as_dict() if self.agreement is not None else {}),
            **({"pass_at_k": self._pass_at_k(self.rounds)} if self.rounds is not None else {}),
            **{key: groups.as_dict() for key, groups in self.groups.items()},
        }

    @staticmethod
    def _pass_at_k(rounds: Rounds) -> dict[str, float | None]:
        """Return pass@k at the end of each round: solved rows have no more samples, so that no other k is known."""
        return {str(entry["samples_per_row"]): entry["pass_at_k"] for entry in rounds.as_list()}


def count_kept(scores: list[float]) -> list[dict[str, float]]:
    """Return how many rows would be kept at each threshold of the score, all other checks as they are.

    Args:
        scores: The sorted scores of the rows that no other check removed.
    """
    steps = sorted(set(scores))
    if len(steps) > MAX_STEPS:
        low, high = steps[0], steps[-1]
        steps = [*(low + (high - low) * i / (MAX_STEPS - 1) for i in range(MAX_STEPS - 1)), high]
    return [{"min_score": step, "kept": len(scores) - bisect_left(scores, step)} for step in steps]


def write_quality_report(
    output: Path,
    *,
    model: str,
    files: ModelFiles,
    summary: Path,
    samples: int = 1,
    database_field: str | None = "db_id",
    require: Sequence[str] = (),
    gold_audit: Path | None = None,
    rounds: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write quality_report.json of one model and return it.

    Args:
        output: The report.
        model: The model's alias.
        files: The model's merged files.
        summary: prepared/summary.json.
        samples: How many answers were asked for each row.
        database_field: The field that names a row's database; None where there is none.
        require: The config key `filter.require`.
        gold_audit: gold_audit.json, where gold was audited.
        rounds: The config's `rounds`; None where rows are asked once.
    """
    quality = _Quality(database_field, samples, require, rounds)
    for kept, row in files.answered():
        quality.add_answer(kept, row)
    for count, path in (("failed", files.failed), ("not_asked", files.not_asked)):
        for row in read_rows(path):
            quality.add_other(count, row)
    report = {
        "model": model,
        **_prepared_counts(read_json(summary)),
        "samples": samples,
        **quality.as_dict(),
        "gold_audit": read_json(gold_audit) if gold_audit is not None else None,
    }
    publish_json(output, report)
    return report


def _prepared_counts(summary: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "input_lines": summary.get("lines"),
        "bad_lines": summary.get("rejected"),
        "total": summary.get("rows"),
        "duplicates": summary.get("duplicates"),
    }
