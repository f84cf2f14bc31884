"""Scores, filters, votes, duplicates, and what a user's own package adds."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from potstill.errors import ConfigError
from potstill.filters.duplicates import DuplicateCap
from potstill.filters.expression import Expression
from potstill.rows import publish_rows, read_rows
from potstill.sql.quality import signals, statement_key
from potstill.stages.filter import check_stages, filter_rows
from potstill.stages.score import score_rows

GOLD = {"exec_pass": True, "gold_match": True, "result_signature": "g"}
WRONG = {"exec_pass": True, "gold_match": False, "result_signature": "w"}
NO_COPIES = {"variant_match": None, "variant_count": None}
NO_GOLD = {"exec_pass": True, "gold_match": None, "result_signature": "n"}
BROKEN = {"exec_pass": False, "gold_match": False, "exec_error_class": "syntax_error", "result_signature": None}


def row(number: int = 0, **fields: Any) -> dict[str, Any]:
    """Return a row as the stages before leave it."""
    return {
        "sample_id": f"s{number}",
        "generation": "SELECT a FROM t",
        "sql": "SELECT a FROM t",
        "clean_note": "",
        "db_id": "d",
        **fields,
    }


def score(tmp_path: Path, rows: list[dict[str, Any]], **settings: Any) -> list[dict[str, Any]]:
    """Run the score stage and return its rows."""
    publish_rows(tmp_path / "in.jsonl", rows)
    settings = {"gold": 1.0, "exec": 0.5, "fail": 0.0, "signals": False, "scorers": [], **settings}
    score_rows(tmp_path / "in.jsonl", tmp_path / "out.jsonl", settings=settings)
    return list(read_rows(tmp_path / "out.jsonl"))


def sift(
    tmp_path: Path, rows: list[dict[str, Any]], **settings: Any
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Run the filter stage and return kept and rejected rows; no row may be lost."""
    publish_rows(tmp_path / "in.jsonl", rows)
    kept, rejected = tmp_path / "kept.jsonl", tmp_path / "rejected.jsonl"
    counts = filter_rows(tmp_path / "in.jsonl", kept, rejected, settings=settings)
    result = list(read_rows(kept)), list(read_rows(rejected))
    assert (counts.kept, counts.rejected) == (len(result[0]), len(result[1]))
    assert counts.rows == len(rows) == sum(map(len, result))
    assert sum(counts.reasons.values()) == counts.rejected
    return result


# ---------------------------------------------------------------------------------------------------- score


def test_scores(tmp_path: Path) -> None:
    """Gold is worth most; to execute is worth the same with wrong gold and without usable gold; to fail, nothing."""
    rows = [row(**GOLD), row(**WRONG), row(**NO_GOLD), row(**BROKEN)]
    assert [item["score"] for item in score(tmp_path, rows)] == [1.0, 0.5, 0.5, 0.0]
    assert [item["score"] for item in score(tmp_path, rows, gold=3, exec=2, fail=-1)] == [3.0, 2.0, 2.0, -1.0]


def test_scores_need_execution(tmp_path: Path) -> None:
    """Rows that were never executed have no score by execution: a matter of the config."""
    with pytest.raises(ConfigError, match="`execute` is off"):
        score(tmp_path, [row()])


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("SELECT a FROM t", {"joins": 0, "nesting": 1, "select_star": False, "cross_join": False}),
        ("SELECT * FROM t", {"joins": 0, "nesting": 1, "select_star": True, "cross_join": False}),
        ("SELECT COUNT(*) FROM t", {"joins": 0, "nesting": 1, "select_star": False, "cross_join": False}),
        (
            "SELECT t.a FROM t JOIN u ON t.i = u.i",
            {"joins": 1, "nesting": 1, "select_star": False, "cross_join": False},
        ),
        ("SELECT t.a FROM t JOIN u USING (i)", {"joins": 1, "nesting": 1, "select_star": False, "cross_join": False}),
        ("SELECT t.a FROM t, u", {"joins": 1, "nesting": 1, "select_star": False, "cross_join": True}),
        ("SELECT t.a FROM t, u WHERE t.i = u.i", {"joins": 1, "nesting": 1, "select_star": False, "cross_join": False}),
        ("SELECT a FROM t, u WHERE x = y", {"joins": 1, "nesting": 1, "select_star": False, "cross_join": False}),
        (
            "SELECT t.a FROM t JOIN u WHERE t.i = 1",
            {"joins": 1, "nesting": 1, "select_star": False, "cross_join": True},
        ),
        (
            "SELECT t.a FROM t CROSS JOIN (SELECT MAX(a) AS m FROM t) AS x",
            {"joins": 1, "nesting": 2, "select_star": False, "cross_join": False},
        ),
        (
            "SELECT a FROM t WHERE b IN (SELECT b FROM u WHERE c > (SELECT AVG(c) FROM u))",
            {"joins": 0, "nesting": 3, "select_star": False, "cross_join": False},
        ),
    ],
)
def test_signals(sql: str, expected: dict[str, Any]) -> None:
    """The signals count joins and nesting and see stars and unlinked tables."""
    assert signals(sql) == expected


