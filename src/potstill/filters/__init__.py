"""Checks that decide whether a row is kept, and where a user's own checks and scorers come in.

A filter is made once per file from its settings and asked once per row: it returns None to let the row pass, or the
reason (or reasons) why not. A scorer returns a number. Both are found by name among the entry points of the installed
packages, groups `potstill.filters` and `potstill.scorers`; the name's object is called with the settings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from potstill.errors import ConfigError
from potstill.records import Row

#: None lets the row pass; a text, or several, says why not.
Verdict = str | Iterable[str] | None
Filter = Callable[[Row], Verdict]
Scorer = Callable[[Row], float | None]

FILTERS_GROUP = "potstill.filters"
SCORERS_GROUP = "potstill.scorers"


def load_filter(name: str, settings: dict[str, Any]) -> Filter:
    """Return a filter that an installed package offers, made with its settings.

    Raises:
        ConfigError: If no package offers it, or it does not take these settings.
    """
    made: Filter = _load(FILTERS_GROUP, name, settings, "filter.plugins")
    return made


def load_scorer(name: str, settings: dict[str, Any]) -> Scorer:
    """Return a scorer that an installed package offers, made with its settings.

    Raises:
        ConfigError: If no package offers it, or it does not take these settings.
    """
    made: Scorer = _load(SCORERS_GROUP, name, settings, "score.scorers")
    return made


def _load(group: str, name: str, settings: dict[str, Any], key: str) -> Any:
    factory = _factory(group, name, key)
    try:
        made = factory(dict(settings))
    except Exception as error:
        raise ConfigError(f"{key}: {name!r} does not take its settings {settings!r}: {error}") from error
    if not callable(made):
        raise ConfigError(f"{key}: {name!r} gave {type(made).__name__}, a function of a row was expected")
    return made


def _factory(group: str, name: str, key: str) -> Callable[[dict[str, Any]], Any]:
    offered: dict[str, EntryPoint] = {point.name: point for point in entry_points(group=group)}
    if name not in offered:
        known = ", ".join(sorted(offered)) or "none"
        raise ConfigError(
            f"{key}: no installed package offers {name!r} (found: {known}); a package offers it under "
            f'[project.entry-points."{group}"] and must be installed where the jobs run'
        )
    try:
        loaded: Callable[[dict[str, Any]], Any] = offered[name].load()
    except Exception as error:
        raise ConfigError(f"{key}: {name!r} ({offered[name].value}) cannot be imported: {error}") from error
    return loaded
