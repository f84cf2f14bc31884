"""The page of a run, in a real browser: its numbers, its silence, hostile text, keyboard, phone, two languages."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from potstill.config.model import Prices
from potstill.records import Row
from potstill.reports.compare import compare_runs
from potstill.reports.cost import write_cost_report
from potstill.reports.excerpt import mark_statement
from potstill.reports.files import ModelFiles
from potstill.reports.page import PANELS, write_page
from potstill.reports.quality import write_quality_report
from potstill.reports.sample import pick_rows, share_out
from potstill.reports.timing import model_benchmarks, write_timing_report
from potstill.rows import publish_json
from potstill.student import score_agreement
from tests.unit.browser import Page, open_browser
from tests.unit.report_runs import make_config, make_rows, make_run, write_model

PRICES = Prices(input=2.5, cached_input=1.25, output=10.0)
BIDI = "\u202e"
HOSTILE = [
    "<script>window.pwned = 1</script>",
    "</script><script>window.pwned = 1</script>",
    "<img src=x onerror=window.pwned=1><svg onload=window.pwned=1>",
    f"{BIDI}txet sdrawkcab\u2066\u200b\x00\x1b[31m",
    "{{ 7 * 7 }} ${7*7} {% raw %}",
    "<!--",
    "x" * 1_000_000,
    "half \ud83d of a pair",
]


def write_reports(run_dir: Path, models: tuple[str, ...] = ("teacher",), prices: Any = PRICES) -> None:
    """Write all reports of a run."""
    for model in models:
        files, reports = ModelFiles.of(run_dir / model), run_dir / model / "reports"
        summary = run_dir / "prepared" / "summary.json"
        write_quality_report(reports / "quality_report.json", model=model, files=files, summary=summary)
        benchmarks = model_benchmarks(run_dir, model, ["0001", "0002"])
        write_timing_report(reports / "timing_report.json", model=model, files=files, benchmarks=benchmarks)
        write_cost_report(reports / "cost_report.json", model=model, files=files, prices=prices)


def make_page(run_dir: Path, models: tuple[str, ...] = ("teacher",), **kwargs: Any) -> Path:
    """Write the reports and the page of a run, and return the page."""
    write_reports(run_dir, models)
    page = run_dir / "report.html"
    write_page(page, model_folders=[run_dir / model for model in models], config=make_config(models), **kwargs)
    return page


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    with open_browser() as page:
        yield page


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_page(make_run(tmp_path_factory.mktemp("run"), 300, ("teacher", "small")), ("teacher", "small"))


def test_page_holds_no_address(sample: Path) -> None:
    """Not one external address stands in the page, not even as a link or in a licence."""
    text = sample.read_text()
    assert not re.findall(r'https?:|wss?:| src=|href="(?!#|data:)', text)


def test_page_is_the_same_for_the_same_run(sample: Path, tmp_path: Path) -> None:
    """The page holds no moment of its making: the same run gives the same bytes."""
    again = tmp_path / "again.html"
    folders = [sample.parent / model for model in ("teacher", "small")]
    write_page(again, model_folders=folders, config=make_config(("teacher", "small")))
    assert again.read_bytes() == sample.read_bytes()


def test_page_draws_and_asks_for_nothing(browser: Page, sample: Path) -> None:
    """All rows and charts appear, the console is silent, and the file itself is all that is ever asked for."""
    browser.open(sample.as_uri())
    assert browser.run("return document.documentElement.dataset.charts") == "drawn"
    assert browser.run("return document.documentElement.dataset.rows") == "600"
    assert browser.run("return [...document.querySelectorAll('.chart')].every(node => node.querySelector('svg'))")
    assert {url for url in browser.requests() if not url.startswith(("data:", "blob:"))} == {sample.as_uri()}
    assert browser.complaints() == []


def test_page_shows_the_exact_numbers(browser: Page, sample: Path) -> None:
    """The number behind each figure is the report's own, unrounded."""
    browser.open(sample.as_uri())
    report = json.loads((sample.parent / "small" / "reports" / "quality_report.json").read_text())
    shown = browser.run(
        """return Object.fromEntries([...document.querySelectorAll('#quality table')[0].tBodies[0].rows].map(
             row => [row.cells[0].textContent, row.cells[2].querySelector('data')?.value ?? null]))"""
    )
    names = {"Kept": "kept", "Keep rate": "p_keep", "Executes": "exec_pass_rate", "Matches gold": "gold_match_rate"}
    for name, key in names.items():
        assert float(shown[name]) == report[key]


