"""What a row belongs to: the keys that `split_by` and `limits` name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

from potstill.errors import ConfigError, InputError
from potstill.exports.examples import prompt_key, prompt_of
from potstill.exports.normalise import SqlForm, normalise_sql
from potstill.records import Row, canonical_json

KeyOf = Callable[[Row], str]

#: Keys that are worked out; anything else is `field:NAME`.
COMPUTED = ("prompt", "sql_template", "sql_skeleton")


def make_key(name: str, settings: Mapping[str, Any], where: str) -> KeyOf:
    """Return the function that gives a row's group under one key.

    Args:
        name: `prompt`, `sql_template`, `sql_skeleton` or `field:NAME`.
        settings: The `export` section.
        where: The key of the config that named it, for messages.

    Raises:
        ConfigError: If the name is none of these.
    """
    if name == "prompt":
        return lambda row: prompt_key(prompt_of(row))
    if name in COMPUTED:
        return _make_sql_key(name, settings)
    if name.startswith("field:") and len(name) > len("field:"):
        return _make_field_key(name.removeprefix("field:"), where)
    allowed = f"{', '.join(COMPUTED)} or field:NAME (a field of the rows)"
    raise ConfigError(f"{where}: {name!r} is no group; allowed: {allowed}")


def _make_field_key(field: str, where: str) -> KeyOf:
    def key(row: Row) -> str:
        if field not in row:
            fields = ", ".join(sorted(row)[:12])
            raise InputError(f"{where}: row {row.get('sample_id', '?')} has no field {field!r}; it has: {fields} …")
        value = row[field]
        return value if isinstance(value, str) else canonical_json(value)

    return key


def _make_sql_key(name: str, settings: Mapping[str, Any]) -> KeyOf:
    form = cast(SqlForm, name.removeprefix("sql_"))
    dialect = settings.get("sql_dialect", "sqlite")

    def key(row: Row) -> str:
        statement = sql_of(row, settings)
        # What does not parse is a group of its own text: it can still not leak.
        return normalise_sql(statement, form, dialect) or statement

    return key


def sql_of(row: Row, settings: Mapping[str, Any]) -> str:
    """Return the first statement of a row in the order of `export.sql_fields`: gold where there is gold."""
    for field in settings.get("sql_fields", ("gold_sql", "sql")):
        value = row.get(field)
        if isinstance(value, str) and value.strip():
            return value
    return ""
