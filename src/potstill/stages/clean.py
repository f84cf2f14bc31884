"""The cleaning stage: one answer in, the statement (or other content) in it out, row by row."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from potstill.errors import ConfigError, InputError
from potstill.records import Row
from potstill.rows import publish, read_rows

#: What may be taken out of an answer. Kind `sql` writes the field `sql`, the others `cleaned`.
KINDS = ("sql", "none", "strip_reasoning", "code", "json")


@dataclass
class CleanCounts:
    """What became of the rows of one file.

    Attributes:
        rows: Rows read, and written.
        found: Rows in which something was found.
        methods: How often each method found it.
        notes: How often each oddity was met.
    """

    rows: int = 0
    found: int = 0
    methods: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)


class Extract(NamedTuple):
    """What one answer held: the value for the row, how it was found and what was odd."""

    value: Any
    method: str
    notes: tuple[str, ...] = ()


Cleaner = Callable[[str], Extract]


def clean_rows(input: Path, output: Path, *, settings: dict[str, Any]) -> CleanCounts:
    """Add `sql` (or `cleaned`), `clean_method` and `clean_note` to each row.

    Args:
        input: A file of rows.
        output: The same rows with the fields added, in the same order.
        settings: The config section `clean`.

    Returns:
        The counts.

    Raises:
        ConfigError: If a setting is not known.
        InputError: If the field with the answer is in none of the rows.
    """
    clean = make_cleaner(settings)
    source = settings.get("field") or "generation"
    target = output_field(settings)
    counts = CleanCounts()
    missing = 0
    example: list[str] = []
    with publish(output) as out:
        for row in read_rows(input):
            if source not in row:
                missing += 1
                example = example or sorted(row)
            _add(row, clean_value(row.get(source), clean), target, counts)
            out.write(row)
        if counts.rows and missing == counts.rows:
            raise InputError(
                f"{input}: no row has the field {source!r} (found: {', '.join(example)}); "
                "name it with clean.field or --field"
            )
    return counts


def _add(row: Row, extract: Extract, target: str, counts: CleanCounts) -> None:
    row[target] = extract.value
    row["clean_method"] = extract.method
    row["clean_note"] = ", ".join(extract.notes)
    counts.rows += 1
    counts.found += extract.method != "none"
    counts.methods[extract.method] += 1
    for note in extract.notes:
        counts.notes[note] += 1


def output_field(settings: dict[str, Any]) -> str:
    """Return the name of the field that the stage writes."""
    return "sql" if settings.get("kind", "sql") == "sql" else "cleaned"


def clean_value(value: Any, clean: Cleaner) -> Extract:
    """Clean what stands in the field of the answer: a text, a list of text parts, or nothing of use."""
    text = as_text(value)
    if text is None:
        return Extract("", "none", ("not_text",))
    if not text:
        return Extract("", "none", ("empty",))
    return clean(text)


def as_text(value: Any) -> str | None:
    """Return an answer's text: a string, or the `text` parts of a list of content parts; None for anything else."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        parts = [part.get("text") if isinstance(part, dict) else part for part in value]
        return "".join(part for part in parts if isinstance(part, str)) if any(parts) else None
    return None


def make_cleaner(settings: dict[str, Any]) -> Cleaner:
    """Return the function that cleans one answer.

    Raises:
        ConfigError: If the kind or a dialect is not known.
    """
    kind = settings.get("kind", "sql")
    if kind not in KINDS:
        raise ConfigError(f"clean.kind: found {kind!r}, allowed are {', '.join(KINDS)}")
    for key, its_kind in (("transpile_to", "sql"), ("language", "code")):
        if settings.get(key) and kind != its_kind:
            raise ConfigError(f"clean.{key}: means something with kind {its_kind} only, found {kind}; leave it out")
    if kind == "sql":
        return _sql_cleaner(settings)
    if kind == "code":
        language = str(settings.get("language") or "").lower()
        return lambda text: _clean_code(text, language)
    return {"none": _clean_none, "strip_reasoning": _clean_reasoning, "json": _clean_json}[kind]


