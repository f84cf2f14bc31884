"""Find statements in running text: where one begins, and where the prose goes on.

A keyword alone is never proof of SQL ("With the given schema, select …"). A candidate counts when it stands where
code stands (at the start of a line, behind a label, in code marks) and reads as a query; where it ends is decided
by its terminator, else by the longest part that parses.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from potstill.sql.scan import BLANKS, TERMINATORS, first_keyword, statement_at, unfinished, words
from potstill.sql.syntax import MAX_CHECKED_CHARS, check_syntax

#: How much of a text may be scanned in all, so that a hostile one ends: characters, beyond twice its length.
_BUDGET = 40_000
#: A statement is looked for in so many characters first; only a longer one costs a look at the whole text.
_WINDOW = 4000
#: Where a text was too much to be scanned whole, its end is: the last statement is the answer.
_TAIL = 20_000
_MAX_COMMENT_LINES = 60

_OTHER = (
    r"EXPLAIN\s+(?:QUERY\s+PLAN\s+|ANALYZE\s+|VERBOSE\s+|\([^()]{1,60}\)\s*)*(?:SELECT|WITH|VALUES|INSERT|UPDATE|DELETE)\b|"
    r"INSERT\s+(?:OR\s+\w+\s+)?INTO\b|REPLACE\s+INTO\b|UPDATE\s+(?:OR\s+\w+\s+)?[\w.\"`\[\]]+\s+SET\b|DELETE\s+FROM\b|"
    r"CREATE\s+(?:OR\s+REPLACE\s+)?(?:TEMP\s+|TEMPORARY\s+|UNIQUE\s+|VIRTUAL\s+|MATERIALIZED\s+)*"
    r"(?:TABLE|VIEW|INDEX|TRIGGER|DATABASE|SCHEMA|FUNCTION|PROCEDURE|USER|ROLE)\b|"
    r"DROP\s+(?:TABLE|VIEW|INDEX|TRIGGER|DATABASE|SCHEMA|COLUMN|USER|ROLE)\b|"
    r"ALTER\s+(?:TABLE|DATABASE|VIEW|USER|ROLE)\b|TRUNCATE\s+(?:TABLE\s+)?\w|MERGE\s+INTO\b|"
    r"PRAGMA\s+\w+|ATTACH\s+(?:DATABASE\s+)?['\"]|DETACH\s+(?:DATABASE\s+)?\w+\s*;|VACUUM\b(?=\s*(?:;|INTO\b|\Z))|"
    r"REINDEX\b(?=\s*(?:;|\w+\s*;|\Z))|SHOW\s+(?:TABLES|DATABASES|COLUMNS|CREATE)\b|DESCRIBE\s+\w+\s*(?:;|\Z)|"
    r"(?:GRANT|REVOKE)\s+[A-Z, ]+\s+ON\b|(?:BEGIN|COMMIT|ROLLBACK)(?:\s+TRANSACTION)?\s*;"
)
#: Where a statement may begin: a comment line and a block comment are skipped, they hold no statement.
_BEGIN = re.compile(
    rf"(?P<comment>^[ \t]*--[^\n]*|/\*(?:[^*/]++|\*(?!/)|/(?!\*))*+\*/)|(?P<query>(?<![A-Za-z0-9_.$@'-])(?:SELECT|WITH|VALUES)(?![\w'-]))|"
    rf"(?P<other>^[ \t]*(?:[-*>]\s+|\d+[.)]\s+)?(?:[A-Za-z ]{{1,20}}:[ \t]*|[\"'`*]+)?(?P<verb>{_OTHER}))",
    re.IGNORECASE | re.MULTILINE | re.DOTALL,
)
_WITH = re.compile(
    r"WITH\s+(?:RECURSIVE\s+)?(?:[\"`\[]?[^\s\"`\]()]+[\"`\]]?)\s*(?:\([^()]*\)\s*)?AS\s*(?:NOT\s+)?(?:MATERIALIZED\s*)?\(",
    re.IGNORECASE,
)
_VALUES = re.compile(r"VALUES\s*\(", re.IGNORECASE)
_FROM = re.compile(r"\bFROM\b", re.IGNORECASE)
_EXPRESSION = re.compile(r"[\d*('\"=+]")
_OPERATOR = re.compile(r"[=<>*('\",`]|\.\w|\bJOIN\b")

_LABEL_OR_BOLD = re.compile(r"\w:\s|\*\*[\w ]|[\w ]\*\*|`\s+\w+\s+\w+\s")
_PLACEHOLDER = re.compile(r"(?:\.\.\.|…)(?!>)|\b(?:SELECT|FROM|JOIN)\s+<[A-Za-z_][\w ]*>", re.IGNORECASE)
#: The keyword is spoken of: `SELECT and FROM need a table`.
_KEYWORD_NAMED = re.compile(
    r"SELECT\s+(?:and|or|clauses?|statements?|keywords?|quer(?:y|ies)|privileges?|permissions?|commands?)\b"
)
_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"|--[^\n]*|/\*.*?\*/", re.DOTALL)
_NEXT_SENTENCE = re.compile(
    r"(?<=[\w)'\"`\]])(?:[.!?]\s+(?=[^\W\d_a-z]|[¿¡])|\s+(?:->|=>|—|–)\s+(?=[A-Za-z])"
    r"|,\s+(?=(?:you|we|they|this|which|that|it|I|so|since|because|then|where|although|though|but|while|if|as|unless|assuming)\s+[A-Za-z]))"
)
#: Arrows, signs and pictures that close a sentence.
_SYMBOLS = re.compile(r"[\s\u2190-\u2bff\ufe0f\U0001f000-\U0001faff]+\Z")
_STRONG_OPERATOR = re.compile(r"[=<>*]|\((?!\d{1,2}\)\s)|\.\w")
_UPPER_CLAUSE = re.compile(r"\ASELECT\b(?=.*\b(?:FROM|FORM|WHERE|JOIN|GROUP BY|ORDER BY|LIMIT)\b)", re.DOTALL)
#: Full-width punctuation as the ASCII it stands for, blanks of other scripts as blanks; nothing changes its place.
SAME_LENGTH = str.maketrans(
    {
        **{chr(code): chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F) if not chr(code - 0xFEE0).isalnum()},
        **dict.fromkeys("\u3000\u00a0\u202f\u2028\u2029\ufeff\u200b\u200c\u200d\u2060", " "),
        **dict.fromkeys("‘’", "'"),
        **dict.fromkeys("“”", '"'),
    }
)

_ENDS_AS_CODE = re.compile(r"(?:[:：`\"'“‘「『(（>=→*|#。．.!！?？，,;；…】」)-]|%\}|[\u3040-\u9fff])\s*\Z")
_WORDS_OF_BOTH = words(
    "WITH FOR AND OR AS IN IS NOT ON THEN WHEN LIKE END USING FROM ALL LEFT RIGHT BETWEEN",
)
#: How a statement goes on behind a line break. Words of English count in one case only: `With this, …` is prose.
_BOTH_CASES = "|".join([*_WORDS_OF_BOTH, *(word.lower() for word in _WORDS_OF_BOTH)])
_CONTINUES = re.compile(
    r"\s*(?:(?:WHERE|(?:GROUP|ORDER)(?=\s+BY)|HAVING|LIMIT|OFFSET|UNION|INTERSECT|EXCEPT|JOIN|FULL|INNER|OUTER|CROSS|NATURAL|SELECT|"
    rf"ELSE|CASE|WINDOW|VALUES|FETCH)\b|(?-i:{_BOTH_CASES})\b"
    r"|[),;]|\((?!\d{1,2}\)\s+[A-Za-z])(?=\s*(?:SELECT|WITH|VALUES|[('\d]))|--|/\*)",
    re.IGNORECASE,
)
_PROSE_WORDS = (
    "This|That|These|Here|Note|The|In|It|I|I'm|We|You|Please|Let|Let's|Alternatively|However|But|Wait|Actually|Hmm|So|If|"
    "Make|Sorry|Finally|Step|Because|Since|Where|To|For|Each|All|My|My|Oops|No|Yes|Hope|Feel|As|By|And|Or|Then|Now|A|An|"
    "Explanation|Output|Result|Results|Returns|Answer|Good|Is|Thus|Therefore|First|Next|Also|Using|Given|Based|Assuming"
)
#: A line that is prose, whatever stands before it.
_SENTENCE_START = re.compile(rf"(?:{_PROSE_WORDS}|I['’]\w+)\b[ ,]+\S|\*\*\w|#{{1,6}} \w")
#: A line that is prose or markup, if what stands before it is complete.
_PROSE_LINE = re.compile(
    rf"\n[ \t]*(?="
    rf"[^\x00-\x7f]|#{{1,6}}[ \t]|\||[+][-=+]{{2,}}|[-=_*]{{3,}}[ \t]*\r?$|\*\*\w|[-*•][ \t]+[^\d\s]|\d+[.)][ \t]|\(\d{{1,2}}\)[ \t]+[A-Za-z]|"
    rf"``+|`[ \t]*\r?$|~~~|</?[A-Za-z]|>|\[\(|"
    rf"[A-Za-z][\w()/' ]{{0,40}}[:：](?!:)(?:\s|$)|(?-i:SQL|EOF|EOS)[ \t]*\r?$|"
    rf"(?-i:SQLResult|Explanation|Question|Human|User|Assistant)\b|(?-i:{_PROSE_WORDS})\b[ ,]|"
    rf"(?!(?:FROM|WHERE|GROUP|ORDER|LIMIT|AND|OR|JOIN|UNION)\b)[^\n]{{1,200}}\n[ \t]*[-+|=][-+|= \t]{{2,}}\r?$|"
    rf"\(?\d+ rows?\b|\\[gG]\b|(?-i:GO)[ \t]*\r?$|/[ \t]*\r?$|\.[a-z]+\b|Query OK|Time:|"
    rf"(?:sqlite|mysql|postgres|[\w-]+=[>#]|\$)[>#]?[ \t])",
    re.IGNORECASE | re.MULTILINE,
)
_TITLE_CASE = re.compile(r"[A-Z][a-z]+\b")
_PARAGRAPH = re.compile(r"\r?\n[ \t]*\r?\n\s*")
_RESTART = re.compile(r"\n[ \t]*(?:[-=]>[ \t]*)?(?=(?:SELECT|WITH\s+\w+\s+AS\s*\()(?!\w))", re.IGNORECASE)
#: A query is part of the statement when one of these stands before it.
_EXPECTING = frozenset(
    ("UNION ALL EXCEPT INTERSECT MINUS AS IN EXISTS ANY SOME INTO EXPLAIN PLAN DISTINCT FOR ANALYZE VERBOSE").split()  # noqa: SIM905 - read as a sentence
)
_STOP_WORDS = frozenset(
    words(
        "this that which the it to returns return will gives give here note and with for as because since so then",
        "is in by would should where explanation output result query if",
    )
)
_WORDS_ONLY = re.compile(r"[\s,.:;!?(–—-]*+(?:[^\W\d_]++['’]?[,:.]?(?:\s+|\)|\Z)){3}")
_SQL_WORD = re.compile(
    r"\b(?:SELECT|FROM|WHERE|HAVING|UNION|JOIN|DESC|ASC|GROUP|ORDER|LIMIT|BY|AND|OR|OFFSET|INTERSECT|EXCEPT)\b|[=<>*()]",
    re.IGNORECASE,
)
_PROSE_TOKENS = re.compile(
    r"\b(?:this|that|which|the|returns?|will|query|it|to|of|because|since|result|above|here|each|gets?|finds?|should|"
    r"would|so|we|you|your|gives?|please|if|need)\b",
    re.IGNORECASE,
)
_CJK = re.compile(r"[\u3000-\u303f\u3040-\u30ff\u3400-\u9fff\uff01-\uff5e]")
_CJK_SENTENCE = re.compile(r"[。！？]|，(?=[^A-Za-z]*(?:[。！？\n]|\Z))")
_DANGLING = re.compile(
    r"(?:[,=<>(+*/|.-]|\b(?:SELECT|DISTINCT|FROM|WHERE|AND|OR|NOT|ON|JOIN|BY|IN|LIKE|BETWEEN|AS|HAVING|LIMIT|UNION|ALL|CASE|"
    r"WHEN|THEN|ELSE|IS|SET|USING|OVER|INNER|LEFT|GROUP|ORDER|WITH|INTERSECT|EXCEPT|OUTER|CROSS))\s*\Z",
    re.IGNORECASE,
)
_BROKEN_END = re.compile(r"(?P<last>[A-Za-z]'[A-Za-z][^\n]*['\")\w])[ \t]*[;；][ \t]*(?:\r?\n|\Z)")
#: A quote that ends a text, after one within a word: not cut off, but quoted wrongly.
_MISQUOTED = re.compile(r"[A-Za-z]'[A-Za-z][^\n]*['\"]\Z")
_GLUED_TAIL = re.compile(r"(?<=[A-Za-z0-9_)])[\u3040-\u30ff\u3400-\u9fff]+\Z")
_AS_SHOWN = re.compile(r"\s+as (?:shown|follows|described|above|requested|required|asked|needed)\Z")
_REMARK_TAIL = re.compile(
    r"(?:(?<=\s)|(?<=FROM \w)|(?<=FROM \w\w))[（(][^()（）'\"=<>]*[\u3040-\u30ff\u3400-\u9fff][^()（）'\"=<>]*[)）]\Z"
)
_META_TAIL = re.compile(r"\s*\\[gG]\s*\Z")
_PROMPT = re.compile(
    r"^[ \t]*(?:sqlite>|mysql>|MariaDB \[[^\]]*\]>|[\w-]+=[>#]|duckdb>|D|SQL>|\d+>|>>>|>)[ \t]+(?=\S)", re.MULTILINE
)
_PROMPT_GO_ON = re.compile(r"^[ \t]*(?:\.\.\.>|->|[\w-]+[-('][>#]|\d+>|\d{1,3} (?= )|·|‣|\.\.\.)[ \t]?", re.MULTILINE)
_SPAN_LINES = re.compile(
    r"^[ \t]*`(?:SELECT|WITH)\b[^`\n]*`[ \t]*(?:\n[ \t]*`[^`\n]+`[ \t]*$)+", re.IGNORECASE | re.MULTILINE
)
#: A listing: each line with its number, and a bar, a colon or blanks behind it.
_LINE_NUMBER = re.compile(r"^[ \t]*\d{1,3}(?:[ \t]*[|:│][ \t]?|[ \t]|$)", re.MULTILINE)
_NUMBERED = re.compile(
    r"1(?:[ \t]*[|:│][ \t]?|[ \t])[^\n]*(?:\n[ \t]*\d{1,3}(?:[ \t]*[|:│]|[ \t]|$)[^\n]*)+", re.MULTILINE
)


class Found(NamedTuple):
    """A statement in a text.

    Attributes:
        sql: Its own text, without terminator.
        start: Where it begins.
        end: Where the text goes on behind it (and its terminator).
        is_query: Whether it begins as a query does.
        rank: How much it stands there as code: 2 a line of its own or code marks, 1 amid a sentence.
        truncated: Whether it was cut off.
        checked: Whether it is known to parse.
    """

    sql: str
    start: int
    end: int
    is_query: bool
    rank: int
    truncated: bool
    checked: bool


class _End(NamedTuple):
    """Where a candidate ends, and what is known of it."""

    stop: int
    goes_on: int
    truncated: bool
    checked: bool


def find_statements(text: str, dialect: str) -> list[Found]:
    """Return the statements that stand in a text, in order.

    Args:
        text: An answer or a part of one, without fences.
        dialect: A name as sqlglot knows it.
    """
    found, position = _search(text, 0, dialect)
    if position < len(text) - _TAIL:
        found += _search(text, len(text) - _TAIL, dialect)[0]
    return found


def _search(text: str, position: int, dialect: str) -> tuple[list[Found], int]:
    """Return the statements from a position on, and how far the search came before it had cost too much."""
    found: list[Found] = []
    budget = 2 * (len(text) - position) + _BUDGET
    while match := _BEGIN.search(text, position):
        if budget <= 0:
            return found, match.start()
        if match.lastgroup == "comment":
            position = match.end()
            continue
        candidate, cost = _candidate(text, match, dialect)
        budget -= cost
        if candidate is None:
            position = match.start("verb") + 1 if match.group("verb") else match.end()
            continue
        found.append(candidate)
        position = max(candidate.end, match.end())
    return found, len(text)


def _candidate(text: str, match: re.Match[str], dialect: str) -> tuple[Found | None, int]:
    """Return the statement that begins at a match, or None, and how many characters were read to know."""
    verb = match.group("verb") is not None
    start = match.start("verb") if verb else match.start()
    if not verb and not _begins_query(text, start):
        return None, 1
    rank = 2 if verb else _rank(text, start)
    start = _own_parentheses(text, start)
    wrapped = _unwrap(text, start, dialect)
    if wrapped is not None:
        end, cost = wrapped, wrapped.goes_on - start
    else:
        end, cost = _find_end(text, start, dialect, inner=_is_inner(text, start))
    start = _with_comments(text, _with_parentheses(text, start, end.stop))
    sql = text[start : end.stop]
    cost += 200
    if not _plausible(sql, rank, end, verb=verb):
        return None, cost
    return Found(sql, start, end.goes_on, not verb, rank, end.truncated, end.checked), cost


def _own_parentheses(text: str, start: int) -> int:
    """Move the start over parentheses that are the statement's: on a line of its own, or one part of `(…) UNION (…)`."""
    opening = _line_before(text, start)
    if "(" not in opening:
        return start
    if not opening.strip("( \t"):
        return start - len(opening) + opening.index("(")
    if opening.rstrip()[-1:] == "(" and _SET_BEHIND.match(text, _closing_parenthesis(text, start, start + _WINDOW)):
        return start - len(opening) + opening.rindex("(")
    return start


