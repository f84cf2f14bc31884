"""An export from end to end: read all rows once to plan, read them again to write.

The files appear together at the end, after the check that nothing leaks between the splits; a leak, a full disk or a
bad row leaves none of them half written.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from potstill.errors import ConfigError, InputError
from potstill.exports.columns import ParquetWriter, publish_parquet
from potstill.exports.examples import Example, prompt_key
from potstill.exports.huggingface import Card, find_license, write_card
from potstill.exports.index import iter_located
from potstill.exports.layout import EXPORT_SPLITS, EXPORT_SUMMARY, get_export_files, get_table_path
from potstill.exports.plan import Plan, make_plan
from potstill.exports.preferences import Preferences
from potstill.exports.ratios import SPLITS, Ratios
from potstill.exports.reading import Reader, Reading
from potstill.exports.shapes import Shapes
from potstill.exports.split import SplitLedger, hash64
from potstill.records import Row
from potstill.rows import RowWriter, loads, open_binary, publish, publish_json

logger = logging.getLogger("potstill.export")

#: Format and split -> the file being written.
_Outputs = Mapping[tuple[str, int], RowWriter | ParquetWriter]


@dataclass
class ExportCounts:
    """What an export did; `summary.json` holds the same.

    Attributes:
        rows: Kept rows read.
        exported: Kept rows that are in the files (before a format leaves out what it cannot hold).
        left_out: Reason -> rows, of the kept ones that are not.
        formats: Format -> split -> rows.
        not_held: Format -> rows that it cannot hold (an image in Alpaca, a role that ShareGPT has not).
    """

    rows: int = 0
    exported: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    formats: dict[str, dict[str, int]] = field(default_factory=dict)
    not_held: Counter[str] = field(default_factory=Counter)


class Exporter:
    """One export; `run` does it.

    Args:
        settings: The `export` section of a config.
        output_dir: The export folder.

    Raises:
        ConfigError: If the settings contradict one another.
    """

    def __init__(self, settings: Mapping[str, Any], output_dir: Path) -> None:
        self._settings, self._output_dir = settings, output_dir
        self._ratios = Ratios.from_settings(settings)
        self._shapes = Shapes(settings)
        self._reader = Reader(settings, self._shapes)
        self._split_by: str = settings.get("split_field") or settings.get("split_by", "prompt")
        self._counts = ExportCounts()
        if "huggingface" in self._shapes.formats:
            find_license(settings)

    def run(self, kept: Sequence[Path], rejected: Sequence[Path], manifest: Path | None = None) -> ExportCounts:
        """Export, and return the counts.

        Args:
            kept: Files of kept rows.
            rejected: Files of rejected rows.
            manifest: The manifest that the dataset card quotes.

        Raises:
            ConfigError: If a file cannot be used as the settings ask for.
            InputError: If a row cannot be used, or the splits leak.
        """
        files = [(path, True) for path in kept] + [(path, False) for path in rejected]
        self._refuse_packed([path for path, _ in files])
        reading = self._reader.read(files, self._output_dir)
        plan = make_plan(reading, self._settings, self._ratios)
        self._counts.rows, self._counts.left_out = reading.kept, reading.left_out
        self._write(reading, plan)
        self._remove_stale()
        if "huggingface" in self._shapes.formats:
            write_card(self._output_dir / "huggingface", self._card(reading, manifest))
        publish_json(self._output_dir / EXPORT_SUMMARY, self._summary(reading, plan))
        self._log(plan)
        return self._counts

    def _refuse_packed(self, paths: list[Path]) -> None:
        packed = [path for path in paths if path.suffix in {".gz", ".zst"}]
        if packed and self._shapes.preferences:
            name = self._shapes.preferences[0]
            raise ConfigError(f"{packed[0]}: {name} reads rows out of order: a packed file must be unpacked first")

    # --- writing ----------------------------------------------------------------------------------------------

    def _write(self, reading: Reading, plan: Plan) -> None:
        ledger = SplitLedger(("prompt", "group"))
        with ExitStack() as stack:
            outputs = self._open_outputs(stack, reading)
            places = stack.enter_context(publish(self._output_dir / EXPORT_SPLITS))
            for position, row in _iter_rows(reading):
                split, used, kept = (column[position] for column in (plan.split, plan.used, plan.kept))
                places.write(_describe_place(row, int(split), kept=bool(kept), used=bool(used)))
                if used and kept:
                    self._write_row(row, position, int(split), outputs, reading, ledger)
            self._write_preferences(reading, plan, outputs, ledger)
            self._check_leaks(ledger, reading, plan)

    def _open_outputs(self, stack: ExitStack, reading: Reading) -> _Outputs:
        outputs: dict[tuple[str, int], RowWriter | ParquetWriter] = {}
        for name in self._shapes.formats:
            self._counts.formats[name] = dict.fromkeys(self._ratios.names(), 0)
            for split in self._ratios.names():
                path = self._output_dir / get_table_path(name, split)
                outputs[name, SPLITS.index(split)] = (
                    stack.enter_context(publish_parquet(path, reading.columns))
                    if name in self._shapes.tables
                    else stack.enter_context(publish(path))
                )
        return outputs

    def _write_row(
        self, row: Row, position: int, split: int, outputs: _Outputs, reading: Reading, ledger: SplitLedger
    ) -> None:
        example = self._shapes.make_example(row)
        assert example is not None
        self._counts.exported += 1
        _note(ledger, reading, example, split, position)
        for name in self._shapes.tables:
            self._put(name, split, self._shapes.make_table_row(row, example), outputs)
        for name in self._shapes.lines:
            line = self._shapes.make_line(name, row, example)
            if line is None:
                self._counts.not_held[name] += 1
            else:
                self._put(name, split, line, outputs)

    def _write_preferences(self, reading: Reading, plan: Plan, outputs: _Outputs, ledger: SplitLedger) -> None:
        preferences = Preferences(reading.index, plan, self._shapes, self._settings)
        for name in self._shapes.preferences:
            for row, candidate in preferences.iter_rows(name):
                split = int(plan.split[candidate.position])
                _note(ledger, reading, candidate.example, split, candidate.position)
                self._put(name, split, row, outputs)

    def _put(self, name: str, split: int, row: Row, outputs: _Outputs) -> None:
        outputs[name, split].write(row)
        self._counts.formats[name][SPLITS[split]] += 1

    # --- the check --------------------------------------------------------------------------------------------

    def _check_leaks(self, ledger: SplitLedger, reading: Reading, plan: Plan) -> None:
        leaks = [*ledger.find_leaks("prompt"), *ledger.find_leaks("group")]
        if not leaks:
            return
        shown = "; ".join(
            f"one {leak.kind} in {_name_row(reading, plan, leak.first)} and in {_name_row(reading, plan, leak.second)}"
            for leak in leaks[:3]
        )
        raise InputError(
            f"export: {len(leaks)} texts stand in more than one split (split by {self._split_by}): {shown}. "
            "Nothing was exported. Mend the field that names the splits, or leave it out (export.split_field: null)"
        )

    # --- the end ----------------------------------------------------------------------------------------------

    def _remove_stale(self) -> None:
        """Remove files of an earlier export with other ratios: a test file that is now half of train."""
        expected = {self._output_dir / name for name in get_export_files(self._settings)}
        for name in self._shapes.formats:
            for split in SPLITS:
                path = self._output_dir / get_table_path(name, split)
                if path not in expected:
                    path.unlink(missing_ok=True)

    def _card(self, reading: Reading, manifest: Path | None) -> Card:
        return Card(
            settings=self._settings,
            splits=self._counts.formats["huggingface"],
            columns=list(reading.columns.types),
            manifest=manifest,
            left_out=dict(self._counts.left_out),
            split_by=self._split_by,
        )

    def _summary(self, reading: Reading, plan: Plan) -> Row:
        counts = self._counts
        return {
            "rows": counts.rows,
            "exported": counts.exported,
            "left_out": {name: count for name, count in sorted(counts.left_out.items()) if count},
            "formats": counts.formats,
            "not_held": dict(counts.not_held),
            "split": {
                "by": self._split_by,
                "groups": plan.groups,
                "groups_joined_by_a_prompt": plan.joined,
                "ratios": dict(zip(SPLITS, self._ratios.as_list(), strict=True)),
                "borders": [round(border / 2**64, 9) for border in plan.borders],
                "empty": self._empty_splits(plan),
            },
            "columns_as_json_text": reading.columns.as_json_text(),
        }

    def _empty_splits(self, plan: Plan) -> list[str]:
        return [name for name in self._ratios.names() if plan.is_empty(name)]

    def _log(self, plan: Plan) -> None:
        counts = self._counts
        logger.info("exported %d of %d kept rows: %s", counts.exported, counts.rows, counts.formats)
        for reason, count in sorted(counts.left_out.items()):
            if count:
                logger.info("left out: %d rows, %s", count, reason)
        if counts.exported and not any(counts.formats.get("dpo", {"train": 1}).values()):
            logger.warning(
                "dpo has no pairs: no prompt has a right and a wrong answer; ask for generate.samples of 2 or more"
            )
        for name in self._empty_splits(plan) if counts.exported else ():
            cure = f"name another export.split_by, or set export.{name}_ratio to 0"
            logger.warning("the split %s is empty: %d groups by %s; %s", name, plan.groups, self._split_by, cure)


def _iter_rows(reading: Reading) -> Iterator[tuple[int, Row]]:
    position = 0
    for path, _ in reading.index.files:
        for located in iter_located(path):
            yield position, located.row
            position += 1


def _describe_place(row: Row, split: int, *, kept: bool, used: bool) -> Row:
    return {
        "sample_id": row["sample_id"],
        "sample_index": row.get("sample_index", 0),
        "split": SPLITS[split],
        "kept": kept,
        "used": used,
    }


def _note(ledger: SplitLedger, reading: Reading, example: Example, split: int, position: int) -> None:
    ledger.add("prompt", hash64(prompt_key(example.prompt)), split, position)
    ledger.add("group", reading.index.group[position], split, position)


def _name_row(reading: Reading, plan: Plan, position: int) -> str:
    index = reading.index
    with open_binary(index.files[index.file_of(position)][0]) as stream:
        stream.seek(index.offset[position])
        row = loads(stream.readline())
    return f"{SPLITS[plan.split[position]]} (row {row['sample_id'][:12]})"
