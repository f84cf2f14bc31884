"""An export section is checked before anything is paid."""

from __future__ import annotations

from typing import Any

import pytest

from potstill.errors import ConfigError
from potstill.exports.check import check_export


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train_ratio": 0.9, "test_ratio": 0.3}, "must be 1"),
        ({"split_by": "database"}, "export.split_by: 'database' is no group"),
        ({"limits": {"db_id": 3}}, "export.limits.db_id: 'db_id' is no group"),
        ({"answer": "template"}, "export.answer is 'template' and export.answer_template is None"),
        ({"answer": "template", "answer_template": "no/such.jinja"}, "no/such.jinja: cannot be read"),
        ({"formats": ["huggingface"]}, "export.huggingface.license is missing"),
        ({"decontaminate": {"files": ["no/such.json"]}}, "no/such.json: no such file"),
    ],
)
def test_a_wrong_section_is_named(settings: dict[str, Any], message: str) -> None:
    """The message has the key and what is wrong with it."""
    with pytest.raises(ConfigError, match=message):
        check_export(settings)


def test_an_empty_section_passes() -> None:
    """The defaults are a working export."""
    check_export({})
