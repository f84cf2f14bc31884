"""prepare_rows: a user's input in, N chunks of rows with an identity and a conversation out.

One pass reads, checks and renders each input line into a packed spool file beside the chunks, while the digests
of the rows tell which of them repeat an earlier one (`potstill.duplicates`) or nearly do (`potstill.near_duplicates`); a second pass cuts the spool into
chunks of equal size. Memory does not grow with the input, and the same input gives the same bytes.
"""

from __future__ import annotations

import itertools
import logging
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from potstill.duplicates import DuplicateFinder
from potstill.errors import ConfigError, InputError
from potstill.near_duplicates import NearFinder, make_near_finder
from potstill.prompts import Prompt, PromptError
from potstill.readers import InputLine, read_input
from potstill.records import ADDED_FIELDS, GIVEN_FIELDS, Row, canonical_json, find_collisions, sha256_text
from potstill.routing import Router
from potstill.rows import RowWriter, dumps, loads, open_binary, publish, publish_json

logger = logging.getLogger(__name__)

#: Bad lines whose reasons an error message quotes.
_QUOTED_REASONS = 3


class BadRow(ValueError):
    """Raised when one input line cannot become a row; its text is the reason."""


@dataclass
class PrepareCounts:
    """What became of the input lines: `lines` = `rows` + `rejected` + `duplicates` (those that were dropped)."""

    lines: int = 0
    rejected: int = 0
    duplicates: int = 0
    repeated: int = 0
    near_duplicates: int = 0
    rows: int = 0


@dataclass(frozen=True)
class Outputs:
    """The files that `prepare_rows` writes.

    Args:
        chunks: The chunk files, in order; their number is the number of chunks.
        rejected: A line for each bad input line: file, line number, reason.
        duplicates: Each row that repeats another.
        summary: The counts, and for each chunk its rows, its first row and the sum of its sample_ids.
    """

    chunks: Sequence[Path]
    rejected: Path
    duplicates: Path
    summary: Path


def prepare_rows(
    outputs: Outputs,
    *,
    inputs: Sequence[str | Path],
    input_settings: Mapping[str, Any],
    settings: Mapping[str, Any],
    prompt: Prompt,
    evidence: Path,
    routes: Sequence[Mapping[str, Any]] = (),
) -> PrepareCounts:
    """Prepare a whole input.

    Args:
        outputs: The files to write.
        inputs: The input files, in order.
        input_settings: The config's `input` (`id_field`, `rename`).
        settings: The config's `prepare`.
        prompt: Makes a row's conversation.
        evidence: Gets a copy of the bad lines when there are too many of them, since Snakemake deletes the
            declared outputs of a failed job.
        routes: Which rows go to which model (`potstill.routing`); empty where every model takes all.

    Returns:
        The counts.

    Raises:
        InputError: If an input is missing, or too large a share of its lines is bad.
        ConfigError: If a field of the user's has one of our names, or no model takes a row.
    """
    counts = PrepareCounts()
    maker = RowMaker(input_settings, settings, prompt, routes)
    outputs.summary.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".spool-", dir=outputs.summary.parent) as folder:
        spool = Path(folder) / "rows.zst"
        finder = DuplicateFinder(Path(folder))
        near = make_near_finder(Path(folder), settings["near_duplicates"])
        with publish(outputs.rejected) as rejected, publish(spool) as spooled:
            for row in make_rows(inputs, settings["max_line_bytes"], maker, counts, rejected):
                finder.add(bytes.fromhex(row["sample_id"]))
                near.add(row)
                spooled.write(row)
        _check_bad_ratio(counts, settings["max_bad_ratio"], outputs.rejected, evidence)
        repeats = finder.resolve()
        keep_repeated = settings["deduplicate"] in ("mark", False)
        counts.repeated = repeats
        counts.duplicates = 0 if keep_repeated else repeats
        counts.near_duplicates = near.resolve(finder.ordinals())
        counts.duplicates += counts.near_duplicates if near.drops else 0
        counts.rows = spooled.count - counts.duplicates
        with publish(outputs.duplicates) as duplicates:
            resolver = _RepeatResolver(maker, duplicates, keep_repeated, mark=settings["deduplicate"] == "mark")
            kept = resolver.filter(_read_lines(spool), finder.ordinals(), near)
            entries = list(_cut(kept, counts.rows, outputs.chunks))
    _remove_stale(outputs.chunks)
    publish_json(outputs.summary, {**vars(counts), "chunks": entries})
    logger.info("prepared %s", ", ".join(f"{name}: {value}" for name, value in vars(counts).items()))
    return counts


