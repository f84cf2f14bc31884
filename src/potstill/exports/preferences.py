"""The rows of preference data: the judged answers of one sample after the other, read where they lie."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import IO, Any

import numpy as np

from potstill.exports.index import RowIndex, Verdict
from potstill.exports.pairs import Candidate, group_by_prompt, make_pairs, to_dpo, to_kto
from potstill.exports.plan import Plan
from potstill.exports.shapes import Shapes
from potstill.records import Row
from potstill.rows import parse_row


class Preferences:
    """Makes the rows of `dpo` and `kto`.

    The answers of one sample may lie far apart, in the files of kept and rejected rows of several models: they are
    found by the index and read at their places.
    """

    def __init__(self, index: RowIndex, plan: Plan, shapes: Shapes, settings: Mapping[str, Any]) -> None:
        self._index, self._plan, self._shapes = index, plan, shapes
        self._max_pairs = int((settings.get("dpo") or {}).get("max_pairs", 4))

    def iter_rows(self, name: str) -> Iterator[tuple[Row, Candidate]]:
        """Yield the rows of one format, each with the answer that decides its split.

        Args:
            name: `dpo` or `kto`.
        """
        with ExitStack() as stack:
            streams = [stack.enter_context(path.open("rb")) for path, _ in self._index.files]
            for positions in self._iter_samples(pairs=name == "dpo"):
                candidates = [self._read(position, streams) for position in positions]
                for row, candidate in self._shape(name, candidates):
                    yield self._shapes.carry(row, candidate.row), candidate

    def _shape(self, name: str, candidates: list[Candidate]) -> Iterator[tuple[Row, Candidate]]:
        if name == "kto":
            yield from ((to_kto(one), one) for one in candidates)
            return
        for group in group_by_prompt(candidates):
            yield from ((to_dpo(chosen, rejected), chosen) for chosen, rejected in make_pairs(group, self._max_pairs))

    def _iter_samples(self, *, pairs: bool) -> Iterator[list[int]]:
        """Yield the positions of each sample's judged rows, samples in the order of their first row.

        Args:
            pairs: Leave out samples without a right and a wrong answer; negatives over the limit count there too,
                since the limit on the right answers bounds the pairs.
        """
        index, plan = self._index, self._plan
        verdicts = index.flags("verdict")
        judged = (index.flags("usable") != 0) & (verdicts != Verdict.UNKNOWN)
        judged &= plan.used | (verdicts != Verdict.GOOD) if pairs else plan.used
        at = np.flatnonzero(judged)
        order = at[np.argsort(index.column("sample")[at], kind="stable")]
        sample = index.column("sample")[order]
        starts = np.flatnonzero(np.concatenate((np.ones(len(sample[:1]), np.bool_), sample[1:] != sample[:-1])))
        ends = np.append(starts[1:], len(order))
        for number in np.argsort(order[starts], kind="stable"):
            group = order[starts[number] : ends[number]]
            good = verdicts[group] == Verdict.GOOD
            if not pairs or (good.any() and not good.all()):
                yield group.tolist()

    def _read(self, position: int, streams: Sequence[IO[bytes]]) -> Candidate:
        index = self._index
        number = index.file_of(position)
        streams[number].seek(index.offset[position])
        line = streams[number].readline()
        row = parse_row(line, index.files[number][0], position - index.starts[number] + 1)
        example = self._shapes.make_example(row)
        assert example is not None
        return Candidate(position, row, example, Verdict(index.verdict[position]))