def test_signals_of_what_cannot_be_read(tmp_path: Path) -> None:
    """What sqlglot cannot read has no signals, and its row is scored all the same."""
    (scored,) = score(tmp_path, [row(**BROKEN) | {"sql": "SELECT FROM WHERE"}], signals=True)
    assert scored["sql_quality"] is None


# ---------------------------------------------------------------------------------------------------- filter


def test_a_kept_row_says_so(tmp_path: Path) -> None:
    """A row that passes has `keep` true and no reasons."""
    (kept,), rejected = sift(tmp_path, [row(**GOLD, score=1.0)], min_score=1.0)
    assert (kept["keep"], kept["reject_reasons"], kept["reject_reason"], rejected) == (True, [], None, [])


@pytest.mark.parametrize(
    ("fields", "settings", "reasons"),
    [
        ({"generation": "", "sql": "", "clean_note": "empty"}, {}, ["empty_output", "no_sql"]),
        ({"generation": None, "sql": "", "clean_note": "not_text"}, {}, ["empty_output", "no_sql"]),
        ({"finish_reason": "length"}, {}, ["truncated"]),
        ({"clean_note": "truncated_statement"}, {}, ["truncated"]),
        ({"sql": "", "clean_note": "had_reasoning, unfinished_reasoning"}, {}, ["truncated", "no_sql"]),
        ({"sql": "", "clean_note": "refusal"}, {}, ["refused", "no_sql"]),
        ({"sql": ""}, {}, ["no_sql"]),
        ({"sql": "DROP TABLE t", "clean_note": "not_a_query"}, {}, ["not_a_query"]),
        ({"sql": ""}, {"reject": ["truncated"]}, []),
        ({"empty_result": True, "used_clock": False}, {"reject": ["empty_result", "used_clock"]}, ["empty_result"]),
        ({"empty_result": True}, {}, []),
        ({"sql_quality": {"cross_join": True}}, {"reject": ["cross_join", "select_star"]}, ["cross_join"]),
        ({"exec_error_class": "timeout"}, {"reject_classes": ["timeout", "row_limit"]}, ["timeout"]),
        ({"exec_error_class": "syntax_error"}, {"reject_classes": ["timeout"]}, []),
        ({"variant_match": 3, "variant_count": 3}, {"require": ["variant_match"]}, []),
        ({"variant_match": 2, "variant_count": 3}, {"require": ["variant_match"]}, ["variant_mismatch"]),
        ({**WRONG, **NO_COPIES}, {"require": ["variant_match"]}, ["variant_mismatch"]),
        ({**NO_GOLD, **NO_COPIES}, {"require": ["variant_match"]}, ["gold_not_usable"]),
        ({**BROKEN, **NO_COPIES}, {"require": ["variant_match"]}, ["exec_error", "variant_mismatch"]),
        ({**GOLD, "variant_match": 0, "variant_count": 0}, {"require": ["variant_match"]}, ["variants_not_usable"]),
        ({**GOLD, "score": None}, {"min_score": 0.5}, ["no_score"]),
        ({**BROKEN, "score": None}, {"min_score": 0.5}, ["exec_error", "no_score"]),
        ({**GOLD, "score": None}, {}, []),
        ({}, {"min_chars": 16}, ["too_short"]),
        ({}, {"max_chars": 14}, ["too_long"]),
        ({}, {"min_chars": 15, "max_chars": 15}, []),
        ({**BROKEN, "score": 0.0}, {"min_score": 0.5}, ["exec_error", "low_score"]),
        ({**WRONG, "score": 0.5}, {"min_score": 1.0}, ["gold_mismatch", "low_score"]),
        ({**WRONG, "score": 0.5}, {"min_score": 0.5}, []),
        ({**NO_GOLD, "score": 0.5}, {"min_score": 1.0}, ["low_score"]),
        (NO_GOLD, {"require": ["gold_match"]}, ["gold_not_usable"]),
        (WRONG, {"require": ["gold_match"]}, ["gold_mismatch"]),
        (BROKEN, {"require": ["exec_pass"]}, ["exec_error"]),
        (WRONG, {"require": ["exec_pass"]}, []),
        ({"score": 0.4}, {"expression": "score >= 0.5"}, ["expression"]),
        ({"score": None}, {"expression": "score >= 0.5"}, ["expression_error"]),
        ({"score": 0.4}, {"expression": "score > 0.3 and len(sql) < 20 and 'FROM' in sql"}, []),
        (
            {"sql": "", "clean_note": "refusal", **BROKEN, "score": 0.0},
            {"min_score": 1.0, "min_chars": 1},
            ["refused", "no_sql", "exec_error", "too_short", "low_score"],
        ),
    ],
)
def test_reasons(tmp_path: Path, fields: dict[str, Any], settings: dict[str, Any], reasons: list[str]) -> None:
    """Every check that fails is named, the most specific first."""
    kept, rejected = sift(tmp_path, [row(**fields)], **settings)
    found = (kept + rejected)[0]
    assert found["reject_reasons"] == reasons
    assert found["reject_reason"] == (reasons[0] if reasons else None)
    assert found["keep"] is (not reasons)


