"""The first pass of an export: every row is read once, and what the plan needs is noted."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from potstill.exports.columns import Columns
from potstill.exports.decontaminate import ReferenceIndex, load_references
from potstill.exports.examples import prompt_key
from potstill.exports.groups import KeyOf, make_key
from potstill.exports.index import NO_SPLIT, Located, RowIndex, iter_located
from potstill.exports.shapes import Shapes
from potstill.exports.split import hash64, read_split
from potstill.records import Row
from potstill.rows import RowWriter, publish, publish_json


@dataclass
class Reading:
    """What the first pass found.

    Attributes:
        index: The rows, some 60 bytes each.
        columns: The types of the tables' columns.
        kept: Kept rows read.
        left_out: Reason -> kept rows that no format gets.
    """

    index: RowIndex
    columns: Columns = field(default_factory=Columns)
    kept: int = 0
    left_out: Counter[str] = field(default_factory=Counter)


class Reader:
    """Reads the files of one export.

    Args:
        settings: The `export` section of a config.
        shapes: How rows look in the formats.

    Raises:
        ConfigError: If a group or a limit names what is none.
    """

    def __init__(self, settings: Mapping[str, Any], shapes: Shapes) -> None:
        self._settings, self._shapes = settings, shapes
        self._group_key = make_key(settings.get("split_by", "prompt"), settings, "export.split_by")
        limits: Mapping[str, int] = settings.get("limits") or {}
        self._limit_keys: list[KeyOf] = [make_key(name, settings, f"export.limits.{name}") for name in limits]
        self._references: ReferenceIndex | None = None
        self._hits: Counter[tuple[str, str]] = Counter()

    def read(self, files: Sequence[tuple[Path, bool]], output_dir: Path) -> Reading:
        """Read all files, and write the report on contamination where one is asked for.

        Args:
            files: The files, and whether their rows are kept ones.
            output_dir: The export folder.

        Raises:
            InputError: If a row cannot be used.
            ConfigError: If a reference file cannot be read.
        """
        reading = Reading(RowIndex(files, limits=[array("Q") for _ in self._limit_keys]))
        # A table without rows has its conversations too: a loader refuses one without columns.
        reading.columns.see({"messages": [{"role": "", "content": ""}]})
        settings = self._settings.get("decontaminate")
        if settings is None:
            self._read_files(reading, None)
            return reading
        self._references = load_references(settings, self._settings.get("sql_dialect", "sqlite"))
        with publish(output_dir / "decontamination.jsonl") as report:
            self._read_files(reading, report)
        publish_json(output_dir / "decontamination.json", self._report(reading, self._references))
        return reading

    def _read_files(self, reading: Reading, report: RowWriter | None) -> None:
        for number, (path, _) in enumerate(reading.index.files):
            reading.index.starts.append(len(reading.index))
            for located in iter_located(path):
                self._read_row(reading, located, number, report)

    def _read_row(self, reading: Reading, located: Located, number: int, report: RowWriter | None) -> None:
        index, row = reading.index, located.row
        index.add_identity(located, number)
        example = self._shapes.make_example(row)
        reason = "no_answer" if example is None else self._find_contamination(row, bool(index.kept[-1]), report)
        index.usable.append(reason is None)
        index.prompt.append(hash64(prompt_key(example.prompt)) if example else 0)
        index.group.append(hash64(self._group_key(row)) if example else 0)
        for column, key in zip(index.limits, self._limit_keys, strict=True):
            column.append(hash64(key(row)) if example else 0)
        index.given_split.append(self._given_split(row))
        if index.kept[-1]:
            reading.kept += 1
            if reason is not None:
                reading.left_out[reason] += 1
            elif self._shapes.tables and example is not None:
                reading.columns.see(self._shapes.make_table_row(row, example))

    def _given_split(self, row: Row) -> int:
        name = self._settings.get("split_field")
        where = f"export.split_field: row {row['sample_id']}: field {name!r}"
        return NO_SPLIT if name is None else read_split(row.get(name), where)

    def _find_contamination(self, row: Row, kept: bool, report: RowWriter | None) -> str | None:
        if self._references is None or report is None:
            return None
        hit = self._references.find(row, list(self._settings.get("sql_fields", ("gold_sql", "sql"))))
        if hit is None:
            return None
        drops = self._settings["decontaminate"].get("action", "drop") == "drop"
        report.write({**hit.as_report(row), "kept": kept, "dropped": drops})
        if kept:
            self._hits[hit.reference.file, hit.method] += 1
        return "contaminated" if drops else None

    def _report(self, reading: Reading, references: ReferenceIndex) -> Row:
        by_file = {name: {**counts, "contaminated": 0} for name, counts in references.files.items()}
        by_method: Counter[str] = Counter(dict.fromkeys(references.methods, 0))
        for (name, method), count in self._hits.items():
            by_file[name]["contaminated"] += count
            by_method[method] += count
        return {
            "checked": reading.kept,
            "contaminated": self._hits.total(),
            "dropped": reading.left_out["contaminated"],
            "by_method": dict(by_method),
            "by_file": by_file,
            "settings": dict(self._settings["decontaminate"]),
        }
