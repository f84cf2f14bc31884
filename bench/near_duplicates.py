"""MinHash signatures of prompts by rensa and by datasketch, and the whole of near_duplicates.

`python bench/near_duplicates.py [ROWS]` prints CPU microseconds a text of 1 KB, and what finding costs beside.
"""

from __future__ import annotations

import random
import resource
import sys
import tempfile
import time
from pathlib import Path

from potstill.near_duplicates import NearDuplicateFinder, shingles, sketches


def texts(count: int, seed: int = 1) -> list[str]:
    """Return texts of 1 KB, of which every tenth repeats an earlier one but for a word."""
    rng = random.Random(seed)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(5000)]
    made: list[str] = []
    for number in range(count):
        if number % 10 == 9:
            parts = made[rng.randrange(len(made))].split()
            parts[rng.randrange(len(parts))] = "changed"
            made.append(" ".join(parts))
        else:
            made.append(" ".join(rng.choices(words, k=155)))
    return made


def by_datasketch(some: list[str]) -> None:
    from datasketch import MinHash

    for text in some:
        MinHash(num_perm=128).update_batch([piece.encode() for piece in shingles(text)])


def microseconds(work: object, some: list[str]) -> float:
    began = time.process_time()
    work(some)  # type: ignore[operator]
    return (time.process_time() - began) / len(some) * 1e6


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    some = texts(2000)
    print(f"shingles alone:       {microseconds(lambda xs: [shingles(x) for x in xs], some):8.0f} µs a text")
    print(f"rensa, with shingles: {microseconds(sketches, some):8.0f} µs a text")
    try:
        print(f"datasketch, the same: {microseconds(by_datasketch, some[:300]):8.0f} µs a text")
    except ImportError:
        print("datasketch is not installed")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory() as folder:
        finder = NearDuplicateFinder(Path(folder), threshold=0.9)
        began = time.process_time()
        for start in range(0, count, 20_000):
            for number, text in enumerate(texts(min(20_000, count - start), seed=start)):
                finder.add(text, (start + number).to_bytes(32, "big"))
        added = time.process_time()
        found = finder.resolve(iter([0] * count))
        ended = time.process_time()
        disk = sum(path.stat().st_size for path in Path(folder).iterdir())
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        f"{count} rows: {found} near-duplicates; add {(added - began) / count * 1e6:.0f} µs a row (with making the texts), "
        f"resolve {(ended - added) / count * 1e6:.0f} µs a row; {disk / count:.0f} bytes of disk a row, "
        f"peak memory {before // 1024} -> {after // 1024} MB"
    )


if __name__ == "__main__":
    main()