def test_threshold_slider_by_keyboard(browser: Page, sample: Path) -> None:
    """The slider moves with the arrow keys and shows the counted rows of each step."""
    browser.open(sample.as_uri())
    report = json.loads((sample.parent / "teacher" / "reports" / "quality_report.json").read_text())
    browser.run("document.querySelector('.slider input').focus()")
    browser.press("HOME")
    output = "return document.querySelector('.slider output').textContent"
    assert f"{report['kept_at_min_score'][0]['kept']} / {report['answered']}" in browser.run(output)
    browser.press("END")
    assert f"0 / {report['answered']}" in browser.run(output)


def test_rows_are_filtered_searched_and_opened_by_keyboard(browser: Page, sample: Path) -> None:
    """Filters and search narrow the table; Enter opens a row with its answer marked, arrows move on, Escape closes."""
    browser.open(sample.as_uri())
    browser.run("document.getElementById('search').focus()")
    browser.press(*"pages > 77")
    browser.run(
        "const s = document.getElementById('filter-model'); s.value = 'small'; s.dispatchEvent(new Event('change'))"
    )
    rows = "return document.querySelectorAll('#row-table tbody tr').length"
    assert browser.run(rows) == 1
    browser.run("document.querySelector('#row-table button').focus()")
    browser.press("ENTER")
    assert browser.run("return document.getElementById('detail').open")
    assert "WHERE pages > 77" in browser.run("return document.querySelector('#detail mark').textContent")
    browser.press("ESCAPE")
    assert not browser.run("return document.getElementById('detail').open")
    assert browser.run("return document.activeElement.className.includes('open')")
    browser.run(
        "const s = document.getElementById('search'); s.value = 'no such words'; s.dispatchEvent(new Event('input'))"
    )
    assert browser.run(rows) == 0


def test_example_of_an_error_opens_its_row(browser: Page, sample: Path) -> None:
    """Each class of errors has an example, which opens the row that it comes from."""
    browser.open(sample.as_uri())
    examples = "[...document.querySelectorAll('[data-example=exec_error_class]')]"
    assert browser.run(
        f"return {examples}.length && {examples}.every(node => node.textContent.includes('syntax error'))"
    )
    browser.run(f"{examples}[0].querySelector('button').click()")
    assert "syntax" in browser.run("return document.getElementById('detail-body').textContent")


def test_every_text_has_its_chinese(browser: Page, sample: Path) -> None:
    """After the switch no text of the page's own is left in English, and the choice can be taken back."""
    browser.open(sample.as_uri())
    browser.run("document.getElementById('language').click()")
    left = browser.run(
        """const texts = [...document.querySelectorAll('[data-t]')];
           return texts.filter(node => node.textContent === node.dataset.text).map(node => node.textContent);"""
    )
    assert set(left) <= {"/"}
    assert browser.run("return document.documentElement.lang") == "zh-CN"
    browser.run("document.querySelector('#row-table button').click()")
    names = browser.run("return [...document.querySelectorAll('#detail h3, #detail dt')].map(n => n.textContent)")
    english = {name for name in names if re.fullmatch(r"[A-Z][a-z ]+", name)}
    assert english == set()
    browser.run("document.getElementById('detail').close(); document.getElementById('language').click()")
    assert "Kept" in browser.run("return document.querySelector('.card').textContent")


def test_script_texts_have_their_chinese() -> None:
    """Every text that the script translates stands in the dictionary."""
    assets = Path(__file__).parents[2] / "src" / "potstill" / "reports" / "assets"
    words = re.findall(r'\bt\("([^"]+)"\)', (assets / "page.js").read_text())
    dictionary = json.loads((assets / "zh.json").read_text())
    assert words
    assert [word for word in words if word not in dictionary] == []


@pytest.mark.parametrize("width", [360, 390, 768, 1280])
def test_page_fits_the_screen(browser: Page, sample: Path, width: int) -> None:
    """On a phone as on a desktop nothing sticks out sideways."""
    browser.resize(width)
    try:
        browser.open(sample.as_uri())
        assert browser.run("return document.documentElement.scrollWidth") <= width
    finally:
        browser.resize(1280)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_stands_out_in_both_themes(browser: Page, sample: Path, theme: str) -> None:
    """Text, and quiet text, have the contrast of WCAG AA (4.5) on every ground that they stand on."""
    browser.resize(1280, theme=theme)
    try:
        browser.open(sample.as_uri())
        ratios = browser.run(
            """
            const light = name => {
              const hex = getComputedStyle(document.documentElement).getPropertyValue(name).trim();
              const [r, g, b] = [1, 3, 5].map(i => parseInt(hex.slice(i, i + 2), 16) / 255)
                .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
              return 0.2126 * r + 0.7152 * g + 0.0722 * b;
            };
            const ratio = (text, ground) => {
              const [low, high] = [light(text), light(ground)].sort((a, b) => a - b);
              return (high + 0.05) / (low + 0.05);
            };
            const texts = ['--ink', '--soft', '--copper', '--kept', '--failed'];
            return texts.flatMap(text => ['--ground', '--card'].map(ground => ratio(text, ground)));"""
        )
        assert min(ratios) >= 4.5
    finally:
        browser.resize(1280)