def test_without_cleaning_the_answer_itself_is_measured(tmp_path: Path) -> None:
    """With `clean` off there is no `sql`: lengths are those of the answer, and no row lacks a statement."""
    rows = [{"sample_id": "a", "generation": "four"}, {"sample_id": "b", "generation": "fourteen"}]
    kept, rejected = sift(tmp_path, rows, max_chars=5)
    assert [item["sample_id"] for item in kept] == ["a"]
    assert rejected[0]["reject_reasons"] == ["too_long"]


@pytest.mark.parametrize("settings", [{"require": ["exec_pass"]}, {"min_score": 0.5}, {"vote": {}}])
def test_a_check_needs_its_field(tmp_path: Path, settings: dict[str, Any]) -> None:
    """A check on a field that a switched-off stage would have made is an error, not a silent pass."""
    with pytest.raises(ConfigError, match="needs the field"):
        sift(tmp_path, [row()], **settings)
    with pytest.raises(ConfigError, match="and that stage is off"):
        check_stages(settings, {"execute": None, "score": None})


EXECUTE = {"variants": 0, "gold_field": "gold_sql"}


@pytest.mark.parametrize(
    ("settings", "execute", "message"),
    [
        ({"require": ["variant_match"]}, EXECUTE, r"filter\.require: variant_match.*set execute\.variants"),
        ({"require": ["gold_match"]}, {**EXECUTE, "gold_field": None}, r"filter\.require: gold_match: no row has gold"),
        (
            {"reject": ["truncated", "used_clock"]},
            None,
            r"filter\.reject: used_clock: no row is marked so; set `execute`",
        ),
        ({"reject": ["select_star"]}, EXECUTE, r"filter\.reject: select_star.*set `score\.signals`"),
        ({"reject_classes": ["timeout"]}, None, r"filter\.reject_classes: nothing is executed"),
    ],
)
def test_what_no_row_can_have_is_not_asked_for(
    settings: dict[str, Any], execute: dict[str, Any] | None, message: str
) -> None:
    """A check that would reject every row, or none, whatever the teacher says, is an error of the config."""
    with pytest.raises(ConfigError, match=message):
        check_stages(settings, {"execute": execute, "score": {"signals": False}})


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("score >", "cannot be read"),
        ("judge_score > 0.5", r"'judge_score', since the stage 'judge' is off"),
        ("sql_quality.joins < 3", r"'sql_quality'; set `score\.signals: true`"),
        ("variant_match == 3", r"'variant_match'; set `execute\.variants`"),
        ("agreement >= 0.5", r"'agreement'; set `filter\.vote`"),
        ("len(cleaned) > 3", r"'cleaned': clean\.kind sql writes sql"),
        ("reject_reason is None", "not known before all checks are made"),
    ],
)
def test_an_expression_is_checked_before_anything_is_asked(expression: str, message: str) -> None:
    """What cannot be read, or names a field that no row will have, is an error of the config: before a token is spent."""
    stages = {"clean": {"kind": "sql"}, "execute": EXECUTE, "score": {"signals": False}, "judge": None}
    with pytest.raises(ConfigError, match=message):
        check_stages({"expression": expression}, stages)


