"""Which model answers which row."""

from __future__ import annotations

import pytest

from potstill.errors import ConfigError
from potstill.routing import Router, get_routes

MODELS = [
    {"alias": "small", "role": "teacher", "only": {"field": "level", "in": ["easy", 1, None]}},
    {"alias": "pupil", "role": "student", "only": {"field": "level", "in": ["odd"]}},
    {"alias": "large", "role": "teacher", "only": {"field": "level", "in": ["hard", "easy"]}},
]


@pytest.mark.parametrize(
    ("level", "reasons"),
    [
        ({"level": "easy"}, [None, None]),
        ({"level": "hard"}, ["routed_to:large", None]),
        ({"level": 1.0}, [None, "routed_to:small"]),
        ({}, [None, "routed_to:small"]),
    ],
)
def test_a_row_goes_to_the_models_that_take_it(level: dict[str, object], reasons: list[str | None]) -> None:
    """The others name the first model that does; 1 is 1.0, and null takes a row without the field."""
    router = Router(get_routes(MODELS))
    assert [router.reason({"sample_id": "a", **level}, alias) for alias in ("small", "large")] == reasons


@pytest.mark.parametrize("level", ["odd", True, "1", ["easy"]])
def test_a_row_for_no_teacher_is_an_error_that_names_it(level: object) -> None:
    """The error holds the place, what was found and what each model takes; a student's `only` takes no row for itself."""
    with pytest.raises(
        ConfigError, match=r'in\.jsonl: line 3: no model takes this row: level is .*large takes level "easy", "hard"'
    ):
        Router(get_routes(MODELS)).find_teacher({"level": level}, "in.jsonl: line 3")


def test_without_only_there_is_nothing_to_route() -> None:
    """A job gets no routes."""
    assert get_routes([{"alias": "a", "role": "teacher", "only": None}]) == []
