"""One model's answers: look up, append, and keep look-ups cheap as they grow."""

from __future__ import annotations

import contextlib
import errno
import os
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from potstill.answers import journal as journals
from potstill.answers.index import Found, Index, NewEntries, Span, open_index, write_index
from potstill.answers.journal import Journal, Place, open_journal
from potstill.answers.key import PREFIX_BYTES, slug
from potstill.errors import StoreError
from potstill.rows import disk_errors, loads, publish_json

#: The version of everything under a store's folder.
FORMAT = 1

#: So many keys without an index are kept in memory; more become an index of their own.
_MEMORY_KEYS = 1 << 14
#: So many keys without an index are cheaper to read again at each start than to index.
_SMALL = 1 << 12
#: More index files than this are merged into one.
_MAX_INDEXES = 8
_OPEN_FILES = 64


class AnswerStore:
    """The answers of one model name, open for look-ups and, from the first `append` on, for writing.

    Args:
        answers_dir: The folder of all stores.
        model: The model's name as sent.

    Raises:
        StoreError: If the folder is of another format or a journal is damaged.
    """

    def __init__(self, answers_dir: Path, model: str) -> None:
        self.model = model
        self.folder = answers_dir / slug(model)
        self._journal: Journal | None = None
        self._memory: dict[bytes, Found | list[Found]] = {}
        self._covered: dict[str, int] = {}
        self._indexes: list[Index] = []
        self._own_indexes: list[Index] = []
        self._own_keys = KeyFilter()
        self._own_sizes: dict[str, int] = {}
        self._ends: dict[str, int] = {}
        self._files: OrderedDict[str, int] = OrderedDict()
        _check_format(self.folder, model)
        self._load()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            # The disk may be full: what was written is safe, tidying up can wait for the next time.
            with contextlib.suppress(Exception):
                self.close()

    # -- reading ----------------------------------------------------------------------------------------------

    def find(self, key: bytes) -> list[dict[str, Any]]:
        """Return all records of a key, in no order.

        Raises:
            StoreError: If one of them is damaged.
        """
        prefix = key[:PREFIX_BYTES]
        in_memory = self._memory.get(prefix)
        found = [] if in_memory is None else [in_memory] if isinstance(in_memory, Found) else list(in_memory)
        if self._indexes:
            found += self._find_indexed(prefix)
        if self._own_indexes and prefix in self._own_keys:
            found += [place for index in self._own_indexes for place in index.find(prefix)]
        if not found:
            return []
        records = [self._read(place) for place in dict.fromkeys(found)]
        wanted = key.hex()
        return [record for record in records if record["key"] == wanted]

    def _find_indexed(self, prefix: bytes) -> list[Found]:
        try:
            return [found for index in self._indexes for found in index.find(prefix)]
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
            # Another machine has merged this index into a new one: open that.
            self._load()
            return [found for index in self._indexes for found in index.find(prefix)]

    def _read(self, found: Found) -> dict[str, Any]:
        path = self.folder / "journals" / found.journal
        with disk_errors(path):
            line = os.pread(self._descriptor(path), found.length, found.offset)
            if len(line) < found.length:
                # A network filesystem remembers an old size for an open file; opening it anew asks the server.
                os.close(self._files.pop(path.name))
                line = os.pread(self._descriptor(path), found.length, found.offset)
        return journals.decode(line, f"{path}: byte {found.offset}")

    def _descriptor(self, path: Path) -> int:
        descriptor = self._files.pop(path.name, None)
        if descriptor is None:
            descriptor = _open_journal_file(path)
            if len(self._files) >= _OPEN_FILES:
                os.close(self._files.popitem(last=False)[1])
        self._files[path.name] = descriptor
        return descriptor

    def records(self) -> Iterator[dict[str, Any]]:
        """Yield every whole record of the store, journal by journal.

        Raises:
            StoreError: If one of them is damaged.
        """
        for path in self.journal_files():
            for place in journals.scan(path):
                yield self._read(Found(path.name, place.offset, place.length))

    def journal_files(self) -> list[Path]:
        """Return the store's journals, sorted."""
        return sorted((self.folder / "journals").glob("*.jsonl"))

    # -- writing ----------------------------------------------------------------------------------------------

    def append(self, key: bytes, record: dict[str, Any]) -> None:
        """Write one record, at once; a kill of this process cannot lose it any more.

        Args:
            key: What it answers.
            record: The record, without its key.

        Raises:
            TryAgainError: When the disk is full.
        """
        if self._journal is None or self._journal.is_full:
            self._next_journal()
        assert self._journal is not None
        place = self._journal.append(key[:PREFIX_BYTES], journals.encode({"key": key.hex(), **record}))
        name = self._journal.path.name
        self._remember(place, name)
        self._own_keys.add(place.prefix)
        self._own_sizes[name] = self._journal.size
        if len(self._memory) >= _MEMORY_KEYS:
            self._index_own()

    @property
    def journal(self) -> Journal | None:
        """The journal that this process appends to, once there is one."""
        return self._journal

    def _next_journal(self) -> None:
        if self._journal is not None:
            self._journal.close()
        self._journal = open_journal(self.folder / "journals")
        # Another process may have held it since this store was opened: what it wrote must be in the index too.
        path = self._journal.path
        for place in journals.places(path, self._ends.get(path.name, 0)):
            self._remember(place, path.name)
        self._ends[path.name] = self._own_sizes[path.name] = self._journal.size

    def _remember(self, place: Place, name: str) -> None:
        found = Found(name, place.offset, place.length)
        known = self._memory.get(place.prefix)
        if known is None:
            self._memory[place.prefix] = found
        else:
            self._memory[place.prefix] = [*([known] if isinstance(known, Found) else known), found]

    def close(self) -> None:
        """Sync what was appended, index it where that pays, and let go of all files."""
        try:
            if self._journal is not None:
                self._journal.close()
                self._journal = None
                if len(self._memory) >= _SMALL:
                    self._index_own()
                if len(self._indexes) + len(self._own_indexes) > _MAX_INDEXES:
                    self.compact()
        finally:
            self._close_files()

    def _close_files(self) -> None:
        for index in (*self._indexes, *self._own_indexes):
            index.close()
        while self._files:
            os.close(self._files.popitem()[1])
        self._indexes, self._own_indexes = [], []

    # -- index ------------------------------------------------------------------------------------------------

    def _load(self) -> None:
        """Open the indexes, and take into memory the keys that none of them holds."""
        self._close_files()
        self._memory.clear()
        self._indexes = _choose(self.folder / "index")
        self._covered = _covered(self._indexes)
        self._ends = dict(self._covered)
        news = NewEntries()
        for path in self.journal_files():
            start = self._covered.get(path.name, 0)
            if path.stat().st_size > start:
                self._take_in(path, start, news)
        if len(news) >= _SMALL:
            self._publish([news])
        if len(self._indexes) > _MAX_INDEXES:
            self.compact()

    def _take_in(self, path: Path, start: int, news: NewEntries) -> None:
        """Add the uncovered end of a journal to what will be indexed, and to memory for as long as it is not."""
        places = list(journals.places(path, start))
        self._ends[path.name] = news.add_span(path.name, places, start)
        for place in places:
            self._remember(place, path.name)
        if len(news) >= _MEMORY_KEYS:
            self._publish([news])
            news.clear()

    def _publish(self, parts: list[Index | NewEntries]) -> None:
        """Make an index and use it instead of the keys in memory."""
        self._indexes.append(self._write(parts))
        self._covered = _covered(self._indexes)
        self._memory.clear()

    def _write(self, parts: list[Index | NewEntries]) -> Index:
        index = open_index(write_index(self.folder / "index", parts))
        if index is None:
            raise StoreError(f"{self.folder}/index: an index was written and cannot be read back; look at the disk")
        return index

    def _index_own(self) -> None:
        """Make an index of what this process has appended, and keep only the rest in memory."""
        news = NewEntries()
        mine: dict[str, list[Place]] = {name: [] for name in self._own_sizes}
        rest: dict[bytes, Found | list[Found]] = {}
        for prefix, found in self._memory.items():
            for place in [found] if isinstance(found, Found) else found:
                if place.journal in mine:
                    mine[place.journal].append(Place(prefix, place.offset, place.length))
                else:
                    rest[prefix] = found
        for name, places in mine.items():
            start = self._covered.get(name, 0)
            if self._own_sizes[name] > start:
                news.add_span(name, sorted(places, key=lambda place: place.offset), start)
                self._covered[name] = self._own_sizes[name]
        self._own_indexes.append(self._write([news]))
        self._memory = rest

    def compact(self) -> None:
        """Merge all indexes into one and remove those that it covers."""
        old = [*self._indexes, *self._own_indexes]
        if len(old) < 2:
            return
        merged = self._write([*old])
        for index in old:
            index.path.unlink(missing_ok=True)
            index.close()
        self._indexes, self._own_indexes = [merged], []
        self._covered = _covered(self._indexes)


