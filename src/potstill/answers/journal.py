"""Journals: files that one living process appends answers to, and that a kill at any moment leaves readable.

A line is `{"crc":"0123abcd","key":"<64 hex>", …}` and a newline; the checksum (CRC-32, as zlib's) covers all
bytes after it up to the newline. A line without its newline at the end of the file is what a kill leaves: it is
no answer, readers pass over it, and the next process that appends cuts it off first.

Who may append is settled by a lock on the file that the kernel drops with its holder. It is asked for only on the
machine and boot that made the file (the name begins with that boot's id), so nothing rests on locks of a network
filesystem; a journal of another machine is read and never appended to.
"""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

from potstill.answers.key import PREFIX_BYTES
from potstill.errors import StoreError
from potstill.generate.wire_json import loads
from potstill.rows import disk_errors, dumps, fsync_folder

logger = logging.getLogger("potstill.answers")

#: A journal beyond this size is left as it is, and another one begun.
FULL_BYTES = 1 << 28

_CRC_AT = slice(8, 16)
_COVERED_FROM = 17
_HINT_HEAD = struct.Struct(f"<{PREFIX_BYTES}sQI")
_HINT = struct.Struct(f"<{PREFIX_BYTES}sQII")


class Place(NamedTuple):
    """Where one record stands: the bytes of its line, newline included."""

    prefix: bytes
    offset: int
    length: int


def encode(record: dict[str, Any]) -> bytes:
    """Return the line of a record.

    Args:
        record: What to keep; its first field is `key`.
    """
    body = dumps(record)
    covered = b"," + body[1:]
    return b'{"crc":"%08x"' % zlib.crc32(covered[:-1]) + covered


def decode(line: bytes, where: str) -> dict[str, Any]:
    """Return the record of a line.

    Args:
        line: The bytes, newline included.
        where: File and byte, for the message.

    Raises:
        StoreError: If the checksum or the form is wrong.
    """
    if not is_intact(line):
        raise StoreError(
            f"{where}: this record is damaged (its checksum does not fit). No crash leaves that behind: look at the "
            "disk, then `potstill answers verify` lists all damage and `potstill answers prune --damaged` takes it out"
        )
    record: dict[str, Any] = loads(line)
    return record


def is_intact(line: bytes) -> bool:
    """Return whether a whole line carries its own checksum."""
    if len(line) < 32 or line[:8] != b'{"crc":"' or line[-1:] != b"\n":
        return False
    return b"%08x" % zlib.crc32(line[_COVERED_FROM:-1]) == line[_CRC_AT]


class SyncBatch(NamedTuple):
    """What one fsync covers: the journal's size when it began, and the hints of the lines below it."""

    size: int
    hints: bytes


class Journal:
    """A journal open for appending, held by this process alone."""

    def __init__(self, path: Path, descriptor: int, size: int) -> None:
        self.path = path
        self.size = size
        self.synced = size
        self._descriptor = descriptor
        self._hints = bytearray()
        self._hint_path = path.with_suffix(".keys")

    @property
    def is_full(self) -> bool:
        """Whether the next record belongs into another journal."""
        return self.size >= FULL_BYTES

    def append(self, prefix: bytes, line: bytes) -> Place:
        """Hand one line to the kernel, at once: from here on a kill of the process cannot lose it.

        Raises:
            TryAgainError: When the disk is full; what was written of the line is taken back.
        """
        place = Place(prefix, self.size, len(line))
        try:
            written = os.write(self._descriptor, line)
            while written < len(line):
                written += os.write(self._descriptor, line[written:])
        except OSError as error:
            with disk_errors(self.path):
                os.ftruncate(self._descriptor, self.size)
                raise OSError(error.errno, error.strerror) from error
        self.size += len(line)
        self._hints += _hint(place)
        return place

    def begin_sync(self) -> SyncBatch:
        """Return what the next `finish_sync` makes durable; called by the thread that appends."""
        batch = SyncBatch(self.size, bytes(self._hints))
        self._hints.clear()
        return batch

    def finish_sync(self, batch: SyncBatch) -> None:
        """Bring a batch onto the disk (a power cut cannot lose it then); may run in another thread."""
        with disk_errors(self.path):
            os.fdatasync(self._descriptor)
            self.synced = max(self.synced, batch.size)
            if batch.hints:
                # Only after the lines: a hint never points at what a power cut could take away.
                with self._hint_path.open("ab", buffering=0) as stream:
                    stream.write(batch.hints)

    def close(self) -> None:
        """Sync and let go of the file."""
        try:
            self.finish_sync(self.begin_sync())
        finally:
            os.close(self._descriptor)


def open_journal(folder: Path) -> Journal:
    """Return a journal of this machine that no living process holds, repaired, or a new one.

    Raises:
        StoreError: If the journal is damaged in a way that no crash explains.
    """
    boot = boot_id()
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(folder.glob(f"{boot}-*.jsonl")):
            journal = _take(path)
            if journal is not None:
                return journal
        while True:
            path = folder / f"{boot}-{secrets.token_hex(6)}.jsonl"
            journal = _take(path, create=True)
            if journal is not None:
                fsync_folder(folder)
                return journal


