"""report.html: one page for a run, in one file that asks nothing of any network.

Numbers come from the reports, rows from a fixed sample of the merged files. Row text lies packed in the page and is
only ever shown as text; besides, the page forbids (by its content security policy) every script but its own.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files as package_files
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from potstill import __version__
from potstill.reports import charts
from potstill.reports.excerpt import make_excerpt
from potstill.reports.files import ModelFiles, read_json
from potstill.reports.gates import evaluate_run
from potstill.reports.library import pack, read_libraries, read_licences
from potstill.reports.results import find_results
from potstill.reports.sample import pick_rows
from potstill.rows import dumps, publish

if TYPE_CHECKING:
    import jinja2

#: Rows of all models together that a page holds by default.
PAGE_ROWS = 2000
#: Databases or difficulties that a page shows; the report holds them all.
MAX_GROUPS = 60
#: Section -> its name in the navigation.
_SECTIONS = {
    "gates": "Gates",
    "funnel": "Funnel",
    "threshold": "Thresholds",
    "quality": "Quality",
    "time": "Time",
    "cost": "Cost",
    "rounds": "Rounds",
    "cascade": "Cascade",
    "agreement": "Students",
    "errors": "Errors",
    "comparison": "Comparison",
    "rows": "Rows",
    "origin": "Origin",
}
PARTS = ("cards", *_SECTIONS)
#: Panel of `snakemake --report` -> the parts of the page in it.
PANELS = {
    "overview": ("cards", "gates", "funnel"),
    "thresholds": ("threshold",),
    "quality": ("quality", "agreement"),
    "time": ("time",),
    "cost": ("cost", "rounds", "cascade"),
    "errors": ("errors",),
}
_ENDS = (("kept", "Kept"), ("rejected", "Rejected"), ("failed", "Failed"), ("not_asked", "Not asked"))


class ModelReports(NamedTuple):
    """What the page shows of one model."""

    alias: str
    folder: Path
    quality: dict[str, Any]
    timing: dict[str, Any]
    cost: dict[str, Any]
    run_id: str | None

    @classmethod
    def read(cls, folder: Path) -> ModelReports:
        """Read the reports of a model's folder; the manifest may be missing."""
        reports = folder / "reports"
        manifest = reports / "manifest.json"
        return cls(
            alias=folder.name,
            folder=folder,
            quality=read_json(reports / "quality_report.json"),
            timing=read_json(reports / "timing_report.json"),
            cost=read_json(reports / "cost_report.json"),
            run_id=read_json(manifest).get("run_id") if manifest.is_file() else None,
        )


class _Together(NamedTuple):
    """What models say only together."""

    cascade: dict[str, Any] | None
    agreement: dict[str, Any] | None


def write_page(
    output: Path,
    *,
    model_folders: Sequence[Path],
    config: Mapping[str, Any],
    page_rows: int = PAGE_ROWS,
    comparison: Mapping[str, Any] | None = None,
    panels: Path | None = None,
    cascade: Path | None = None,
    agreement: Path | None = None,
) -> None:
    """Write the page of a run.

    Args:
        output: The HTML file.
        model_folders: The folders of the models, each with `reports/`.
        config: The whole config of the run.
        page_rows: How many rows of all models together the page holds; of more, a fixed sample.
        comparison: What `compare_runs` found against an earlier run.
        panels: A folder for `PANELS`, the page's sections as pages of their own, for `snakemake --report`.
        cascade: The summary.json of the run's cascade, where there is one.
        agreement: The score_agreement.json of the run's students, where there are any.
    """
    models = [ModelReports.read(folder) for folder in model_folders]
    rows = _sample(models, config, page_rows)
    together = _Together(
        read_json(cascade) if cascade is not None else None, read_json(agreement) if agreement is not None else None
    )
    context = _context(models, config, comparison, together)
    _publish(output, {**context, "shown": len(rows), "rows_packed": pack(_json(rows).encode())}, PARTS)
    if panels is not None:
        for name, parts in PANELS.items():
            _publish(panels / f"{name}.html", {**context, "shown": 0}, parts)


def _publish(output: Path, context: Mapping[str, Any], parts: Sequence[str]) -> None:
    sections = [(key, name) for key, name in context["sections"] if key in parts]
    page = _render({**context, "parts": parts, "sections": sections})
    with publish(output) as out:
        out.write_line(page.encode("utf-8", "backslashreplace"))


