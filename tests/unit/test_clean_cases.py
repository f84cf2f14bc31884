"""The cleaner on the cases in `tests/data/clean/*.yaml`; a new case needs no Python.

A case has `why`, `raw` (the answer) and `sql` (the statement in it), and may have `method` and `notes` (which must be
among those that the cleaner gives).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from potstill.sql.clean import clean_sql

CASES = Path(__file__).parents[1] / "data" / "clean"


def load_cases() -> list[Any]:
    """Return all cases, each under its file and its reason."""
    cases = []
    for path in sorted(CASES.glob("*.yaml")):
        read = yaml.safe_load(path.read_text(encoding="utf-8"))
        cases += [pytest.param(case, id=f"{path.stem}: {case['why']}") for case in read]
    return cases


@pytest.mark.parametrize("case", load_cases())
def test_case(case: dict[str, Any]) -> None:
    """The statement, the method and the notes are those of the case."""
    cleaned = clean_sql(case["raw"], dialect=case.get("dialect", "sqlite"))
    assert cleaned.sql == case["sql"]
    assert cleaned.method == case.get("method", cleaned.method)
    assert set(case.get("notes", ())) <= set(cleaned.notes)


FORMS = yaml.safe_load((CASES.parent / "clean_forms.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("form", FORMS["forms"])
def test_every_query_survives_every_form(form: str) -> None:
    """A query comes out byte for byte, whatever it contains and whatever it was wrapped in."""
    for query in FORMS["queries"]:
        assert clean_sql(form.format(q=query, j=json.dumps(query))).sql == query


def test_there_are_enough_cases_and_each_is_told_apart() -> None:
    """The cases are at least 200, and no two have the same text."""
    cases = [param.values[0] for param in load_cases()]
    assert len(cases) >= 200
    assert len({case["raw"] for case in cases}) == len(cases)
