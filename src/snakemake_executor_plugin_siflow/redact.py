"""Secrets are taken out of every text before it is shown."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable

HIDDEN = "[hidden]"
#: What looks like a key though nobody told us its value.
PATTERNS = re.compile(r"(?i)(\bbearer\s+)[^\s\"']+|\bsk-[A-Za-z0-9_-]{12,}")


def forms(secret: str) -> set[str]:
    """The ways in which a secret may be written in a log: plain, quoted for Python, JSON or a shell."""
    plain = {secret, repr(secret)[1:-1], json.dumps(secret)[1:-1], shlex.quote(secret)}
    return {form for form in plain if len(form) >= 4}


class Redactor:
    """Replaces known secrets, and what looks like one, by `[hidden]`."""

    def __init__(self, secrets: Iterable[str]) -> None:
        found = sorted({form for secret in secrets for form in forms(secret)}, key=len, reverse=True)
        self._known = re.compile("|".join(map(re.escape, found))) if found else None

    def __call__(self, text: str) -> str:
        """Return the text without secrets."""
        if self._known is not None:
            text = self._known.sub(HIDDEN, text)
        return PATTERNS.sub(lambda match: f"{match.group(1) or ''}{HIDDEN}", text)
