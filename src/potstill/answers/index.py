"""The index: sorted keys of many journals in one file that is written once and only read from then on.

Keys are hashes, so they spread evenly: a directory by their first bits says where each bucket of some 16 entries
begins, and a look-up reads that bucket. Memory is the directory, at most half a megabyte a file, whatever the
number of entries.
"""

from __future__ import annotations

import heapq
import os
import secrets
import struct
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import orjson

from potstill.answers.journal import Place
from potstill.answers.key import PREFIX_BYTES
from potstill.rows import publish

_ENTRY = struct.Struct(f">{PREFIX_BYTES}sIIQ")
_FORMAT = 1
_MAX_BITS = 16
_BUCKET = 16


class Span(NamedTuple):
    """A piece of a journal, by its bytes; `name` is the journal's file name."""

    name: str
    start: int
    end: int


class Found(NamedTuple):
    """Where a record stands."""

    journal: str
    offset: int
    length: int


@dataclass(frozen=True)
class Index:
    """One index file, open for look-ups.

    Attributes:
        path: The file.
        spans: The pieces of journals whose keys it holds.
        entries: How many.
    """

    path: Path
    spans: tuple[Span, ...]
    entries: int
    bits: int
    start: int
    directory: array[int]
    descriptor: int

    def find(self, prefix: bytes) -> list[Found]:
        """Return where the records of a key stand; empty if the index has none."""
        bucket = int.from_bytes(prefix[:4], "big") >> (32 - self.bits)
        first, last = self.directory[bucket], self.directory[bucket + 1]
        if first == last:
            return []
        data = os.pread(self.descriptor, (last - first) * _ENTRY.size, self.start + first * _ENTRY.size)
        found = []
        at = data.find(prefix)
        while at >= 0:
            if at % _ENTRY.size == 0:
                _, number, length, offset = _ENTRY.unpack_from(data, at)
                found.append(Found(self.spans[number].name, offset, length))
            at = data.find(prefix, at + 1)
        return found

    def stream(self) -> Iterator[bytes]:
        """Yield the entries in order, as bytes."""
        offset, end = self.start, self.start + self.entries * _ENTRY.size
        while offset < end:
            data = os.pread(self.descriptor, min(_ENTRY.size * 4096, end - offset), offset)
            for at in range(0, len(data), _ENTRY.size):
                yield data[at : at + _ENTRY.size]
            offset += len(data)

    def covers(self, other: Index) -> bool:
        """Return whether all that another index knows stands in this one too."""
        mine = {span.name: span for span in self.spans}
        return all(
            span.name in mine and mine[span.name].start <= span.start and span.end <= mine[span.name].end
            for span in other.spans
        )

    def close(self) -> None:
        """Let go of the file."""
        os.close(self.descriptor)


def open_index(path: Path) -> Index | None:
    """Open an index, or return None if it is gone, of another format or not whole (it can be made again)."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        with os.fdopen(os.dup(descriptor), "rb") as stream:
            line = stream.readline()
            header = orjson.loads(line)
            start, entries, bits = len(line), header["entries"], header["bits"]
            stream.seek(start + entries * _ENTRY.size)
            directory = array("Q", stream.read())
            whole = len(directory) == (1 << bits) + 1 and directory[-1] == entries
        if header["format"] == _FORMAT and whole:
            spans = tuple(Span(*span) for span in header["spans"])
            return Index(path, spans, entries, bits, start, directory, descriptor)
    except (ValueError, KeyError, TypeError):
        pass
    os.close(descriptor)
    return None


class NewEntries:
    """Keys that no index holds yet, in memory; `write_index` makes them an index."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self._entries: list[bytes] = []

    def __len__(self) -> int:
        return len(self._entries)

    def clear(self) -> None:
        """Begin anew."""
        self.spans, self._entries = [], []

    def add_span(self, name: str, places: Iterable[Place], start: int) -> int:
        """Add the records of a piece of a journal and return the byte at which it ends."""
        number, end = len(self.spans), start
        for place in places:
            self._entries.append(_ENTRY.pack(place.prefix, number, place.length, place.offset))
            end = place.offset + place.length
        self.spans.append(Span(name, start, end))
        return end

    def stream(self) -> Iterator[bytes]:
        """Yield the entries in order."""
        self._entries.sort()
        return iter(self._entries)


def write_index(folder: Path, parts: list[Index | NewEntries]) -> Path:
    """Write the index of several parts and return its file.

    Args:
        folder: Where the store keeps its indexes.
        parts: Older indexes that the new one takes the place of, and new entries.
    """
    spans, maps = _join_spans(parts)
    # Jobs that merge at the same time make indexes that overlap: the same place is kept once. The number stands in front
    # of the entries, so they are gone through twice.
    count = sum(1 for _ in _merged(parts, maps))
    bits = min(_MAX_BITS, max(1, (count // _BUCKET).bit_length()))
    path = folder / f"{count:012d}-{secrets.token_hex(4)}.idx"
    header = {"format": _FORMAT, "entries": count, "bits": bits, "spans": [list(span) for span in spans]}
    counts = array("Q", bytes(8 * ((1 << bits) + 1)))
    shift = 32 - bits
    with publish(path) as out:
        out.write_line(orjson.dumps(header, option=orjson.OPT_APPEND_NEWLINE))
        for entry in _merged(parts, maps):
            out.write_line(entry)
            counts[(int.from_bytes(entry[:4], "big") >> shift) + 1] += 1
        for bucket in range(1, len(counts)):
            counts[bucket] += counts[bucket - 1]
        out.write_line(counts.tobytes())
    return path


def _merged(parts: list[Index | NewEntries], maps: list[list[int]]) -> Iterator[bytes]:
    """Yield the entries of all parts in order, each place once."""
    last = b""
    for entry in heapq.merge(*(_renumbered(part.stream(), numbers) for part, numbers in zip(parts, maps, strict=True))):
        if entry != last:
            yield entry
        last = entry


def _join_spans(parts: list[Index | NewEntries]) -> tuple[list[Span], list[list[int]]]:
    """Return one span per journal over all parts, and for each part its old number -> the new one."""
    joined: dict[str, Span] = {}
    numbers: dict[str, int] = {}
    for part in parts:
        for span in part.spans:
            known = joined.get(span.name, span)
            joined[span.name] = Span(span.name, min(known.start, span.start), max(known.end, span.end))
            numbers.setdefault(span.name, len(numbers))
    return list(joined.values()), [[numbers[span.name] for span in part.spans] for part in parts]


def _renumbered(entries: Iterator[bytes], numbers: list[int]) -> Iterator[bytes]:
    if numbers == list(range(len(numbers))):
        return entries
    packed = [number.to_bytes(4, "big") for number in numbers]
    key, rest = PREFIX_BYTES, PREFIX_BYTES + 4
    return (entry[:key] + packed[int.from_bytes(entry[key:rest], "big")] + entry[rest:] for entry in entries)
