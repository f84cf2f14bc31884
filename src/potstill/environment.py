"""Variables from a file: what the shell does not set, for jobs that run where no shell of the user's is."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

from potstill.errors import ConfigError

_LINE = re.compile(r"(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)\s*=\s*(.*)")


def load_env_file(path: Path) -> list[str]:
    """Set the variables of a file of `NAME=value` lines; one that is set already keeps its value.

    Values may be quoted as in a shell; nothing in them is expanded. Blank lines and `#` comments are passed over.

    Args:
        path: The file.

    Returns:
        The names in the file.

    Raises:
        ConfigError: If the file cannot be read, or a line is not of that form. The message never quotes a value.
    """
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"environment.env_file {path}: cannot be read: {error}") from error
    names = []
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        found = _LINE.fullmatch(text)
        if found is None:
            raise ConfigError(f"environment.env_file {path}: line {number}: NAME=value was expected")
        names.append(found[1])
        os.environ.setdefault(found[1], _unquote(found[2], f"{path}: line {number}"))
    return names


def _unquote(text: str, where: str) -> str:
    if not text.startswith(("'", '"')):
        return text.partition(" #")[0].strip()
    try:
        words = shlex.split(text, comments=True)
    except ValueError as error:
        raise ConfigError(f"environment.env_file {where}: the quotes do not match") from error
    if len(words) != 1:
        raise ConfigError(f"environment.env_file {where}: one value was expected")
    return words[0]