class KeyFilter:
    """A set of keys in four megabytes that may say yes for a key it does not hold, and never no for one it does.

    Two bits per key, as B. H. Bloom described it in 1970; keys are hashes already, so their bytes are the places.
    """

    def __init__(self) -> None:
        self._bits = bytearray(1 << 22)

    def add(self, key: bytes) -> None:
        """Put a key in."""
        for place in _places(key):
            self._bits[place >> 3] |= 1 << (place & 7)

    def __contains__(self, key: bytes) -> bool:
        return all(self._bits[place >> 3] >> (place & 7) & 1 for place in _places(key))


def _places(key: bytes) -> tuple[int, int]:
    number = int.from_bytes(key[:8], "big")
    return number & 0x1FFFFFF, number >> 32 & 0x1FFFFFF


def _open_journal_file(path: Path) -> int:
    """Open a journal for reading; a piece of one that lies in a bucket is fetched first."""
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        if not path.name.startswith("part-"):
            raise
    from potstill.answers.remote import fetch

    fetch(path)
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def read_format(folder: Path) -> dict[str, Any]:
    """Return what a store's `FORMAT.json` says.

    Raises:
        StoreError: If it is not JSON, or of a format that this code does not know.
    """
    file = folder / "FORMAT.json"
    try:
        found: dict[str, Any] = loads(file.read_bytes())
    except ValueError as error:
        raise StoreError(f'{file}: not JSON; it holds {{"format": {FORMAT}, "model": "<name as sent>"}}') from error
    if found.get("format") != FORMAT:
        raise StoreError(
            f"{file}: format {found.get('format')}; this version of potstill knows {FORMAT}: use the one that wrote it"
        )
    return found


