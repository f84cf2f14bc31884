"""The reports: every number recomputed here by other code, and the runs that have nothing to divide by."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from potstill.config.model import Prices
from potstill.errors import PotstillError
from potstill.reports.agreement import Agreement
from potstill.reports.cost import with_times, write_cost_report
from potstill.reports.files import ModelFiles
from potstill.reports.gates import check_gates, enforce_gates, evaluate_run
from potstill.reports.numbers import MAX_NAMES, OTHER, Names, Numbers, percentile
from potstill.reports.quality import count_kept, write_quality_report
from potstill.reports.times import parse_time
from potstill.reports.timing import model_benchmarks, write_timing_report
from potstill.rows import publish_rows
from tests.unit.report_runs import START, make_rows, make_run, write_model

EMPTY: dict[str, list[dict[str, Any]]] = {"kept": [], "rejected": [], "failed": [], "not_asked": []}


def quality_of(run_dir: Path, **kwargs: Any) -> dict[str, Any]:
    output = run_dir / "teacher" / "reports" / "quality_report.json"
    files = ModelFiles.of(run_dir / "teacher")
    write_quality_report(output, model="teacher", files=files, summary=run_dir / "prepared" / "summary.json", **kwargs)
    return json.loads(output.read_text(), parse_constant=pytest.fail)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_quality_counts_and_rates_are_those_of_the_row_files(tmp_path: Path) -> None:
    """Every count and rate of the quality report can be recomputed from the four row files."""
    report = quality_of(make_run(tmp_path, 200))
    kept, rejected, failed, not_asked = (
        read(tmp_path / "teacher" / f"{name}.jsonl") for name in ("merged", "rejected", "failed", "not_asked")
    )
    answered = kept + rejected
    assert report["total"] == 200 == sum(report[end] for end in ("kept", "rejected", "failed", "not_asked"))
    assert report["p_keep"] == len(kept) / len(answered)
    assert report["failed_ratio"] == len(failed) / (len(answered) + len(failed))
    assert report["exec_pass_rate"] == sum(row["exec_pass"] for row in answered) / len(answered)
    usable = [row["gold_match"] for row in answered if row["gold_match"] is not None]
    assert len(usable) < len(answered)
    assert report["gold_match_rate"] == sum(usable) / len(usable)
    assert report["score_mean"] == pytest.approx(statistics.fmean(row["score"] for row in answered), abs=1e-15)
    assert report["reject_reason_counts"] == Counter(row["reject_reason"] for row in rejected)
    assert report["exec_error_counts"] == Counter(row["exec_error_class"] for row in rejected if not row["exec_pass"])
    assert report["not_asked_reason_counts"] == {"budget": len(not_asked)}
    assert report["error_class_counts"] == {"timeout": len(failed)}
    assert report["duplicates"] == 2


def test_quality_says_what_one_check_alone_removed(tmp_path: Path) -> None:
    """`reject_only_counts` holds the rows that a single check removed, `reject_any_counts` every check of every row."""
    report = quality_of(make_run(tmp_path, 200))
    rejected = read(tmp_path / "teacher" / "rejected.jsonl")
    assert report["reject_only_counts"] == Counter(
        row["reject_reasons"][0] for row in rejected if len(row["reject_reasons"]) == 1
    )
    assert report["reject_any_counts"] == Counter(reason for row in rejected for reason in row["reject_reasons"])


def test_quality_groups_sum_to_the_whole(tmp_path: Path) -> None:
    """Databases and difficulties hold each row once, and their rates are their own."""
    report = quality_of(make_run(tmp_path, 200))
    for groups in (report["by_database"], report["by_difficulty"]):
        assert len(groups) == 3
        for count in ("kept", "rejected", "failed", "not_asked", "answered"):
            assert sum(group[count] for group in groups.values()) == report[count]
    rows = [
        row
        for name in ("merged", "rejected")
        for row in read(tmp_path / "teacher" / f"{name}.jsonl")
        if row["db_id"] == "trains"
    ]
    assert report["by_database"]["trains"]["exec_pass_rate"] == sum(row["exec_pass"] for row in rows) / len(rows)


def test_thresholds_count_rows_that_no_other_check_removed() -> None:
    """The count at a threshold is that of the scores at or above it."""
    assert count_kept([0.0, 0.5, 0.5, 1.0]) == [
        {"min_score": 0.0, "kept": 4},
        {"min_score": 0.5, "kept": 3},
        {"min_score": 1.0, "kept": 1},
    ]
    assert count_kept([]) == []
    many = count_kept([i / 1000 for i in range(1000)])
    assert len(many) == 101
    assert (many[0]["kept"], many[-1]["kept"]) == (1000, 1)


@pytest.mark.parametrize("only", ["nothing", "rejected", "failed", "not_asked"])
def test_reports_of_a_lopsided_model_have_null_rates(tmp_path: Path, only: str) -> None:
    """An empty model, one of rejected rows only, of failed rows only: rates of nothing are null, never an error."""
    run_dir = make_run(tmp_path, 200)
    ends = EMPTY | {name: rows for name, rows in make_rows(200).items() if name == only}
    write_model(run_dir / "teacher", ends)
    report = quality_of(run_dir)
    assert report["gold_match_rate"] == (0.0 if only == "rejected" else None)
    assert report["p_keep"] == (0.0 if only == "rejected" else None)
    assert (report["score_mean"] is None) == (only != "rejected")
    timing = write_timing_report(tmp_path / "t.json", model="teacher", files=ModelFiles.of(run_dir / "teacher"))
    assert json.loads((tmp_path / "t.json").read_text(), parse_constant=pytest.fail) == timing
    assert (timing["answers_per_s"] is None) == (only != "rejected")


def test_stages_that_did_not_run_have_null_rates(tmp_path: Path) -> None:
    """Without execute and score there is no rate, not a rate of zero."""
    run_dir = make_run(tmp_path)
    row = {"sample_id": "ab", "sample_index": 0, "generation": "hi", "keep": True, "reject_reasons": []}
    write_model(run_dir / "teacher", EMPTY | {"kept": [row]})
    report = quality_of(run_dir)
    assert report["p_keep"] == 1.0
    assert report["exec_pass_rate"] is report["gold_match_rate"] is report["score_mean"] is None
    assert report["by_database"] == {}


def test_hostile_values_are_counted_not_believed(tmp_path: Path) -> None:
    """Scores that are no numbers, endless names and huge integers neither crash nor enter the numbers."""
    run_dir = make_run(tmp_path)
    rows = [
        {"sample_id": f"{i}", "score": score, "finish_reason": "x" * 5000, "db_id": name, "keep": True}
        for i, (score, name) in enumerate([(True, 1), ("1", ["a"]), (10**400, {"a": 1}), (None, "<script>"), (0.5, 7)])
    ]
    write_model(run_dir / "teacher", EMPTY | {"kept": rows})
    report = quality_of(run_dir)
    assert report["score_mean"] == 0.5
    assert sorted(report["by_database"]) == ["1", "7", "<script>"]
    assert list(report["finish_reason_counts"]) == ["x" * 200]


def test_names_are_bounded() -> None:
    """Past the limit, new names are counted together and none is lost."""
    names = Names()
    for number in range(MAX_NAMES + 50):
        names.add(f"n{number}")
    counts = names.as_dict()
    assert len(counts) == MAX_NAMES + 1
    assert counts[OTHER] == 50


def test_percentiles_are_those_of_numpy() -> None:
    """Percentiles interpolate linearly, as NumPy and pandas do."""
    numpy = pytest.importorskip("numpy")
    values = sorted([3.0, 1.5, 9.25, 4.0, 4.0, 100.0, 0.25])
    for percent in (0, 50, 90, 95, 100):
        assert percentile(values, percent) == pytest.approx(float(numpy.percentile(values, percent)), rel=1e-12)
    numbers = Numbers()
    assert numbers.summary()["p95"] is None


def test_agreement_and_pass_at_k() -> None:
    """Answers of one prompt are brought together wherever they stand; pass@k is the unbiased estimate."""
    agreement = Agreement()
    for prompt, signature, match in [("a", "1", True), ("b", "2", False), ("a", "1", True), ("b", None, False)]:
        agreement.add({"sample_id": prompt, "result_signature": signature, "gold_match": match})
    agreement.add({"sample_id": "a", "result_signature": "3", "gold_match": False, "exec_pass": True})
    agreement.add({"sample_id": "c", "result_signature": "1", "gold_match": None, "exec_pass": True})
    report = agreement.as_dict()
    assert report["agreement_prompts"] == 2
    assert report["agreement_mean"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert report["agreement_unanimous"] == 0
    # Prompt c has no usable gold: it says nothing of the teacher.
    assert report["pass_at_k"] == pytest.approx({"1": (2 / 3 + 0) / 2, "2": (1 + 0) / 2, "3": 1.0})
    without_gold = Agreement()
    without_gold.add({"sample_id": "c", "result_signature": "1", "gold_match": None, "exec_pass": True})
    without_gold.add({"sample_id": "c", "result_signature": None, "gold_match": None, "exec_pass": False})
    assert without_gold.as_dict()["pass_at_k"] == {"1": 0.5, "2": 1.0}
    assert Agreement().as_dict()["pass_at_k"] == {}


def test_timing_counts_only_the_time_in_flight(tmp_path: Path) -> None:
    """Throughput is over the time from first to last: a moment between two chunks counts, a night does not."""
    files = ModelFiles.of(tmp_path)
    write_model(tmp_path, EMPTY | {"kept": [{"sample_id": "a", "usage": {"completion_tokens": 30}}]})
    publish_rows(
        files.timings,
        [
            {"sample_id": "a", "latency_s": 2.0, "answered_at": "2026-05-04T09:00:02+00:00"},
            {"sample_id": "b", "latency_s": 2.0, "answered_at": "2026-05-04T09:00:03Z"},
            {"sample_id": "c", "latency_s": 1.0, "answered_at": "2026-05-05T09:00:00"},
            {"sample_id": "e", "latency_s": 1.0, "answered_at": "2026-05-05T09:00:03"},
            {"sample_id": "d"},
        ],
    )
    report = write_timing_report(tmp_path / "timing.json", model="m", files=files)
    assert report["teacher_active_s"] == pytest.approx(7.0)
    assert report["answers_per_s"] == pytest.approx(4 / 7)
    assert report["requests_in_flight_mean"] == pytest.approx(6 / 7)
    assert report["completion_tokens_per_s"] == pytest.approx(30 / 7)
    assert report["kept_per_hour"] == pytest.approx(3600 / 7)
    assert sum(point["answers"] for point in report["series"]) == 4


def test_timing_reads_benchmarks_by_rule(tmp_path: Path) -> None:
    """The stages are summed from Snakemake's benchmark files, those of the model and no other's."""
    run_dir = make_run(tmp_path, models=("teacher", "other"))
    report = write_timing_report(
        tmp_path / "timing.json",
        model="other",
        files=ModelFiles.of(run_dir / "other"),
        benchmarks=model_benchmarks(run_dir, "other", ["0001", "0002"]),
    )
    assert report["stages"]["generate_answers"]["count"] == 2
    assert report["stages"]["generate_answers"]["mean"] == 13.5
    assert report["overall_job_s"] == 27.0
    assert report["stages"]["generate_answers"]["max_rss_mb"] == 150.25


def test_cost_is_recomputed_from_the_rows(tmp_path: Path) -> None:
    """Tokens and money are those of all answers, failed ones that were paid for included, by the price table."""
    run_dir = make_run(tmp_path, 200)
    ends = make_rows(200)
    ends["failed"][0]["usage"] = {"prompt_tokens": 1000, "completion_tokens": 500, "reasoning_tokens": None}
    ends["failed"][1]["usage"] = {"prompt_tokens": 10**40, "completion_tokens": "many"}
    write_model(run_dir / "teacher", ends)
    prices = Prices(input=2.0, cached_input=0.5, output=8.0, currency="CNY")
    files = ModelFiles.of(run_dir / "teacher")
    report = write_cost_report(tmp_path / "cost.json", model="teacher", files=files, prices=prices)
    usages = [row["usage"] for row in ends["kept"] + ends["rejected"]]
    fresh = sum(usage["prompt_tokens"] - usage["cached_tokens"] for usage in usages)
    cached, written = (sum(usage[kind] for usage in usages) for kind in ("cached_tokens", "completion_tokens"))
    money = (2 * (fresh + 1000) + 0.5 * cached + 8 * (written + 500)) / 1e6
    assert report["cost_total"] == pytest.approx(money, rel=1e-9)
    assert report["cost_failed"] == pytest.approx((2 * 1000 + 8 * 500) / 1e6)
    assert report["cost_per_accepted_row"] == pytest.approx(money / len(ends["kept"]))
    assert report["completion_tokens"] == written + 500
    assert report["prices"]["currency"] == "CNY"


def test_without_prices_money_is_not_known(tmp_path: Path) -> None:
    """Without a price table tokens are counted and money is null, not zero."""
    files = ModelFiles.of(make_run(tmp_path) / "teacher")
    report = write_cost_report(tmp_path / "cost.json", model="teacher", files=files, prices=None)
    assert report["prompt_tokens"] > 0
    assert report["cost_total"] is report["cost_per_accepted_row"] is report["cost_saved_by_store"] is None


def test_judge_is_paid_too(tmp_path: Path) -> None:
    """What a judge cost is part of the total; where its price is not known, the total is not known either."""
    ends = make_rows(60, 0)
    for row in ends["kept"]:
        row["judge_usage"] = {"prompt_tokens": 10, "completion_tokens": 2, "cost": 0.25}
    write_model(tmp_path, ends)
    files, prices = ModelFiles.of(tmp_path), Prices(input=0.0, output=0.0)
    report = write_cost_report(tmp_path / "cost.json", model="teacher", files=files, prices=prices)
    assert report["judge_prompt_tokens"] == 10 * len(ends["kept"])
    assert report["cost_total"] == report["cost_judge"] == 0.25 * len(ends["kept"])
    del ends["kept"][0]["judge_usage"]["cost"]
    write_model(tmp_path, ends)
    report = write_cost_report(tmp_path / "cost.json", model="teacher", files=files, prices=prices)
    assert report["cost_total"] is report["cost_judge"] is None


def test_answers_from_before_the_run_were_saved_by_the_store(tmp_path: Path) -> None:
    """An answer that is older than the run's first job was not paid by this run."""
    run_dir = make_run(tmp_path, 100)
    log = run_dir / "logs" / "generate_answers" / "teacher" / "0001.log"
    log.parent.mkdir(parents=True)
    moment = START + timedelta(seconds=20)
    log.write_text(f"{moment:%Y-%m-%dT%H:%M:%SZ} INFO begun\n")
    files = ModelFiles.of(run_dir / "teacher")
    prices = Prices(input=0.0, output=1.0)
    report = write_cost_report(tmp_path / "cost.json", model="teacher", files=files, prices=prices, logs=[log])
    times = [row for row in read(files.timings) if parse_time(row.get("answered_at", "")) is not None]
    older = [row["sample_id"] for row in times if parse_time(row["answered_at"]) < moment.timestamp()]
    rows = [row for path in (files.kept, files.rejected) for row in read(path) if row["sample_id"] in older]
    assert 0 < report["answers_from_store"] == len(older)
    assert report["cost_saved_by_store"] == pytest.approx(sum(row["usage"]["completion_tokens"] for row in rows) / 1e6)