def hostile_row(row: Row, text: str) -> Row:
    """Return a row whose every text is hostile."""
    return row | {
        "question": text,
        "db_id": text,
        "difficulty": text,
        "generation": f"before {text} after",
        "sql": text,
        "reasoning": text,
        "exec_error": text,
        "exec_error_class": text,
        "finish_reason": text,
        "gold_sql": text,
        "messages": [{"role": text, "content": text}],
        text[:100]: text,
    }


def test_hostile_text_stays_text(browser: Page, tmp_path: Path) -> None:
    """Scripts, markup, bidi overrides, megabytes and half characters in every field are shown, never obeyed."""
    run_dir = make_run(tmp_path)
    ends = make_rows(60)
    ends["rejected"] = [hostile_row(row, text) for row, text in zip(ends["rejected"], HOSTILE, strict=False)]
    ends["failed"] = [row | {"error_class": HOSTILE[0], "error": HOSTILE[2]} for row in ends["failed"]]
    write_model(run_dir / "teacher", ends)
    page = make_page(run_dir)
    assert page.stat().st_size < 2_000_000
    browser.complaints()
    browser.open(page.as_uri())
    assert browser.run("return document.documentElement.dataset.charts") == "drawn"
    browser.run("for (const row of document.querySelectorAll('#row-table button')) { row.click(); detail.close(); }")
    assert browser.run("return window.pwned") is None
    assert (
        browser.run("return document.querySelectorAll('img, iframe, object, embed, form:not(.vega-bindings)').length")
        == 0
    )
    text = browser.run("return document.getElementById('row-table').textContent")
    assert HOSTILE[0] in text
    assert BIDI not in text
    assert "U+202E" in text
    assert browser.complaints() == []


def test_page_forbids_other_scripts(browser: Page, sample: Path) -> None:
    """Even if markup slipped in, the page's policy runs no script but its own and reaches no network."""
    browser.open(sample.as_uri())
    browser.run(
        """const script = document.createElement('script');
           script.textContent = 'window.pwned = 1';
           const image = document.createElement('div');
           image.innerHTML = '<img src="x" onerror="window.pwned = 1">';
           document.body.append(script, image);"""
    )
    refused = browser.run("return fetch('http://127.0.0.1:9/').then(() => 'reached', error => 'refused')")
    assert (browser.run("return window.pwned"), refused) == (None, "refused")
    browser.complaints()


def test_page_of_an_empty_model(browser: Page, tmp_path: Path) -> None:
    """A model without a single row has a page too."""
    run_dir = make_run(tmp_path)
    write_model(run_dir / "teacher", {"kept": [], "rejected": [], "failed": [], "not_asked": []})
    page = make_page(run_dir)
    browser.open(page.as_uri())
    assert browser.run("return document.documentElement.dataset.charts") == "drawn"
    assert "NaN" not in browser.run("return document.body.textContent")


def test_panels_are_pages_of_single_sections(browser: Page, tmp_path: Path) -> None:
    """For Snakemake's report each section is a page of its own, with its charts, without rows."""
    make_page(make_run(tmp_path), panels=tmp_path / "panels")
    assert {path.stem for path in (tmp_path / "panels").iterdir()} == set(PANELS)
    browser.complaints()
    for name in PANELS:
        browser.open((tmp_path / "panels" / f"{name}.html").as_uri())
        assert browser.run("return document.documentElement.dataset.charts") == "drawn"
        assert browser.run("return [...document.querySelectorAll('.chart')].every(node => node.querySelector('svg'))")
        assert browser.run("return document.getElementById('rows')") is None
    assert browser.complaints() == []