def test_lengths_that_no_row_can_have(tmp_path: Path) -> None:
    """A least length above the greatest is an error of the config."""
    with pytest.raises(ConfigError, match=r"filter\.min_chars: found 9, which is more than max_chars \(3\)"):
        check_stages({"min_chars": 9, "max_chars": 3}, {"execute": EXECUTE, "score": {"signals": False}})


def test_an_expression_may_use_the_votes_agreement(tmp_path: Path) -> None:
    """The vote is held before the checks, so that `agreement` is there for them."""
    signatures = ["x", "x", "y"]
    rows = [row(1, exec_pass=True, result_signature=one, sample_index=number) for number, one in enumerate(signatures)]
    check_stages({"vote": {}, "expression": "agreement > 0.5"}, {"execute": EXECUTE, "score": {"signals": False}})
    kept, rejected = sift(tmp_path, rows, vote={}, expression="agreement > 0.5")
    assert [item["agreement"] for item in kept] == [0.666667, 0.666667]
    assert rejected[0]["reject_reasons"] == ["expression", "outvoted"]


def test_what_rows_can_have_is_asked_for() -> None:
    """With the stages set as the checks need them nothing is said."""
    settings = {"require": ["variant_match"], "reject": ["used_clock", "cross_join"], "reject_classes": ["timeout"]}
    check_stages(settings, {"execute": {**EXECUTE, "variants": 2}, "score": {"signals": True}})


def test_an_unknown_reason_is_an_error(tmp_path: Path) -> None:
    """What can be rejected by name is a closed list."""
    with pytest.raises(ConfigError, match=r"filter\.reject: found 'emptyresult', allowed are empty_output"):
        sift(tmp_path, [row()], reject=["emptyresult"])


def test_an_unknown_requirement_is_an_error(tmp_path: Path) -> None:
    """What can be required is a closed list."""
    with pytest.raises(ConfigError, match="allowed are exec_pass, gold_match, variant_match"):
        sift(tmp_path, [row()], require=["goldmatch"])


# ------------------------------------------------------------------------------------------------ expressions


@pytest.mark.parametrize(
    ("text", "passes"),
    [
        ("score == 1.0", True),
        ("not exec_pass or gold_match is None", False),
        ("usage.completion < 100", True),
        ("usage.nothing is None", True),
        ("nothing_known.at_all is None", True),
        ("'b' in tags", True),
        ("lower(sql) == 'select a from t'", True),
        ("matches(sql, '^SELECT\\\\s')", True),
        ("startswith(sql, 'SELECT') and endswith(sql, 't')", True),
        ("get('absent', 3) == 3", True),
        ("score if exec_pass else False", True),
        ("len(gold_match) == 0", False),
        ("usage['completion'] + 1 == 31", True),
    ],
)
def test_expressions(text: str, passes: bool) -> None:
    """The language has Python's operators, members of objects and a few functions."""
    item = row(score=1.0, exec_pass=True, gold_match=True, usage={"completion": 30}, tags=["a", "b"])
    assert (Expression(text)(item) is None) is passes