def _sample(models: Sequence[ModelReports], config: Mapping[str, Any], size: int) -> list[dict[str, Any]]:
    execute = config.get("execute") or {}
    fields = {
        "database_field": execute.get("database_field", "db_id"),
        "gold_field": execute.get("gold_field", "gold_sql"),
    }
    rows = []
    for model in models:
        sample = pick_rows(ModelFiles.of(model.folder), model.quality, size // len(models))
        results = find_results([picked.row for picked in sample], execute) if execute else {}
        rows += [make_excerpt(picked, model.alias, results.get(i, {}), **fields) for i, picked in enumerate(sample)]
    return rows


def _json(value: Any) -> str:
    """Return JSON that is safe inside a script element: no markup can begin or end in it."""
    text = dumps(value).decode().rstrip("\n")
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _context(
    models: Sequence[ModelReports],
    config: Mapping[str, Any],
    comparison: Mapping[str, Any] | None,
    together: _Together,
) -> dict[str, Any]:
    import yaml

    groups = [_group(models, key, title) for key, title in _GROUPS.items()]
    groups = [group for group in groups if group["lines"]]
    reports = {model.alias: (model.quality, model.cost) for model in models}
    gates = evaluate_run(config.get("gates") or {}, reports, together.cascade)
    rounds = [{"model": model.alias, **entry} for model in models for entry in model.cost.get("rounds", ())]
    students = [
        {"student": name, **entry} for name, entry in (together.agreement or {"students": {}})["students"].items()
    ]
    return {
        "run": str(config.get("run", "")),
        "total": models[0].quality["total"] if models else None,
        "samples": models[0].quality["samples"] if models else 1,
        "whole": sum(sum(model.quality[end] for end, _ in _ENDS) for model in models),
        "models": [_model_context(model, config) for model in models],
        "ends": _ENDS,
        "gates": gates,
        "groups": groups,
        "quality_lines": _side_by_side(_QUALITY_LINES, [model.quality for model in models]),
        "time_lines": _side_by_side(_TIME_LINES, [_flat(model.timing) for model in models]),
        "cost_lines": _side_by_side(_COST_LINES, [model.cost for model in models]),
        "stages": _stages(models),
        "priced": any(model.cost["cost_total"] is not None for model in models),
        "comparison": comparison,
        "rounds": rounds,
        "cascade": together.cascade,
        "students": students,
        "sections": _sections(
            gates=bool(gates),
            comparison=comparison is not None,
            rounds=bool(rounds),
            cascade=together.cascade is not None,
            agreement=bool(students),
        ),
        "version": __version__,
        "config": yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True),
        "summary_json": _json(_summary(models, groups, config)),
    }


def _sections(**shown: bool) -> list[tuple[str, str]]:
    """Return the sections of a page; one that is not named is always there."""
    return [(key, name) for key, name in _SECTIONS.items() if shown.get(key, True)]


#: Key of the quality report -> title.
_GROUPS = {"by_database": "By database", "by_difficulty": "By difficulty"}


def _group(models: Sequence[ModelReports], key: str, title: str) -> dict[str, Any]:
    names = sorted({name for model in models for name in model.quality[key]})
    lines = [
        {"name": name, "model": model.alias, **model.quality[key][name]}
        for name in names[:MAX_GROUPS]
        for model in models
        if name in model.quality[key]
    ]
    return {"key": key, "title": title, "lines": lines, "left_out": max(0, len(names) - MAX_GROUPS)}


class _Line(NamedTuple):
    name: str
    key: str
    kind: str
    unit: str = ""
    #: A number that must not be zero for the line to be shown.
    needs: str = ""


