"""Small repairs of an answer's text: what a web page, a chat window or a keyboard did to it, undone.

Inside literals, quoted names and comments nothing is touched: there the same characters are data.
"""

from __future__ import annotations

import re

from potstill.sql.scan import BLANKS, TERMINATORS
from potstill.sql.syntax import check_syntax

_LITERAL = re.compile(r"(?<!\w)'[^'\n]*'(?!\w)")
_PROTECTED = re.compile(
    r"'[^']*(?:'|\Z)|\"[^\"]*(?:\"|\Z)|`[^`]*`|\[[^\]]*\]|--[^\n]*|/\*.*?(?:\*/|\Z)|[‘’＇]([^‘’＇']*)[‘’＇]|[“”＂]([^“”＂\"]*)[“”＂]",
    re.DOTALL,
)
#: Its semicolon may be missing: it was taken for the statement's end.
_ENTITY = re.compile(r"&(?:lt|gt|quot|apos|amp|nbsp|#\d{2,3}|#x[0-9A-Fa-f]{2})(?:;|\Z)")
_BREAK = re.compile(r"<br ?/?>\n?")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_BOLD_KEYWORD = re.compile(r"\*\*(?:SELECT|WITH)\*\*", re.IGNORECASE)
_STYLE_NAMES = r"(?:span|b|strong|em|i|u|font|mark)(?:\s[^<>]{0,200})?>"
_TAGGED_KEYWORD = re.compile(rf"<{_STYLE_NAMES}\s*(?:SELECT|WITH)\s*</", re.IGNORECASE)
_STYLE_TAG = re.compile(rf"</?{_STYLE_NAMES}", re.IGNORECASE)
_MARKDOWN_ESCAPE = re.compile(r"\\([_*<>\[\]()#.`~|-])")
_ESCAPES = {"\n": "\n", "n": "\n", "t": "\t", "r": "\r", '"': '"', "'": "'", "\\": "\\", "/": "/", "`": "`"}

_BLANK_TABLE = str.maketrans(
    {**dict.fromkeys("\u3000\u00a0\u202f\u2028\u2029", " "), **dict.fromkeys("\ufeff\u200b\u200c\u200d\u2060")}
)
#: Full-width signs that are signs wherever they stand; the others may be part of a Chinese name (`占比％`).
_SIGNS = frozenset("，；＝＜＞＊＋")


def has_entities(sql: str) -> bool:
    """Say whether a statement was HTML-escaped: an entity stands outside its literals."""
    return _ENTITY.search(sql) is not None and _ENTITY.search(_LITERAL.sub("''", sql)) is not None


def has_breaks(sql: str) -> bool:
    """Say whether HTML line breaks stand in a statement outside its literals."""
    return "<br" in sql and _BREAK.search(_LITERAL.sub("''", sql)) is not None


def without_breaks(body: str) -> str:
    """Turn HTML line breaks into real ones."""
    return _BREAK.sub("\n", body)


def without_styles(body: str) -> str:
    """Remove the colours of a terminal, LaTeX's dollars, bold type and HTML styles from keywords, and backslashes before fences."""
    if "\\```" in body:
        body = body.replace("\\```", "```")
    if "\x1b[" in body:
        body = _COLOUR.sub("", body)
    if body[:1] == "$" and body[-1:] == "$":
        body = body.strip("$").strip(BLANKS)
    if "<" in body and _TAGGED_KEYWORD.search(body):
        body = _STYLE_TAG.sub("", body)
    return body.replace("**", "") if "**" in body and _BOLD_KEYWORD.search(body) else body


def after_diff(text: str) -> str:
    """Return what a diff leaves: lines it takes away are gone, those it adds lose their sign."""
    lines = [line for line in text.split("\n") if not line.startswith(("-", "@@"))]
    return "\n".join(line[1:] if line[:1] in ("+", " ") else line for line in lines)


def unescape(text: str) -> str:
    """Replace the escapes of a JSON or program string."""
    return re.sub(r"\\([\nnrt\"'\\/`])", lambda match: _ESCAPES[match.group(1)], text)


def real_newlines(body: str) -> str:
    r"""Turn `\n` written as two characters into line breaks, in a text that has no others, outside literals."""
    if "\\n" not in body or "\n" in body or body[0] in '{["' or '":' in body:
        return body
    return unescape(body) if "\\n" in _LITERAL.sub("''", body) else body


def without_markdown_escapes(sql: str, dialect: str) -> str:
    r"""Undo `\_` and `\*`, where that makes a text parse that did not."""
    if check_syntax(sql, dialect).kind == "yes":
        return sql
    pieces = []
    position = 0
    for match in _PROTECTED.finditer(sql):
        pieces += [_MARKDOWN_ESCAPE.sub(r"\1", sql[position : match.start()]), match.group()]
        position = match.end()
    repaired = "".join([*pieces, _MARKDOWN_ESCAPE.sub(r"\1", sql[position:])])
    return repaired if check_syntax(repaired, dialect).kind == "yes" else sql


def plain_punctuation(sql: str) -> str:
    """Replace full-width signs, blanks of other scripts and typographic quotes by plain ones.

    No dialect knows them, so nothing that could run is changed. Parentheses that are part of a Chinese name
    (`价格（元）`) stay: those behind a word in ASCII (`COUNT（*）`) are the statement's.
    """
    pieces = []
    position = 0
    for match in _PROTECTED.finditer(sql):
        pieces += [_plain(sql[position : match.start()]), _straight(match)]
        position = match.end()
    pieces.append(_plain(sql[position:]))
    return "".join(pieces).rstrip(TERMINATORS + BLANKS)


def _plain(code: str) -> str:
    if code.isascii():
        return code
    code = code.translate(_BLANK_TABLE)
    kept: list[bool] = []  # for each open full-width parenthesis, whether it is part of a name
    out: list[str] = []
    for place, sign in enumerate(code):
        if sign == "（":
            kept.append(place > 0 and not code[place - 1].isascii() and code[place - 1].isalnum())
            out.append(sign if kept[-1] else "(")
        elif sign == "）":
            out.append(sign if kept and kept.pop() else ")")
        elif sign in _SIGNS and not any(kept):
            out.append(chr(ord(sign) - 0xFEE0))
        else:
            out.append(sign)
    return "".join(out)


def _straight(match: re.Match[str]) -> str:
    if match.group(1) is not None:
        return f"'{match.group(1)}'"
    return f'"{match.group(2)}"' if match.group(2) is not None else match.group()