@pytest.mark.parametrize(
    "text",
    [
        "score >",
        "__import__('os').system('true')",
        "open('/etc/passwd')",
        "sql.__class__.__mro__()",
        "sql.upper()",
        "[x for x in tags]",
        "lambda: 1",
        "(x := 3)",
        "f'{sql}'",
        "score = 1",
        "eval('1')",
        "len(sql, key=1)",
        "{'a': 1}",
        "matches(sql, '(')",
        "gold_match == true",
        "not " * 300 + "exec_pass",
        "+".join(["score"] * 300) + " > 0",
    ],
)
def test_what_the_language_has_not(text: str) -> None:
    """Calls of anything else, comprehensions, assignments and the like are refused before a row is read."""
    with pytest.raises(ConfigError, match=r"filter\.expression"):
        Expression(text)


@pytest.mark.parametrize(
    "text",
    ["sql.__class__ is None", "9**9**9 > 1", "sql * 10**9 == ''", "1 / 0 == 1", "sql < 3", "'%1000000000d' % 1 == ''"],
)
def test_what_goes_wrong_on_a_row(text: str) -> None:
    """An expression that cannot be evaluated rejects the row under its own name; nothing is reached or blown up."""
    assert Expression(text)(row()) == "expression_error"


def test_a_misspelled_field_is_an_error(tmp_path: Path) -> None:
    """A name that no row has stops the run with the nearest name, instead of rejecting everything."""
    with pytest.raises(ConfigError, match="'scoer'; did you mean 'score'"):
        sift(tmp_path, [row(score=1.0)], expression="scoer is None or scoer > 0")


# ------------------------------------------------------------------------------------------- samples and votes


def samples(*fields: dict[str, Any]) -> list[dict[str, Any]]:
    """Return several answers to one input."""
    return [{**row(), "sample_index": number, **item} for number, item in enumerate(fields)]


def test_the_majority_wins(tmp_path: Path) -> None:
    """The result that most answers gave is kept, the others are outvoted; the share is `agreement`."""
    rows = samples(WRONG, GOLD, GOLD, BROKEN)
    kept, rejected = sift(tmp_path, rows, vote={"min_agreement": 0.5, "min_votes": 1})
    assert [(item["sample_index"], item["agreement"]) for item in kept] == [(1, 0.5), (2, 0.5)]
    assert [(item["reject_reasons"], item["agreement"]) for item in rejected] == [
        (["outvoted"], 0.25),
        (["no_vote"], 0.0),
    ]


def test_a_weak_majority_is_refused(tmp_path: Path) -> None:
    """When the winner has too small a share or too few votes, none is kept."""
    rows = samples(GOLD, GOLD, WRONG, NO_GOLD)
    for vote in ({"min_agreement": 0.6}, {"min_votes": 3}):
        kept, rejected = sift(tmp_path, rows, vote=vote)
        assert not kept
        assert [item["reject_reason"] for item in rejected] == [
            "low_agreement",
            "low_agreement",
            "outvoted",
            "outvoted",
        ]


def test_a_tie_goes_to_the_better_score_then_the_earlier(tmp_path: Path) -> None:
    """Two results with as many votes: the score decides, then the place."""
    kept, _ = sift(tmp_path, samples({**WRONG, "score": 0.5}, {**GOLD, "score": 1.0}), vote={})
    assert [item["sample_index"] for item in kept] == [1]
    kept, _ = sift(tmp_path, samples(WRONG, GOLD), vote={})
    assert [item["sample_index"] for item in kept] == [0]


def test_inputs_vote_apart(tmp_path: Path) -> None:
    """Only answers to the same input vote with each other."""
    rows = [row(1, **GOLD), row(1, **GOLD), row(2, **WRONG)]
    kept, _ = sift(tmp_path, rows, vote={"min_agreement": 1.0})
    assert len(kept) == 3


def test_the_best_sample_is_kept(tmp_path: Path) -> None:
    """Of the answers that pass, one stays: the best score, then the shortest statement, then the first."""
    rows = samples(
        {"score": 0.5},
        {"score": 1.0, "sql": "SELECT a, b FROM t"},
        {"score": 1.0},
        {"score": 1.0},
        {"score": 2.0, "sql": ""},
    )
    kept, rejected = sift(tmp_path, rows, samples="best")
    assert [item["sample_index"] for item in kept] == [2]
    assert [item["reject_reason"] for item in rejected] == ["not_best", "not_best", "not_best", "no_sql"]


