"""Compare the demo's outputs with the golden ones: `python -m tests.golden results/demo [--fix]`.

`tests/data/golden/demo.jsonl` says for each question how it ended, for people; `demo.sha256` holds the hashes of the
files, byte for byte.
"""

import argparse
import difflib
import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

GOLDEN = Path(__file__).parent / "data" / "golden"
OUTCOMES = ("merged", "rejected", "failed", "not_asked")
_FIELDS = (
    "id",
    "sql",
    "clean_method",
    "exec_error_class",
    "gold_match",
    "gold_status",
    "score",
    "reject_reasons",
    "error_class",
)


def describe_rows(folder: Path) -> Iterator[str]:
    """Yield a line for each row of a model's files: what became of it."""
    for outcome in OUTCOMES:
        for line in (folder / f"{outcome}.jsonl").read_text().splitlines():
            row = json.loads(line)
            shown = {name: row[name] for name in _FIELDS if name in row}
            yield json.dumps({"outcome": outcome, **shown}, ensure_ascii=False) + "\n"


def hash_files(folder: Path) -> Iterator[str]:
    """Yield the hash of each file, as `sha256sum` writes it."""
    for outcome in OUTCOMES:
        digest = hashlib.sha256((folder / f"{outcome}.jsonl").read_bytes()).hexdigest()
        yield f"{digest}  {outcome}.jsonl\n"


def main() -> int:
    """Compare, or with `--fix` write the golden files anew."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--fix", action="store_true", help="take the outputs as golden")
    args = parser.parse_args()
    found = {
        "demo.jsonl": list(describe_rows(args.run / "teacher")),
        "demo.sha256": list(hash_files(args.run / "teacher")),
    }
    different = False
    for name, lines in found.items():
        path = GOLDEN / name
        if args.fix:
            path.write_text("".join(lines))
        golden = path.read_text().splitlines(keepends=True)
        difference = list(difflib.unified_diff(golden, lines, f"golden/{name}", str(args.run)))
        sys.stdout.writelines(difference)
        different = different or bool(difference)
    print("the demo's outputs differ from the golden ones" if different else "the demo's outputs are the golden ones")
    return int(different)


if __name__ == "__main__":
    sys.exit(main())
