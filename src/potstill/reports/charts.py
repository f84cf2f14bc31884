"""The charts of a run, as Vega-Lite specifications with their data inside.

Titles are English: the page translates them. A colour `--name` is one of the page's own and follows its theme.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Spec = dict[str, Any]

#: Groups that a chart shows at most; the tables and the reports hold them all.
MAX_BARS = 20


def _chart(title: str, values: Sequence[Mapping[str, Any]], height: int, **parts: Any) -> Spec:
    return {"title": title, "data": {"values": list(values)}, "width": "container", "height": height, **parts}


def _axis(field: str, kind: str, title: str | None, **more: Any) -> Spec:
    return {"field": field, "type": kind, "title": title, **more}


def threshold_chart(quality: Mapping[str, Any], min_score: float | None) -> Spec | None:
    """Return the number of rows kept at each lowest score; the one chosen (`at`) stands out."""
    steps = quality["kept_at_min_score"]
    if not steps:
        return None
    at = [{"name": "at", "value": steps[0]["min_score"] if min_score is None else min_score}]
    if len(steps) <= MAX_BARS:
        chosen = {"condition": {"test": "datum.min_score === at", "value": "--copper"}, "value": "--not-asked"}
        encoding = {
            "x": _axis("min_score", "ordinal", "Lowest score", axis={"labelAngle": 0}),
            "y": _axis("kept", "quantitative", None),
            "color": chosen,
        }
        return _chart(
            "Rows kept", steps, 140, params=at, mark={"type": "bar", "width": {"band": 0.5}}, encoding=encoding
        )
    curve = {
        "mark": {"type": "line", "interpolate": "step-before"},
        "encoding": {
            "x": _axis("min_score", "quantitative", "Lowest score", scale={"zero": False}),
            "y": _axis("kept", "quantitative", None),
        },
    }
    rule = {
        "mark": {"type": "rule", "strokeDash": [4, 3], "strokeWidth": 2},
        "encoding": {"x": {"datum": {"expr": "at"}, "type": "quantitative"}},
    }
    return _chart("Rows kept", steps, 140, params=at, layer=[curve, rule])


def score_chart(quality: Mapping[str, Any]) -> Spec | None:
    """Return the histogram of the scores."""
    if quality["score_mean"] is None:
        return None
    encoding = {
        "x": _axis("low", "quantitative", "Score", bin={"binned": True}, axis={"tickCount": 5}),
        "x2": {"field": "high"},
        "y": _axis("count", "quantitative", None),
    }
    return _chart(
        "Rows by score", quality["score_histogram"], 130, mark={"type": "bar", "tooltip": True}, encoding=encoding
    )


def group_chart(lines: Sequence[Mapping[str, Any]]) -> Spec | None:
    """Return the keep rate of each group and model."""
    names = list(dict.fromkeys(line["name"] for line in lines))[:MAX_BARS]
    shown = [
        {"name": line["name"], "model": line["model"], "rate": line["p_keep"]}
        for line in lines
        if line["name"] in names and line["p_keep"] is not None
    ]
    if len(names) < 2 or not shown:
        return None
    encoding = {
        "y": _axis("name", "nominal", None, sort=names),
        "x": _axis("rate", "quantitative", None, axis={"format": ".0%", "tickCount": 5}, scale={"domain": [0, 1]}),
        "color": _axis("model", "nominal", None),
        "yOffset": {"field": "model"},
    }
    if len({line["model"] for line in shown}) == 1:
        del encoding["yOffset"], encoding["color"]
    height = 22 * len(names) * max(1, len({line["model"] for line in shown}))
    return _chart("Keep rate", shown, height, mark={"type": "bar", "tooltip": True}, encoding=encoding)


def _time_axis(series: Sequence[Mapping[str, Any]]) -> Spec:
    days = (series[-1]["at"] - series[0]["at"]) / 86_400 if series else 0
    axis = {"format": "%m-%d %H:%M" if days > 1 else "%H:%M:%S", "tickCount": 4, "labelOverlap": "greedy"}
    return _axis("at", "temporal", "Time (UTC)", scale={"type": "utc"}, axis=axis)


def throughput_chart(timing: Mapping[str, Any]) -> Spec | None:
    """Return the answers per second over time."""
    values = [{"at": point["at"] * 1000, "rate": point["answers_per_s"]} for point in timing["series"]]
    encoding = {
        "x": _time_axis(timing["series"]),
        "y": _axis("rate", "quantitative", None),
    }
    mark = {"type": "area", "interpolate": "step-after", "line": True, "opacity": 0.3, "color": "--copper"}
    return _chart("Answers per second", values, 140, mark=mark, encoding=encoding) if values else None


def latency_chart(timing: Mapping[str, Any]) -> Spec | None:
    """Return median and 95th percentile of the latency over time."""
    values = [
        {"at": point["at"] * 1000, "percentile": name, "seconds": point[f"latency_{name}"]}
        for point in timing["series"]
        for name in ("p50", "p95")
        if point[f"latency_{name}"] is not None
    ]
    encoding = {
        "x": _time_axis(timing["series"]),
        "y": _axis("seconds", "quantitative", None),
        "color": _axis("percentile", "nominal", None),
    }
    mark = {"type": "line", "point": len(values) < 40}
    return _chart("Latency (s)", values, 140, mark=mark, encoding=encoding) if values else None


def cost_chart(costs: Mapping[str, Mapping[str, Any]]) -> Spec | None:
    """Return what kept, rejected and failed rows of each model cost."""
    ends = {"kept": "--kept", "rejected": "--rejected", "failed": "--failed"}
    values = [
        {"model": model, "end": end, "money": cost[f"cost_{end}"]}
        for model, cost in costs.items()
        for end in ends
        if cost.get(f"cost_{end}") is not None
    ]
    encoding = {
        "y": _axis("model", "nominal", None),
        "x": _axis("money", "quantitative", "Cost"),
        "color": _axis("end", "nominal", None, scale={"domain": list(ends), "range": list(ends.values())}),
    }
    height = 34 * max(1, len(costs))
    return _chart("Cost", values, height, mark={"type": "bar", "tooltip": True}, encoding=encoding) if values else None
