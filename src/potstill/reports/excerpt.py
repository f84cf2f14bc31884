"""A row as the page shows it: cut to a readable size, the extracted statement marked in the raw answer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from potstill.records import ADDED_FIELDS, Row
from potstill.reports.numbers import as_name
from potstill.reports.sample import Picked
from potstill.rows import dumps

#: Characters of one text that the page holds: head and tail of longer ones.
MAX_TEXT = 6000
#: A field of the user's that is not the prompt or the gold query is shown up to here.
MAX_FIELD = 600
MAX_MESSAGES = 40
#: Fields that are likely to say in a few words what a row is about.
_TITLE_FIELDS = ("question", "instruction", "title", "prompt", "query", "input", "text")

Part = dict[str, Any]


def clip(text: str, limit: int = MAX_TEXT) -> Part:
    """Return the beginning of a text and how many characters were left out."""
    return {"text": text[:limit], "left_out": max(0, len(text) - limit)}


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return "" if value is None else dumps(value).decode("utf-8", "replace").rstrip("\n")


def mark_statement(answer: str, statement: str) -> list[Part]:
    """Return an answer in parts, the extracted statement as one of them where it stands in the answer.

    Long parts are cut: before the statement to their end, after it to their beginning.
    """
    found = _find(answer, statement)
    if found is None:
        return [clip(answer)] if answer else []
    start, end = found
    before, after = answer[:start], answer[end:]
    parts: list[Part] = []
    if before:
        parts.append({"text": before[-MAX_TEXT // 2 :], "left_out": max(0, len(before) - MAX_TEXT // 2)})
    parts.append(clip(answer[start:end]) | {"sql": True})
    if after:
        parts.append(clip(after, MAX_TEXT // 2))
    return parts


def _find(answer: str, statement: str) -> tuple[int, int] | None:
    """Return where a statement stands in an answer: its last place, else the last place but for blank space."""
    if not statement.strip():
        return None
    start = answer.rfind(statement)
    if start >= 0:
        return start, start + len(statement)
    words = statement.split()
    if len(answer) > 200_000 or len(words) > 2000:
        return None
    matches = list(re.finditer(r"\s+".join(map(re.escape, words)), answer))
    return matches[-1].span() if matches else None


def make_excerpt(
    picked: Picked, model: str, results: Mapping[str, Any], *, database_field: str | None, gold_field: str | None
) -> dict[str, Any]:
    """Return one row for the page.

    Args:
        picked: The row.
        model: The model's alias.
        results: The first rows of its `result` and of its `gold` query's, where they could be had.
        database_field: The field that names its database.
        gold_field: The field with its gold query.
    """
    row = picked.row
    reasons = [as_name(reason) for reason in _reasons(picked.end, row)]
    sql = _text(row.get("sql"))
    return {
        "model": model,
        "end": picked.end,
        "reason": reasons[0] if reasons else "",
        "reasons": reasons,
        "database": as_name(_text(row.get(database_field))) if database_field else "",
        "title": _title(row),
        "sql": sql[:300],
        "place": f"{model}/{picked.file}:{picked.line}",
        "sample_id": _text(row.get("sample_id")),
        "classes": {key: as_name(row[key]) for key in CLASSES if row.get(key) is not None},
        "example": _example(row),
        "detail": _detail(row, sql, gold_field) | {"tables": results},
    }


#: What the tables of errors show an example of.
CLASSES = ("reject_reason", "exec_error_class", "error_class", "finish_reason", "gold_status", "not_asked_reason")


def _reasons(end: str, row: Row) -> list[Any]:
    if end == "rejected":
        return list(row.get("reject_reasons") or [row.get("reject_reason") or "unknown"])
    field = {"failed": "error_class", "not_asked": "not_asked_reason"}.get(end)
    return [row.get(field) or "unknown"] if field else []


def _title(row: Row) -> str:
    for field in _TITLE_FIELDS:
        if isinstance(value := row.get(field), str) and value.strip():
            return " ".join(value[:400].split())[:160]
    spoken = [message for message in _messages(row) if message.get("role") == "user"]
    text = " ".join(_text(spoken[-1].get("content"))[-400:].split())[-160:] if spoken else ""
    return text or _text(row.get("sample_id"))[:16]


def _example(row: Row) -> str:
    return " ".join(
        _text(row.get("exec_error") or row.get("error") or row.get("sql") or row.get("generation"))[:400].split()
    )


def _messages(row: Row) -> list[Mapping[str, Any]]:
    messages = row.get("messages")
    return [message for message in messages if isinstance(message, dict)] if isinstance(messages, list) else []


def _detail(row: Row, sql: str, gold_field: str | None) -> dict[str, Any]:
    gold = row.get(gold_field) if gold_field else None
    return {
        "sample_index": row.get("sample_index"),
        "error": clip(_text(row["error"]), 2000) if row.get("error") else None,
        "messages": [
            {"role": _text(message.get("role"))[:40], **clip(_text(message.get("content")))}
            for message in _messages(row)[:MAX_MESSAGES]
        ],
        "answer": mark_statement(_text(row.get("generation")), sql),
        "reasoning": clip(_text(row["reasoning"])) if row.get("reasoning") else None,
        "sql": clip(sql) if sql else None,
        "gold": clip(_text(gold)) if gold is not None else None,
        "result": _facts(row, _RESULT),
        "facts": _facts(row, _ANSWER),
        "fields": _user_fields(row, gold_field),
    }


#: Field -> its name on the page.
_RESULT = {
    "exec_pass": "Executes",
    "exec_error_class": "Execution error",
    "exec_error": "Error",
    "gold_match": "Matches gold",
    "gold_status": "Gold status",
    "gold_error": "Error of gold",
    "gold_unstable": "Gold left something to chance",
    "row_count": "Rows of the result",
    "column_count": "Columns of the result",
    "empty_result": "Empty result",
    "truncated": "Result cut short",
    "result_signature": "Signature",
    "score": "Score",
    "judge_score": "Score of the judge",
}
_ANSWER = {
    "finish_reason": "Finish reason",
    "usage": "Tokens",
    "attempts": "Attempts",
    "clean_method": "How it was extracted",
    "clean_note": "Note",
}


def _facts(row: Row, names: Mapping[str, str]) -> list[list[Any]]:
    return [[name, _text(row[field])[:2000]] for field, name in names.items() if row.get(field) is not None]


def _user_fields(row: Row, gold_field: str | None) -> list[list[str]]:
    own = [field for field in row if field not in ADDED_FIELDS and field != gold_field]
    return [[field[:80], _cut(_text(row[field]))] for field in own[:40]]


def _cut(text: str) -> str:
    return text if len(text) <= MAX_FIELD else f"{text[:MAX_FIELD]} … (+{len(text) - MAX_FIELD})"
