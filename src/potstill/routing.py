"""Which model answers which row: the config's `models[].only`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from potstill.errors import ConfigError
from potstill.records import Row, canonical_json

#: One model of the config: `alias`, `role`, `only`.
ModelEntry = Mapping[str, Any]


def get_routes(models: Sequence[ModelEntry]) -> list[dict[str, Any]]:
    """Return what a job needs to route rows; nothing where no model has `only`."""
    if all(model["only"] is None for model in models):
        return []
    return [{name: model[name] for name in ("alias", "role", "only")} for model in models]


class Router:
    """Says which models take a row.

    A student's `only` counts for the student alone: it makes no row a row that is answered.

    Args:
        routes: What `get_routes` returned.
    """

    def __init__(self, routes: Sequence[ModelEntry]) -> None:
        self._only = {route["alias"]: route["only"] for route in routes}
        self._teachers: list[str] = [route["alias"] for route in routes if route["role"] != "student"]
        self._values = {
            alias: frozenset(map(canonical_json, only["in"])) for alias, only in self._only.items() if only is not None
        }

    def _takes(self, alias: str, row: Row) -> bool:
        only = self._only[alias]
        if only is None:
            return True
        value = row.get(only["field"])
        return not isinstance(value, dict | list) and canonical_json(value) in self._values[alias]

    def find_teacher(self, row: Row, where: str) -> str:
        """Return the first teacher that takes a row.

        Args:
            row: The row.
            where: What the row is called in a message.

        Raises:
            ConfigError: If no teacher takes it.
        """
        for alias in self._teachers:
            if self._takes(alias, row):
                return alias
        raise ConfigError(
            f"{where}: no model takes this row: {self._describe(row)}; add the value to `only.in` of a model, "
            "or a model without `only`"
        )

    def _describe(self, row: Row) -> str:
        fields = dict.fromkeys(self._only[alias]["field"] for alias in self._teachers)
        found = ", ".join(f"{name} is {canonical_json(row.get(name))[:80]}" for name in fields)
        taken = "; ".join(
            f"{alias} takes {self._only[alias]['field']} {', '.join(sorted(self._values[alias]))}"
            for alias in self._teachers
        )
        return f"{found} ({taken})"

    def reason(self, row: Row, alias: str) -> str | None:
        """Return why a model is not asked about a row, or None when it is."""
        return (
            None if self._takes(alias, row) else f"routed_to:{self.find_teacher(row, 'row ' + str(row['sample_id']))}"
        )
