"""Find rows whose prompts are nearly alike, among any number of rows, in memory that stays bounded.

Two prompts are compared as sets of their runs of five characters, by MinHash (A. Z. Broder, "On the resemblance and
containment of documents", 1997); which pairs are compared at all says locality-sensitive hashing by bands (P. Indyk and
R. Motwani, 1998). A row costs 512 bytes of disk for its signature, 8 for each band and 41 beside. In memory there is one part of one band
at a time, and 16 bytes for a pair of rows that are alike, at most 128 for a row.

A row repeats an earlier one that itself stays: there are no chains in which the last is unlike the first.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from potstill.errors import ConfigError
from potstill.records import Row

_PERMUTATIONS = 128
_SEED = 1
_SHINGLE = 5
#: Rows whose signatures are made at a time.
_BATCH = 512
#: Rows of a band that are sorted in memory at a time: 24 bytes each.
_SORTED_ROWS = 1 << 21
#: Pairs whose signatures are compared at a time: 1 KB each.
_PAIRS = 1 << 14
#: A row is compared with the first row of its bucket and so many right before it.
_NEIGHBOURS = 4
#: Pairs that are remembered of one row: 16 bytes each.
_MOST_PAIRS = 8
#: The chance of finding a pair that is exactly as alike as the threshold.
_RECALL = 0.99


class Near(NamedTuple):
    """What a near-duplicate repeats.

    Attributes:
        sample_id: The row that stands for both.
        similarity: The estimated share of runs of characters that they have in common.
    """

    sample_id: str
    similarity: float


class NearDuplicateFinder:
    """Takes the prompts of rows, in order, and says which ones are nearly like an earlier one.

    Args:
        folder: A scratch folder; the caller removes it.
        threshold: The similarity from which on a row is a near-duplicate.
    """

    def __init__(self, folder: Path, threshold: float) -> None:
        _check_installed()
        self._folder = folder
        self._threshold = threshold
        self._bands = count_bands(threshold)
        self._texts: list[str] = []
        self._signatures = (folder / "signatures").open("wb")
        self._ids = (folder / "ids").open("wb")
        self._band_files = [(folder / f"band.{number:03d}").open("wb") for number in range(self._bands)]
        self._rows = 0

    def add(self, text: str, sample_id: bytes) -> None:
        """Take the prompt of the next row."""
        self._texts.append(text)
        self._ids.write(sample_id)
        self._rows += 1
        if len(self._texts) == _BATCH:
            self._flush()

    def resolve(self, ordinals: Iterator[int]) -> int:
        """Find the near-duplicates, after the last `add`, and return how many they are.

        Args:
            ordinals: For each row how many rows before it are exactly the same; those are left out here.
        """
        import numpy

        self._flush()
        for stream in (self._signatures, self._ids, *self._band_files):
            stream.close()
        # What each row repeats: the other row's number and the similarity; sparse, zeros for most rows.
        with (self._folder / "repeats").open("wb") as sparse:
            sparse.truncate(self._rows * _REPEAT_BYTES)
        exact = numpy.packbits(numpy.fromiter((ordinal > 0 for ordinal in ordinals), dtype=bool, count=self._rows))
        pairs = self._similar_pairs(exact)
        return self._settle(pairs)

    def repeats(self) -> Iterator[Near | None]:
        """Yield for each row, in order, after `resolve`, what it nearly repeats."""
        import numpy

        with (self._folder / "repeats").open("rb") as stream, (self._folder / "ids").open("rb") as ids:
            while block := stream.read(_REPEAT_BYTES << 16):
                for other, similarity in numpy.frombuffer(block, dtype=_repeat_type()).tolist():
                    if similarity == 0:
                        yield None
                        continue
                    ids.seek(other * 32)
                    yield Near(ids.read(32).hex(), round(similarity / _PERMUTATIONS, 4))

    def _flush(self) -> None:
        """Write the signatures of the rows that wait, and the hash of each of their bands."""
        import numpy

        if not self._texts:
            return
        signatures = sketches(self._texts)
        self._texts.clear()
        self._signatures.write(signatures.tobytes())
        width = _PERMUTATIONS // self._bands
        factors = numpy.random.default_rng(_SEED).integers(1, 1 << 63, width, dtype=numpy.uint64) * 2 + 1
        for number, stream in enumerate(self._band_files):
            part = signatures[:, number * width : (number + 1) * width].astype(numpy.uint64)
            mixed = (part * factors).sum(axis=1, dtype=numpy.uint64)
            mixed ^= mixed >> numpy.uint64(29)
            stream.write((mixed * numpy.uint64(0x9E3779B97F4A7C15)).tobytes())

    def _similar_pairs(self, exact: Any) -> Any:
        """Return the pairs (later row, earlier row) that are alike enough, sorted, each once."""
        import numpy

        found = numpy.empty((0, 2), dtype=numpy.int64)
        for number in range(self._bands):
            news = [found]
            for pairs in self._candidates(self._folder / f"band.{number:03d}", exact):
                for start in range(0, len(pairs), _PAIRS):
                    block = pairs[start : start + _PAIRS]
                    news.append(block[self._compare(block) >= self._threshold * _PERMUTATIONS])
            found = _at_most(numpy.unique(numpy.concatenate(news), axis=0), _MOST_PAIRS)
        return found

    def _candidates(self, band: Path, exact: Any) -> Iterator[Any]:
        """Yield pairs (later row, earlier row) that share a bucket of a band, part by part."""
        import numpy

        parts = -(-self._rows // _SORTED_ROWS) or 1
        for part in range(parts):
            hashes, rows = [numpy.empty(0, numpy.uint64)], [numpy.empty(0, numpy.int64)]
            for first, block in _blocks(band):
                mine = numpy.flatnonzero(block % numpy.uint64(parts) == part)
                mine = mine[~_is_set(exact, first + mine)]
                hashes.append(block[mine])
                rows.append(first + mine)
            yield _neighbours(numpy.concatenate(hashes), numpy.concatenate(rows))

    def _compare(self, pairs: Any) -> Any:
        """Return in how many places the signatures of each pair agree."""
        import numpy

        # Mapped anew each time, so that its pages do not add up.
        shape = (self._rows, _PERMUTATIONS)
        signatures = numpy.memmap(self._folder / "signatures", dtype=numpy.uint32, mode="r", shape=shape)
        return (signatures[pairs[:, 0]] == signatures[pairs[:, 1]]).sum(axis=1)

    def _settle(self, pairs: Any) -> int:
        """Decide in the order of the rows: a row repeats the row most like it among those that stay."""
        import numpy

        if not len(pairs):
            return 0
        repeats = numpy.memmap(self._folder / "repeats", dtype=_repeat_type(), mode="r+")
        count = 0
        starts = numpy.flatnonzero(numpy.r_[True, pairs[1:, 0] != pairs[:-1, 0]])
        for start, end in zip(starts.tolist(), [*starts[1:].tolist(), len(pairs)], strict=True):
            row, others = int(pairs[start, 0]), pairs[start:end, 1]
            # A row that goes itself hands its pairs on to the one that stands for it.
            standing = numpy.unique(
                numpy.where(repeats["similarity"][others] > 0, repeats["row"][others].astype(numpy.int64), others)
            )
            alike = self._compare(numpy.stack([numpy.full_like(standing, row), standing], axis=1))
            best = int(alike.argmax())
            if alike[best] >= self._threshold * _PERMUTATIONS:
                repeats[row] = (standing[best], alike[best])
                count += 1
        return count


_REPEAT_BYTES = 9


def _repeat_type() -> Any:
    import numpy

    return numpy.dtype([("row", "<u8"), ("similarity", "u1")])


def _blocks(band: Path) -> Iterator[tuple[int, Any]]:
    import numpy

    first = 0
    with band.open("rb") as stream:
        while data := stream.read(1 << 22):
            yield first, numpy.frombuffer(data, dtype=numpy.uint64)
            first += len(data) // 8


def _at_most(pairs: Any, most: int) -> Any:
    """Return sorted pairs with no more than so many of each later row: those with the earliest rows."""
    import numpy

    places = numpy.arange(len(pairs))
    begins = numpy.r_[True, pairs[1:, 0] != pairs[:-1, 0]][: len(pairs)]
    return pairs[places - numpy.maximum.accumulate(numpy.where(begins, places, 0)) < most]


def _is_set(bits: Any, places: Any) -> Any:
    return (bits[places >> 3] >> (7 - (places & 7)) & 1).astype(bool)


def _neighbours(hashes: Any, rows: Any) -> Any:
    """Return pairs (later row, earlier row) of equal hash: with the first of the bucket, and with those right before."""
    import numpy

    order = numpy.lexsort((rows, hashes))
    hashes, rows = hashes[order], rows[order]
    places = numpy.arange(len(rows))
    begins = numpy.r_[True, hashes[1:] != hashes[:-1]][: len(rows)]
    first = numpy.maximum.accumulate(numpy.where(begins, places, 0))
    pairs = []
    for others in (first, *(places - step for step in range(1, _NEIGHBOURS + 1))):
        inside = (others >= first) & (others < places)
        pairs.append(numpy.stack([rows[inside], rows[others[inside]]], axis=1))
    return numpy.unique(numpy.concatenate(pairs), axis=0)


def count_bands(threshold: float) -> int:
    """Return into how many bands a signature is cut: as few as find a pair at the threshold with a chance of 99 %.

    >>> count_bands(0.9), count_bands(0.8), count_bands(0.5)
    (16, 32, 64)
    """
    for bands in (8, 16, 32, 64):
        if 1 - (1 - threshold ** (_PERMUTATIONS // bands)) ** bands >= _RECALL:
            return bands
    return _PERMUTATIONS


def shingles(text: str) -> list[str]:
    """Return the runs of five characters of a text, its case and blanks levelled; they serve any script."""
    plain = " ".join(text.casefold().split()).encode("utf-8", "replace").decode()
    return [plain[start : start + _SHINGLE] for start in range(max(1, len(plain) - _SHINGLE + 1))]


def sketches(texts: list[str]) -> Any:
    """Return the signatures of texts, one row of 128 numbers each."""
    import numpy
    from rensa import RMinHash

    rows = RMinHash.digests_from_token_sets([shingles(text) for text in texts], _PERMUTATIONS, _SEED)
    return numpy.array(rows, dtype=numpy.uint32)


def prompt_text(row: Row, fields: Sequence[str] | None) -> str:
    """Return the text of a row that is compared: some fields, or what its user messages say.

    A row without any text is compared by its own name: it is like no other.

    Raises:
        ConfigError: If a row has no such field: without the check, a misspelled one would make all rows alike.
    """
    if fields is None:
        parts = [message.get("content") for message in row["messages"] if message.get("role") == "user"]
    else:
        if missing := [name for name in fields if name not in row]:
            raise ConfigError(
                f"prepare.near_duplicates.fields: {missing[0]}: a row has no such field; it has {', '.join(map(str, row))}"
            )
        parts = [row[name] for name in fields]
    text = "\n".join(str(part) for part in parts if part is not None)
    return text if text.strip() else str(row["sample_id"])


class NearFinder:
    """Finds near-duplicates as a config's `prepare.near_duplicates` says; this one, where it is null, finds none."""

    #: Whether near-duplicates leave the rows; else they are marked only.
    drops = False
    _rows = 0

    def add(self, row: Row) -> None:
        """Take the next row."""
        self._rows += 1

    def resolve(self, ordinals: Iterator[int]) -> int:
        """Find the near-duplicates, after the last `add`, and return how many they are."""
        return 0

    def repeats(self) -> Iterator[Near | None]:
        """Yield for each row, in order, after `resolve`, what it nearly repeats."""
        return itertools.repeat(None, self._rows)


class _SketchFinder(NearFinder):
    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self._finder = NearDuplicateFinder(folder, settings["threshold"])
        self._fields = settings["fields"]
        self.drops = settings["action"] == "drop"

    def add(self, row: Row) -> None:
        self._finder.add(prompt_text(row, self._fields), bytes.fromhex(row["sample_id"]))

    def resolve(self, ordinals: Iterator[int]) -> int:
        return self._finder.resolve(ordinals)

    def repeats(self) -> Iterator[Near | None]:
        return self._finder.repeats()


def make_near_finder(folder: Path, settings: Mapping[str, Any] | None) -> NearFinder:
    """Return what finds the near-duplicates of a run.

    Args:
        folder: A scratch folder; the caller removes it.
        settings: The config's `prepare.near_duplicates`.

    Raises:
        ConfigError: If the package that makes signatures is not installed.
    """
    return NearFinder() if settings is None else _SketchFinder(folder, settings)


def _check_installed() -> None:
    import importlib.util

    if importlib.util.find_spec("rensa") is None:
        raise ConfigError(
            "prepare.near_duplicates needs the package rensa: pip install 'potstill[near-duplicates]', or set it to null"
        )