def make_rows(
    inputs: Sequence[str | Path],
    max_line_bytes: int,
    maker: RowMaker,
    counts: PrepareCounts,
    rejected: RowWriter,
) -> Iterator[Row]:
    """Yield the good rows of all inputs; write the bad lines out.

    Args:
        inputs: The input files, in order.
        max_line_bytes: A longer line is a bad line.
        maker: Makes the rows.
        counts: Its `lines` and `rejected` are counted up.
        rejected: Gets a line for each bad one: file, line number, reason.

    Raises:
        InputError: If a file cannot be read to its end.
        ConfigError: If a field has one of our names.
    """
    for path in inputs:
        for line in read_input(Path(path), max_line_bytes):
            counts.lines += 1
            try:
                yield maker.row(line)
            except BadRow as error:
                counts.rejected += 1
                rejected.write({"file": line.file, "line": line.number, "reason": str(error)})


class RowMaker:
    """Turns one input line into a row of ours.

    Args:
        input_settings: The config's `input`.
        settings: The config's `prepare`.
        prompt: Makes a row's conversation.
        routes: Which rows go to which model; empty where every model takes all.
    """

    def __init__(
        self,
        input_settings: Mapping[str, Any],
        settings: Mapping[str, Any],
        prompt: Prompt,
        routes: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self._format: str = input_settings["format"]
        self._rename: Mapping[str, str] = input_settings["rename"]
        self._id_field: str | None = input_settings["id_field"]
        self._id_in_hash: bool = settings["id_in_hash"]
        self._fields: Sequence[str] | None = settings["canonical_fields"]
        self._keep_canonical: bool = settings["keep_canonical_input"]
        self._prompt = prompt
        self._router = Router(routes) if routes else None
        # The conversation that a row carries is meant, unless a template makes another.
        self._allowed = GIVEN_FIELDS if prompt.needs_messages and prompt.messages_field == "messages" else frozenset()

    def row(self, line: InputLine) -> Row:
        """Return the row of a line.

        Raises:
            BadRow: If there is none.
            ConfigError: If a field has one of our names, or no model takes the row.
        """
        if line.row is None:
            raise BadRow(line.reason)
        row = {self._rename.get(name, name): value for name, value in line.row.items()}
        if self._format != "rows":
            row = _convert(row, self._format)
        if collisions := find_collisions(row, self._allowed):
            raise _collision_error(line, collisions[0])
        try:
            canonical = self.canonical(row)
            messages = self._prompt.messages(row)
        except PromptError as error:
            raise BadRow(str(error)) from error
        row["sample_id"] = sha256_text(canonical)
        if self._keep_canonical:
            row["canonical_input"] = canonical
        row["messages"] = messages
        if self._router is not None:
            # Before a token is spent.
            self._router.find_teacher(row, f"{line.file}: line {line.number}")
        return row

    def canonical(self, row: Row) -> str:
        """Return the canonical JSON of the fields that make up a row's identity: its own, not those that we add."""
        if self._fields:
            names = list(self._fields)
        else:
            names = [
                name for name in row if name != self._id_field and (name not in ADDED_FIELDS or name in self._allowed)
            ]
        if self._id_in_hash and self._id_field is not None:
            names.append(self._id_field)
        missing = [name for name in (*names, *filter(None, [self._id_field])) if name not in row]
        if missing:
            raise BadRow(f"missing field: {missing[0]!r}")
        try:
            return canonical_json({name: row[name] for name in names})
        except (ValueError, RecursionError) as error:
            raise BadRow(f"no canonical JSON: {error}") from error


def _convert(row: Row, form: str) -> Row:
    """Return a row of a training file as a row of ours."""
    from potstill.inputs import convert_row

    try:
        return convert_row(row, form)
    except InputError as error:
        raise BadRow(str(error)) from error


def _collision_error(line: InputLine, name: str) -> ConfigError:
    return ConfigError(
        f"{line.file}: line {line.number}: the field {name!r} has the name of one that potstill adds; "
        f"rename it in the config: `input: {{rename: {{{name}: their_{name}}}}}`"
    )


def _check_bad_ratio(counts: PrepareCounts, allowed: float, rejected: Path, evidence: Path) -> None:
    if counts.rejected <= allowed * counts.lines:
        return
    quoted: list[str] = []
    with publish(evidence) as copy, open_binary(rejected) as lines:
        for line in lines:
            copy.write_line(line)
            if len(quoted) < _QUOTED_REASONS:
                bad = loads(line)
                quoted.append(f"{bad['file']}: line {bad['line']}: {bad['reason']}")
    raise InputError(
        f"{counts.rejected} of {counts.lines} input lines are bad, more than prepare.max_bad_ratio ({allowed:g}) allows; "
        f"all of them with their reasons: {evidence}; the first: {'; '.join(quoted)}"
    )


def _read_lines(path: Path) -> Iterator[bytes]:
    with open_binary(path) as stream:
        yield from stream


class _RepeatResolver:
    """Drops or renames repeated rows, and writes them out."""

    def __init__(self, maker: RowMaker, duplicates: RowWriter, keep: bool, *, mark: bool) -> None:
        self._maker = maker
        self._duplicates = duplicates
        self._keep = keep
        self._mark = mark

    def filter(self, lines: Iterator[bytes], ordinals: Iterator[int], near: NearFinder) -> Iterator[tuple[str, bytes]]:
        """Yield the sample_id and the line of each row that stays."""
        for line, ordinal, repeat in zip(lines, ordinals, near.repeats(), strict=True):
            row = loads(line)
            if repeat is not None:
                row |= {"duplicate_of": repeat.sample_id, "duplicate_similarity": repeat.similarity}
                self._duplicates.write(row)
                if not near.drops:
                    yield row["sample_id"], dumps(row)
            elif ordinal == 0:
                yield row["sample_id"], line
            elif self._keep:
                row = self._rename(row, ordinal)
                yield row["sample_id"], dumps(row)
            else:
                self._duplicates.write(row)

    def _rename(self, row: Row, ordinal: int) -> Row:
        """Give the k-th repeat of a row an identity of its own."""
        original = row["sample_id"]
        row["sample_id"] = sha256_text(f"{self._maker.canonical(row)}#{ordinal}")
        if self._mark:
            row["duplicate_of"] = original
            self._duplicates.write(row)
        return row


def _cut(lines: Iterator[tuple[str, bytes]], rows: int, chunks: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """Write the chunks, equal in size but for one row, and yield what the summary says of each."""
    size, larger = divmod(rows, len(chunks))
    first = 0
    for number, path in enumerate(chunks):
        ids = 0
        with publish(path) as out:
            for sample_id, line in itertools.islice(lines, size + (number < larger)):
                out.write_line(line)
                ids += int(sample_id, 16)
        yield {
            "chunk": path.name.partition(".")[0],
            "rows": out.count,
            "first_row": first,
            "id_sum": format_id_sum(ids),
        }
        first += out.count
    # Exhaust the reader: repeated rows after the last kept one are written out too.
    for _ in lines:
        raise AssertionError("more rows than were counted")


def format_id_sum(ids: int) -> str:
    """Return the sum of sample_ids, modulo 2^256, in hex: alike for two sets of rows in any order, else not."""
    return f"{ids % (1 << 256):064x}"


def find_first_row(summary: Path, chunk: Path) -> int:
    """Return the place of a chunk's first row in the whole input, as `prepare_rows` has noted it."""
    entries = orjson.loads(summary.read_bytes())["chunks"]
    return next(int(entry["first_row"]) for entry in entries if entry["chunk"] == chunk.name.partition(".")[0])


def _remove_stale(chunks: Sequence[Path]) -> None:
    """Remove the chunk files of an earlier, larger number of chunks, which nobody must merge."""
    wanted = {path.name for path in chunks}
    for folder in {path.parent for path in chunks}:
        for path in folder.iterdir():
            if path.name not in wanted and re.fullmatch(r"\d{4,}\.jsonl(\.zst|\.gz)?", path.name):
                path.unlink()