def _take(path: Path, *, create: bool = False) -> Journal | None:
    flags = os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | (os.O_CREAT | os.O_EXCL if create else 0)
    descriptor = os.open(path, flags, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    if os.fstat(descriptor).st_size >= FULL_BYTES or os.fstat(descriptor).st_nlink == 0:
        os.close(descriptor)
        return None
    try:
        size = _repair(path, descriptor)
    except BaseException:
        os.close(descriptor)
        raise
    return Journal(path, descriptor, size)


def _repair(path: Path, descriptor: int) -> int:
    """Cut off what a crash left after the last whole record, mend the hints, and return the size."""
    known, end = _hinted_part(path)
    size = os.fstat(descriptor).st_size
    if end > size:
        # The hints outlived their lines (a disk that lied about a sync): start over from the lines.
        known, end = 0, 0
    missing = bytearray()
    for place in scan(path, start=end):
        end = place.offset + place.length
        missing += _hint(place)
    if end < size:
        os.ftruncate(descriptor, end)
        os.fdatasync(descriptor)
    _mend_hints(path.with_suffix(".keys"), known * _HINT.size, missing)
    return end


def _hinted_part(path: Path) -> tuple[int, int]:
    count, end = 0, 0
    for place in read_hints(path):
        count, end = count + 1, place.offset + place.length
    return count, end


def _mend_hints(hints: Path, good: int, missing: bytearray) -> None:
    with hints.open("ab") as stream:
        stream.truncate(good)
        stream.write(missing)


def _hint(place: Place) -> bytes:
    head = _HINT_HEAD.pack(*place)
    return head + zlib.crc32(head).to_bytes(4, "little")


def pack_hints(places: Iterable[Place]) -> bytes:
    """Return what a `.keys` file says of records."""
    return b"".join(map(_hint, places))


def unpack_hints(packed: bytes, end: int = 0) -> Iterator[Place]:
    """Yield the places that entries stand for, up to the first that is torn or does not begin where the last ended."""
    for prefix, offset, length, crc in _HINT.iter_unpack(packed[: len(packed) - len(packed) % _HINT.size]):
        if offset != end or zlib.crc32(_HINT_HEAD.pack(prefix, offset, length)) != crc:
            return
        yield Place(prefix, offset, length)
        end = offset + length


def read_hints(path: Path, start: int = 0) -> Iterator[Place]:
    """Yield the places that a journal's `.keys` file names from a byte of the journal on, up to the first torn one."""
    try:
        stream = path.with_suffix(".keys").open("rb")
    except FileNotFoundError:
        return
    with stream:
        stream.seek(_find_hint(stream, start) * _HINT.size)
        end = start
        while block := stream.read(_HINT.size * 4096):
            for prefix, offset, length, crc in _HINT.iter_unpack(block[: len(block) - len(block) % _HINT.size]):
                if offset != end or zlib.crc32(_HINT_HEAD.pack(prefix, offset, length)) != crc:
                    return
                yield Place(prefix, offset, length)
                end = offset + length


def _find_hint(stream: IO[bytes], start: int) -> int:
    """Return the number of the first hint that points at a byte or beyond, by halving: hints are in order."""
    low, high = 0, stream.seek(0, os.SEEK_END) // _HINT.size
    while low < high:
        middle = (low + high) // 2
        stream.seek(middle * _HINT.size)
        if _HINT.unpack(stream.read(_HINT.size))[1] < start:
            low = middle + 1
        else:
            high = middle
    return low


def places(path: Path, start: int) -> Iterator[Place]:
    """Yield where each record stands from a byte on: by the hints as far as they reach, then by the lines."""
    end = start
    for place in read_hints(path, start):
        end = place.offset + place.length
        yield place
    yield from scan(path, end)


def scan(path: Path, start: int = 0) -> Iterator[Place]:
    """Yield where each whole record of a journal stands, reading it from a byte on.

    Raises:
        StoreError: If a record in the middle is damaged.
    """
    offset = start
    with disk_errors(path), path.open("rb", buffering=1 << 20) as stream:
        stream.seek(start)
        for line in stream:
            if is_intact(line):
                prefix = bytes.fromhex(line[_key_at(line)].decode())[:PREFIX_BYTES]
                yield Place(prefix, offset, len(line))
            elif line[-1:] == b"\n" and not _is_lost_tail(line, stream) and not _is_hole(line, path):
                decode(line, f"{path}: byte {offset}")
            else:
                return
            offset += len(line)


def _key_at(line: bytes) -> slice:
    # `encode` writes `{"crc":"…","key":"…"`: the key stands at a fixed place.
    return slice(25, 25 + 64)


def _is_lost_tail(line: bytes, stream: Any) -> bool:
    """Return whether a bad line is the end of a file whose last blocks a power cut took (they read as NUL)."""
    return b"\0" in line and not any(is_intact(rest) for rest in stream)


def _is_hole(line: bytes, path: Path) -> bool:
    """Return whether blocks that read as NUL may still come, or were never synced: in a journal of another boot.

    A network filesystem shows what another machine writes page by page, in no order; and a power cut may keep a later
    page and lose an earlier one. What stands behind a hole is asked again, or found once the hole is filled.
    """
    if b"\0" not in line or path.name.startswith(boot_id()):
        return False
    logger.warning("%s: a part of this journal is not there (yet); what stands behind it is passed over", path)
    return True


@dataclass(frozen=True)
class Damage:
    """One damaged record.

    Attributes:
        path: The journal.
        offset: The first byte of the line.
        length: The bytes of the line.
    """

    path: Path
    offset: int
    length: int


def find_damage(path: Path) -> Iterator[Damage | Place]:
    """Yield every record of a journal, whole or damaged, from its first byte; the torn end is neither."""
    offset = 0
    with disk_errors(path), path.open("rb", buffering=1 << 20) as stream:
        for line in stream:
            if is_intact(line):
                yield Place(bytes.fromhex(line[_key_at(line)].decode())[:PREFIX_BYTES], offset, len(line))
            elif line[-1:] == b"\n":
                yield Damage(path, offset, len(line))
            offset += len(line)


def boot_id() -> str:
    """Return a name for this machine since it was started; two containers of one machine share it."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip().replace("-", "")[:16]