def _sql_cleaner(settings: dict[str, Any]) -> Cleaner:
    from potstill.sql.clean import clean_sql

    dialect = check_dialect(settings.get("dialect") or "sqlite", "clean.dialect")
    target = settings.get("transpile_to")
    if target:
        check_dialect(target, "clean.transpile_to")

    def clean(text: str) -> Extract:
        sql, method, notes = clean_sql(text, dialect=dialect)
        if target and sql:
            sql, notes = _transpile(sql, dialect, target, notes)
        return Extract(sql, method, notes)

    return clean


def check_dialect(name: Any, key: str) -> str:
    """Return a dialect's name as sqlglot knows it.

    Raises:
        ConfigError: If sqlglot does not know it; the message names the nearest one.
    """
    dialect = str(name).lower()
    dialect = "postgres" if dialect == "postgresql" else dialect
    if dialect == "sqlite":
        return dialect  # the default costs no import
    import difflib

    import sqlglot

    known = sorted(str(item.value) for item in sqlglot.Dialects if item.value)
    if dialect not in known:
        near = difflib.get_close_matches(dialect, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"{key}: found {name!r}, allowed are {', '.join(known)}{hint}")
    return dialect


def _transpile(sql: str, dialect: str, target: str, notes: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """Write a statement anew in another dialect; where that fails the model's own text stays, with a note."""
    import sqlglot

    try:
        written = sqlglot.transpile(sql, read=dialect, write=target)
    except (sqlglot.errors.SqlglotError, RecursionError, ValueError):
        return sql, (*notes, "not_transpiled")
    return written[0], (*notes, "transpiled")


def _clean_none(text: str) -> Extract:
    return Extract(text, "text")


def _clean_reasoning(text: str) -> Extract:
    from potstill.sql.reasoning import strip_reasoning

    answer = strip_reasoning(text)
    notes = ("had_reasoning",) if answer.had_reasoning else ()
    if answer.unfinished:
        return Extract("", "none", (*notes, "unfinished_reasoning"))
    stripped = answer.text.strip()
    return Extract(stripped, "text", notes) if stripped else Extract("", "none", (*notes, "empty"))


def _clean_code(text: str, language: str) -> Extract:
    """Take the last fence of a language (any fence where none is named), else the whole answer when it has no fence."""
    from potstill.sql.fences import find_blocks

    answer = _clean_reasoning(text)
    if not answer.value:
        return answer
    blocks = [block for block in find_blocks(answer.value) if block.content.strip()]
    named = [block for block in blocks if block.label == language] if language else blocks
    chosen = (named or [block for block in blocks if not block.label])[-1:]
    if chosen:
        notes = answer.notes if chosen[0].closed else (*answer.notes, "unclosed_fence")
        return Extract(chosen[0].content, "fence", notes)
    return Extract("", "none", answer.notes) if blocks else Extract(answer.value, "bare", answer.notes)


_JSON_OPENING = re.compile(r"[{\[]")


def _clean_json(text: str) -> Extract:
    """Take the last JSON object or list of an answer, decoded: in a fence, as the whole text, or amid prose."""
    from potstill.sql.fences import find_blocks

    answer = _clean_reasoning(text)
    if not answer.value:
        return answer
    for block in reversed(find_blocks(answer.value)):
        values = _decode_all(block.content)
        if values:
            return Extract(values[-1], "fence", answer.notes)
    values = _decode_all(answer.value)
    return Extract(values[-1], "json", answer.notes) if values else Extract("", "none", answer.notes)


def _decode_all(text: str) -> list[Any]:
    """Decode the JSON objects and lists of a text, in order; at most 50 beginnings are tried."""
    import json

    decoder = json.JSONDecoder(strict=False)
    values: list[Any] = []
    position = 0
    for _ in range(50):
        match = _JSON_OPENING.search(text, position)
        if match is None:
            break
        try:
            value, position = decoder.raw_decode(text, match.start())
            values.append(value)
        except (ValueError, RecursionError):
            position = match.end()
    return values
