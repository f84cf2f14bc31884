"""The scanner that the cleaner and the admission check share."""

from __future__ import annotations

import pytest

from potstill.sql.scan import count_statements, first_keyword, statements, strip_statement, unfinished


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("SELECT 1;", "SELECT 1"),
        ("\ufeff -- why\n SELECT 1 ; -- done", "SELECT 1"),
        ("/* a; b */ SELECT ';' -- x;y\n, 2；", "SELECT ';' -- x;y\n, 2"),
        ("SELECT 'it''s; ok' ;", "SELECT 'it''s; ok'"),
        ('SELECT "a;b", [c;d], `e;f` FROM t;', 'SELECT "a;b", [c;d], `e;f` FROM t'),
        (";; SELECT 1", "SELECT 1"),
        ("SELECT 1 /* open", "SELECT 1"),
        ("-- nothing", ""),
        ("", ""),
        (" ;；; ", ""),
    ],
)
def test_strip_statement(text: str, expected: str) -> None:
    """A statement loses what stands around it and keeps every character of its own."""
    assert strip_statement(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("select 1", "SELECT"),
        ("-- with\nWith a as (select 1) select * from a", "WITH"),
        ("((SELECT 1))", "SELECT"),
        ("\x00\u200bVALUES (1)", "VALUES"),
        ("'select'", ""),
        ("", ""),
    ],
)
def test_first_keyword(text: str, expected: str) -> None:
    """The first word is found behind blanks, comments and parentheses."""
    assert first_keyword(text) == expected


@pytest.mark.parametrize(
    ("text", "count"),
    [("SELECT 1", 1), ("SELECT 1;;", 1), ("SELECT 1; -- a;b", 1), ("SELECT 1; SELECT 2; SELECT 3", 3), ("-- a;b", 0)],
)
def test_count_statements(text: str, count: int) -> None:
    """Semicolons in comments and behind the last statement make no statement."""
    assert count_statements(text, at_most=9) == count


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("SELECT 'abc", "literal"),
        ('SELECT "abc', "literal"),
        ("SELECT (1", "parenthesis"),
        ("SELECT 1 /* abc", "comment"),
        ("SELECT 1", ""),
        ("SELECT ')' || '('", ""),
    ],
)
def test_unfinished(text: str, kind: str) -> None:
    """What was left open says that the text was cut off."""
    assert unfinished(text) == kind


def test_dialects_escape_differently() -> None:
    """A backslash escapes a quote in MySQL only; dollar quotes are PostgreSQL's; `#` comments are MySQL's."""
    assert count_statements(r"SELECT 'a\';b'; SELECT 2", dialect="mysql") == 2
    assert count_statements("SELECT $x$ ; $x$; SELECT 2", dialect="postgres") == 2
    assert count_statements("SELECT 1 # a;b", dialect="mysql") == 1


def test_positions_are_those_of_the_text() -> None:
    """Start, end and limit cut the statement out of the very text that was given."""
    text = " SELECT 1 /* c */ ; SELECT 2 "
    first, second = statements(text)
    assert text[first.start : first.end] == "SELECT 1"
    assert text[first.limit] == ";"
    assert text[second.start : second.end] == "SELECT 2"


@pytest.mark.parametrize("dialect", ["sqlite", "mysql", "postgres"])
@pytest.mark.parametrize("piece", ["'", "[", "(", "/*", "--", "\\'", ";", "/", "$a", " ", "/**/", "`", "\n"])
def test_hostile_texts_take_linear_time(piece: str, dialect: str) -> None:
    """A text of 100,000 pieces of one kind is scanned to its end (a quadratic scanner would meet the time limit)."""
    text = piece * 100_000
    assert count_statements(text, dialect=dialect) <= 2
