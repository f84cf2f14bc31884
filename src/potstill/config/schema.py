"""Validate a value against a closed JSON schema, and fill in its defaults.

The schemas are YAML files under `workflow/schemas/`: what a config may hold, with type, default and
description for each key. An error names the file, the key, what was found, what is allowed and, for a
misspelled key, the nearest one.
"""

from __future__ import annotations

import copy
import difflib
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from potstill.config.locate import workflow_root
from potstill.errors import ConfigError

Schema = dict[str, Any]

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@functools.cache
def load_schema(name: str) -> Schema:
    """Return the schema `workflow/schemas/{name}.schema.yaml`."""
    path = workflow_root() / "workflow" / "schemas" / f"{name}.schema.yaml"
    schema: Schema = yaml.load(path.read_bytes(), Loader=_Loader)
    return schema


def load_yaml(path: Path, what: str) -> dict[str, Any]:
    """Return the mapping that a user's YAML file holds.

    Args:
        path: The file.
        what: What the file is to the user (`config`, `model file`), for the message.

    Raises:
        ConfigError: If the file is missing, is not YAML, or holds no mapping.
    """
    try:
        text = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{what} {path}: cannot be read: {error.strerror or error}") from error
    try:
        value = yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError, ValueError) as error:
        detail = " ".join(str(error).split())
        raise ConfigError(f"{what} {path}: not valid YAML: {detail}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{what} {path}: a mapping of keys was expected, found {_describe(value)}")
    mapping: dict[str, Any] = value
    return mapping


def complete(value: Mapping[str, Any], schema_name: str, where: str) -> dict[str, Any]:
    """Validate a value and return a copy of it with every default filled in.

    Args:
        value: What the user wrote.
        schema_name: The schema's name, such as `config`.
        where: The file, or another word for where the value comes from.

    Raises:
        ConfigError: At the first thing that is wrong.
    """
    schema = load_schema(schema_name)
    validate(value, schema, where)
    completed: dict[str, Any] = fill_defaults(value, schema)
    return completed


def validate(value: Any, schema: Schema, where: str) -> None:
    """Check a value against a schema.

    Raises:
        ConfigError: At the first error, in the order of the value's keys; all unknown keys before all else.
    """
    import jsonschema

    errors = list(jsonschema.Draft202012Validator(schema).iter_errors(value))
    if errors:
        worst = min(errors, key=lambda error: (error.validator != "additionalProperties", len(error.absolute_path)))
        raise ConfigError(f"{where}: {_explain(_innermost(worst))}")


def _innermost(error: Any) -> Any:
    """Return the branch of an `anyOf`/`oneOf` that the user most likely meant: the one that failed deepest."""
    while error.context:
        deepest = max(len(child.absolute_path) for child in error.context)
        if deepest == len(error.absolute_path) and all(child.validator == "type" for child in error.context):
            return error
        error = next(child for child in error.context if len(child.absolute_path) == deepest)
    return error


def _explain(error: Any) -> str:
    """Turn an error of jsonschema into one line for a person."""
    key = format_key(error.absolute_path)
    found = _describe(error.instance)
    hint = _hint(error.schema)
    match error.validator:
        case "additionalProperties":
            known = list(error.schema.get("properties", {}))
            unknown = next(name for name in error.instance if name not in known)
            return _explain_unknown(str(unknown), known, key)
        case "required":
            missing = next(name for name in error.validator_value if name not in error.instance)
            description = error.schema.get("properties", {}).get(missing, {})
            return f"{_join(key, missing)}: required, but missing{_hint(description)}"
        case "type":
            return f"{key}: found {found}, but {_words(error.validator_value)} is allowed{hint}"
        case "enum":
            return f"{key}: found {found}, allowed are {', '.join(_show(item) for item in error.validator_value)}{hint}"
        case "anyOf" | "oneOf":
            return f"{key}: found {found}, which is none of the allowed forms{hint}"
        case "pattern":
            return f"{key}: found {found}, which does not fit the pattern {error.validator_value}{hint}"
        case _:
            return f"{key}: {error.message}{hint}"


def _explain_unknown(unknown: str, known: Sequence[str], key: str) -> str:
    nearest = difflib.get_close_matches(unknown, known, n=1, cutoff=0.5)
    advice = f"did you mean {nearest[0]}?" if nearest else f"allowed are {', '.join(known)}"
    return f"{_join(key, unknown)}: unknown key; {advice}"


def format_key(path: Sequence[str | int]) -> str:
    """Write the place of a key as `models[0].alias`; an empty path is the file's top level."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text or "top level"


def _join(key: str, name: str) -> str:
    return name if key == "top level" else f"{key}.{name}"


def _words(types: str | Sequence[str]) -> str:
    names = {"object": "a mapping", "array": "a list", "string": "text"}
    return " or ".join(names.get(kind, kind) for kind in ([types] if isinstance(types, str) else types))


def _hint(schema: Mapping[str, Any]) -> str:
    description = schema.get("description", "")
    return f" ({description.split('. ')[0].rstrip('.')})" if description else ""


def _show(value: Any) -> str:
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _describe(value: Any) -> str:
    names = {dict: "a mapping", list: "a list", str: "text", bool: "boolean", int: "integer", float: "number"}
    if value is None:
        return "null (nothing)"
    kind = names.get(type(value), type(value).__name__)
    return kind if isinstance(value, dict | list) else f"{kind} {_show(value)!r}" if value != "" else "empty text"


def fill_defaults(value: Any, schema: Schema) -> Any:
    """Return a copy of a valid value with the schema's defaults for every key that is missing."""
    if isinstance(value, Mapping):
        properties = _properties(value, schema)
        filled = {key: fill_defaults(item, properties.get(key, {})) for key, item in value.items()}
        for key, subschema in properties.items():
            if key not in filled and "default" in subschema:
                filled[key] = fill_defaults(copy.deepcopy(subschema["default"]), subschema)
        return filled
    if isinstance(value, list):
        return [fill_defaults(item, schema.get("items", {})) for item in value]
    return copy.deepcopy(value)


def _properties(value: Mapping[str, Any], schema: Schema) -> Mapping[str, Any]:
    """Return the properties of an object's schema, looking into the branch of an `anyOf` that is an object."""
    if "properties" in schema:
        found: Mapping[str, Any] = schema["properties"]
        return found
    for branch in (*schema.get("anyOf", ()), *schema.get("oneOf", ())):
        if "properties" in branch:
            return _properties(value, branch)
    return {}
