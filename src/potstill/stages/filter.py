"""The filter stage: which rows are kept, and every reason why the others are not, most specific first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain, groupby
from pathlib import Path
from typing import Any

from potstill.errors import ConfigError
from potstill.filters import Filter, Verdict, load_filter
from potstill.filters import duplicates as duplicates_module
from potstill.filters.duplicates import DuplicateCap
from potstill.filters.samples import NOT_BEST, best, vote
from potstill.records import ADDED_FIELDS, Row
from potstill.rows import RowWriter, publish, read_rows

#: What is wrong with the answer as such; `filter.reject` names those that reject (all of them by default).
ANSWER_REASONS = ("empty_output", "truncated", "refused", "no_sql", "not_a_query")
#: What `filter.reject` can name besides: marks of the execution, and signals of the statement (`score.signals`).
MARK_REASONS = ("empty_result", "used_clock", "used_random")
SIGNAL_REASONS = ("select_star", "cross_join")
#: What `filter.require` can ask for, and the reason that a row has which lacks it.
REQUIREMENTS = {"exec_pass": "exec_error", "gold_match": "gold_mismatch", "variant_match": "variant_mismatch"}
#: `gold_match` was required and there is no usable gold: nobody's fault, and no reason against the teacher.
NO_GOLD = "gold_not_usable"
#: `variant_match` was required, and gold can judge on none of the changed copies: the same.
NO_VARIANTS = "variants_not_usable"
LOW_SCORE = "low_score"
#: A least score was asked for, and a scorer gave the row none.
NO_SCORE = "no_score"
TOO_SHORT = "too_short"
TOO_LONG = "too_long"

_Check = Callable[[Row], Iterable[str]]


@dataclass
class FilterCounts:
    """What became of the rows of one file.

    Attributes:
        rows: Rows read; kept and rejected together are as many.
        kept: Rows kept.
        rejected: Rows rejected.
        reasons: How many rows were rejected for each first reason.
    """

    rows: int = 0
    kept: int = 0
    rejected: int = 0
    reasons: Counter[str] = field(default_factory=Counter)


def filter_rows(input: Path, kept: Path, rejected: Path, *, settings: dict[str, Any]) -> FilterCounts:
    """Divide rows into kept and rejected ones; each gets `keep`, `reject_reasons` and `reject_reason`.

    The answers to one input stand on adjacent lines; they vote, and the best of them is chosen, among each other.

    Args:
        input: A file of rows, as the stage before left them.
        kept: The rows that pass every check.
        rejected: The others.
        settings: The config section `filter`.

    Raises:
        ConfigError: If a check needs a field that the rows do not have, or a setting cannot be used.
    """
    rules = _Rules(settings)
    counts = FilterCounts()
    with publish(kept) as out_kept, publish(rejected) as out_rejected:
        for group in _groups(read_rows(input)):
            for row in rules.judge(group):
                _write(row, out_kept if row["keep"] else out_rejected, counts)
        if counts.rows:
            rules.check_names()
    return counts


def _write(row: Row, out: RowWriter, counts: FilterCounts) -> None:
    out.write(row)
    counts.rows += 1
    counts.kept += row["keep"]
    counts.rejected += not row["keep"]
    if not row["keep"]:
        counts.reasons[row["reject_reason"]] += 1


def _groups(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Yield the answers to one input together; a row without `sample_id` stands alone."""
    for identity, group in groupby(rows, key=lambda row: row.get("sample_id")):
        if identity is None:
            for row in group:
                yield [row]
        else:
            yield list(group)


