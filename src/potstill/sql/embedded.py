"""Statements that stand inside something else: tags, JSON, program code."""

from __future__ import annotations

import ast
import contextlib
import json
import re
import textwrap
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from potstill.sql.reasoning import is_quoted
from potstill.sql.repairs import unescape
from potstill.sql.scan import QUERY_WORDS, first_keyword, words

#: Tries `text`, gives the statement in it or None.
Reader = Callable[[str], str | None]

_TAG_NAMES = (
    r"sql|sqlite|query|queries|answer|final_answer|final|solution|sql_query|sqlquery|final_sql|final_query|output|response|"
    r"result|code|statement|sql_code|sql_answer|execute|sql_statement|generated_sql|predicted_sql|pre|parameter|text|candidate"
)
_TAG_OPEN = re.compile(
    rf"<(?P<name>{_TAG_NAMES})(?:[\s=][^<>]{{0,120}})?>|\[(?P<square>SQL|ANSWER|QUERY|FINAL_ANSWER|RESPONSE)\]|"
    r"<\|begin_of_(?P<part>solution|answer|sql|code|box)\|>|<<(?P<angle>SQL|ANSWER)>>|<!\[(?P<cdata>CDATA)\[",
    re.IGNORECASE,
)
_PARTIAL_TAG = re.compile(r"</?\w*\Z")
_BOXED = re.compile(r"\\boxed\s*\{")
_LATEX_TEXT = re.compile(r"\s*\\(?:text|texttt|mathtt|verb)\s*\{(.*)\}\s*\Z", re.DOTALL)

#: JSON keys that may hold the statement, the most telling first.
_KEYS = words(
    "final_sql sql sql_query sqlquery final_query query sql_statement statement generated_sql final_answer",
    "final answer output response result code content text arguments parameters input function tool_input data",
    "value",
)
_RANK = {key: rank for rank, key in enumerate(_KEYS)}
#: Keys whose value is never the answer, whatever it looks like.
_SIDE_KEYS = frozenset(
    words(
        "reasoning thought thoughts thinking explanation analysis rationale comment comments notes note plan steps",
        "draft question schema error alternatives original wrong rejected",
    )
)
_JSON_START = re.compile(r"\{\s*[\"']|\[\s*[\"'{\[]")
_KEY_VALUE = re.compile(
    r"""["'](?:final_)?(?:sql|sql_?query|query|answer|statement|final_sql)["']\s*:\s*(?P<quote>["'])""", re.IGNORECASE
)
_MAX_JSON_STARTS = 12
_MAX_DEPTH = 12

_YAML_BLOCK = re.compile(
    r"^(?P<indent>[ \t]*)(?:-[ \t]+)?[\"']?(?P<key>\w+)[\"']?:[ \t]+(?P<style>[|>])[+-]?\d?[ \t]*\r?\n"
    r"(?P<lines>(?:(?P=indent)[ \t]+[^\n]*(?:\n|\Z)|[ \t]*\n)+)",
    re.MULTILINE,
)
#: Where YAML folds lines to one (`>`): but not at a line that is indented further, or behind an empty one.
_FOLDED = re.compile(r"(?<!\n)\n(?![ \n])")

_STRING_START = re.compile(
    r"(?P<quote>\"\"\"|'''|#\"|`|\"|')(?=[\s(\\n]*(?:--[^\n]{0,300}\n\s*)?(?:SELECT|WITH|VALUES)\b)", re.IGNORECASE
)
#: How a program goes on with the same string: `"…" + "…"`, `"…" "…"`, `sql += "…"`, `sb.append("…")`.
_GOES_ON = (
    r"(?:\s*+[+.&]\s*+(?:_\s++)?|\s*+\\\s*+|\)?\s*+(?:;\s*+)?\w{{1,40}}\s*+[+.]=\s*+"
    r"|\)\s*+(?:;\s*+)?(?:\w{{1,40}}\s*+)?\.append\(\s*+|\s++)[rf]?{quote}"
)
_MAX_CODE_CHARS = 60_000
_MAX_PIECES = 200
_RUST = re.escape('#"')
#: Strings that a program puts together: the grammar's constants are only parts then.
_LISTED = re.compile(r"join\(\s*[\[(]|\]\s*\.join\(|\bpaste\(")
_PIECES = re.compile(rf"[\"']\s*\+\s*[rf]?[\"']|\+=\s*[rf]?[\"']|{_LISTED.pattern}")


