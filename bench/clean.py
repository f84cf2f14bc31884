"""How many rows a second the cleaner does on typical answers, beside a cleaner of one regular expression.

Both are timed in the same run on the same rows, in turns, so that the ratio stands whatever the machine does
meanwhile. The stage is timed too: reading, cleaning and writing rows of JSON.

    python bench/clean.py [--rows 20000] [--rounds 3]
"""

from __future__ import annotations

import argparse
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from potstill.rows import publish_rows
from potstill.sql.clean import clean_sql
from potstill.stages.clean import clean_rows

_SIMPLE = re.compile(r"```(?:sql|sqlite)?\s*(.*?)```", re.DOTALL | re.IGNORECASE)

_QUERY = """SELECT T1.name, COUNT(*) AS n
FROM singer AS T1
JOIN concert AS T2 ON T1.singer_id = T2.singer_id
WHERE T2.year > {year} AND T1.country = 'France'
GROUP BY T1.name
HAVING COUNT(*) > 2
ORDER BY n DESC
LIMIT 10"""
_PROSE = "This query joins the singers with their concerts, keeps those after {year} and counts them by name."
_THOUGHT = "The user asks for singers. I need the table singer and the table concert, joined by singer_id. " * 6

#: What teachers send, by the share that each form has in practice.
FORMS = (
    "{query}",
    "{query};",
    "SELECT name FROM singer WHERE age > {year}",
    "```sql\n{query};\n```",
    "```sql\n{query}\n```",
    "Here is the query:\n\n```sql\n{query};\n```\n\n{prose}",
    "To answer the question, we join the tables.\n\n```sql\n{query}\n```",
    "<think>\n{thought}\n</think>\n\n```sql\n{query}\n```",
    "<think>\n{thought}\n</think>\n\n{query};",
    "{query};\n\n{prose}",
)


def answers(count: int) -> list[str]:
    """Return typical answers, no two the same."""
    made = []
    for number in range(count):
        parts = {"year": number, "thought": _THOUGHT}
        query = _QUERY.format(**parts)
        made.append(FORMS[number % len(FORMS)].format(query=query, prose=_PROSE.format(**parts), **parts))
    return made


def simple(text: str) -> str:
    """Clean as most projects do: the first fence, else the text."""
    text = text.rsplit("</think>", 1)[-1]
    match = _SIMPLE.search(text)
    return (match.group(1) if match else text).strip().rstrip(";")


def rate(function: Callable[[str], object], texts: list[str]) -> float:
    """Return how many texts a second a function does, by the processor's time."""
    start = time.process_time()
    for text in texts:
        function(text)
    return len(texts) / (time.process_time() - start)


def stage_rate(texts: list[str], folder: Path) -> float:
    """Return how many rows a second the stage does, file to file."""
    source = folder / "in.jsonl"
    publish_rows(source, ({"sample_id": str(number), "generation": text} for number, text in enumerate(texts)))
    start = time.process_time()
    clean_rows(source, folder / "out.jsonl", settings={"kind": "sql", "dialect": "sqlite"})
    return len(texts) / (time.process_time() - start)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    texts = answers(args.rows)
    with tempfile.TemporaryDirectory() as folder:
        for number in range(args.rounds):
            ours, theirs, stage = rate(clean_sql, texts), rate(simple, texts), stage_rate(texts, Path(folder))
            print(
                f"round {number + 1}: cleaner {ours:,.0f} rows/s, regular expression {theirs:,.0f} rows/s "
                f"(ratio {ours / theirs:.2f}), stage with files {stage:,.0f} rows/s"
            )
    for form in range(len(FORMS)):
        print(f"{rate(clean_sql, texts[form :: len(FORMS)]):>9,.0f} rows/s  {FORMS[form][:60]!r}")


if __name__ == "__main__":
    main()