def _begins_query(text: str, start: int) -> bool:
    first = text[start]
    if first in "wW":
        return _WITH.match(text, start) is not None
    return first in "sS" or _VALUES.match(text, start) is not None


def _line_before(text: str, start: int) -> str:
    return text[max(text.rfind("\n", max(0, start - 300), start) + 1, start - 300, 0) : start]


def _rank(text: str, start: int) -> int:
    """Say how much a place is one for code: 2 a line of its own, behind a label or in code marks; 1 in a sentence."""
    before = _line_before(text, start)
    if not before.strip() or _ENDS_AS_CODE.search(before):
        return 2
    return 1


def _is_inner(text: str, start: int) -> bool:
    """Say whether a candidate stands in parentheses amid a sentence, as `the subquery (SELECT …) picks`."""
    before = _line_before(text, start).rstrip()
    return before.endswith(("(", "（"))


def _with_parentheses(text: str, start: int, stop: int) -> int:
    """Move the start over opening parentheses that belong to the statement: `(SELECT …) UNION (SELECT …)`."""
    sql = text[start:stop]
    missing = sql.count(")") - sql.count("(")
    while missing > 0:
        before = text[:start].rstrip() if start < 400 else text[start - 400 : start].rstrip()
        if not before.endswith("("):
            break
        start = (start - 400 if start >= 400 else 0) + len(before) - 1
        missing -= 1
    return start