def test_page_shows_a_comparison(browser: Page, tmp_path: Path) -> None:
    """With an earlier run the page shows what changed in the config and which rows moved."""
    before, after = make_run(tmp_path / "a"), make_run(tmp_path / "b")
    ends = make_rows(60, 0)
    ends["rejected"].append(ends["kept"].pop(0) | {"reject_reason": "too_long"})
    write_model(after / "teacher", ends)
    (before / "config.yaml").write_text("run: <b>earlier</b>\n")
    page = make_page(after, comparison=compare_runs(before, after))
    browser.open(page.as_uri())
    text = browser.run("return document.getElementById('comparison').textContent")
    assert "<b>earlier</b>" in text
    assert ends["rejected"][-1]["sample_id"] in text


ROUND: Row = {
    "round": 1,
    "samples_per_row": 2,
    "rows_asked": 60,
    "rows_solved": 31,
    "rows_solved_so_far": 31,
    "pass_at_k": 0.516666,
    "cost": 0.0123,
    "cost_per_solved_row": 0.0123 / 31,
}
STEP: Row = {
    "alias": "teacher",
    "samples_asked": 60,
    "rejected": 20,
    "failed": 3,
    "solved": 37,
    "cost": None,
    "cost_per_solved_row": None,
    "solved_so_far": 37,
    "cost_so_far": None,
    "cost_per_solved_row_so_far": None,
}
CASCADE: Row = {
    "rows": 60,
    "solved": 48,
    "models": [STEP, {**STEP, "alias": "<i>large</i>", "solved": 11, "cost": 2.5, "cost_per_solved_row": 2.5 / 11}],
    "quality": {"total": 60, "kept": 48, "p_keep": 0.8},
    "cost": {"cost_total": None},
}


@pytest.fixture(scope="module")
def adaptive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a run with rounds, a cascade and a student."""
    run_dir = make_run(tmp_path_factory.mktemp("adaptive"))
    write_reports(run_dir)
    reports = run_dir / "teacher" / "reports"
    cost = json.loads((reports / "cost_report.json").read_text())
    further = {**ROUND, "round": 2, "samples_per_row": 4, "rows_solved": 5, "pass_at_k": 0.6}
    publish_json(reports / "cost_report.json", {**cost, "rounds": [ROUND, further]})
    publish_json(run_dir / "cascade.json", CASCADE)
    scores = {str(number): number / 10 for number in range(10)}
    student = score_agreement(scores, {**scores, "3": 0.9, "4": None})
    publish_json(run_dir / "agreement.json", {"students": {"tuned": student}})
    config = {**make_config(("teacher",)), "gates": {"min_p_keep": 0.9}}
    page = run_dir / "report.html"
    extras = {"cascade": run_dir / "cascade.json", "agreement": run_dir / "agreement.json"}
    write_page(page, model_folders=[run_dir / "teacher"], config=config, panels=run_dir / "panels", **extras)
    return page


def _table(browser: Page, section: str) -> list[list[str | None]]:
    rows: list[list[str | None]] = browser.run(
        f"""return [...document.querySelector('#{section} table').tBodies[0].rows].map(row =>
              [...row.cells].map(cell => cell.querySelector('data')?.value ?? cell.textContent))"""
    )
    return rows


def test_page_shows_rounds_cascade_and_students(browser: Page, adaptive: Path) -> None:
    """Each number of the rounds, of the cascade's models and of the student's agreement is the report's own."""
    browser.open(adaptive.as_uri())
    first, second = _table(browser, "rounds")
    assert [float(str(value)) for value in first[1:]] == [float(value) for value in ROUND.values()]
    assert (second[1], second[6]) == ("2", "0.6")
    small, large = _table(browser, "cascade")
    assert small == ["teacher", "60", "37", "20", "3", "–", "–", "37", "–", "–"]
    assert (large[0], large[2], float(str(large[6]))) == ("<i>large</i>", "11", 2.5 / 11)
    (student,) = _table(browser, "agreement")
    assert student[:3] == ["tuned", "9", "1"]
    assert float(str(student[5])) == pytest.approx(0.6 / 9)
    (gate,) = _table(browser, "gates")
    assert (gate[0], gate[1], gate[2], gate[4]) == ("min_p_keep", "cascade", "0.8", "not met")
    assert browser.complaints() == []


def test_new_sections_speak_chinese_and_fit_a_phone(browser: Page, adaptive: Path) -> None:
    """No text of these sections is left in English after the switch, and the page is not wider than a phone."""
    browser.open(adaptive.as_uri())
    browser.resize(360)
    browser.run("document.getElementById('language').click()")
    left = browser.run(
        """return [...document.querySelectorAll(':is(#rounds, #cascade, #agreement, nav) [data-t]')]
             .filter(node => node.textContent === node.dataset.text).map(node => node.textContent)"""
    )
    assert left == []
    assert browser.run("return document.documentElement.scrollWidth <= window.innerWidth")
    browser.run("document.getElementById('language').click()")
    browser.resize(1280)


