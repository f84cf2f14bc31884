"""Rows on disk: streams of JSON objects in, files that appear whole or not at all out."""

from __future__ import annotations

import contextlib
import errno
import gzip
import io
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import orjson

from potstill import contents
from potstill.errors import InputError, PotstillError, TryAgainError
from potstill.records import Row

#: Errors of the disk that are nobody's fault and may pass: full, over quota, over a size limit, too many open files.
_PASSING_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EMFILE, errno.ENFILE})

#: Names of files of rows.
_ROWS = re.compile(r"\.jsonl(\.gz|\.zst)?$")

#: Unpacked bytes that are read at once, and packed ones (which may stand for a thousand times as many).
_BLOCK = 1 << 17
_PACKED_BLOCK = 1 << 14

#: Every digit becomes `0` and all else a blank: a run of digits is then found ten times faster than by a pattern.
_DIGITS = bytes(ord("0") if chr(byte).isdigit() and byte < 128 else ord(" ") for byte in range(256))
#: From 19 digits on an integer may not fit into 64 bits.
_LONG_NUMBER = b"0" * 19


def dumps(value: Any) -> bytes:
    r"""Return one value as a line of JSON, newline included.

    A lone surrogate (which a teacher may send as `\ud83d`) is not UTF-8: it is written as its escape.
    """
    try:
        return orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE)
    except TypeError:
        # orjson refuses lone surrogates and integers beyond 64 bits; the standard library writes both.
        import json

        return json.dumps(value, ensure_ascii=True, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def loads(line: bytes | str) -> Any:
    """Return the value of one JSON text.

    Raises:
        ValueError: If the text is not JSON.
    """
    raw = line if isinstance(line, bytes) else line.encode("utf-8", "surrogatepass")
    if _LONG_NUMBER not in raw.translate(_DIGITS):
        try:
            return orjson.loads(raw)
        except orjson.JSONDecodeError:
            pass
    # What orjson refuses (a lone surrogate) or rounds (an integer beyond 64 bits) the standard library keeps.
    import json

    return json.loads(line, parse_constant=_refuse_constant)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def open_binary(path: Path) -> IO[bytes]:
    """Open a file for reading, unpacked by its ending (`.gz`, `.zst`, else plain).

    Raises:
        InputError: If the file cannot be opened; while it is read, if what is packed is damaged or cut off.
    """
    try:
        raw = path.open("rb")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    if path.suffix == ".gz":
        return io.BufferedReader(_Unpacked(path, raw, _gzip_blocks), _BLOCK)
    if path.suffix == ".zst":
        return io.BufferedReader(_Unpacked(path, raw, _zstd_blocks), _BLOCK)
    return raw


def _gzip_blocks(raw: IO[bytes]) -> Iterator[bytes]:
    with gzip.GzipFile(fileobj=raw, mode="rb") as stream:
        while block := stream.read1(_BLOCK):
            yield block


def _zstd_blocks(raw: IO[bytes]) -> Iterator[bytes]:
    """Yield what is in the frames of a file, of which appended files have several (`cat a.zst b.zst`).

    Frame by frame, since the library's own reader takes the end of a file that was cut off for the end of its data.
    """
    import zstandard

    unpacker = zstandard.ZstdDecompressor()
    frame = None
    while packed := raw.read(_PACKED_BLOCK):
        while packed:
            frame = frame or unpacker.decompressobj()
            try:
                block = frame.decompress(packed)
            except zstandard.ZstdError as error:
                raise OSError(str(error)) from error
            yield block
            packed = frame.unused_data if frame.eof else b""
            frame = None if frame.eof else frame
    if frame is not None:
        raise EOFError("it ends in the middle of a frame")


class _Unpacked(io.RawIOBase):
    """The bytes that a packed file stands for, as a stream whose errors name the file."""

    def __init__(self, path: Path, raw: IO[bytes], unpack: Callable[[IO[bytes]], Iterator[bytes]]) -> None:
        self._path = path
        self._raw = raw
        self._unpack = unpack
        self._start()

    def _start(self) -> None:
        self._raw.seek(0)
        self._blocks = self._unpack(self._raw)
        self._rest = memoryview(b"")
        self._at = 0

    def readable(self) -> bool:
        """Whether it can be read: always."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer as far as one block goes; 0 at the end."""
        while not self._rest:
            block = self._next_block()
            if block is None:
                return 0
            self._rest = memoryview(block)
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        self._at += count
        return count

    def seekable(self) -> bool:
        """Whether another place can be read: yes, if slowly, all that is before it being unpacked again."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place, counted from the start (or from here)."""
        if whence == io.SEEK_END:
            raise io.UnsupportedOperation("the end of a packed file is known only to who reads it")
        target = offset + (self._at if whence == io.SEEK_CUR else 0)
        if target < self._at:
            self._start()
        passed = bytearray(_BLOCK)
        while self._at < target and self.readinto(memoryview(passed)[: target - self._at]):
            pass
        return self._at

    def _next_block(self) -> bytes | None:
        try:
            return next(self._blocks, None)
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(f"{self._path}: cannot be read to its end: {error}; is it whole?") from error

    def close(self) -> None:
        """Close the file too."""
        self._raw.close()
        super().close()


def numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the lines of a file and their numbers, blank ones apart.

    Raises:
        InputError: If the file cannot be opened.
    """
    with open_binary(path) as stream:
        for number, line in enumerate(stream, start=1):
            if not line.isspace():
                yield number, line


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a file that potstill itself wrote (blank lines apart, every line an object).

    Raises:
        InputError: If a line is not a JSON object; it names file and line.
    """
    return (row for _, row in read_lines(path) if row is not None)


def read_lines(path: Path) -> Iterator[tuple[bytes, Row | None]]:
    """Yield the lines of a file of rows with the row in each; None for a blank line.

    Raises:
        InputError: If a line is not a JSON object; it names file and line.
    """
    with open_binary(path) as stream:
        for number, line in enumerate(stream, start=1):
            yield line, None if line.isspace() else parse_row(line, path, number)


def parse_row(line: bytes, source: str | Path, number: int) -> Row:
    """Return the row of a line.

    Args:
        line: The line.
        source: Its file, for the message.
        number: Which line of the file it is.

    Raises:
        InputError: If it is not a JSON object.
    """
    try:
        row = loads(line)
    except ValueError as error:
        raise InputError(f"{source}: line {number}: not JSON ({error})") from error
    if not isinstance(row, dict):
        raise InputError(f"{source}: line {number}: a JSON object was expected, found {type(row).__name__}")
    return row


def read_content(path: Path) -> contents.Content:
    """Return what is in a file of rows, in one pass over it.

    Raises:
        InputError: If it cannot be read or a line is not a JSON object.
    """
    found = contents.ContentReader()
    for line, row in read_lines(path):
        found.add(line, row)
    return found.content()


def count_lines(path: Path) -> int:
    """Return the number of lines of a file, plain or packed."""
    with open_binary(path) as stream:
        return sum(block.count(b"\n") for block in iter(lambda: stream.read(1 << 20), b""))


class RowWriter:
    """A file of rows being written; it appears under its name when `publish` ends without an error."""

    def __init__(self, path: Path, stream: IO[bytes], content: contents.ContentReader | None = None) -> None:
        self._path = path
        self._stream = stream
        self._content = content
        self.count = 0

    def write(self, row: Any) -> None:
        """Write one row."""
        self._write(dumps(row), row)

    def write_line(self, line: bytes) -> None:
        """Write one row that is already a line of JSON, newline included."""
        self._write(line, None if self._content is None else loads(line))

    def _write(self, line: bytes, row: Any) -> None:
        if self._content is not None:
            self._content.add(line, row)
        try:
            self._stream.write(line)
        except OSError as error:
            raise disk_error(self._path, error) from error
        self.count += 1


@contextlib.contextmanager
def publish(path: Path) -> Iterator[RowWriter]:
    """Write a file of rows that appears whole, by write, fsync and rename, or not at all.

    The temporary file lies beside the target, so that the rename stays on one filesystem; its name carries
    the process, so that two writers never share it. `.gz` and `.zst` targets are packed.

    Args:
        path: The file to make; its folder is made too.

    Yields:
        The writer.

    Raises:
        TryAgainError: When the disk is full or out of quota.
        PotstillError: When the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.uname().nodename}.{os.getpid()}.tmp")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        raw = temporary.open("wb", buffering=1 << 18)
        stream = _pack(path, raw)
    try:
        # Errors of the caller's body pass through as they are: they are not errors of this file.
        notes = contents.notes.get() if _ROWS.search(path.name) else None
        content = None if notes is None else contents.ContentReader()
        yield RowWriter(path, stream, content)
        with disk_errors(path):
            if stream is not raw:
                stream.close()
            raw.flush()
            os.fsync(raw.fileno())
            temporary.replace(path)
            fsync_folder(path.parent)
        if notes is not None and content is not None:
            notes.add(path, content.content())
    finally:
        # What can't be flushed on the way out after an error was reported by that error.
        for one in (stream, raw):
            with contextlib.suppress(OSError):
                one.close()
        temporary.unlink(missing_ok=True)


def _pack(path: Path, raw: IO[bytes]) -> IO[bytes]:
    if path.suffix == ".gz":
        # No name and no time in the header: the same rows give the same bytes.
        return gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0, compresslevel=6)  # type: ignore[return-value]
    if path.suffix == ".zst":
        import zstandard

        # Level 3 would save another sixth of the size for twice the time. The buffer saves a call per line.
        packer = zstandard.ZstdCompressor(level=1).stream_writer(raw, closefd=False)
        return io.BufferedWriter(packer, buffer_size=1 << 17)  # type: ignore[type-var]
    return raw


def publish_json(path: Path, value: Any) -> None:
    """Write one JSON document, indented, for people and programs; whole or not at all."""
    with publish(path) as out:
        out.write_line(orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))


def publish_rows(path: Path, rows: Iterable[Row]) -> int:
    """Write all rows to a file, whole or not at all, and return how many there were."""
    with publish(path) as out:
        for row in rows:
            out.write(row)
    return out.count


def fsync_folder(folder: Path) -> None:
    """Make a rename in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def disk_error(path: Path, error: OSError) -> PotstillError:
    """Return the error of ours that an error of the disk under a path stands for."""
    message = f"{path}: cannot be written: {error.strerror or error}"
    if error.errno in _PASSING_ERRNOS:
        return TryAgainError(f"{message}; nothing is lost: free some room and give the same command again")
    return InputError(f"{message}; check the folder and its permissions")


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn the errors of the disk under a path into ours, with the path in the message."""
    try:
        yield
    except OSError as error:
        raise disk_error(path, error) from error