def _with_comments(text: str, start: int) -> int:
    """Move the start over the comment lines right above a statement: they are the statement's own."""
    line = text.rfind("\n", 0, start) + 1
    if text[line:start].strip():
        return start
    for _ in range(_MAX_COMMENT_LINES):
        if line == 0:
            break
        above = text.rfind("\n", 0, line - 1) + 1
        content = text[above : line - 1].strip()
        if content.startswith("--") and not content.startswith("---"):
            line = start = above + len(text[above:line]) - len(text[above:line].lstrip())
            line = above
        elif content.endswith("*/") and (opening := text.rfind("/*", max(0, line - _WINDOW), line)) >= 0:
            first = text.rfind("\n", 0, opening) + 1
            if text[first:opening].strip():
                break
            start, line = opening, first
        else:
            break
    return start


_CLOSING_MARKS = {"`": "`", '"': '"', "'": "'", "“": "”", "‘": "’", "「": "」", "『": "』", "《": "》", "«": "»"}


def _unwrap(text: str, start: int, dialect: str) -> _End | None:
    """Return the end of a statement in quotes or code marks; None when it is in none."""
    mark = text[start - 1 : start]
    closing = _CLOSING_MARKS.get(mark)
    if closing is None or text[start - 2 : start - 1].isalnum():
        return None
    run = len(text[max(0, start - 8) : start]) - len(text[max(0, start - 8) : start].rstrip(mark))
    closing = closing * (run if mark == "`" else 1)
    position = start
    ends = []
    for _ in range(40):
        position = text.find(closing, position, start + 20_000)
        if position < 0:
            break
        ends.append(position)
        position += len(closing)
    for end in ends:
        sql = text[start:end].rstrip(TERMINATORS + BLANKS)
        if mark == "`" and any(name != name.strip() for name in re.findall(r"`([^`]*)`", sql)):
            continue  # what lies between two code spans is no quoted name
        if check_syntax(sql, dialect).kind == "yes" and not unfinished(sql):
            return _End(start + len(sql), end + len(closing), False, True)
    if ends and mark == "`" and "\n" not in text[start : ends[0]]:
        return _End(ends[0], ends[0] + len(closing), False, False)
    return None