def test_panels_carry_the_new_sections(adaptive: Path) -> None:
    """`snakemake --report` shows rounds and cascade with the cost, students with the quality."""
    cost, quality = ((adaptive.parent / f"panels/{name}.html").read_text() for name in ("cost", "quality"))
    assert 'id="rounds"' in cost
    assert 'id="cascade"' in cost
    assert 'id="agreement"' in quality
    assert 'id="rounds"' not in quality


def test_a_run_without_them_has_no_such_sections(sample: Path) -> None:
    """Rounds, cascade and students take no place where there are none."""
    text = sample.read_text()
    assert not re.findall(r'id="(rounds|cascade|agreement)"', text)


def test_sample_holds_every_stratum() -> None:
    """Of many rows each end and reason gives some, and the whole is as large as asked."""
    strata = {
        ("kept", ""): 90_000,
        ("rejected", "low_score"): 9_000,
        ("rejected", "rare"): 3,
        ("failed", "timeout"): 40,
    }
    quotas = share_out(strata, 1000)
    assert quotas["rejected", "rare"] == 3
    assert quotas["failed", "timeout"] >= 12
    assert 990 <= sum(quotas.values()) <= 1000
    many = {("rejected", f"reason {i}"): 50 for i in range(500)}
    assert all(count >= 1 for count in share_out(many, 1000).values())


def test_sample_is_the_same_each_time(tmp_path: Path) -> None:
    """The choice hangs on the sample_ids alone, and names file and line of each row."""
    run_dir = make_run(tmp_path, 400)
    write_reports(run_dir)
    quality = json.loads((run_dir / "teacher" / "reports" / "quality_report.json").read_text())
    files = ModelFiles.of(run_dir / "teacher")
    first = pick_rows(files, quality, 60)
    assert first == pick_rows(files, quality, 60)
    assert 50 <= len(first) <= 60 + 6
    assert {picked.end for picked in first} == {"kept", "rejected", "failed", "not_asked"}
    for picked in first:
        line = (run_dir / "teacher" / picked.file).read_text().splitlines()[picked.line - 1]
        assert json.loads(line) == picked.row


def test_rare_errors_have_an_example(tmp_path: Path) -> None:
    """A class of errors that one row of many has is in the sample, though its reason is a common one."""
    run_dir = make_run(tmp_path, 400)
    ends = make_rows(400)
    rare = max(ends["rejected"], key=lambda row: row["sample_id"])
    rare["exec_error_class"] = "row_limit"
    write_model(run_dir / "teacher", ends)
    write_reports(run_dir)
    quality = json.loads((run_dir / "teacher" / "reports" / "quality_report.json").read_text())
    picked = pick_rows(ModelFiles.of(run_dir / "teacher"), quality, 40)
    assert rare["sample_id"] in {one.row["sample_id"] for one in picked}


def test_page_says_that_it_shows_a_sample(browser: Page, tmp_path: Path) -> None:
    """A page with fewer rows than the run says so and names the files with the rest."""
    page = make_page(make_run(tmp_path, 400), page_rows=50)
    browser.open(page.as_uri())
    note = browser.run("return document.getElementById('sample-note').textContent")
    assert "of 400 samples are on this page" in note
    assert "merged" in note


@pytest.mark.parametrize(
    ("answer", "statement", "marked"),
    [
        ("no\n```sql\nSELECT 1\n```\nor\n```sql\nSELECT 1\n```", "SELECT 1", "SELECT 1"),
        ("```sql\nSELECT\n  1\n```", "SELECT 1", "SELECT\n  1"),
        ("I cannot.", "", None),
        ("other", "SELECT 1", None),
    ],
)
def test_statement_is_marked_where_it_stands(answer: str, statement: str, marked: str | None) -> None:
    """The extracted statement is marked in the raw answer, also where only its blank space differs."""
    parts = mark_statement(answer, statement)
    assert "".join(part["text"] for part in parts) == answer
    assert [part["text"] for part in parts if part.get("sql")] == ([marked] if marked else [])


def test_long_answers_are_cut_around_the_statement() -> None:
    """Of a megabyte the page holds the statement and a little on both sides, and says what is left out."""
    parts = mark_statement("a" * 1_000_000 + "SELECT 1" + "b" * 1_000_000, "SELECT 1")
    assert [part.get("sql", False) for part in parts] == [False, True, False]
    assert sum(len(part["text"]) + part["left_out"] for part in parts) == 2_000_008
    assert sum(len(part["text"]) for part in parts) < 10_000
