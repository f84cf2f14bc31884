"""Where the workflow's own files lie, and how a path in a config is found."""

from __future__ import annotations

import functools
from pathlib import Path


@functools.cache
def workflow_root() -> Path:
    """Return the folder that holds `Snakefile`, `workflow/`, `config/` and `scripts/`.

    It is the checkout for an editable install, and a folder inside the package for an installed wheel.
    """
    package = Path(__file__).resolve().parents[1]
    bundled = package / "_workflow"
    return bundled if (bundled / "Snakefile").exists() else package.parents[1]


def find_file(path: str | Path) -> Path:
    """Return where a path of a config lies: in the working directory, else among the workflow's own files.

    The second place is what lets a foreign Snakefile import the shipped demo. A path that is in neither
    comes back as it is, for the caller to complain about in its own words.
    """
    given = Path(path)
    if given.is_absolute() or given.exists():
        return given
    shipped = workflow_root() / given
    return shipped if shipped.exists() else given