def _find_end(text: str, start: int, dialect: str, *, inner: bool) -> tuple[_End, int]:
    """Decide where a statement ends that begins at `start`, and say how many characters were looked at."""
    if len(text) - start > _WINDOW:
        window = text[start : start + _WINDOW]
        end = _end_in(window, 0, dialect, inner=inner)
        if end.goes_on < len(window):
            return _End(start + end.stop, start + end.goes_on, end.truncated, end.checked), _WINDOW
    return _end_in(text, start, dialect, inner=inner), len(text) - start


def _end_in(text: str, start: int, dialect: str, *, inner: bool) -> _End:
    statement = statement_at(text, start, dialect=dialect)
    limit = _closing_parenthesis(text, start, statement.limit) if inner else statement.limit
    limit = min(limit, _markup(text, start, limit))
    region = text[start:limit].rstrip(BLANKS)
    region_stop = start + len(region)
    terminated = limit < len(text) and text[limit] in TERMINATORS
    single_line = "\n" not in region
    if terminated and single_line and region.isascii() and len(region) < 2000:
        verdict = check_syntax(region, dialect)
        if verdict.kind == "yes":
            return _End(region_stop, limit + 1, False, True)
    cut = _prose_cut(region[:MAX_CHECKED_CHARS], dialect)
    if cut is not None:
        return _End(start + cut, start + cut, False, True)
    return _judge_region(text, start, region, limit, dialect, statement.unfinished)


