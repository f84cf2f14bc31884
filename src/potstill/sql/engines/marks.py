"""Whether a statement asks for the time or throws dice, read from its text, for engines that do not tell.

Literals and comments do not count. A view or a function of the database that asks for the time is known by its name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_CLOCK = re.compile(
    r"\b(current_(date|time|timestamp)\b|localtime(stamp)?\b|(get_current_\w+|current_local\w+|now|today|timeofday|uuidv7"
    r"|(clock|statement|transaction)_timestamp)\"?\s*\(|age\s*\(\s*[^(),]+\))",
    re.IGNORECASE,
)
#: Texts that PostgreSQL reads as a time that passes.
_CLOCK_TEXT = re.compile(r"'\s*(now|today|tomorrow|yesterday)(\s[^']*)?'", re.IGNORECASE)
_RANDOM = re.compile(
    r"\b((random(_normal)?|gen_random_\w+|uuid\w*)\"?\s*\(|tablesample\b|using\s+sample\b)", re.IGNORECASE
)
_HIDDEN = re.compile(r"'(?:[^']|'')*'|\$(\w*)\$.*?\$\1\$|--[^\n]*|/\*.*?(?:\*/|\Z)", re.DOTALL)


class Marks:
    """What the statements on one database ask for.

    Args:
        definitions: The views and functions of the database by name, as it defines them.
        clock_texts: Whether the engine reads texts such as 'now' as times.
    """

    def __init__(self, definitions: Mapping[str, str], *, clock_texts: bool) -> None:
        self._clock_texts = clock_texts
        self._clock_names = self._names(definitions, clock=True)
        self._random_names = self._names(definitions, clock=False)

    def _names(self, definitions: Mapping[str, str], *, clock: bool) -> re.Pattern[str] | None:
        """Return a pattern of the names that lead there, also by way of other names."""
        found = {name for name, text in definitions.items() if self._asks(text, None, clock=clock)}
        while found:
            pattern = re.compile(rf"\b({'|'.join(map(re.escape, sorted(found)))})\b", re.IGNORECASE)
            more = {name for name, text in definitions.items() if pattern.search(text)} | found
            if more == found:
                return pattern
            found = more
        return None

    def _asks(self, sql: str, names: re.Pattern[str] | None, *, clock: bool) -> bool:
        if clock and self._clock_texts and _CLOCK_TEXT.search(sql):
            return True
        text = _HIDDEN.sub(" ", sql)
        pattern = _CLOCK if clock else _RANDOM
        return pattern.search(text) is not None or (names is not None and names.search(text) is not None)

    def uses_clock(self, sql: str) -> bool:
        """Whether a statement asks for the time."""
        return self._asks(sql, self._clock_names, clock=True)

    def uses_random(self, sql: str) -> bool:
        """Whether a statement throws dice."""
        return self._asks(sql, self._random_names, clock=False)