def _check_format(folder: Path, model: str) -> None:
    """Write the store's version on first use, and refuse a version that this code does not know."""
    file = folder / "FORMAT.json"
    if not file.exists():
        publish_json(file, {"format": FORMAT, "model": model})
    elif (found := read_format(folder).get("model")) != model:
        raise StoreError(f"{folder}: holds answers of {found!r}, not of {model!r}")


def _choose(folder: Path) -> list[Index]:
    """Open the indexes of a store that are needed: those that no greater one covers, in an order without gaps."""
    opened = [index for path in sorted(folder.glob("*.idx"), reverse=True) if (index := open_index(path)) is not None]
    kept: list[Index] = []
    for index in opened:
        if any(other.covers(index) for other in kept):
            index.close()
            # Two jobs that merged at the same time leave one too many; who may only read leaves it there.
            with contextlib.suppress(OSError):
                index.path.unlink()
        else:
            kept.append(index)
    return _without_gaps(kept)


def _without_gaps(indexes: list[Index]) -> list[Index]:
    """Drop indexes that begin where no other ends: an index between them is missing, its part must be read again."""
    reached: dict[str, int] = {}
    left, usable = list(indexes), []
    progress = True
    while progress:
        progress = False
        for index in list(left):
            if all(span.start <= reached.get(span.name, 0) for span in index.spans):
                for span in index.spans:
                    reached[span.name] = max(reached.get(span.name, 0), span.end)
                usable.append(index)
                left.remove(index)
                progress = True
    for index in left:
        index.close()
    return usable


def _covered(indexes: list[Index]) -> dict[str, int]:
    covered: dict[str, int] = {}
    spans: list[Span] = [span for index in indexes for span in index.spans]
    for span in spans:
        covered[span.name] = max(covered.get(span.name, 0), span.end)
    return covered