def _markup(text: str, start: int, limit: int) -> int:
    """Return where a closing HTML tag, or the next cell of a table, ends a statement before its own end."""
    ends = [
        match.start()
        for match in islice(re.compile(r"</[A-Za-z]|\[/[A-Za-z]|\[\^|【[/\d]|\{%").finditer(text, start, limit), 5)
    ]
    if _line_before(text, start).lstrip().startswith("|"):
        ends += [match.start() for match in islice(re.compile(r"(?<!\|)\|(?!\|)").finditer(text, start, limit), 20)]
    for end in sorted(ends):
        if unfinished(text[start:end]) not in ("literal", "comment"):
            return end
    return limit


def _closing_parenthesis(text: str, start: int, limit: int) -> int:
    depth = 0
    for match in re.compile(r"'[^']*'|[()]").finditer(text, start, limit):
        depth += {"(": 1, ")": -1}.get(match.group(), 0)
        if depth < 0:
            return match.start()
    return limit


def _prose_cut(region: str, dialect: str) -> int | None:
    """Return where prose begins, at the first line or paragraph that is prose behind something complete."""
    if "\n" not in region:
        return None
    for boundary in _boundaries(region):
        head = region[:boundary].rstrip(BLANKS)
        if _is_whole(head, dialect):
            return len(head)
    return None


#: Of more places where prose may begin than this the first are tried.
_MAX_BOUNDARIES = 40


def _boundaries(region: str) -> list[int]:
    lines = (match.start() for match in _PROSE_LINE.finditer(region))
    paragraphs = (match.start() for match in _PARAGRAPH.finditer(region) if not _continues(region, match.end()))
    places = {place for places in (lines, paragraphs, _restarts(region)) for place in islice(places, _MAX_BOUNDARIES)}
    return sorted(places)[:_MAX_BOUNDARIES]


def _continues(region: str, place: int) -> bool:
    """Say whether a paragraph may go on with the statement: `Values are …` does not, where its own words are no `Select`."""
    if _CONTINUES.match(region, place) is None:
        return False
    return _TITLE_CASE.match(region, place) is None or _TITLE_CASE.match(region) is not None


