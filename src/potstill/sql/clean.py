"""From a model's answer to the one statement in it, byte for byte as the model wrote it.

The order of the steps matters: reasoning and turn tokens go first, so that SQL in a thought is never the answer;
then the explicit marks (tags, JSON, fences) and last the running text. A statement keeps its case, blanks, comments
and literals; only its terminator and what lies outside it go. Each step costs little where it does not apply.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterable
from itertools import islice
from typing import NamedTuple

from potstill.sql import bare, choice, embedded, repairs
from potstill.sql.fences import DIFF_LABELS, JSON_LABELS, NEUTRAL_LABELS, PROGRAM_LABELS, SQL_LABELS, Block, find_blocks
from potstill.sql.reasoning import strip_reasoning
from potstill.sql.scan import (
    BLANKS,
    QUERY_WORDS,
    TERMINATORS,
    first_keyword,
    is_plain,
    skip_leading,
    statements,
    unfinished,
    words,
)
from potstill.sql.syntax import check_syntax

#: An answer inside an answer inside an answer (a fence in JSON in a tag): deeper than this nobody nests.
_MAX_DEPTH = 5
#: Of more statements in running text than this only the last are compared.
_MAX_FOUND = 40
#: Of more blocks than this in one answer only the last are read.
_MAX_BLOCKS = 100


class Cleaned(NamedTuple):
    """The statement of an answer.

    Attributes:
        sql: The statement, or "" when there is none.
        method: How it was found: fence, tag, json, bare; none.
        notes: What was odd: had_reasoning, unfinished_reasoning, truncated_statement, several_statements,
            not_a_query, unclosed_fence, in_code, refusal, empty, fullwidth_punctuation, html_unescaped.
    """

    sql: str
    method: str
    notes: tuple[str, ...] = ()


class _Hit(NamedTuple):
    sql: str
    method: str
    notes: tuple[str, ...] = ()
    is_query: bool = True


def clean_sql(text: str, *, dialect: str = "sqlite") -> Cleaned:
    """Return the final statement of an answer.

    Args:
        text: The answer exactly as sent.
        dialect: The dialect it was asked for, a name as sqlglot knows it.
    """
    answer = strip_reasoning(text)
    notes = ["had_reasoning"] if answer.had_reasoning else []
    if answer.unfinished:
        return Cleaned("", "none", (*notes, "unfinished_reasoning"))
    body = answer.text.strip(BLANKS)
    if not body:
        return Cleaned("", "none", (*notes, "empty"))
    body = _without_next_turn(repairs.without_styles(body))
    hit = _find(repairs.real_newlines(body), dialect, 0)
    if hit and repairs.has_breaks(hit.sql):
        body = repairs.without_breaks(body)
        hit = _find(body, dialect, 0)
    if "&" in body and repairs.has_entities(hit.sql if hit else body):
        body = html.unescape(body)
        hit = _find(repairs.real_newlines(body), dialect, 0)
        if hit and repairs.has_entities(hit.sql):  # escaped twice
            hit = _find(repairs.real_newlines(html.unescape(body)), dialect, 0)
        notes.append("html_unescaped")
    if hit is None:
        return Cleaned("", "none", (*notes, *(["refusal"] if choice.is_refusal(body) else [])))
    return _finish(hit, notes, dialect)


def _finish(hit: _Hit, notes: list[str], dialect: str) -> Cleaned:
    sql = hit.sql
    notes.extend(hit.notes)
    if "\\_" in sql or "\\*" in sql or "\\|" in sql:
        sql = repairs.without_markdown_escapes(sql, dialect)
    if not sql.isascii():
        plain = repairs.plain_punctuation(sql)
        if plain != sql:
            sql = plain
            notes.append("fullwidth_punctuation")
    if "complete" in notes:
        notes.remove("complete")
    elif "truncated_statement" not in notes and bare.is_truncated(sql, dialect):
        notes.append("truncated_statement")
    if not hit.is_query:
        notes.append("not_a_query")
    return Cleaned(sql, hit.method, tuple(notes))


# What begins the next turn of a conversation that the model went on to invent.
_NEXT_TURN = re.compile(
    r"^[ \t]*(?:#{1,4} ?(?:Instruction|Question|Input|User|Human|Schema)\b|/\* ?(?:Answer|Given) the following|"
    r"(?:Question|Q|User|Human|USER|Input|Instruction|Database schema|Schema|-- Question|问题|用户)(?: \d+)?[:：])",
    re.MULTILINE,
)


def _has_turn_words(body: str) -> bool:
    """Say whether the next turn may be there; a chain, since this is asked of every answer."""
    return (
        "Question" in body
        or "Q:" in body
        or "User" in body
        or "USER:" in body
        or "Human" in body
        or "Input" in body
        or "nstruction" in body
        or " the following" in body
        or "chema" in body
        or "问题" in body
        or "用户" in body
    )


def _without_next_turn(body: str) -> str:
    """Cut a text where it goes on with another question, once it has answered the first."""
    if not _has_turn_words(body):
        return body
    for match in islice(_NEXT_TURN.finditer(body), 8):
        before = body[: match.start()]
        if _HAS_QUERY_WORD.search(before) and not unfinished(before[-2000:]) and _find(before, "sqlite", 1):
            return before
    return body


# --------------------------------------------------------------------------------------------------- the search


def _find(body: str, dialect: str, depth: int) -> _Hit | None:
    """Find the final statement of a text that has no reasoning in it."""
    body = body.strip(BLANKS)
    if not body or depth > _MAX_DEPTH:
        return None
    if not _has_marks(body):
        return _in_bare(body, dialect, depth)
    marked = _in_marks(body, dialect, depth)
    if marked is not None and marked.is_query:
        return marked
    if embedded.is_json(body):
        return marked
    running = _in_bare(body, dialect, depth)
    return running if running is not None and (running.is_query or marked is None) else marked


def _has_marks(body: str) -> bool:
    """Say whether anything but running text may be there; a chain, since this is asked of every answer."""
    return (
        "`" in body
        or "<" in body
        or "{" in body
        or "[" in body
        or "~~~" in body
        or ": |" in body
        or ": >" in body
        or body[0] in "\"'"
    )


def _in_marks(body: str, dialect: str, depth: int) -> _Hit | None:
    """Find the statement where a mark says that it is one: a tag, JSON, a fence."""
    other = None
    for step in (_in_tags, _in_json, _in_fences, _in_yaml, _in_prose_json):
        hit = step(body, dialect, depth)
        if hit is not None and hit.is_query:
            return hit
        other = other or hit
    return other


def _reader(dialect: str, depth: int, hits: list[_Hit]) -> Callable[[str], str | None]:
    """Return a reader that keeps the whole hit and hands out its statement, queries only."""

    def read(text: str) -> str | None:
        hit = _find(text, dialect, depth + 1)
        if hit is None:
            return None
        hits.append(hit)
        return hit.sql if hit.is_query else None

    return read


def _pick(hits: list[_Hit], method: str) -> _Hit | None:
    """Return the query among what a reader found, else a sole statement of another kind."""
    chosen = next((hit for hit in hits if hit.is_query), None)
    if chosen is None and hits:
        chosen = hits[0]
    return chosen._replace(method=method) if chosen else None


def _in_tags(body: str, dialect: str, depth: int) -> _Hit | None:
    hits: list[_Hit] = []
    embedded.in_tags(body, _reader(dialect, depth, hits), at_most=3 if depth else 20)
    return _pick(hits, "tag")


def _in_json(body: str, dialect: str, depth: int) -> _Hit | None:
    """Find the statement in a text that is JSON from its first character on (a JSON string included)."""
    if body[0] in "\"'" and body[-1] == body[0]:
        escaped = "\\" in body and body[0] == '"'
        return _in_json_string(body, dialect, depth) if escaped else _in_doubled_quotes(body, dialect)
    return _in_prose_json(body, dialect, depth) if body[0] in "{[" else None


def _in_json_string(body: str, dialect: str, depth: int) -> _Hit | None:
    import json

    try:
        value = json.loads(body, strict=False)
    except ValueError:
        return None
    hit = _find(value, dialect, depth + 1) if isinstance(value, str) else None
    return hit._replace(method="json") if hit else None


def _in_doubled_quotes(body: str, dialect: str) -> _Hit | None:
    """Find the statement in a text that is quoted as CSV or SQL does it, quotes doubled."""
    quote = body[0]
    hit = pick_statement(body[1:-1].replace(2 * quote, quote), dialect) if 2 * quote in body else None
    return hit if hit is not None and check_syntax(hit.sql, dialect).kind == "yes" else None


def _in_yaml(body: str, dialect: str, depth: int) -> _Hit | None:
    if ": |" not in body and ": >" not in body:
        return None
    hits: list[_Hit] = []
    embedded.in_yaml(body, _reader(dialect, depth, hits))
    return _pick(hits, "bare")


def _in_prose_json(body: str, dialect: str, depth: int) -> _Hit | None:
    if "{" not in body and body[0] != "[":
        return None
    hits: list[_Hit] = []
    embedded.in_json(body, _reader(dialect, depth, hits))
    return _pick(hits, "json")


# --------------------------------------------------------------------------------------------------- fences


class _Candidate(NamedTuple):
    """A fenced statement, with what decides between it and the others."""

    hit: _Hit
    block: Block
    intro: str


def _in_fences(body: str, dialect: str, depth: int) -> _Hit | None:
    if "```" not in body and "~~~" not in body:
        return None
    blocks = find_blocks(body)[-_MAX_BLOCKS:]
    candidates = list(_candidates(body, blocks, dialect, depth))
    queries = [candidate for candidate in candidates if candidate.hit.is_query]
    if queries:
        chosen = _choose(queries, dialect)
        corrected = _corrected_below(body, chosen, dialect) if chosen is queries[-1] else None
        return corrected or chosen.hit
    return candidates[-1].hit if candidates else None


def _candidates(body: str, blocks: list[Block], dialect: str, depth: int) -> Iterable[_Candidate]:
    previous_end = 0
    for block in blocks:
        hit = _in_block(block, dialect, depth)
        if hit is not None:
            if not block.closed:
                hit = hit._replace(notes=(*hit.notes, "unclosed_fence"))
            yield _Candidate(hit, block, body[max(previous_end, block.start - 300) : block.start])
        previous_end = block.end


def _in_block(block: Block, dialect: str, depth: int) -> _Hit | None:
    if not block.content:
        return None
    if block.label in PROGRAM_LABELS:
        return _in_program(block.content, dialect, depth)
    if block.label in DIFF_LABELS:
        return _fenced(_find(repairs.after_diff(block.content), dialect, depth + 1))
    if block.label in JSON_LABELS or block.content[0] in "{[":
        return _fenced(_in_prose_json(block.content, dialect, depth))
    hit = pick_statement(block.content, dialect)
    if hit is not None and (block.label in SQL_LABELS or (hit.is_query and bare.reads_as_query(hit.sql))):
        return hit
    if block.label in NEUTRAL_LABELS or block.label in SQL_LABELS or hit is not None:
        return _fenced(_find(block.content, dialect, depth + 1))
    return None


def _fenced(hit: _Hit | None) -> _Hit | None:
    return hit._replace(method="fence") if hit and hit.method == "bare" else hit


def _in_program(content: str, dialect: str, depth: int) -> _Hit | None:
    """Find the statement in a program; a block that is SQL all the same (a wrong label) is taken as it is."""
    if first_keyword(content) in QUERY_WORDS:
        hit = pick_statement(content, dialect)
        if hit is not None and check_syntax(hit.sql, dialect).kind == "yes":
            return hit
    found = _fenced(_in_yaml(content, dialect, depth))
    if found is not None:
        return found
    hits: list[_Hit] = []
    embedded.in_code(content, _reader(dialect, depth, hits))
    found = _pick(hits, "fence")
    if found is None:
        found = _fenced(_in_bare(content, dialect, depth))
    return found._replace(notes=(*found.notes, "in_code")) if found and found.is_query else None


def _is_sample(query: _Candidate) -> bool:
    return first_keyword(query.hit.sql) == "VALUES" and not choice.is_promoted(query.intro)


def _choose(queries: list[_Candidate], dialect: str) -> _Candidate:
    """Choose between several fenced queries: the last one wins, unless it is called something else or is a part."""
    if len(queries) == 1:
        return queries[0]
    pool = [query for query in queries if "in_code" not in query.hit.notes] or queries
    pool = [query for query in pool if not bare.has_placeholder(query.hit.sql)] or pool
    pool = [query for query in pool if not _is_sample(query)] or pool
    for place, query in reversed(list(enumerate(pool))):
        earlier = [other.hit.sql for other in pool[:place]]
        if not choice.is_demoted(query.intro, dialect) and not choice.is_part(query.hit.sql, earlier, query.intro):
            return query
    return pool[0]


_HAS_QUERY_WORD = re.compile(r"[SsWwVv](?:ELECT|elect|ITH|ith|ALUES|alues)\b")


def _corrected_below(body: str, chosen: _Candidate, dialect: str) -> _Hit | None:
    """Return a statement in the text behind the last block, when words of correction announce it."""
    rest = body[chosen.block.end :]
    if len(rest) < 20 or len(rest) > 5000 or not _HAS_QUERY_WORD.search(rest):
        return None
    cue = choice.find_correction(rest)
    if cue is None:
        return None
    found = [item for item in bare.find_statements(rest, dialect) if item.is_query and item.rank == 2 and item.checked]
    found = [item for item in found if item.start > cue]
    return _Hit(found[-1].sql, "bare") if found else None


# --------------------------------------------------------------------------------------------------- statements


def pick_statement(text: str, dialect: str) -> _Hit | None:
    """Choose among the statements of a text that is SQL: the last query, else the last statement.

    Args:
        text: The content of a fence, or of anything else that should hold SQL alone.
        dialect: A name as sqlglot knows it.
    """
    plain = _plain_query(text, dialect)
    if plain:
        return plain
    chosen = None
    chosen_is_query = False
    count = 0
    begin = 0
    for statement in statements(text, dialect=dialect):
        count += 1
        is_query = first_keyword(text, statement.start) in QUERY_WORDS
        if is_query or not chosen_is_query:
            stop = statement.limit if statement.terminated else len(text)
            chosen = text[_own_comments(text, begin, statement.start) : stop].rstrip(BLANKS)
            chosen_is_query = is_query
        begin = statement.limit + 1
    if chosen is None:
        return None
    if not chosen_is_query and first_keyword(chosen) not in _OTHER_WORDS:
        return None
    if chosen_is_query and _prose_inside(chosen, dialect):
        return None
    return _Hit(chosen, "fence", ("several_statements",) if count > 1 else (), chosen_is_query)


def _plain_query(text: str, dialect: str) -> _Hit | None:
    """Take a text that is one plain query: the common case, told without a scan."""
    sql = text.strip(BLANKS).rstrip(TERMINATORS + BLANKS)
    if sql[:7].rstrip().upper() != "SELECT" or "\n\n" in sql or not sql.isascii() or not is_plain(sql):
        return None
    if _prose_line_inside(sql, dialect):
        return None
    return _Hit(sql, "fence", ("complete",) if sql[-1:] in _SURE_ENDS else ())


#: A statement that ends so has nothing missing behind it.
_SURE_ENDS = frozenset(")'\"`0123456789")


def _own_comments(text: str, begin: int, start: int) -> int:
    """Return where a statement's own text begins: with its comments, but not with one on the previous one's line."""
    if begin == 0:
        return begin + len(text[begin:start]) - len(text[begin:start].lstrip(BLANKS))
    line_end = text.find("\n", begin, start)
    first = skip_leading(text, begin) if line_end < 0 else line_end + 1
    first = min(first, start)
    return first + len(text[first:start]) - len(text[first:start].lstrip(BLANKS))


#: The words that a statement of another kind begins with.
_OTHER_WORDS = frozenset(
    words(
        "EXPLAIN INSERT UPDATE DELETE REPLACE CREATE DROP ALTER PRAGMA TRUNCATE MERGE SHOW DESCRIBE DESC ATTACH",
        "DETACH VACUUM REINDEX ANALYZE BEGIN COMMIT ROLLBACK SAVEPOINT GRANT REVOKE SET USE CALL EXEC EXECUTE",
        "DECLARE TABLE COPY LOAD",
    )
)


def _prose_line_inside(sql: str, dialect: str) -> bool:
    if "\n" not in sql or bare.lines_begin_as_sql(sql) or not bare.has_boundaries(sql):
        return False
    return check_syntax(sql, dialect).kind == "no"


def _prose_inside(sql: str, dialect: str) -> bool:
    """Say whether a text that begins as a query needs a closer look: prose behind it, or no query at all."""
    if "\n\n" not in sql and "\n\r\n" not in sql and first_keyword(sql) != "WITH" and sql.isascii():
        return _prose_line_inside(sql, dialect)
    return check_syntax(sql, dialect).kind == "no"


# --------------------------------------------------------------------------------------------------- running text


#: Benchmarks' files of predictions: the statement, a tab, the name of the database.
_PREDICTION = re.compile(r"([^\t\n]+)\t(?:-+ ?bird ?-+\t)?\w+\Z")


def _in_bare(body: str, dialect: str, depth: int) -> _Hit | None:
    if "\t" in body and (prediction := _PREDICTION.match(body)):
        body = prediction.group(1)
    quick = _whole(body, dialect, depth)
    if quick is not None:
        return quick
    text = bare.strip_prompts(bare.join_spans(_without_fence_marks(body)))
    found = bare.find_statements(text, dialect)
    chosen = _choose_found(found, text, dialect)
    if chosen is not None and bare.is_amid(text, chosen) and choice.is_refused(text, chosen.start, chosen.end):
        return None
    if chosen is None or (chosen.rank < 2 and not chosen.checked):
        in_code = _in_code_text(text, dialect, depth)
        if in_code is not None:
            return in_code
    if chosen is None:
        return None
    notes = ("truncated_statement",) if chosen.truncated else ()
    return _Hit(chosen.sql.rstrip(BLANKS), "bare", notes, chosen.is_query)


def _without_fence_marks(body: str) -> str:
    return (
        re.sub(r"^[ \t]*(?:`{3,}|~{3,})[^\n]*$", "", body, flags=re.MULTILINE)
        if "```" in body or "~~~" in body
        else body
    )


def _whole(body: str, dialect: str, depth: int) -> _Hit | None:
    """Take a text that is one statement and nothing else, without looking further; None where there is a doubt."""
    if first_keyword(body) not in QUERY_WORDS or not body.isascii():
        return None
    head, terminator, rest = body.partition(";")
    if terminator and rest and is_plain(head) and not bare.may_begin(rest):
        body = head + terminator  # the statement first, then words that hold no other
    hit = pick_statement(body, dialect)
    if hit is None or "several_statements" in hit.notes or not hit.is_query:
        return None
    hit = hit._replace(method="bare")
    sql = hit.sql
    if sql[-1] in TERMINATORS:
        return None  # it stands in a literal that has no end
    if bare.lines_begin_as_sql(sql):
        if body[-1] == ";" and sql.startswith("SELECT") and "FROM" in sql:
            return hit
    elif bare.has_boundaries(sql):
        return None
    return (
        hit
        if (bare.reads_as_query(sql) or (depth == 0 and sql.startswith("SELECT ")))
        and check_syntax(sql, dialect).kind == "yes"
        else None
    )


def _choose_found(found: list[bare.Found], text: str, dialect: str) -> bare.Found | None:
    """Choose between several statements in running text: those that stand as code before others, then the last."""
    if len(found) <= 1:
        return found[0] if found else None
    queries = ([item for item in found if item.is_query] or found)[-_MAX_FOUND:]
    best = max(item.rank for item in queries)
    pool = [item for item in queries if item.rank == best]
    cue = choice.find_final(text)
    if cue is not None:
        pool = [item for item in pool if item.start >= cue][:1] or pool
    for place, item in reversed(list(enumerate(pool))):
        intro = text[max(pool[place - 1].end if place else 0, item.start - 200) : item.start]
        earlier = [other.sql for other in pool[:place]]
        if place and bare.is_mention(text, item) and not choice.is_promoted(intro):
            continue
        if not choice.is_demoted(intro, dialect) and not choice.is_part(item.sql, earlier, "correct"):
            return item
    return pool[-1]


def _in_code_text(text: str, dialect: str, depth: int) -> _Hit | None:
    if "'" not in text and '"' not in text and "`" not in text:
        return None
    hits: list[_Hit] = []
    embedded.in_code(text, _reader(dialect, depth, hits))
    found = _pick(hits, "bare")
    return found if found is not None and found.is_query else None
