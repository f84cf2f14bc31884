"""Rows that repeat a benchmark: found by equal text, by shared word n-grams, by equal SQL.

Three methods, each on or off:

- `exact`: the row's text and a reference's are equal, word by word (case, blanks, punctuation do not count).
- `ngram`: the row holds at least `ngram_share` of the word n-grams of one reference text (containment, as Broder 1997
  has it: a long prompt around a benchmark's question is found, where a similarity of the whole texts would not).
  A reference of fewer than `ngram` words is left to `exact`.
- `sql`: the row's statement (gold or the answer's) and a reference's have the same syntax tree, names of aliases,
  case, quotes and blanks apart.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from potstill.exports.examples import prompt_of, text_of
from potstill.exports.normalise import iter_ngrams, normalise_sql, split_words
from potstill.exports.references import read_reference
from potstill.exports.split import hash64
from potstill.records import Row

METHODS = ("exact", "ngram", "sql")
_STATEMENT = re.compile(r"\s*(select|with|values|\()\b", re.IGNORECASE)
#: Where no field is named, short labels (`easy`, a database's name) are no texts to compare with.
_SHORTEST_TEXT = 4
_SHOWN = 300


class Reference(NamedTuple):
    """One text or statement of a reference file."""

    file: str
    number: int
    field: str
    text: str


class Hit(NamedTuple):
    """A row that repeats a reference, and by which method that was seen."""

    method: str
    reference: Reference
    share: float
    text: str

    def as_report(self, row: Row) -> dict[str, Any]:
        """Return the line of the report."""
        return {
            "sample_id": row["sample_id"],
            "sample_index": row.get("sample_index", 0),
            "method": self.method,
            "share": round(self.share, 4),
            "file": self.reference.file,
            "line": self.reference.number,
            "field": self.reference.field,
            "reference": self.reference.text[:_SHOWN],
            "text": self.text[:_SHOWN],
        }


@dataclass
class ReferenceIndex:
    """All references, looked up by the hash of their words, their n-grams and their normal SQL."""

    settings: Mapping[str, Any]
    dialect: str = "sqlite"
    references: list[Reference] = field(default_factory=list)
    files: dict[str, Counter[str]] = field(default_factory=dict)
    _exact: dict[int, int] = field(default_factory=dict)
    _sql: dict[int, int] = field(default_factory=dict)
    _ngrams: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))
    _sizes: dict[int, int] = field(default_factory=dict)

    @property
    def methods(self) -> list[str]:
        """The methods that are on."""
        return list(self.settings.get("methods") or METHODS)

    @property
    def _length(self) -> int:
        return int(self.settings.get("ngram", 8))

    def add_file(self, path: Path) -> None:
        """Read one reference file.

        Raises:
            ConfigError: If it is missing or of a kind that cannot be read.
            InputError: If its content is not what its ending says.
        """
        counts = self.files.setdefault(str(path), Counter({"rows": 0, "texts": 0, "statements": 0}))
        for number, row in read_reference(path):
            counts["rows"] += 1
            for name, text in self._texts_of_reference(row):
                reference = Reference(str(path), number, name, text)
                counts["statements" if self._add(reference) else "texts"] += 1

    def _texts_of_reference(self, row: Row) -> Iterator[tuple[str, str]]:
        named = self.settings.get("reference_fields")
        for name, value in row.items() if named is None else ((name, row.get(name)) for name in named):
            if isinstance(value, list):
                yield from ((name, text) for text in _message_texts(value))
            elif isinstance(value, str) and (named is not None or self._is_worth(value)):
                yield name, value

    def _is_worth(self, text: str) -> bool:
        return len(split_words(text)) >= _SHORTEST_TEXT

    def _add(self, reference: Reference) -> bool:
        """Index one reference; true if it is a statement."""
        number = len(self.references)
        self.references.append(reference)
        is_asked = "sql" in self.methods and _STATEMENT.match(reference.text)
        normal = normalise_sql(reference.text, "ast", self.dialect) if is_asked else None
        if normal is not None:
            self._sql.setdefault(hash64(normal), number)
            return True
        words = split_words(reference.text)
        if words:
            self._exact.setdefault(hash64(" ".join(words)), number)
        # Python's own hash, which changes with each process, will do for what never leaves this one.
        grams = {hash(gram) for gram in iter_ngrams(words, self._length)} if "ngram" in self.methods else set()
        self._sizes[number] = len(grams)
        for gram in grams:
            self._ngrams[gram].append(number)
        return False

    def find(self, row: Row, sql_fields: list[str]) -> Hit | None:
        """Return the first hit of a row, the surest method first; None where it is clean."""
        for method in METHODS:
            if method not in self.methods:
                continue
            hit = self._find_sql(row, sql_fields) if method == "sql" else self._find_text(method, row)
            if hit is not None:
                return hit
        return None

    def _find_sql(self, row: Row, sql_fields: list[str]) -> Hit | None:
        for statement in (row.get(name) for name in sql_fields):
            number = self._find_statement(statement) if isinstance(statement, str) and statement.strip() else None
            if number is not None:
                return Hit("sql", self.references[number], 1.0, str(statement))
        return None

    def _find_statement(self, statement: str) -> int | None:
        normal = normalise_sql(statement, "ast", self.dialect)
        if normal is not None:
            return self._sql.get(hash64(normal))
        # What the parser does not know, in the reference as in the row, is compared word by word.
        return self._exact.get(hash64(" ".join(split_words(statement))))

    def _find_text(self, method: str, row: Row) -> Hit | None:
        for text in self._texts_of_row(row):
            words = split_words(text)
            if method == "exact":
                number = self._exact.get(hash64(" ".join(words))) if words else None
                hit = None if number is None else Hit("exact", self.references[number], 1.0, text)
            else:
                hit = self._find_ngrams(words, text)
            if hit is not None:
                return hit
        return None

    def _find_ngrams(self, words: list[str], text: str) -> Hit | None:
        shared: Counter[int] = Counter()
        for gram in {hash(gram) for gram in iter_ngrams(words, self._length)}:
            shared.update(self._ngrams.get(gram, ()))
        # The largest share, and among equals the first reference: the report is the same on each run.
        best = min(((-count / self._sizes[number], number) for number, count in shared.items()), default=None)
        if best is None or -best[0] < float(self.settings.get("ngram_share", 0.5)):
            return None
        return Hit("ngram", self.references[best[1]], -best[0], text)

    def _texts_of_row(self, row: Row) -> list[str]:
        named = self.settings.get("fields")
        if named is not None:
            return [value for value in (row.get(name) for name in named) if isinstance(value, str)]
        users = [message for message in prompt_of(row) if message.get("role") == "user"]
        return [text_of(users[-1]) or ""] if users else []


def _message_texts(messages: list[Any]) -> Iterator[str]:
    for message in messages:
        if isinstance(message, dict):
            text = message.get("content", message.get("value"))
            if isinstance(text, str) and text.strip():
                yield text


def load_references(settings: Mapping[str, Any], dialect: str) -> ReferenceIndex:
    """Read all files of `export.decontaminate`.

    Args:
        settings: That section.
        dialect: The dialect of the statements.
    """
    index = ReferenceIndex(settings, dialect)
    for name in settings["files"]:
        index.add_file(Path(name))
    return index