_QUALITY_LINES = (
    _Line("Answered", "answered", "count"),
    _Line("Kept", "kept", "count"),
    _Line("Rejected", "rejected", "count"),
    _Line("Failed", "failed", "count"),
    _Line("Not asked", "not_asked", "count"),
    _Line("Keep rate", "p_keep", "share"),
    _Line("Failed, share", "failed_ratio", "share"),
    _Line("Executes", "exec_pass_rate", "share"),
    _Line("Usable gold", "gold_usable", "count"),
    _Line("Matches gold", "gold_match_rate", "share"),
    _Line("Mean score", "score_mean", "decimal"),
    _Line("Agreement of samples", "agreement_mean", "share"),
)
_TIME_LINES = (
    _Line("Answers", "answers", "count"),
    _Line("Answers per second", "answers_per_s", "decimal"),
    _Line("Output tokens per second", "completion_tokens_per_s", "decimal"),
    _Line("Requests in flight, mean", "requests_in_flight_mean", "decimal"),
    _Line("Rows kept per hour", "kept_per_hour", "decimal"),
    _Line("Latency, mean", "latency_s.mean", "decimal", " s"),
    _Line("Latency, p50", "latency_s.p50", "decimal", " s"),
    _Line("Latency, p90", "latency_s.p90", "decimal", " s"),
    _Line("Latency, p95", "latency_s.p95", "decimal", " s"),
    _Line("Latency, longest", "latency_s.max", "decimal", " s"),
    _Line("SQL execution, p95", "execution_s.p95", "decimal", " s"),
)
_COST_LINES = (
    _Line("Input tokens", "prompt_tokens", "count"),
    _Line("Cached input tokens", "cached_tokens", "count"),
    _Line("Output tokens", "completion_tokens", "count"),
    _Line("Reasoning tokens", "reasoning_tokens", "count"),
    _Line("Judge: input tokens", "judge_prompt_tokens", "count", needs="judge_prompt_tokens"),
    _Line("Judge: output tokens", "judge_completion_tokens", "count", needs="judge_prompt_tokens"),
    _Line("Cost of the judge", "cost_judge", "decimal", needs="judge_prompt_tokens"),
    _Line("Cost", "cost_total", "decimal"),
    _Line("Cost of kept rows", "cost_kept", "decimal"),
    _Line("Cost of rejected rows", "cost_rejected", "decimal"),
    _Line("Cost of failed rows", "cost_failed", "decimal"),
    _Line("Cost per answered row", "cost_per_row", "decimal"),
    _Line("Cost per kept row", "cost_per_accepted_row", "decimal"),
    _Line("Answers found in the store", "answers_from_store", "count"),
    _Line("Saved by the store", "cost_saved_by_store", "decimal"),
)


def _side_by_side(lines: Iterable[_Line], reports: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return one line per number that a model has, with the value of every model."""
    wanted = [line for line in lines if not line.needs or any(report.get(line.needs) for report in reports)]
    table = [{**line._asdict(), "values": [report.get(line.key) for report in reports]} for line in wanted]
    return [line for line in table if any(value is not None for value in line["values"])]


def _flat(report: Mapping[str, Any]) -> dict[str, Any]:
    nested = {
        f"{key}.{name}": item
        for key, value in report.items()
        if isinstance(value, dict)
        for name, item in value.items()
    }
    return {**report, **nested}


def _stages(models: Sequence[ModelReports]) -> list[dict[str, Any]]:
    return [
        {"rule": rule, "model": model.alias, **stage}
        for model in models
        for rule, stage in model.timing["stages"].items()
    ]


def _model_context(model: ModelReports, config: Mapping[str, Any]) -> dict[str, Any]:
    quality = model.quality
    return {
        **model._asdict(),
        "funnel": _funnel(quality),
        "checks": _checks(quality),
        "errors": _errors(quality),
        "step": _step(quality, _min_score(config)),
    }


def _min_score(config: Mapping[str, Any]) -> float | None:
    value: float | None = (config.get("filter") or {}).get("min_score")
    return value


def _step(quality: Mapping[str, Any], min_score: float | None) -> int:
    """Return the first step of the slider that asks at least the configured score."""
    steps = quality["kept_at_min_score"]
    if min_score is None:
        return 0
    return next((i for i, step in enumerate(steps) if step["min_score"] >= min_score), len(steps))


def _funnel(quality: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the steps from input lines to kept rows, each as parts of the widest."""
    ends = {end: quality[end] for end, _ in _ENDS}
    asked = sum(ends.values())
    steps: list[tuple[str, int | None, list[str]]] = [
        ("Input lines", quality["input_lines"], ["whole"]),
        ("Prepared", quality["total"], ["whole"]),
        ("Asked", asked - ends["not_asked"], ["kept", "rejected", "failed"]),
        ("Answered", quality["answered"], ["kept", "rejected"]),
        ("Kept", ends["kept"], ["kept"]),
    ]
    widest = max(1, *(value or 0 for _, value, _ in steps))
    return [
        {
            "name": name,
            "value": value,
            "parts": [
                {"end": part, "percent": round(100 * (value if part == "whole" else ends[part]) / widest, 3)}
                for part in parts
            ],
        }
        for name, value, parts in steps
        if value is not None
    ]


def _checks(quality: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "reason": reason,
            "first": quality["reject_reason_counts"].get(reason, 0),
            "every": every,
            "only": quality["reject_only_counts"].get(reason, 0),
        }
        for reason, every in list(quality["reject_any_counts"].items())[:MAX_GROUPS]
    ]