# -------------------------------------------------------------------------------------------------- duplicates

ALIKE = ["SELECT a FROM t", "select  A\nfrom T -- x", "SELECT a FROM t WHERE b = 1", "SELECT a FROM t WHERE b = 2"]


@pytest.mark.parametrize(("by", "distinct"), [("exact", 4), ("sql", 3), ("template", 2)])
def test_statement_keys(by: Any, distinct: int) -> None:
    """The same text, the same tree, the same tree without its literals."""
    assert len({statement_key(sql, by=by) for sql in ALIKE}) == distinct


def test_literals_and_databases_tell_statements_apart(tmp_path: Path) -> None:
    """The case of a literal counts, that of a name does not; the same statement on another database is another row."""
    texts = ["SELECT a FROM t WHERE b = 'X'", "SELECT A FROM T WHERE B = 'X'", "SELECT a FROM t WHERE b = 'x'"]
    rows = [row(number, sql=text) for number, text in enumerate(texts)] + [row(9, sql=texts[0], db_id="other")]
    kept, rejected = sift(tmp_path, rows, duplicates={"by": "sql", "keep": 1})
    assert [item["sample_id"] for item in kept] == ["s0", "s2", "s9"]
    assert rejected[0]["reject_reasons"] == ["duplicate"]


def test_the_cap(tmp_path: Path) -> None:
    """As many of its like are kept as the cap says; a row rejected for another reason takes no place."""
    rows = [row(0, score=0.0), row(1, score=1.0), row(2, score=1.0), row(3, score=1.0)]
    kept, rejected = sift(tmp_path, rows, min_score=1.0, duplicates={"by": "sql", "keep": 2})
    assert [item["sample_id"] for item in kept] == ["s1", "s2"]
    assert [item["reject_reason"] for item in rejected] == ["low_score", "duplicate"]


def test_the_cap_by_chunks_and_then_over_all_is_the_cap_over_all() -> None:
    """Chunk jobs that each apply the cap, and the merge that applies it again, keep what one pass would keep."""
    rows = [row(number, sql=f"SELECT {number * number % 7} FROM t") for number in range(40)]
    settings = {"by": "sql", "keep": 2}

    def admitted(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
        cap = DuplicateCap(settings)
        return [item for item in items if cap.admit(item)]

    by_chunks = [item for start in range(0, 40, 9) for item in admitted(rows[start : start + 9])]
    assert admitted(by_chunks) == admitted(rows)


# --------------------------------------------------------------------------------------------- a user's package

DOCUMENTATION = Path(__file__).parents[2] / "docs" / "filters.md"


def example() -> str:
    """Return the module that the documentation shows."""
    return DOCUMENTATION.read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]


ENTRY_POINTS = """
[potstill.filters]
no_star = shop_checks:no_star
failing = shop_checks:failing
broken = shop_checks:missing
telling = shop_checks:telling
[potstill.scorers]
brevity = shop_checks:brevity
silent = shop_checks:silent
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put an installed package on the path: a module and the metadata that pip would have written."""
    site = tmp_path / "site"
    metadata = site / "shop_checks-1.0.dist-info"
    metadata.mkdir(parents=True)
    (site / "shop_checks.py").write_text(
        example() + "\n\ndef telling(settings):\n    return lambda row: settings['verdict']\n"
        "\n\ndef failing(settings):\n    return lambda row: row['absent']\n"
        "\n\ndef silent(settings):\n    return lambda row: None\n"
    )
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: shop-checks\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(ENTRY_POINTS)
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.delitem(sys.modules, "shop_checks", raising=False)


@pytest.mark.usefixtures("package")
def test_a_users_filter(tmp_path: Path) -> None:
    """A filter of an installed package is found by its name and gives its own reason."""
    rows = [row(1), row(2, sql="SELECT * FROM t")]
    kept, rejected = sift(tmp_path, rows, plugins=[{"name": "no_star", "settings": {}}])
    assert [item["sample_id"] for item in kept] == ["s1"]
    assert rejected[0]["reject_reasons"] == ["select_star"]


