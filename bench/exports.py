"""How fast an export is and how much memory it takes: `python bench/exports.py [--rows 100000]`.

Makes rows like those of a text-to-SQL run, exports them in each format alone and in all together, and prints rows per
second and the highest memory of each export (a process of its own).
"""

from __future__ import annotations

import argparse
import hashlib
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from potstill.exports.layout import FORMATS
from potstill.rows import publish
from potstill.stages.export import export_dataset

_SCHEMA = "\n".join(
    f"CREATE TABLE t{at} (id INTEGER NOT NULL, name TEXT, grp INTEGER, age INTEGER)" for at in range(20)
)


def write_rows(path: Path, count: int, *, kept: bool) -> None:
    with publish(path) as out:
        for number in range(count):
            question = f"How many people of group {number} are older than {number % 90}?"
            column = "*" if kept else "age"
            sql = f"SELECT count({column}) FROM t{number % 20} WHERE grp = {number} AND age > {number % 90}"
            out.write(
                {
                    "db_id": f"db_{number % 150}",
                    "question": question,
                    "gold_sql": sql,
                    "sample_id": hashlib.sha256(str(number).encode()).hexdigest(),
                    "messages": [{"role": "user", "content": f"{_SCHEMA}\n{question}"}],
                    "generation": f"```sql\n{sql}\n```",
                    "reasoning": None,
                    "sample_index": 0 if kept else 1,
                    "model": "teacher",
                    "sql": sql,
                    "exec_pass": True,
                    "gold_match": kept,
                    "row_count": 1,
                    "column_count": 1,
                    "score": 1.0 if kept else 0.5,
                }
            )


def measure(folder: Path, formats: list[str], split_by: str) -> None:
    """Export in this process and print one line."""
    settings = {"formats": formats, "split_by": split_by, "huggingface": {"license": "other"}, "train_ratio": 0.9}
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=folder) as output:
        counts = export_dataset([folder / "merged.jsonl"], [folder / "rejected.jsonl"], Path(output), settings=settings)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    name = "+".join(formats) if len(formats) < 3 else "all"
    print(
        f"{name:12} by {split_by:14} {counts.rows / seconds:10,.0f} rows/s  {seconds:6.1f} s  {peak:6.0f} MB",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--format", action="append", dest="formats")
    parser.add_argument("--split-by", default="prompt")
    args = parser.parse_args()
    if args.folder is not None:
        measure(args.folder, args.formats, args.split_by)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_rows(folder / "merged.jsonl", args.rows, kept=True)
        write_rows(folder / "rejected.jsonl", args.rows // 2, kept=False)
        print(
            f"{args.rows} kept rows, {(folder / 'merged.jsonl').stat().st_size / args.rows:.0f} bytes each", flush=True
        )
        cases = [([one], "prompt") for one in FORMATS] + [(list(FORMATS), "prompt"), (["messages"], "sql_template")]
        for formats, split_by in cases:
            flags = [flag for one in formats for flag in ("--format", one)]
            subprocess.run(
                [sys.executable, __file__, "--folder", name, "--split-by", split_by, *flags], check=True, timeout=600
            )


if __name__ == "__main__":
    main()
