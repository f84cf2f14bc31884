"""Whether an answer is what `response_format` asked for."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from potstill.records import canonical_json
from potstill.rows import loads


def problem_of(content: str, parameters: dict[str, Any]) -> str | None:
    """Return what is wrong with an answer's form, or None if nothing is or no form was asked for.

    Args:
        content: The answer's text.
        parameters: The request's parameters; `response_format` and vLLM's `guided_json` name a form.
    """
    wanted = parameters.get("response_format")
    if not isinstance(wanted, dict) or wanted.get("type") not in {"json_object", "json_schema"}:
        return None
    try:
        value = loads(content)
    except ValueError as error:
        return f"it is not JSON ({error})"
    if wanted["type"] == "json_object":
        return None if isinstance(value, dict) else "it is JSON, but not an object"
    schema = wanted.get("json_schema", {}).get("schema") if isinstance(wanted.get("json_schema"), dict) else None
    return _mismatch(value, schema) if isinstance(schema, dict) else None


def _mismatch(value: Any, schema: dict[str, Any]) -> str | None:
    import jsonschema

    error = jsonschema.exceptions.best_match(_validator(canonical_json(schema)).iter_errors(value))
    return None if error is None else f"{error.json_path}: {error.message[:300]}"


@lru_cache(64)
def _validator(schema: str) -> Any:
    import jsonschema

    return jsonschema.Draft202012Validator(loads(schema))