@pytest.mark.usefixtures("package")
def test_a_users_filter_that_fails(tmp_path: Path) -> None:
    """A filter that raises stops the job, with its name and the row's."""
    with pytest.raises(ConfigError, match="'failing' failed on row s1: KeyError"):
        sift(tmp_path, [row(1)], plugins=[{"name": "failing"}])


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize("verdict", [True, False, 1, "", [2], {"a": 1}.items()])
def test_a_users_filter_that_says_what_is_no_reason(tmp_path: Path, verdict: Any) -> None:
    """A filter that returns a truth value, a number or an empty text stops the job and hears what it may return."""
    with pytest.raises(ConfigError, match=r"'telling' (returned|failed).* row s1"):
        sift(tmp_path, [row(1)], plugins=[{"name": "telling", "settings": {"verdict": verdict}}])


@pytest.mark.usefixtures("package")
def test_a_users_filter_may_give_several_reasons(tmp_path: Path) -> None:
    """A list of texts stands in the row's reasons in its order; an empty one lets the row pass."""
    _, rejected = sift(tmp_path, [row(1)], plugins=[{"name": "telling", "settings": {"verdict": ["a", "b"]}}])
    assert rejected[0]["reject_reasons"] == ["a", "b"]
    kept, _ = sift(tmp_path, [row(1)], plugins=[{"name": "telling", "settings": {"verdict": []}}])
    assert kept


@pytest.mark.usefixtures("package")
def test_a_scorer_never_writes_over_a_field_of_ours(tmp_path: Path) -> None:
    """A scorer's field must not be one that potstill adds, such as the statement itself."""
    scorers = [{"name": "brevity", "field": "sql", "settings": {"chars": 30}}]
    with pytest.raises(ConfigError, match="the field 'sql' is one of potstill's"):
        score(tmp_path, [row(**GOLD)], scorers=scorers)


@pytest.mark.usefixtures("package")
def test_a_users_scorer(tmp_path: Path) -> None:
    """A scorer has its own field, and its weight in the score."""
    scorers = [{"name": "brevity", "weight": 0.2, "field": "brevity", "settings": {"chars": 30}}]
    (scored,) = score(tmp_path, [row(**GOLD)], scorers=scorers)
    assert (scored["brevity"], scored["score"]) == (0.5, 0.9)


@pytest.mark.usefixtures("package")
def test_a_users_scorer_without_execution(tmp_path: Path) -> None:
    """Where nothing was executed the scorers alone make the score."""
    (scored,) = score(tmp_path, [row()], scorers=[{"name": "brevity", "weight": 0.5, "settings": {"chars": 30}}])
    assert scored["score"] == 0.5


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize(
    ("weight", "wanted", "unscored"), [(0.5, None, 1), (0.0, 1.0, 0)], ids=["with a weight", "as a field only"]
)
def test_a_scorer_without_a_number(tmp_path: Path, weight: float, wanted: float | None, unscored: int) -> None:
    """A row to which a scorer with a weight gives no number has no score, which is not a score of 0."""
    publish_rows(tmp_path / "in.jsonl", [row(**GOLD)])
    settings = {"scorers": [{"name": "silent", "weight": weight, "settings": {}}]}
    counts = score_rows(tmp_path / "in.jsonl", tmp_path / "out.jsonl", settings=settings)
    (scored,) = read_rows(tmp_path / "out.jsonl")
    assert (scored["silent"], scored["score"]) == (None, wanted)
    assert (counts.unscored, counts.scorer_errors) == (unscored, {"silent": 1})


def test_the_best_of_samples_has_a_score(tmp_path: Path) -> None:
    """A sample without a score is taken behind one with any score, a negative one included."""
    rows = [row(1, sample_index=0, score=None), row(1, sample_index=1, score=-1.0)]
    kept, _ = sift(tmp_path, rows, samples="best")
    assert [item["score"] for item in kept] == [-1.0]


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize(
    ("name", "message"), [("nostar", "no installed package offers 'nostar'.*no_star"), ("broken", "cannot be imported")]
)
def test_a_filter_that_cannot_be_had(tmp_path: Path, name: str, message: str) -> None:
    """A name that no package offers, or that cannot be imported, is a configuration error."""
    with pytest.raises(ConfigError, match=message):
        sift(tmp_path, [row()], plugins=[{"name": name}])