def _restarts(region: str) -> Iterator[int]:
    """Yield where a new statement begins on a line of its own, though the one before it has no terminator."""
    # `WITH x AS (…)` and `INSERT INTO t (…)` go on with a query behind a parenthesis, a SELECT does not.
    expecting = "(,=<>" if first_keyword(region) in ("SELECT", "CREATE") else "(,)=<>"
    for match in islice(_RESTART.finditer(region), 5 * _MAX_BOUNDARIES):
        if not _expects_query(region[max(0, match.start() - 300) : match.start()], expecting):
            yield match.start()


def _expects_query(before: str, signs: str) -> bool:
    """Say whether what stands before a query makes it a part: a set operator, an opening parenthesis, a comma."""
    for line in reversed(before.splitlines()[-8:]):
        code = line.partition("--")[0].rstrip()
        if code.endswith("*/"):
            code = code[: code.rfind("/*")].rstrip() if "/*" in code else ""
        if code:
            return code[-1] in signs or code.split()[-1].upper() in _EXPECTING
    return False


_SET_BEHIND = re.compile(r"\)\s*(?:UNION|EXCEPT|INTERSECT|MINUS)\b", re.IGNORECASE)
_SQL_LINES = re.compile(
    r"[^\n]*(?:\n[ \t]*(?:FROM|WHERE|GROUP BY|ORDER BY|HAVING|LIMIT|JOIN|LEFT JOIN|INNER JOIN|LEFT OUTER JOIN|"
    r"CROSS JOIN|AND|OR|ON|UNION|UNION ALL|INTERSECT|EXCEPT)\b[^\n]*)*+\Z"
)


def lines_begin_as_sql(sql: str) -> bool:
    """Say whether each line but the first begins with a word of SQL that no sentence begins with."""
    return _SQL_LINES.match(sql) is not None


def may_begin(text: str) -> bool:
    """Say whether a statement may begin somewhere in a text."""
    return any(
        match.lastgroup != "comment" and (match.group("verb") or _begins_query(text, match.start()))
        for match in _BEGIN.finditer(text)
    )


def has_boundaries(sql: str) -> bool:
    """Say whether prose, or another statement, may begin at one of the lines of a text."""
    return bool(_PROSE_LINE.search(sql) or _PARAGRAPH.search(sql) or next(_restarts(sql), None))


def _is_whole(head: str, dialect: str) -> bool:
    """Say whether a head is a whole query; SQLite would let it end within a block comment."""
    if check_syntax(head, dialect).kind != "yes" or not _complete(head):
        return False
    return "/*" not in head or unfinished(head) != "comment"


def _complete(head: str) -> bool:
    """Say whether a head that parses is a whole query, not `SELECT a` with its FROM still to come."""
    return first_keyword(head) != "SELECT" or bool(_FROM.search(head)) or bool(_EXPRESSION.search(head))


def _judge_region(text: str, start: int, region: str, limit: int, dialect: str, left_open: str) -> _End:
    terminated = limit < len(text) and text[limit] in TERMINATORS
    goes_on = limit + 1 if terminated else limit
    region = _META_TAIL.sub("", region)
    if not terminated and not region.isascii():
        region = _without_tail(_SYMBOLS.sub("", region).rstrip("…"), dialect)
    if not terminated and region.endswith(".") and not region.endswith(".."):
        region = region[:-1]
    whole = _End(start + len(region), goes_on, False, False)
    if not region.isascii():
        sentence = _sentence_end(region, terminated=terminated)
        if sentence is not None:
            region, goes_on, terminated = region[:sentence], start + sentence + 1, False
            whole = _End(start + len(region), goes_on, False, False)
        region = region.translate(SAME_LENGTH)
    verdict = check_syntax(region, dialect)
    if verdict.kind != "yes" and (broken := _BROKEN_END.search(text, start, limit + 1)):
        # `'it's';`: a quote too much, which the model did not double. The statement ends where the line does.
        return _End(broken.end("last"), broken.end(), False, False)
    restart = next(_restarts(region), None) if verdict.kind != "yes" else None
    if restart is not None:
        region = region[:restart].rstrip(BLANKS)
        whole, terminated, left_open = _End(start + len(region), start + restart, False, False), True, ""
        verdict = check_syntax(region, dialect)
    if verdict.kind == "yes":
        stop = len(region) if terminated else _trim_words(region, dialect)
        return whole._replace(stop=start + stop, checked=True)
    if verdict.kind == "no":
        head = _longest_head(region, verdict.token, dialect)
        if head is not None:
            return _End(start + head, start + head, False, True)
    if left_open == "literal" and _MISQUOTED.search(region[-400:]):
        return whole
    paragraph = _prose_paragraph(region)
    if paragraph is not None:
        lead = region[:paragraph].rstrip(BLANKS)
        return _End(start + len(lead), start + paragraph, is_truncated(lead, dialect), False)
    if left_open or verdict.kind == "incomplete" or _DANGLING.search(region[-20:]):
        return whole._replace(truncated=not terminated)
    return whole


