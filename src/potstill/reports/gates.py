"""Gates: limits that a run must keep, checked against its reports.

`check_gates` writes what it found and never fails; `enforce_gates` fails. They are two, because Snakemake deletes
the outputs of a job that fails.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from potstill.errors import PotstillError
from potstill.reports.files import read_json
from potstill.reports.numbers import as_number
from potstill.rows import publish_json

#: What can have a gate, and the report that holds it. A gate is `min_` or `max_` and one of these.
MEASURES: dict[str, str] = {
    "total": "quality",
    "kept": "quality",
    "p_keep": "quality",
    "exec_pass_rate": "quality",
    "gold_match_rate": "quality",
    "score_mean": "quality",
    "failed_ratio": "quality",
    "cost_per_accepted_row": "cost",
    "cost_total": "cost",
}


#: The name of the cascade's result among those of the models.
CASCADE = "cascade"


class Gate(NamedTuple):
    """One limit and what was found."""

    model: str
    gate: str
    value: float | None
    limit: float
    met: bool

    def line(self) -> str:
        """Return the gate as a line for people."""
        sign = ">=" if self.gate.startswith("min_") else "<="
        found = "not known" if self.value is None else f"{self.value:.6g}"
        verdict = "met    " if self.met else "NOT MET"
        return f"{verdict}  {self.model}  {self.gate}: {found} (limit: {sign} {self.limit:g})"


def evaluate_gates(
    settings: Mapping[str, Any], model: str, quality: Mapping[str, Any], cost: Mapping[str, Any] | None
) -> list[Gate]:
    """Return every configured gate of one model; a gate on a value that is not known is not met.

    Args:
        settings: The config section `gates`; a gate whose limit is null is off.
        model: The model's alias.
        quality: Its quality_report.json.
        cost: Its cost_report.json.
    """
    reports = {"quality": quality, "cost": cost or {}}
    gates = []
    for name, limit in settings.items():
        side, _, measure = name.partition("_")
        if measure in MEASURES and limit is not None:
            value = as_number(reports[MEASURES[measure]].get(measure))
            met = value is not None and (value >= limit if side == "min" else value <= limit)
            gates.append(Gate(model, name, value, limit, met))
    return gates


def evaluate_run(
    settings: Mapping[str, Any],
    models: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any] | None]],
    cascade: Mapping[str, Any] | None = None,
) -> list[Gate]:
    """Return every configured gate of a run.

    Args:
        settings: The config section `gates`. Its `of` names what must keep the limits; where it is null that is each model,
            and in the place of those that form a cascade the cascade's result: a model that only sees what others did not
            solve has other rates than the dataset.
        models: The quality and the cost report of each model, by alias.
        cascade: The cascade's summary.json, where there is one.
    """
    reports = dict(models)
    inside: set[str] = set()
    if cascade is not None:
        reports[CASCADE] = (cascade["quality"], cascade["cost"])
        inside = {model["alias"] for model in cascade["models"]}
    names = settings.get("of") or [name for name in reports if name not in inside]
    return [gate for name in names for gate in evaluate_gates(settings, name, *reports[name])]


def check_gates(
    output: Path,
    *,
    settings: Mapping[str, Any],
    quality_reports: Sequence[Path],
    cost_reports: Sequence[Path] = (),
    cascade: Path | None = None,
) -> list[Gate]:
    """Write gates.json, print every gate with its value and limit, and return them.

    Args:
        output: gates.json.
        settings: The config section `gates`.
        quality_reports: quality_report.json of every model.
        cost_reports: cost_report.json of every model.
        cascade: The cascade's summary.json, where there is one.
    """
    costs = {report["model"]: report for report in map(read_json, cost_reports)}
    models = {report["model"]: (report, costs.get(report["model"])) for report in map(read_json, quality_reports)}
    gates = evaluate_run(settings, models, read_json(cascade) if cascade else None)
    publish_json(
        output,
        {
            "met": all(gate.met for gate in gates),
            "on_failure": settings.get("on_failure", "fail"),
            "gates": [gate._asdict() for gate in gates],
        },
    )
    print(*[gate.line() for gate in gates] or ["no gates are configured"], sep="\n")
    return gates


def enforce_gates(gates_json: Path, output: Path | None = None) -> bool:
    """Fail if a gate was not met and the config says so; else write a copy of the verdict.

    Args:
        gates_json: What `check_gates` wrote.
        output: A file that appears only where the run may pass.

    Returns:
        Whether every gate was met (with `on_failure: warn` a run may pass without).

    Raises:
        PotstillError: When a gate was not met and `on_failure` is `fail`.
    """
    verdict = read_json(gates_json)
    missed = [Gate(**gate).line() for gate in verdict["gates"] if not gate["met"]]
    if missed and verdict["on_failure"] == "fail":
        lines = "\n  ".join(missed)
        raise PotstillError(
            f"{len(missed)} of {len(verdict['gates'])} gates not met:\n  {lines}\n"
            f"{gates_json} and the page of the run hold the details; change `gates:` or set `gates.on_failure: warn`"
        )
    print(*([f"warning: {line}" for line in missed] or ["all gates met"]), sep="\n")
    if output is not None:
        publish_json(output, {"met": not missed})
    return not missed