#: Title, key of the quality report, the row's field that it counts.
_ERROR_TABLES = (
    ("Reject reasons", "reject_reason_counts", "reject_reason"),
    ("SQL errors", "exec_error_counts", "exec_error_class"),
    ("Failed without an answer", "error_class_counts", "error_class"),
    ("Finish reasons", "finish_reason_counts", "finish_reason"),
    ("Gold status", "gold_status_counts", "gold_status"),
    ("Not asked because", "not_asked_reason_counts", "not_asked_reason"),
)


def _errors(quality: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "title": title,
            "field": field,
            "lines": [{"name": name, "count": count} for name, count in list(quality[key].items())[:MAX_GROUPS]],
        }
        for title, key, field in _ERROR_TABLES
        if quality[key]
    ]


def _summary(
    models: Sequence[ModelReports], groups: Sequence[Mapping[str, Any]], config: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what the page's script needs: the slider's counts and the charts."""
    drawn: dict[str, charts.Spec | None] = {group["key"]: charts.group_chart(group["lines"]) for group in groups}
    drawn["cost"] = charts.cost_chart({model.alias: model.cost for model in models})
    for number, model in enumerate(models):
        drawn[f"threshold:{number}"] = charts.threshold_chart(model.quality, _min_score(config))
        drawn[f"scores:{number}"] = charts.score_chart(model.quality)
        drawn[f"throughput:{number}"] = charts.throughput_chart(model.timing)
        drawn[f"latency:{number}"] = charts.latency_chart(model.timing)
    keys = ("kept", "answered", "kept_at_min_score")
    return {
        "models": [{key: model.quality[key] for key in keys} for model in models],
        "charts": {name: spec for name, spec in drawn.items() if spec is not None},
    }


def _render(context: Mapping[str, Any]) -> str:
    from markupsafe import Markup

    return _template().render({**_parts(), **context, "summary_json": Markup(context["summary_json"])})


@functools.cache
def _template() -> jinja2.Template:
    """Return the page's template; to compile it takes longer than to fill it in."""
    import jinja2

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters |= {"exact": _exact, "count": _count, "percent": _percent, "decimal": _decimal}
    return environment.from_string(_asset("page.html.jinja"))


@functools.cache
def _parts() -> dict[str, Any]:
    """Return what is the same in all pages."""
    from markupsafe import Markup

    script = _asset("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return {
        "style": Markup(_asset("page.css")),
        "script": Markup(script),
        "script_hash": f"sha256-{digest}",
        "zh_json": Markup(_json(json.loads(_asset("zh.json")))),
        "libraries": read_libraries(),
        "licences": read_licences(),
        "of_answered": Markup(" <span data-t>of answered</span>"),
        "slash": Markup(" / "),
        "dash": Markup(" – "),
        "total_cost": Markup("<span data-t>total</span> "),
    }


def _asset(name: str) -> str:
    return (package_files("potstill.reports") / "assets" / name).read_text(encoding="utf-8")


def _exact(value: float) -> str:
    return repr(value)


def _count(value: float) -> str:
    # A narrow no-break space between thousands is read alike in English and Chinese.
    return f"{value:,}".replace(",", "\u202f")


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _decimal(value: float) -> str:
    """Return a number with four significant digits, without an exponent."""
    if isinstance(value, int) or value.is_integer():
        return _count(int(value))
    digits = 3 if abs(value) >= 1 else 6
    return (
        f"{float(f'{value:.4g}'):,.{digits}f}".rstrip("0").rstrip(".").replace(",", "\u202f")
        if abs(value) >= 1e-6
        else f"{value:.2g}"
    )
