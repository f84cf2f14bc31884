"""Make the changed copies of every database that the input names, once, before answers are executed on them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potstill.rows import publish_json, read_rows
from potstill.sql.outcome import QueryError
from potstill.sql.settings import read_settings
from potstill.sql.variants import VariantStore


@dataclass(slots=True)
class VariantCounts:
    """How many databases were seen, and copies of them there are now."""

    databases: int = 0
    copies: int = 0


def make_variants(
    chunks: Iterable[Path], folder: Path, output_json: Path, *, settings: dict[str, Any]
) -> VariantCounts:
    """Make `execute.variants` copies of each database; copies that exist already are used again.

    Args:
        chunks: The prepared chunks, whose rows name the databases.
        folder: Where the copies are kept; any number of runs may share it, names follow the content.
        output_json: Which copies each database has; `execute_rows` takes it as `variants`.
        settings: The config section `execute`.

    Returns:
        Counts.

    Raises:
        ConfigError: When the databases are not where the config says.
    """
    config = read_settings(settings)
    store = VariantStore(folder, count=config.variants, seed=config.variants_seed)
    made: dict[str, list[str]] = {}
    with config.open_databases() as databases:
        for chunk in chunks:
            for row in read_rows(chunk):
                try:
                    database = databases.find(row)
                except QueryError:
                    continue  # the audit has said so
                if database.name not in made:
                    made[database.name] = [str(path.resolve()) for path in store.files(database)]
    publish_json(output_json, {"variants": config.variants, "seed": config.variants_seed, "databases": made})
    return VariantCounts(len(made), sum(map(len, made.values())))
