"""What can be wrong with an `export` section, found before anything is asked or paid."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from potstill.errors import ConfigError
from potstill.exports.examples import AnswerForm, ExampleMaker
from potstill.exports.groups import make_key
from potstill.exports.layout import get_export_inputs
from potstill.exports.ratios import Ratios


def check_export(settings: Mapping[str, Any]) -> None:
    """Pass if an export with these settings can start.

    Args:
        settings: The `export` section of a config.

    Raises:
        ConfigError: With the key, what was found and what to do.
    """
    from potstill.exports.huggingface import find_license

    Ratios.from_settings(settings)
    make_key(settings.get("split_by", "prompt"), settings, "export.split_by")
    for name in settings.get("limits") or {}:
        make_key(name, settings, f"export.limits.{name}")
    ExampleMaker(AnswerForm.from_settings(settings))
    if "huggingface" in (settings.get("formats") or []):
        find_license(settings)
    for path in get_export_inputs(settings):
        if not Path(path).is_file():
            raise ConfigError(f"export: {path}: no such file")
