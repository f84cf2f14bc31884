"""Write the tables of `config/README.md` from the schemas: `python -m potstill.config.document` (or `make docs`).

A table stands between `<!-- table: SCHEMA [SECTION] -->` and `<!-- /table -->`; what is around it is written by hand.
A test fails when a table is not what this module would write.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from potstill.config.locate import workflow_root
from potstill.config.schema import load_schema

_TABLE = re.compile(r"(<!-- table: (\w+) ?(\w*) -->\n).*?(<!-- /table -->)", re.DOTALL)


def fill_tables(text: str) -> str:
    """Return a page with each of its tables written anew from the schema it names."""
    return _TABLE.sub(lambda found: found[1] + _table(found[2], found[3]) + found[4], text)


def _table(schema_name: str, section: str) -> str:
    schema = load_schema(schema_name)
    subschema = schema["properties"][section] if section else schema
    lines = ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
    required = set(subschema.get("required", ()))
    for key, value in _rows(subschema, deep=bool(section)):
        default = (
            "**required**" if key in required else f"`{json.dumps(value['default'])}`" if "default" in value else ""
        )
        lines.append(f"| `{key}` | {_type(value)} | {default} | {_escape(value.get('description', ''))} |")
    return "\n".join(lines) + "\n"


def _rows(schema: Mapping[str, Any], *, deep: bool, prefix: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield each key with its schema, nested ones behind their parent where wanted."""
    for key, value in _properties(schema).items():
        yield f"{prefix}{key}", value
        if deep:
            yield from _rows(value, deep=True, prefix=f"{prefix}{key}.")


def _properties(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    for branch in (schema, schema.get("items", {}), *schema.get("anyOf", ()), *schema.get("oneOf", ())):
        if isinstance(branch, Mapping) and "properties" in branch:
            found: Mapping[str, Any] = branch["properties"]
            return found
    return {}


def _type(schema: Mapping[str, Any]) -> str:
    if "enum" in schema:
        return ", ".join(f"`{json.dumps(value)}`" for value in schema["enum"])
    if branches := schema.get("anyOf") or schema.get("oneOf"):
        return " or ".join(_type(branch) for branch in branches)
    if schema.get("type") == "array" and "enum" in schema.get("items", {}):
        return f"list of {_type(schema['items'])}"
    kinds = schema.get("type", "any")
    return " or ".join([kinds] if isinstance(kinds, str) else kinds) + _range(schema)


def _range(schema: Mapping[str, Any]) -> str:
    words = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    limits = [f"{sign} {schema[key]:g}" for key, sign in words.items() if key in schema]
    return f" ({', '.join(limits)})" if limits else ""


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def main() -> None:
    """Write the tables of config/README.md anew."""
    page = workflow_root() / "config" / "README.md"
    page.write_text(fill_tables(page.read_text()))


if __name__ == "__main__":
    main()
