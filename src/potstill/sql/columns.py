"""Which of an answer's columns stand for which of gold's, where their order is free or there may be more of them.

One choice must serve all rows. Trying every permutation is factorial (26 columns never end). Here each of gold's
columns is given a column of like content, one after another, and the rows of the columns chosen so far must agree
before the next is tried; columns of the same content are tried once. What is left of the search is bounded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from potstill.sql.outcome import Cells

#: Partial choices checked before the search is given up as no match, and cells looked at by these checks.
MAX_CHECKS = 20_000
MAX_CELLS = 20_000_000

SameRows = Callable[[Sequence[Cells], Sequence[Cells]], bool]


def find_columns(
    gold: Sequence[Cells],
    answer: Sequence[Cells],
    same: SameRows,
    *,
    in_order: bool,
) -> list[int] | None:
    """Return a place in the answer for each of gold's columns, or None where none fits.

    Args:
        gold: Gold's rows, at least one on either side.
        answer: The answer's rows.
        same: Whether two lists of rows agree, as the policy says.
        in_order: True where the chosen columns must stand in gold's order (others between them are passed over).
    """
    if not gold or not answer:
        return None
    search = _Search(gold, answer, same, in_order)
    return search.extend([])


class _Search:
    def __init__(self, gold: Sequence[Cells], answer: Sequence[Cells], same: SameRows, in_order: bool) -> None:
        self._gold = gold
        self._answer = answer
        self._same = same
        self._in_order = in_order
        self._width = len(gold[0])
        self._columns = [tuple(column) for column in zip(*answer, strict=True)]
        self._checks = 0
        self._cells = 0
        self._fits = [self._places(column) for column in range(self._width)]

    def _places(self, column: int) -> list[int]:
        """Return the answer's columns whose content agrees with one of gold's."""
        return [place for place in range(len(self._columns)) if self._agree([column], [place])]

    def extend(self, chosen: list[int]) -> list[int] | None:
        """Return a full choice that starts with this one."""
        at = len(chosen)
        if at == self._width:
            return chosen
        tried: set[Cells] = set()
        for place in self._fits[at]:
            if place in chosen or (self._in_order and chosen and place < chosen[-1]) or self._columns[place] in tried:
                continue
            tried.add(self._columns[place])
            longer = [*chosen, place]
            if self._agree(list(range(at + 1)), longer):
                found = self.extend(longer)
                if found is not None:
                    return found
        return None

    def _agree(self, gold_columns: list[int], answer_columns: list[int]) -> bool:
        self._checks += 1
        self._cells += len(gold_columns) * len(self._gold)
        if self._checks > MAX_CHECKS or self._cells > MAX_CELLS:
            return False
        return self._same(_project(self._gold, gold_columns), _project(self._answer, answer_columns))


def _project(rows: Sequence[Cells], columns: list[int]) -> list[Cells]:
    return [tuple([row[column] for column in columns]) for row in rows]
