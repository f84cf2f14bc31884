"""The charting library of the page: Vega and Vega-Lite, as they come with Snakemake for its own report."""

from __future__ import annotations

import base64
import functools
import gzip
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from potstill.errors import InputError

#: In the order in which they must be loaded.
LIBRARIES = ("vega", "vega-lite")


class Library(NamedTuple):
    """One library, packed for the page."""

    name: str
    packed: str


def _folder() -> Path:
    # The package is looked up, not imported: its files are wanted, not its code.
    spec = find_spec("snakemake")
    if spec is None or not spec.submodule_search_locations:
        raise InputError("snakemake is not installed, whose Vega and Vega-Lite the page draws its charts with")
    return Path(spec.submodule_search_locations[0]) / "assets" / "data"


def pack(content: bytes) -> str:
    """Return bytes as gzip in base64: small, the same for the same content, and free of markup."""
    return base64.b64encode(gzip.compress(content, 9, mtime=0)).decode()


@functools.cache
def read_libraries() -> list[Library]:
    """Return the libraries, packed: once, for the page and its sections.

    Raises:
        InputError: If this Snakemake does not have them.
    """
    return [Library(name, pack(_read(_folder() / name / f"{name}.js"))) for name in LIBRARIES]


def read_licences() -> str:
    """Return the licences of the libraries, which go wherever they go."""
    return "\n\n".join(f"{name}\n\n{_read(_folder() / name / 'LICENSE').decode()}" for name in LIBRARIES)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}): this Snakemake has no Vega for the page's charts; "
            "install the version that environment.yml names"
        ) from error