def _prose_paragraph(region: str) -> int | None:
    """Return where a paragraph of prose begins behind a statement that does not parse, as one cut off or of another dialect."""
    for match in islice(_PARAGRAPH.finditer(region), _MAX_BOUNDARIES):
        line = region[match.end() : match.end() + 200].split("\n", 1)[0]
        prose = _SENTENCE_START.match(line) and not _continues(region, match.end())
        if prose and unfinished(region[: match.start()]) not in ("literal", "comment"):
            return match.start()
    return None


def _without_tail(region: str, dialect: str) -> str:
    """Drop words in Chinese or Japanese that follow without a blank (`id = 1返回`) or in parentheses (`t（全部）`)."""
    for tail in (_GLUED_TAIL, _REMARK_TAIL):
        match = tail.search(region[-200:])
        if match:
            shorter = region[: len(region) - len(match.group())].rstrip(BLANKS)
            if _is_whole(shorter.translate(SAME_LENGTH), dialect):
                return shorter
    return region


def _sentence_end(region: str, *, terminated: bool) -> int | None:
    """Return where a Chinese or Japanese sentence ends that a statement is part of, outside its literals."""
    for match in islice(_CJK_SENTENCE.finditer(region), 20):
        if (match.group() == "，" and terminated) or unfinished(region[: match.start()]) in ("literal", "comment"):
            continue
        return match.start()
    return None


def _longest_head(region: str, token: str, dialect: str) -> int | None:
    """Return the length of the longest head that parses, if what is left looks like prose."""
    if not token:
        return None
    position = region.find(token)
    line = region.rfind("\n", 0, position)
    if line > 0 and _is_prose_line(region[line + 1 :]):
        head = region[:line].rstrip(BLANKS)
        if _is_whole(head, dialect):
            return len(head)
    if (sentence := _before_sentence(region, dialect)) is not None:
        return sentence
    best = None
    for _ in range(30):
        if position < 0:
            break
        head = region[:position].rstrip(BLANKS + '.。,，:：!?`*"”')
        longer = best is None or len(head) > best
        if longer and _is_whole(head, dialect):
            best = len(head)
        position = region.find(token, position + max(1, len(token)))
    if best is None:
        best = _before_remark(region, token, dialect)
    if best is None:
        return None
    best = _trim_words(region[:best], dialect)
    return best if _is_prose(region[best:], upper="FROM" in region[:best]) else None


def _before_sentence(region: str, dialect: str) -> int | None:
    """Return the length of what stands before a full stop that a sentence follows: `WHERE a = 1. Esta consulta …`."""
    for match in islice(_NEXT_SENTENCE.finditer(region), 10):
        head = region[: match.start()]
        if _STRONG_OPERATOR.search(region[match.end() : match.end() + 100]) or unfinished(head) == "literal":
            continue
        if _is_whole(head, dialect):
            return len(head)
    return None


def _before_remark(region: str, token: str, dialect: str) -> int | None:
    """Return the length of what stands before a remark in parentheses: `FROM t (this returns …)`."""
    head = region[: max(0, region.rfind("(", 0, region.find(token)))].rstrip(BLANKS)
    return len(head) if head and _is_whole(head, dialect) else None


def _is_prose_line(rest: str) -> bool:
    """Say whether a line is a sentence: three words or more, nothing of SQL in it."""
    line = rest.split("\n", 1)[0]
    return len(line.split()) >= 3 and not _STRONG_OPERATOR.search(line) and not _CONTINUES.match(line)


def _is_prose(rest: str, *, upper: bool) -> bool:
    """Say whether what follows a statement is words of a sentence, not the rest of a broken statement.

    Args:
        rest: What follows.
        upper: Whether the statement has its keywords in capitals: a lower-case `where` on a new line is English then.
    """
    if _CJK.search(rest[:80]) or not rest.strip(" .`*\"'”’)!?,:\r\n\t}]>~$/\\"):
        return True
    if "\n" in rest[: len(rest) - len(rest.lstrip())]:
        line = rest.lstrip().partition("\n")[0]
        sentence = _PROSE_TOKENS.search(line) is not None and not _OPERATOR.search(line)
        return sentence or not _CONTINUES.match(rest) or (upper and line[:1].islower())
    if _WORDS_ONLY.match(rest) and not _SQL_WORD.search(rest[:300].strip(" ().")):
        return True  # a sentence in any language
    words = len(_PROSE_TOKENS.findall(rest[:300]))
    return words >= 2 or (words == 1 and not _OPERATOR.search(rest[:100]))


def _trim_words(head: str, dialect: str) -> int:
    """Drop words of prose that SQLite took for an alias at the end: `FROM users which`, `FROM users 即可`."""
    glued = _GLUED_TAIL.search(head[-80:])
    if glued:
        # `FROM singer来查询`: the sentence goes on without a blank.
        shorter = head[: len(head) - len(glued.group())]
        head = shorter if check_syntax(shorter, dialect).kind == "yes" else head
    shown = _AS_SHOWN.search(head[-40:])
    if shown:
        head = head[: len(head) - len(shown.group())]
    for _ in range(3):
        match = re.search(r"(?P<before>\w+|[)\"'`\]])\s+(?P<last>[^\s'\"()]{1,80})\Z", head[-400:])
        if match is None or match.group("before").upper() in ("AS", "FROM", "JOIN", "BY", "SELECT"):
            break
        last = match.group("last")
        sign = not last.isascii() and not any(map(str.isalnum, last))
        if not sign and last.lower().rstrip(".") not in _STOP_WORDS and not _CJK.search(last):
            break
        shorter = head[: len(head) - (len(head[-400:]) - match.start("last"))].rstrip(BLANKS)
        if check_syntax(shorter, dialect).kind != "yes":
            break
        head = shorter
    return len(head)