def test_rows_find_their_times_in_one_pass(tmp_path: Path) -> None:
    """Each row comes with its own line of timings, chunk by chunk; one that has none comes all the same."""
    ends = ("kept", "rejected", "failed")
    rows = {end: [{"sample_id": f"{end}{i}", "sample_index": i} for i in range(3)] for end in ends}
    write_model(tmp_path, {**rows, "not_asked": []})
    ordered = [rows[end][i] for i in (0, 1) for end in ends] + rows["rejected"][2:]
    publish_rows(tmp_path / "timings.jsonl", [row | {"latency_s": row["sample_id"]} for row in ordered])
    found = {row["sample_id"]: (end, times.get("latency_s")) for end, row, times in with_times(ModelFiles.of(tmp_path))}
    assert len(found) == 9
    for end in rows:
        for row in rows[end]:
            known = row in ordered
            assert found[row["sample_id"]] == (end, row["sample_id"] if known else None)


def test_times_are_read_as_utc() -> None:
    """ISO text with and without a zone, and numbers, are one moment; what is no time is none."""
    assert parse_time("2026-05-04T09:00:00Z") == parse_time("2026-05-04T09:00:00") == parse_time(1777885200)
    assert parse_time("yesterday") is None
    assert parse_time(None) is None


class TestGates:
    """Gates: min and max, unknown values, and the verdict that survives."""

    def check(self, run_dir: Path, settings: dict[str, Any]) -> Path:
        """Write the quality report and gates.json of a run."""
        quality_of(run_dir)
        output = run_dir / "gates.json"
        report = run_dir / "teacher" / "reports" / "quality_report.json"
        check_gates(output, settings=settings, quality_reports=[report])
        return output

    def test_met(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """Gates that are met are printed with value and limit, and let the run pass."""
        output = self.check(make_run(tmp_path), {"min_total": 60, "max_failed_ratio": 0.5, "min_score_mean": None})
        printed = capsys.readouterr().out
        assert "min_total: 60 (limit: >= 60)" in printed
        assert "min_score_mean" not in printed
        assert enforce_gates(output, tmp_path / "gates.passed") is True
        assert (tmp_path / "gates.passed").is_file()

    def test_not_met(self, tmp_path: Path) -> None:
        """A missed gate fails the run and names itself, and gates.json stays."""
        output = self.check(make_run(tmp_path), {"min_total": 61, "on_failure": "fail"})
        with pytest.raises(PotstillError, match=r"min_total: 60 \(limit: >= 61\)"):
            enforce_gates(output, tmp_path / "gates.passed")
        assert not (tmp_path / "gates.passed").exists()
        assert json.loads(output.read_text())["met"] is False

    def test_warn(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """With `on_failure: warn` a missed gate is a warning."""
        output = self.check(make_run(tmp_path), {"max_p_keep": 0.01, "on_failure": "warn"})
        assert enforce_gates(output) is False
        assert "warning: NOT MET" in capsys.readouterr().out

    def test_unknown_value_is_not_met(self, tmp_path: Path) -> None:
        """A gate on a value that nobody knows (no gold, no price) is not met."""
        run_dir = make_run(tmp_path)
        write_model(run_dir / "teacher", EMPTY)
        output = self.check(run_dir, {"min_gold_match_rate": 0.0, "max_cost_per_accepted_row": 5})
        gates = json.loads(output.read_text())["gates"]
        assert [(gate["met"], gate["value"]) for gate in gates] == [(False, None), (False, None)]


def test_gates_of_a_cascade() -> None:
    """The cascade's result keeps the limits in the place of its models, unless `of` names others."""
    good, bad = {"p_keep": 0.9}, {"p_keep": 0.2}
    models: dict[str, Any] = {"small": (bad, None), "large": (bad, None), "other": (good, None)}
    cascade = {"quality": good, "cost": {}, "models": [{"alias": "small"}, {"alias": "large"}]}

    def names(settings: dict[str, Any], summary: dict[str, Any] | None = cascade) -> list[tuple[str, bool]]:
        return [(gate.model, gate.met) for gate in evaluate_run({"min_p_keep": 0.5, **settings}, models, summary)]

    assert names({"of": None}) == [("other", True), ("cascade", True)]
    assert names({"of": ["large", "cascade"]}) == [("large", False), ("cascade", True)]
    assert names({}, None) == [("small", False), ("large", False), ("other", True)]
