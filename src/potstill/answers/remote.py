"""The answer store in a bucket: journals as whole objects, and a working copy on the machine of each job.

An object store cannot append. So a job appends to a journal in its working copy, as everywhere, and pieces of journals
become objects, each written once and never changed:

```
<answers_dir>/<model>/FORMAT.json
<answers_dir>/<model>/journals/<journal>.<first byte>-<end>.jsonl   whole records
<answers_dir>/<model>/keys/<journal>.<first byte>-<end>.keys        where each stands, 32 bytes a record
```

A name says which bytes of which journal it holds, and a journal has one writer: no two jobs ever write different bytes
under one name. A job that starts fetches the keys that its working copy does not know and makes an index of them; the
records themselves are fetched once one of them is wanted, a whole object at a time. Every minute, and when a job ends,
what is new becomes an object; small ones before it are joined with it (the new object is there before the old ones go).
A machine that dies takes along what it was told in the last minute; a process that dies takes nothing, since the next
job on that machine uploads what it finds in the working copy.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import logging
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from potstill.answers import journal as journals
from potstill.answers.bucket import Bucket, Stored
from potstill.answers.index import NewEntries, open_index, write_index
from potstill.answers.journal import Place
from potstill.errors import ConfigError, PotstillError, StoreError, TryAgainError
from potstill.rows import disk_errors, dumps, loads, publish_json

logger = logging.getLogger("potstill.answers")

#: Seconds between two uploads: what a machine that dies may cost.
EVERY_S = 60.0
#: Seconds for which the last upload of a job is tried again.
_PATIENCE_S = 600.0
#: An object has at most so many bytes, but for one record that is larger.
_MOST_BYTES = 1 << 24
_MOST_KEYS = 1 << 19
_THREADS = 8

#: A piece of a journal that was fetched; nobody appends to it.
PART = "part-"
_NAME = re.compile(r"(?P<journal>[0-9a-f]+-[0-9a-f]+)\.(?P<start>\d+)-(?P<end>\d+)\.jsonl")


class Part(NamedTuple):
    """A piece of a journal, from its first byte to the one after its last."""

    journal: str
    start: int
    end: int

    @property
    def name(self) -> str:
        """The object's name, without folder and ending."""
        return f"{self.journal}.{self.start}-{self.end}"

    @property
    def file(self) -> str:
        """The name of its file in a working copy."""
        return f"{PART}{self.name}.jsonl"

    @classmethod
    def parse(cls, name: str) -> Part | None:
        """Return the part that a file's or an object's name stands for."""
        found = _NAME.fullmatch(name.rpartition("/")[2].removeprefix(PART))
        return cls(found["journal"], int(found["start"]), int(found["end"])) if found else None


