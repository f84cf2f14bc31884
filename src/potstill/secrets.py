"""Keys: where they are read from, and how they are kept out of everything that is written.

A config or a model file names a variable or a file; the value is read inside the process that needs it, and
every value that was read is known to `redact`, which the log handlers and the error messages use.
"""

from __future__ import annotations

import base64
import json
import os
import re
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from potstill.errors import ConfigError

#: What servers that need no key are given; these words may stand in a model file.
NO_KEY_WORDS = frozenset({"", "empty", "none", "dummy"})

_HIDDEN = "***"
_PATTERNS = (
    re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{8,}"),
    re.compile(r"\b(sk|rk|pk|gsk|hf|xai|AIza)[-_][A-Za-z0-9_-]{12,}"),
)
_known: set[str] = set()


def remember(secret: str) -> None:
    """Have `redact` hide a value from now on, also in its escaped, quoted and encoded forms."""
    if len(secret) < 4:
        return
    forms = {
        secret,
        json.dumps(secret)[1:-1],
        json.dumps(json.dumps(secret)[1:-1])[1:-1],
        json.dumps(secret, ensure_ascii=False)[1:-1],
        repr(secret)[1:-1],
        urllib.parse.quote(secret, safe=""),
        urllib.parse.quote_plus(secret),
        base64.b64encode(secret.encode()).decode(),
    }
    _known.update(forms)


def redact(text: str) -> str:
    """Return a text without any key that this process has read, nor anything that looks like one."""
    for form in sorted(_known, key=len, reverse=True):
        if form in text:
            text = text.replace(form, _HIDDEN)
    for pattern in _PATTERNS:
        text = pattern.sub(_HIDDEN, text)
    return text


def looks_like_key(value: str) -> bool:
    """Return whether a text from a config file is probably a secret that should not stand there."""
    return bool(_PATTERNS[1].search(value)) or bool(_PATTERNS[0].search(value))


@dataclass(frozen=True)
class KeySource:
    """Where a key comes from: a variable, a file, or nowhere.

    Attributes:
        env: The name of the variable, or None.
        file: The file, or None.
        environ: The environment to read from.
    """

    env: str | None = None
    file: Path | None = None
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ, repr=False, compare=False)

    def describe(self) -> str:
        """Return a few words for messages: which variable or file, never the value."""
        if self.env:
            return f"the variable {self.env}"
        return f"the file {self.file}" if self.file else "no key"

    def read(self) -> str | None:
        """Return the key as it is now, or None where none is needed.

        Raises:
            ConfigError: If the variable or the file is missing, empty or holds what no header can carry.
        """
        if self.env:
            value = self._from_environment(self.env)
        elif self.file:
            value = self._from_file(self.file)
        else:
            return None
        if any(ord(character) < 32 or ord(character) == 127 for character in value):
            raise ConfigError(
                f"the key in {self.describe()} holds a line break or a control character; store it as one line"
            )
        remember(value)
        return value

    def _from_environment(self, name: str) -> str:
        # A cluster's executor may hand a key over as a file, named by {NAME}_FILE: that one can be rotated.
        if file := self.environ.get(f"{name}_FILE"):
            return self._from_file(Path(file))
        value = self.environ.get(name)
        if not value:
            found = "is empty" if value == "" else "is not set"
            raise ConfigError(
                f"the variable {name} {found}, and the model file reads the key from it: export {name}=… first"
            )
        return value

    def _from_file(self, path: Path) -> str:
        try:
            value = path.read_text(encoding="utf-8").rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"the key file {path} cannot be read: {type(error).__name__}") from error
        if not value:
            raise ConfigError(f"the key file {path} is empty; put the key into it, as one line")
        return value