def in_tags(text: str, read: Reader, *, at_most: int) -> str | None:
    r"""Return the statement in the last tag (`<answer>`, `<sql>`, `\boxed{}` …) that holds one."""
    if "\\boxed" in text:
        for match in reversed(list(_BOXED.finditer(text))[-at_most:]):
            found = read(_boxed(text, match.end()))
            if found:
                return found
    if "<" not in text and "[" not in text:
        return None
    opens = list(_TAG_OPEN.finditer(text))[-100:]
    opens = [match for match in opens if not is_quoted(text, match.start(), match.end())]
    for match in reversed(opens[-at_most:]):
        found = read(_tag_content(text, match))
        if found:
            return found
    return None


def _tag_content(text: str, opening: re.Match[str]) -> str:
    kind = opening.lastgroup
    name = re.escape(opening.group(kind)) if kind else ""
    closings = {
        "name": rf"</\s*{name}\s*>",
        "square": rf"\[/{name}\]",
        "part": rf"<\|end_of_{name}\|>",
        "angle": rf"<</{name}>>",
        "cdata": r"\]\]>",
    }
    for closing in re.compile(closings[kind or "name"], re.IGNORECASE).finditer(text, opening.end()):
        if not is_quoted(text, closing.start(), closing.end()):
            return text[opening.end() : closing.start()]
    # `[Answer]` alone may be a column's name.
    return "" if kind == "square" else _PARTIAL_TAG.sub("", text[opening.end() :])


def _boxed(text: str, start: int) -> str:
    depth = 1
    for match in re.compile(r"[{}]").finditer(text, start):
        depth += 1 if match.group() == "{" else -1
        if depth == 0:
            inner = text[start : match.start()]
            latex = _LATEX_TEXT.match(inner)
            return latex.group(1) if latex else inner
    return text[start:]


def in_json(text: str, read: Reader) -> str | None:
    """Return the statement in a JSON value of a text: whole or amid prose, cut off, or in Python's notation."""
    if '"' not in text and "'" not in text:
        return None
    for value in _json_values(text):
        found = in_value(value, read)
        if found:
            return found
    return _in_broken_json(text, read)


def is_json(text: str) -> bool:
    """Say whether the whole text is one JSON object or list."""
    text = text.strip()
    if text[:1] not in "{[" or text[-1:] not in "}]":
        return False
    try:
        json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return False
    return True


def _json_values(text: str) -> Iterator[Any]:
    decoder = json.JSONDecoder(strict=False)
    values: list[Any] = []
    position = 0
    for _ in range(_MAX_JSON_STARTS):
        match = _JSON_START.search(text, position)
        if match is None:
            break
        position = match.end()
        if is_quoted(text, match.start(), match.end()):
            continue  # JSON in a literal is data
        with contextlib.suppress(ValueError, RecursionError):
            value, position = decoder.raw_decode(text, match.start())
            values.append(value)
    # The last one wins, as with fences.
    yield from reversed(values)
    yield from _python_value(text)


def _python_value(text: str) -> Iterator[Any]:
    text = text.strip()
    if text[:1] in ("{", "[") and "'" in text[:200] and len(text) <= _MAX_CODE_CHARS:
        try:
            yield ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return


def in_value(value: Any, read: Reader, depth: int = 0) -> str | None:
    """Return the statement inside a decoded JSON value, by the names of its keys."""
    if depth > _MAX_DEPTH:
        return None
    if isinstance(value, str):
        return read(value) if value else None
    if isinstance(value, list):
        if len(value) > 1 and all(isinstance(item, str) for item in value) and not any(map(_is_query, value[1:])):
            return read("\n".join(value))  # the lines of one statement
        return _first(in_value(item, read, depth + 1) for item in reversed(value[-50:]))
    if isinstance(value, dict):
        names = sorted((name for name in value if _usable(name)), key=lambda name: _RANK.get(_plain(name), len(_KEYS)))
        return _first(_in_member(name, value[name], read, depth) for name in names[:60])
    return None