class WorkingCopy:
    """What this machine has of one model's answers in a bucket.

    Args:
        url: The config's `answers_dir`.
        name: The name of the store's folder (`potstill.answers.key.slug`).
    """

    def __init__(self, url: str, name: str) -> None:
        self.root = cache_folder(url)
        self.folder = self.root / name
        self._bucket = open_bucket(url)
        self._lock = threading.RLock()
        self._ending = False

    # -- down -------------------------------------------------------------------------------------------------

    def pull(self, *, model: str | None = None) -> None:
        """Learn of all answers in the bucket.

        Args:
            model: The model's name as sent, where answers will be uploaded: that this is allowed is found out now,
                before a token is spent. None to read only.
        """
        with disk_errors(self.folder):
            (self.folder / "journals").mkdir(parents=True, exist_ok=True)
        publish_json(self.folder / "REMOTE.json", {"answers_dir": self._bucket.url})
        self._exchange_format(model)
        parts = _whole(_parts(self._bucket.list(f"{self.folder.name}/journals/")))
        known = self._known()
        missing = [part for part in parts if not _covers(known.get(part.journal, []), part)]
        self._learn(missing)
        if model is not None:
            self.push()

    def _exchange_format(self, model: str | None) -> None:
        """Take over what the bucket says of the store's format, and check that it can be written."""
        name = f"{self.folder.name}/FORMAT.json"
        found = self._bucket.get(name)
        if found is not None:
            publish_json(self.folder / "FORMAT.json", loads(found))
        if model is not None:
            self._bucket.put(name, found or dumps({"format": 1, "model": model}))

    def _known(self) -> dict[str, list[tuple[int, int]]]:
        """Return which bytes of which journals this copy knows: those it made itself, and those in its indexes."""
        known: dict[str, list[tuple[int, int]]] = {}
        for path in self._own_journals():
            known.setdefault(path.stem, []).append((0, path.stat().st_size))
        for path in (self.folder / "index").glob("*.idx"):
            index = open_index(path)
            if index is None:
                continue
            index.close()
            for span in index.spans:
                part = Part.parse(span.name)
                if part is not None and span.name.startswith(PART):
                    known.setdefault(part.journal, []).append((part.start, part.end))
        return known

    def _own_journals(self) -> list[Path]:
        folder = self.folder / "journals"
        return sorted(path for path in folder.glob("*.jsonl") if not path.name.startswith(PART))

    def _learn(self, parts: list[Part]) -> None:
        """Make indexes of the keys of parts; some half a million keys are held in memory at a time."""
        news = NewEntries()
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="answers") as pool:
            for first in range(0, len(parts), 64):
                batch = parts[first : first + 64]
                for part, places in zip(batch, pool.map(self._places, batch), strict=True):
                    news.add_span(part.file, places, 0)
                    if len(news) >= _MOST_KEYS:
                        write_index(self.folder / "index", [news])
                        news.clear()
        if len(news):
            write_index(self.folder / "index", [news])

    def _places(self, part: Part) -> list[Place]:
        """Return where each record of a part stands; where its keys are missing or damaged, by reading the part."""
        packed = self._bucket.get(f"{self.folder.name}/keys/{part.name}.keys")
        places = list(journals.unpack_hints(packed or b""))
        if not places or places[-1].offset + places[-1].length != part.end - part.start:
            path = self.folder / "journals" / part.file
            if not path.exists():
                fetch(path)
            places = list(journals.scan(path))
        return places

    def fetch_all(self) -> None:
        """Fetch every part, for those who read all records."""
        for part in _whole(_parts(self._bucket.list(f"{self.folder.name}/journals/"))):
            path = self.folder / "journals" / part.file
            if not path.exists() and not (self.folder / "journals" / f"{part.journal}.jsonl").exists():
                fetch(path)

    # -- up ---------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def uploading(self) -> Iterator[None]:
        """Upload what is new every minute, when the block ends, whatever ends it, and at a SIGTERM."""
        stop = threading.Event()
        thread = threading.Thread(target=self._push_now_and_then, args=(stop,), daemon=True, name="upload")
        thread.start()
        try:
            with self._at_sigterm():
                yield
        except BaseException:
            self._end_quietly()
            raise
        else:
            self._end()
        finally:
            stop.set()
            thread.join()

    def push(self, *, join: bool = False) -> None:
        """Upload what the bucket does not have yet of the journals that were written on this machine.

        Args:
            join: Whether the last object may grow as long as it is small: where a job ends.
        """
        with self._lock:
            for path in self._own_journals():
                _Upload(self._bucket, path, join=join).run()

    def _push_now_and_then(self, stop: threading.Event) -> None:
        while not stop.wait(EVERY_S):
            try:
                self.push()
            except PotstillError as error:
                logger.warning("answers could not be uploaded, they stand in %s: %s", self.folder, error)

    def _end(self) -> None:
        """Upload the last answers; a service that is away for a while is waited for."""
        self._ending = True
        until, pause = time.monotonic() + _PATIENCE_S, 1.0
        while True:
            try:
                self.push(join=True)
            except TryAgainError as error:
                if time.monotonic() + pause > until:
                    raise TryAgainError(
                        f"{error}. Answers wait in {self.folder}; the next job on this machine uploads them"
                    ) from error
                logger.warning("the last answers cannot be uploaded, trying again in %.0f s: %s", pause, error)
                time.sleep(pause)
                pause = min(60.0, pause * 2)
            else:
                return

    def _end_quietly(self) -> None:
        try:
            self._ending = True
            self.push(join=True)
        except PotstillError as error:
            logger.warning("answers wait in %s; the next job on this machine uploads them: %s", self.folder, error)

    @contextlib.contextmanager
    def _at_sigterm(self) -> Iterator[None]:
        """Upload before a SIGTERM (an eviction, `scancel`) ends this process."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGTERM, self._on_sigterm)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def _on_sigterm(self, number: int, _frame: FrameType | None) -> None:
        # The engine stands still meanwhile: journals are read from the disk, so it does not matter where.
        if not self._ending:
            logger.warning("told to end (SIGTERM): uploading the last answers")
            self._end_quietly()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


class _Upload:
    """Brings one journal's whole records into the bucket, in objects."""

    def __init__(self, bucket: Bucket, path: Path, *, join: bool) -> None:
        self._bucket = bucket
        self._path = path
        self._folder = path.parents[1].name
        self._join = join
        self._mark = path.with_suffix(".pushed")

    def run(self) -> None:
        """Upload what is missing; of several processes of this machine one does it."""
        size = self._path.stat().st_size
        with disk_errors(self._mark), self._mark.open("a+b") as mark:
            fcntl.flock(mark, fcntl.LOCK_EX)
            mark.seek(0)
            if int(mark.read() or b"-1") == size:
                return
            self._upload_from(*self._uploaded())
            mark.truncate(0)
            # The size, torn end included: as long as it stays, there is nothing new.
            mark.write(b"%d" % size)

    def _uploaded(self) -> tuple[int, list[Part]]:
        """Return up to which byte the bucket has the journal, and the objects there."""
        prefix = f"{self._folder}/journals/{self._path.stem}."
        parts = _whole(_parts(self._bucket.list(prefix)))
        end = 0
        for part in sorted(parts, key=lambda part: part.start):
            if part.start > end:
                break
            end = max(end, part.end)
        return end, parts

    def _upload_from(self, start: int, parts: list[Part]) -> None:
        places = list(journals.places(self._path, start))
        if not places:
            return
        end = places[-1].offset + places[-1].length
        old = self._joined(parts, start, end)
        if old:
            places = [*journals.places(self._path, old[-1].start)]
        for piece in _pieces(places):
            self._put(piece)
        for part in old:
            # The keys first: who finds a part without keys reads the part.
            self._bucket.delete(f"{self._folder}/keys/{part.name}.keys")
            self._bucket.delete(f"{self._folder}/journals/{part.name}.jsonl")

    def _joined(self, parts: list[Part], start: int, end: int) -> list[Part]:
        """Return the objects right before the new bytes that are joined with them, the nearest first.

        None larger than what comes after it, so that a byte is uploaded a logarithmic number of times
        (the logarithmic method: J. L. Bentley, "Decomposable searching problems", 1979).
        """
        old: list[Part] = []
        for part in sorted(parts, key=lambda part: -part.end):
            small = end - part.start <= _MOST_BYTES and (self._join or part.end - part.start <= end - start)
            if part.end != start or not small:
                break
            old.append(part)
            start = part.start
        return old

    def _put(self, places: list[Place]) -> None:
        start, end = places[0].offset, places[-1].offset + places[-1].length
        part = Part(self._path.stem, start, end)
        with disk_errors(self._path), self._path.open("rb") as stream:
            stream.seek(start)
            data = stream.read(end - start)
        keys = journals.pack_hints(place._replace(offset=place.offset - start) for place in places)
        self._bucket.put(f"{self._folder}/journals/{part.name}.jsonl", data)
        self._bucket.put(f"{self._folder}/keys/{part.name}.keys", keys)


