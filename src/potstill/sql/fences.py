"""Find the fenced blocks of an answer, as models write them: closed or not, labelled or not, on one line or many."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from potstill.sql.reasoning import is_quoted
from potstill.sql.scan import QUERY_WORDS, first_keyword, unfinished, words

#: Words behind a fence that name SQL; a label with more to it (`sql title="x"`) begins with one of them.
SQL_LABELS = frozenset(
    words(
        "sql sqlite sqlite3 postgresql postgres psql pgsql plpgsql mysql mariadb tsql t-sql plsql pl/sql duckdb",
        "snowflake bigquery oracle hive spark sparksql ansi-sql mssql presto trino redshift clickhouse query",
        "sqlquery",
    )
)
#: Labels that say nothing about what is inside.
NEUTRAL_LABELS = frozenset(
    ["", "text", "txt", "plaintext", "plain", "markdown", "md", "code", "output", "answer", "none"]
)
#: Labels of programs that may carry a statement in a string.
PROGRAM_LABELS = frozenset(
    words(
        "python py python3 ipython javascript js typescript ts java kotlin scala go golang rust ruby php c csharp",
        "c# cs r bash sh shell zsh console terminal powershell cmd cpp c++ jinja jinja2 yaml yml xml html",
    )
)
JSON_LABELS = frozenset(["json", "jsonc", "json5", "jsonl"])
DIFF_LABELS = frozenset(["diff", "patch"])

_BACKTICKS = re.compile(r"```+(?P<tilde>)?")
_FENCE = re.compile(r"`{3,}|^[ \t>*+-]*(?P<tilde>~{3,})", re.MULTILINE)
_WRONG_CLOSING = re.compile(r"^[ \t]*(?:``+|~~~+)[ \t]*\r?$", re.MULTILINE)
_LABEL = re.compile(r"[ \t]*\{?\.?(?P<label>[A-Za-z][\w+#./-]*)?")
_GLUED = re.compile(r"(?P<label>sql|sqlite|sqlite3|postgresql|mysql)(?=SELECT\b|WITH\b|VALUES\b)", re.IGNORECASE)
_CONTENT_START = re.compile(
    r"\s*(?:SELECT|WITH|VALUES|INSERT|UPDATE|DELETE|CREATE|DROP|EXPLAIN|PRAGMA|--|/\*|\(|\{\s*[\"'])(?!\w)", re.I
)
_BARE_SQL_LABEL = re.compile(r"\s*(?:sql|sqlite|postgresql|mysql)[ \t]*\r?\n", re.IGNORECASE)

#: A closing fence inside a literal is looked for this often; a text with more of them is hostile.
_MAX_LITERAL_CHECKS = 8
#: More of a line than this is not looked at around a fence.
_MAX_LINE = 1000


class Block(NamedTuple):
    """A fenced block.

    Attributes:
        label: The first word behind the fence, in lower case, or "".
        content: What is inside, without the line breaks next to the fences.
        start: Index of the opening fence.
        end: Index behind the closing fence (or the end of the text).
        closed: Whether there is a closing fence.
    """

    label: str
    content: str
    start: int
    end: int
    closed: bool


class _Opening(NamedTuple):
    start: int
    mark: str
    label: str
    body: int
    indent: str


def find_blocks(text: str) -> list[Block]:
    """Return the fenced blocks of a text, in order."""
    return list(_blocks(text))


def _blocks(text: str) -> Iterator[Block]:
    fence = _FENCE if "~~~" in text else _BACKTICKS  # a search for one literal is much faster
    opening = _virtual_opening(text, fence)
    position = 0
    checks = _MAX_LITERAL_CHECKS
    for match in fence.finditer(text):
        if match.start() < position:
            continue
        start = match.start("tilde") if match.group("tilde") else match.start()
        mark = match.group("tilde") or match.group()
        if opening is None and _is_data(text, start, match.end()):
            continue
        if opening is None:
            opening = _open(text, start, mark)
            position = opening.body
            continue
        if mark[0] != opening.mark[0] or len(mark) < len(opening.mark):
            continue
        if checks and _in_literal(text, opening, start, match.end()):
            checks -= 1
            continue
        yield _close(text, opening, start, match.end())
        opening = None
        position = match.end()
        if _labelled(text, match):
            # A fence with a language closes nothing: the block before was left open.
            opening = _open(text, start, mark)
            position = opening.body
    if opening is not None:
        yield _close(text, opening, len(text), len(text), closed=False)


def _is_data(text: str, start: int, end: int) -> bool:
    """Say whether a fence mark amid a line stands in a literal."""
    return start > 0 and text[start - 1] != "\n" and is_quoted(text, start, end)


def _virtual_opening(text: str, fence: re.Pattern[str]) -> _Opening | None:
    """Return an opening at the start, when the real one stood in the prompt and only the closing fence is left."""
    if text.startswith("```"):
        return None
    head = _BARE_SQL_LABEL.match(text)
    begin = head.end() if head else 0
    if first_keyword(text, begin) not in QUERY_WORDS:
        return None
    marks = islice(fence.finditer(text), _MAX_LITERAL_CHECKS)
    match = next((mark for mark in marks if not _is_data(text, mark.start(), mark.end())), None)
    if match is None or match.group("tilde") or _labelled(text, match) or text[begin : match.start()].isspace():
        return None
    # `WITH the schema above, …` is prose: a query has ended, or goes on, right up to the fence.
    before = text[begin : match.start()].rstrip()
    prose = before.endswith((":", "：")) or (not before.endswith((";", "；")) and "\n\n" in before)
    return None if prose else _Opening(0, "```", "sql", begin, "")


def _labelled(text: str, match: re.Match[str]) -> bool:
    label = _LABEL.match(text, match.end())
    word = (label.group("label") or "").lower() if label else ""
    if not word or text[match.end() : match.end() + 1] in " \t":
        return False
    return not _before_on_line(text, match.start()).strip(" \t>*+-") and (
        word in SQL_LABELS or word in PROGRAM_LABELS or word in JSON_LABELS
    )


def _before_on_line(text: str, position: int) -> str:
    """Return what stands on the same line before a position; bounded, so that one endless line costs no more."""
    return text[max(text.rfind("\n", max(0, position - _MAX_LINE), position) + 1, position - _MAX_LINE, 0) : position]


def _open(text: str, start: int, mark: str) -> _Opening:
    """Read the info line behind an opening fence: a label, or already the content."""
    behind = start + len(mark)
    line_end = text.find("\n", behind, behind + _MAX_LINE)
    line_end = min(len(text), behind + _MAX_LINE) if line_end < 0 else line_end
    before = _before_on_line(text, start)
    indent = before if not before.strip(" \t>") else ""
    glued = _GLUED.match(text, behind)
    if glued:
        return _Opening(start, mark, glued.group("label").lower(), glued.end(), indent)
    found = _LABEL.match(text, behind, line_end)
    label = (found.group("label") or "") if found else ""
    after = found.end() if found else behind
    if label.upper() in QUERY_WORDS or _CONTENT_START.match(text, behind, line_end):
        return _Opening(start, mark, "", behind, indent)
    rest = text[after:line_end]
    if mark[0] in rest or _CONTENT_START.match(rest):
        # Content on the fence's own line.
        known = label.lower() in SQL_LABELS | NEUTRAL_LABELS | PROGRAM_LABELS | JSON_LABELS
        return _Opening(start, mark, label.lower() if known else "", after if known else behind, indent)
    return _Opening(start, mark, label.lower(), min(line_end + 1, len(text)), indent)


def _in_literal(text: str, opening: _Opening, start: int, end: int) -> bool:
    """Say whether a fence mark is data: SQL before it has an open literal that closes behind it, or JSON goes on."""
    if opening.label in JSON_LABELS:
        return _before_on_line(text, start).strip() != "" and text[end : end + 1] not in ("", "\n", "\r", " ")
    if opening.label not in SQL_LABELS and opening.label:
        return False
    content = text[opening.body : start]
    if ("--" in content or "/*" in content) and first_keyword(content) in QUERY_WORDS and _is_data(text, start, end):
        return True
    if not (content.count("'") % 2 or content.count('"') % 2 or content.count("`") % 2):
        return False  # nothing can be open
    if first_keyword(content) not in QUERY_WORDS or unfinished(content) != "literal":
        return False
    if _is_data(text, start, end):
        return True
    closing = text.find(opening.mark, end)
    return closing >= 0 and unfinished(text[opening.body : closing]) != "literal"


def _close(text: str, opening: _Opening, start: int, end: int, *, closed: bool = True) -> Block:
    content = text[opening.body : start]
    if not closed:
        # Closed by marks of the wrong kind or number, as some do.
        wrong = _WRONG_CLOSING.search(content)
        content = content[: wrong.start()] if wrong else content
    # At the text's start the indentation was stripped; the closing fence still has it.
    indent = opening.indent or (_before_on_line(text, start) if closed and opening.start == 0 else "")
    if indent and not indent.strip(" \t>"):
        content = _outdent(content, indent)
    return Block(opening.label, content.strip("\r\n \t"), opening.start, end, closed)


def _outdent(content: str, indent: str) -> str:
    """Remove the indentation of the fence from each line, as Markdown does for blocks in lists and quotes."""
    if ">" in indent:
        return re.sub(r"^[ \t]*>[ \t]?", "", content, flags=re.MULTILINE)
    return re.sub(rf"^[ \t]{{1,{len(indent)}}}", "", content, flags=re.MULTILINE)