def needed_fields(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return the fields that the settings need, each with the stage that makes it; for the check of a config."""
    needed = dict.fromkeys(settings.get("require") or (), "execute")
    if settings.get("min_score") is not None:
        needed["score"] = "score"
    if settings.get("vote") is not None:
        needed["result_signature"] = "execute"
    return needed


def check_stages(settings: Mapping[str, Any], stages: Mapping[str, Mapping[str, Any] | None]) -> None:
    """Raise where the settings ask for what no row can have: a stage is off, or does not make it as it is set.

    Args:
        settings: The config section `filter`.
        stages: The sections of the stages by name; None = off.

    Raises:
        ConfigError: Naming the setting and what to do.
    """
    for name, stage in needed_fields(settings).items():
        if stages.get(stage) is None:
            raise ConfigError(
                f"filter: needs the field {name!r}, which the stage {stage!r} makes, and that stage is off"
            )
    execute, score = stages.get("execute"), stages.get("score")
    required, rejected = settings.get("require") or (), settings.get("reject") or ()
    if execute is not None:
        if "variant_match" in required and not execute["variants"]:
            raise ConfigError(
                "filter.require: variant_match: there are no changed copies to match on (execute.variants: 0); "
                "set execute.variants to how many there are to be, or leave it out"
            )
        if execute["gold_field"] is None and (asked := {"gold_match", "variant_match"} & set(required)):
            raise ConfigError(
                f"filter.require: {min(asked)}: no row has gold (execute.gold_field: null); name the field with the "
                "gold query, or leave it out"
            )
    for reasons, is_made, setting in (
        (MARK_REASONS, execute is not None, "execute"),
        (SIGNAL_REASONS, score is not None and score["signals"], "score.signals"),
    ):
        if not is_made and (named := [reason for reason in reasons if reason in rejected]):
            raise ConfigError(f"filter.reject: {named[0]}: no row is marked so; set `{setting}`, or leave it out")
    if execute is None and settings.get("reject_classes"):
        raise ConfigError("filter.reject_classes: nothing is executed; set `execute`, or leave it out")
    least, most = settings.get("min_chars"), settings.get("max_chars")
    if least is not None and most is not None and least > most:
        raise ConfigError(
            f"filter.min_chars: found {least}, which is more than max_chars ({most}); no row would be kept"
        )
    expression = _expression(settings.get("expression"))
    if expression is not None:
        _check_expression(expression.names, settings, stages)


#: Fields that a stage makes only when it is told to: field -> stage, key and what to set.
_ON_DEMAND = {
    "sql_quality": ("score", "signals", "score.signals: true"),
    "variant_match": ("execute", "variants", "execute.variants"),
    "variant_count": ("execute", "variants", "execute.variants"),
    "agreement": ("filter", "vote", "filter.vote"),
}
#: What the filter itself says of a row, after its checks.
_VERDICT_FIELDS = ("keep", "reject_reasons", "reject_reason")


def _check_expression(
    names: Iterable[str], settings: Mapping[str, Any], stages: Mapping[str, Mapping[str, Any] | None]
) -> None:
    """Raise where an expression names a field of ours that no row will have: all rows would fail it."""
    sections = {**stages, "filter": settings, "audit_gold": stages.get("execute")}
    for name in names:
        stage = ADDED_FIELDS.get(name)
        if name in _VERDICT_FIELDS:
            raise ConfigError(f"filter.expression: {name!r} is not known before all checks are made; leave it out")
        if stage in sections and sections[stage] is None:
            switch = "execute" if stage == "audit_gold" else stage
            raise ConfigError(
                f"filter.expression: no row has the field {name!r}, since the stage {switch!r} is off; set it, or leave the field out"
            )
        clean = sections.get("clean")
        if name in ("sql", "cleaned") and clean is not None and (name == "sql") != (clean.get("kind") == "sql"):
            raise ConfigError(
                f"filter.expression: no row has the field {name!r}: clean.kind {clean.get('kind')} writes "
                f"{'cleaned' if name == 'sql' else 'sql'}"
            )
        section, key, cure = _ON_DEMAND.get(name, (None, "", ""))
        if section is not None and not _is_set(sections.get(section), key):
            raise ConfigError(f"filter.expression: no row has the field {name!r}; set `{cure}`, or leave the field out")


def _is_set(section: Mapping[str, Any] | None, key: str) -> bool:
    """Whether a key is set; an empty section (`vote: {}`) is one."""
    value = None if section is None else section.get(key)
    return isinstance(value, Mapping) or bool(value)


class _Rules:
    """All checks of one config section, made once."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._settings = settings
        self._needed = needed_fields(settings)
        self._expression = _expression(settings.get("expression"))
        self._plugins = [
            _named(item["name"], load_filter(item["name"], item.get("settings") or {}))
            for item in settings.get("plugins") or ()
        ]
        self._checks = self._make_checks(settings)
        duplicates = settings.get("duplicates")
        self._cap = DuplicateCap(duplicates, dialect=settings.get("dialect") or "sqlite") if duplicates else None

    def _make_checks(self, settings: dict[str, Any]) -> list[_Check]:
        """Return the checks of a single row, the most telling first: `reject_reason` is the first that fails."""
        checks: list[_Check] = [
            _answer_check(_checked_reasons(settings.get("reject", ANSWER_REASONS))),
            _class_check(settings.get("reject_classes") or ()),
            _execution_check(settings),
            _length_check(settings.get("min_chars"), settings.get("max_chars")),
        ]
        checks.extend(_plugin_check(plugin) for plugin in self._plugins)
        if self._expression is not None:
            checks.append(_plugin_check(self._expression))
        checks.append(_score_check(settings.get("min_score")))
        return checks

    def judge(self, group: list[Row]) -> list[Row]:
        """Return the rows of one input, each with its verdict."""
        ballot = self._settings.get("vote")
        # The vote comes first: the checks may use `agreement`.
        fates = vote(group, ballot) if ballot is not None else [None] * len(group)
        reasons = [[*self._reasons(row), *([fate] if fate else [])] for row, fate in zip(group, fates, strict=True)]
        if self._settings.get("samples") == "best":
            self._keep_best(group, reasons)
        for row, own in zip(group, reasons, strict=True):
            if not own and self._cap is not None and not self._cap.admit(row):
                own.append(duplicates_module.REASON)
            row["keep"] = not own
            row["reject_reasons"] = list(dict.fromkeys(own))
            row["reject_reason"] = own[0] if own else None
        return group

    def _reasons(self, row: Row) -> list[str]:
        for name, stage in self._needed.items():
            if name not in row:
                raise ConfigError(
                    f"filter: needs the field {name!r}, which the rows do not have; "
                    f"switch the stage {stage!r} on or drop the check"
                )
        return [reason for check in self._checks for reason in check(row)]

    @staticmethod
    def _keep_best(group: list[Row], reasons: list[list[str]]) -> None:
        passing = [row for row, own in zip(group, reasons, strict=True) if not own]
        if len(passing) < 2:
            return
        chosen = best(passing)
        for row, own in zip(group, reasons, strict=True):
            if not own and row is not chosen:
                own.append(NOT_BEST)

    def check_names(self) -> None:
        """Raise where the expression names a field that no row has."""
        if self._expression is not None:
            self._expression.check_names()


def _expression(text: str | None) -> Any:
    if not text:
        return None
    from potstill.filters.expression import Expression

    return Expression(text)


def _checked_reasons(wanted: Iterable[str]) -> frozenset[str]:
    allowed = (*ANSWER_REASONS, *MARK_REASONS, *SIGNAL_REASONS)
    unknown = [name for name in wanted if name not in allowed]
    if unknown:
        raise ConfigError(f"filter.reject: found {unknown[0]!r}, allowed are {', '.join(allowed)}")
    return frozenset(wanted)


def _answer_check(wanted: frozenset[str]) -> _Check:
    def check(row: Row) -> Iterator[str]:
        found = chain(answer_reasons(row), _marks(row))
        return (reason for reason in found if reason in wanted)

    return check


def answer_reasons(row: Row) -> Iterator[str]:
    """Yield what is wrong with an answer as such; what was not looked for (`clean` off, another kind) is not wrong."""
    notes = row.get("clean_note") or ""
    generation = row.get("generation")
    if generation in (None, "", []) or "empty" in notes or "not_text" in notes:
        yield "empty_output"
    if row.get("finish_reason") == "length" or "truncated_statement" in notes or "unfinished_reasoning" in notes:
        yield "truncated"
    if "refusal" in notes:
        yield "refused"
    if "sql" in row and not row["sql"]:
        yield "no_sql"
    if "not_a_query" in notes or row.get("exec_error_class") == "not_a_query":
        yield "not_a_query"


def _marks(row: Row) -> Iterator[str]:
    """Yield the marks of a row that are no faults by themselves: an empty result, the clock, a `*`, a cross join."""
    yield from (name for name in MARK_REASONS if row.get(name) is True)
    quality = row.get("sql_quality")
    if isinstance(quality, dict):
        yield from (name for name in SIGNAL_REASONS if quality.get(name) is True)


def _class_check(classes: Iterable[str]) -> _Check:
    """Reject rows by the class of their execution error, under the name of the class."""
    wanted = frozenset(classes)

    def check(row: Row) -> Iterator[str]:
        if row.get("exec_error_class") in wanted:
            yield row["exec_error_class"]

    return check


def _length_check(least: int | None, most: int | None) -> _Check:
    def check(row: Row) -> Iterator[str]:
        length = _length(row)
        if least is not None and length < least:
            yield TOO_SHORT
        if most is not None and length > most:
            yield TOO_LONG

    return check


def _length(row: Row) -> int:
    """Return how many characters the row's result has: the statement, else the cleaned or the whole answer."""
    value = next((row[name] for name in ("sql", "cleaned", "generation") if name in row), None)
    if value is None or isinstance(value, str):
        return len(value or "")
    from potstill.rows import dumps

    return len(dumps(value)) - 1


def _execution_check(settings: Mapping[str, Any]) -> _Check:
    required = list(settings.get("require") or ())
    unknown = [name for name in required if name not in REQUIREMENTS]
    if unknown:
        raise ConfigError(f"filter.require: found {unknown[0]!r}, allowed are {', '.join(REQUIREMENTS)}")
    min_score = settings.get("min_score")

    def check(row: Row) -> Iterator[str]:
        # A low score has a cause, and the cause says more: it comes first.
        low = min_score is not None and not _reaches(row.get("score"), min_score)
        if row.get("exec_pass") is False and (low or required):
            yield REQUIREMENTS["exec_pass"]
        elif row.get("gold_match") is False and (low or "gold_match" in required):
            yield REQUIREMENTS["gold_match"]
        elif row.get("gold_match") is None and "gold_match" in required:
            yield NO_GOLD
        if "variant_match" in required:
            yield from _variant_reasons(row)

    return check


def _variant_reasons(row: Row) -> Iterator[str]:
    """Yield why a row does not count as one that agrees with gold on all changed copies of its database."""
    matched, count = row.get("variant_match"), row.get("variant_count")
    if row.get("gold_match") is True and not count:
        yield NO_VARIANTS
    elif matched is None and row.get("gold_match") is None and row.get("exec_pass"):
        yield NO_GOLD
    elif matched is None or matched != count:
        yield REQUIREMENTS["variant_match"]


def _named(name: str, plugin: Filter) -> Filter:
    """Return a user's filter whose failure names it and the row: no row may pass or fall by accident."""

    def check(row: Row) -> Verdict:
        identity = row.get("sample_id")
        try:
            verdict = plugin(row)
            reasons = [] if verdict is None else [verdict] if isinstance(verdict, str) else list(verdict)
        except Exception as error:  # a user's code may raise anything
            raise ConfigError(
                f"filter.plugins: {name!r} failed on row {identity}: {error!r}; mend the filter"
            ) from error
        if not all(isinstance(reason, str) and reason for reason in reasons):
            raise ConfigError(
                f"filter.plugins: {name!r} returned {verdict!r} for row {identity}; a filter returns None to let a row "
                "pass, or the reason why not: a text, or a list of texts"
            )
        return reasons

    return check


def _plugin_check(plugin: Filter) -> _Check:
    def check(row: Row) -> Iterable[str]:
        verdict = plugin(row)
        if verdict is None:
            return ()
        return (verdict,) if isinstance(verdict, str) else verdict

    return check


def _score_check(min_score: float | None) -> _Check:
    def check(row: Row) -> Iterator[str]:
        if min_score is not None and not _reaches(row.get("score"), min_score):
            yield NO_SCORE if row.get("score") is None else LOW_SCORE

    return check


def _reaches(score: Any, least: float) -> bool:
    return isinstance(score, int | float) and score >= least