def _first(found: Iterator[str | None]) -> str | None:
    return next((item for item in found if item), None)


def _plain(name: Any) -> str:
    return str(name).strip().lower().replace("-", "_").replace(" ", "_")


def _usable(name: Any) -> bool:
    return _plain(name) not in _SIDE_KEYS


def _in_member(name: Any, value: Any, read: Reader, depth: int) -> str | None:
    if isinstance(value, str) and _plain(name) not in _RANK and first_keyword(value) not in QUERY_WORDS:
        return None  # a sentence under a name that we do not know
    return in_value(value, read, depth + 1)


def _in_broken_json(text: str, read: Reader) -> str | None:
    """Read the member of a JSON text that does not decode: cut off, or with bare quotes inside."""
    found = list(_KEY_VALUE.finditer(text))[-50:]
    match = next((item for item in reversed(found) if not is_quoted(text, item.start(), item.start() + 1)), None)
    if match is None:
        return None
    quote = match.group("quote")
    rest = text[match.end() :]
    end = re.search(rf"""{quote}\s*(?:,\s*["'][\w ]+["']\s*:|,\s*\}}|\}}|\]\s*\}})""", rest)
    raw = rest[: end.start()] if end else rest.rstrip().rstrip("`").rstrip("}\n ").removesuffix(quote)
    return read(unescape(raw))


def in_yaml(text: str, read: Reader) -> str | None:
    """Return the statement in the last block of YAML (`sql: |` and indented lines) that holds one."""
    for match in reversed(list(_YAML_BLOCK.finditer(text))[-20:]):
        if _plain(match.group("key")) in _RANK:
            lines = textwrap.dedent(match.group("lines"))
            found = read(_FOLDED.sub(" ", lines.strip()) if match.group("style") == ">" else lines)
            if found:
                return found
    return None


def in_code(text: str, read: Reader) -> str | None:
    """Return the last statement that stands in a string of a program: Python by its grammar, others by their quotes."""
    readings = (_quoted_strings, _python_strings) if _PIECES.search(text) else (_python_strings, _quoted_strings)
    for strings in readings:
        for candidate in strings(text):
            found = read(candidate)
            if found:
                return found
    return None


def _python_strings(text: str) -> list[str]:
    if len(text) > _MAX_CODE_CHARS:
        return []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # `\d` in a model's string is not our affair
            tree = ast.parse(text)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return []
    pieces = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    constants = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and id(node) not in pieces and _is_query(node.value)
    ]
    constants.sort(key=lambda node: (node.lineno, node.col_offset), reverse=True)
    return [str(node.value) for node in constants]


def _is_query(value: Any) -> bool:
    return isinstance(value, str) and first_keyword(value) in QUERY_WORDS


def _quoted_strings(text: str) -> list[str]:
    found = []
    position = 0
    listed = _LISTED.search(text) is not None
    for _ in range(30):
        match = _STRING_START.search(text, position)
        if match is None:
            break
        pieces, position = _joined(text, match.end(), re.escape(match.group("quote")), listed=listed)
        if pieces:
            found.append(unescape((" " if listed else "").join(pieces)))
    return found[::-1]


def _joined(text: str, position: int, quote: str, *, listed: bool) -> tuple[list[str], int]:
    """Return the pieces of a string that a program puts together, and where the last of them ends."""
    closing = re.compile(r"\"#" if quote == _RUST else rf"(?<!\\){quote}(?!\w)")
    goes_on = re.compile(rf"\s*,\s*[rf]?{quote}" if listed else _GOES_ON.format(quote=quote))
    pieces: list[str] = []
    while len(pieces) < _MAX_PIECES and (end := closing.search(text, position)):
        pieces.append(text[position : end.start()])
        position = end.end()
        more = goes_on.match(text, position)
        if more is None:
            break
        position = more.end()
    return pieces, position