def _plausible(sql: str, rank: int, end: _End, *, verb: bool) -> bool:
    """Say whether a candidate is SQL: a keyword alone, or a sentence that begins with one, is not."""
    if has_placeholder(sql):
        return False
    if verb:
        return end.checked or sql.isupper() or sql[:6].isupper() or end.goes_on > end.stop
    word = first_keyword(sql)
    if word != "SELECT":
        # `the values (1, 2)` is prose.
        return word == "WITH" or rank == 2 or "VALUES" in sql
    upper = "SELECT" in sql[: sql.upper().find("SELECT") + 6] or rank == 2
    has_from = _FROM.search(sql) is not None
    if _KEYWORD_NAMED.match(sql) and (not end.checked or " from " in sql):
        return False
    if not end.checked and _is_prosy(sql):
        return False
    if not end.checked and rank == 2 and _UPPER_CLAUSE.search(sql):
        return True
    if not has_from and not (_EXPRESSION.search(sql) and (end.checked or end.truncated)):
        return end.truncated and rank == 2 and sql[:6].isupper() and len(sql) > 7
    if end.checked:
        return upper or (_OPERATOR.search(sql) is not None and has_from)
    return rank == 2 and ((sql[:6].isupper() and " from " not in sql) or _STRONG_OPERATOR.search(sql) is not None)


def _is_prosy(sql: str) -> bool:
    """Say whether a text that does not parse reads as a sentence or a list: `SELECT name: the column to return`."""
    code = _QUOTED.sub("''", sql[:_WINDOW])
    return _LABEL_OR_BOLD.search(code) is not None or len(_PROSE_TOKENS.findall(code)) >= 3


def has_placeholder(sql: str) -> bool:
    """Say whether a text is a pattern of a statement: dots or `<table>` stand where something should."""
    if "..." not in sql and "…" not in sql and "<" not in sql:
        return False
    return _PLACEHOLDER.search(_QUOTED.sub("''", sql)) is not None


def reads_as_query(sql: str) -> bool:
    """Say whether a text that parses is more than a sentence that begins with `select`."""
    word = first_keyword(sql)
    if word == "WITH":
        return True
    return word == "VALUES" or _OPERATOR.search(sql) is not None or (sql.lstrip()[:6].isupper() and _complete(sql))


def join_spans(text: str) -> str:
    """Remove the code marks around each line of a statement that was marked line by line."""
    if "`\n" not in text and "` " not in text:
        return text
    return _SPAN_LINES.sub(lambda match: re.sub(r"(?m)^[ \t]*`|`[ \t]*$", "", match.group()), text)


def is_amid(text: str, found: Found) -> bool:
    """Say whether a statement stands amid a sentence; a query behind a colon is announced by it."""
    before = _line_before(text, found.start).rstrip("`\"'*“‘( \t")
    return any(map(str.isalpha, before)) and not (found.is_query and before.endswith((":", "：")))


def is_mention(text: str, found: Found) -> bool:
    """Say whether a sentence speaks of a statement in quotes or code marks and goes on: `The query "…" would return`."""
    before = _line_before(text, found.start).rstrip()
    after = text[found.end : found.end + 40].partition("\n")[0].lstrip("`\"'*”’ ")
    if before[-1:] not in ("`", '"', "'", "“", "‘"):
        return False
    before = before.rstrip("`\"'*“‘ ")
    return bool(before) and before[-1].isalnum() and after[:1].isalpha()


def strip_prompts(text: str) -> str:
    """Remove the prompts of a database shell, Markdown's quote marks and line numbers from the beginnings of lines."""
    if text[:1].isdigit() and _NUMBERED.fullmatch(text):
        return _LINE_NUMBER.sub("", text)
    if ">" not in text and "#" not in text and "\nD " not in text and not text.startswith("D "):
        return text
    stripped = _PROMPT.sub("", text)
    return text if stripped == text else _PROMPT_GO_ON.sub("", stripped)


def is_truncated(sql: str, dialect: str) -> bool:
    """Say whether a statement was cut off: something is open at its end, or a word that must be followed."""
    left_open = unfinished(sql, dialect=dialect)
    if left_open == "literal" and _MISQUOTED.search(sql[-400:]):
        return False
    return bool(left_open) or (_DANGLING.search(sql[-20:]) is not None and not _ends_in_comment(sql))


def _ends_in_comment(sql: str) -> bool:
    if sql.endswith("*/"):
        return True
    last = sql[sql.rfind("\n") + 1 :]
    return "--" in last and unfinished(sql + "(") == ""