def _pieces(places: list[Place]) -> Iterator[list[Place]]:
    """Cut records into groups of at most `_MOST_BYTES`."""
    piece: list[Place] = []
    for place in places:
        if piece and place.offset + place.length - piece[0].offset > _MOST_BYTES:
            yield piece
            piece = []
        piece.append(place)
    yield piece


def _parts(objects: Iterator[Stored]) -> list[Part]:
    return [part for found in objects if (part := Part.parse(found.name)) is not None]


def _whole(parts: list[Part]) -> list[Part]:
    """Leave out parts that lie within another one: they are about to be deleted."""
    kept: list[Part] = []
    for part in sorted(parts, key=lambda part: (part.journal, part.start, -part.end)):
        if not kept or kept[-1].journal != part.journal or part.end > kept[-1].end:
            kept.append(part)
    return kept


def _covers(known: list[tuple[int, int]], part: Part) -> bool:
    """Say whether known ranges cover all bytes of a part."""
    reached = part.start
    for start, end in sorted(known):
        if start > reached:
            break
        reached = max(reached, end)
    return reached >= part.end


@functools.cache
def open_bucket(url: str) -> Bucket:
    """Return the bucket of a URL; connections are kept for the life of the process."""
    return Bucket(url)


def cache_folder(url: str) -> Path:
    """Return the folder of this machine's working copies of a bucket, below `XDG_CACHE_HOME`.

    Raises:
        ConfigError: If there is no such folder and none can be made.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    endpoint = endpoint or os.environ.get("SNAKEMAKE_STORAGE_S3_ENDPOINT_URL", "")
    mark = hashlib.sha256(f"{endpoint} {url.rstrip('/')}".encode()).hexdigest()[:12]
    folder = base / "potstill" / "answers" / f"{url.removeprefix('s3://').partition('/')[0]}-{mark}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{folder}: the working copy of {url} cannot be made here ({error.strerror}); let XDG_CACHE_HOME name a "
            "folder that can be written"
        ) from error
    return folder


def fetch(path: Path) -> None:
    """Fetch the part of a journal that a file of a working copy stands for.

    Raises:
        StoreError: If the bucket does not have it any more.
    """
    folder = path.parents[1]
    bucket = open_bucket(loads((folder / "REMOTE.json").read_bytes())["answers_dir"])
    part = Part.parse(path.name)
    assert part is not None
    data = bucket.get(f"{folder.name}/journals/{part.name}.jsonl")
    if data is None:
        data = _fetch_from_larger(bucket, folder.name, part)
    # Not by `publish`: these are no rows that a job makes, and its notes on files must not tell of them.
    temporary = path.with_name(f".{path.name}.{os.uname().nodename}.{threading.get_native_id()}.tmp")
    with disk_errors(path), temporary.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
        temporary.replace(path)


def _fetch_from_larger(bucket: Bucket, folder: str, part: Part) -> bytes:
    """Return the bytes of a part that was joined with others since its keys were read."""
    for other in _parts(bucket.list(f"{folder}/journals/{part.journal}.")):
        if other.start <= part.start and part.end <= other.end:
            start = part.start - other.start
            data = bucket.get(f"{folder}/journals/{other.name}.jsonl", start, start + part.end - part.start)
            if data is not None:
                return data
    raise StoreError(
        f"{bucket.url}/{folder}/journals/{part.name}.jsonl: answers that were there are gone from the bucket; put them "
        f"back, or delete {cache_folder(bucket.url)} to go on without them"
    )
