"""What the statements on the page gave back: the first rows of an answer's result and of gold's.

The rows of the output carry a signature of the result, not the result: the few statements that the page shows are run
once more, guarded as the stage that executes guards them. Where the databases are not at hand, the page does without.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from potstill.errors import PotstillError
from potstill.records import Row

if TYPE_CHECKING:
    from potstill.sql.pool import Task

#: Statements that are run for one page, at most, and the seconds that they may take together.
MAX_STATEMENTS = 400
MAX_SECONDS = 60.0
MAX_ROWS, MAX_COLUMNS, MAX_CELL = 8, 12, 80

Table = dict[str, Any]


def find_results(rows: Sequence[Row], settings: Mapping[str, Any]) -> dict[int, dict[str, Table]]:
    """Return, by the row's number, the results of its statement and of its gold query, as far as they can be had.

    Args:
        rows: Answered rows; rows that do not execute, or whose result equals gold's, have no result of their own.
        settings: The config section `execute`.
    """
    from potstill.sql.settings import read_settings

    try:
        config = read_settings(settings)
        with ExitStack() as stack:
            databases = stack.enter_context(config.open_databases())
            pool = stack.enter_context(config.open_pool())
            wanted = _make_tasks(rows, databases, config)
            outcomes = pool.map(task for _, _, task in wanted)
            found: dict[int, dict[str, Table]] = {}
            end = time.monotonic() + MAX_SECONDS
            for (number, kind, _), (_, outcome) in zip(wanted, outcomes, strict=True):
                if (table := _make_table(outcome)) is not None:
                    found.setdefault(number, {})[kind] = table
                if time.monotonic() > end:
                    break
            return found
    except PotstillError:
        # The page is about what was found when the run executed; the databases may be elsewhere by now.
        return {}


def _make_tasks(rows: Sequence[Row], databases: Any, config: Any) -> list[tuple[int, str, Task]]:
    from potstill.sql.admission import admit
    from potstill.sql.outcome import QueryError

    tasks: list[tuple[int, str, Task]] = []
    # Answers that differ from gold come first: they are what a person wants to look at.
    for number, row in sorted(enumerate(rows), key=lambda item: item[1].get("gold_match") is True):
        for kind, field in _wanted(row, config.sql_field, config.gold_field):
            try:
                sql = admit(row.get(field), dialect=config.dialect, max_bytes=config.limits.max_sql_bytes)
                tasks.append((number, kind, ("gold", (databases.find(row).location, sql))))
            except QueryError:
                continue
    return tasks[:MAX_STATEMENTS]


def _wanted(row: Row, sql_field: str, gold_field: str | None) -> list[tuple[str, str]]:
    """Return which results of a row are worth a look: gold's, and the answer's where it is another one."""
    from potstill.sql.evaluate import USABLE_STATUSES

    if "exec_pass" not in row:
        return []
    wanted = [("result", sql_field)] if row["exec_pass"] and row.get("gold_match") is not True else []
    usable = row.get("gold_status") in USABLE_STATUSES
    return wanted + ([("gold", gold_field)] if gold_field and usable else [])


def _make_table(outcome: Any) -> Table | None:
    from potstill.sql.evaluate import Gold
    from potstill.sql.pool import Killed

    if isinstance(outcome, Killed):
        return None
    gold = Gold(*outcome)
    if gold.rows is None:
        return None
    shown = [[_cell(cell) for cell in row[:MAX_COLUMNS]] for row in gold.rows[:MAX_ROWS]]
    return {"rows": shown, "more_rows": gold.row_count - len(shown), "columns": gold.column_count}


def _cell(value: Any) -> str:
    if value is None:
        return "NULL"
    text = f"x'{value.hex()}'" if isinstance(value, bytes) else str(value)
    return text if len(text) <= MAX_CELL else f"{text[:MAX_CELL]}…"
