"""An export from end to end: read all rows once to plan, read them again to write.

Between the two passes stand some 60 bytes a row (`RowIndex`): which group it is in, what the verifier said, whether
it is used. The files appear together at the end, after the check that nothing leaks between the splits; a leak, a full
disk or a bad row leaves none of them half written.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from potstill.errors import ConfigError, InputError
from potstill.exports import split as splits
from potstill.exports.columns import Columns, ParquetWriter, publish_parquet
from potstill.exports.decontaminate import ReferenceIndex, load_references
from potstill.exports.examples import AnswerForm, Example, ExampleMaker, clean_values, prompt_key
from potstill.exports.formats import JSONL_SHAPES, carry_fields
from potstill.exports.groups import KeyOf, make_key
from potstill.exports.huggingface import Card, find_license, write_card
from potstill.exports.index import Located, RowIndex, Verdict, iter_located, parse_line
from potstill.exports.layout import EXPORT_SPLITS, EXPORT_SUMMARY, get_export_files, get_table_path
from potstill.exports.pairs import Candidate, group_by_prompt, make_pairs, to_dpo, to_kto
from potstill.exports.ratios import SPLITS, Ratios
from potstill.records import VOLATILE_FIELDS, Row
from potstill.rows import RowWriter, loads, open_binary, publish, publish_json

#: Fields that say how a row came through the run; they are the same for each exported row, or only bulk.
_LEFT_OUT_COLUMNS = frozenset({*VOLATILE_FIELDS, "canonical_input", "keep", "reject_reasons", "reject_reason"})
_NO_SPLIT = 255


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


class Plan(NamedTuple):
    """Which rows are used and in which split, by position."""

    used: NDArray[np.bool_]
    split: NDArray[np.uint8]
    groups: int
    joined: int
    borders: tuple[int, int]


class Exporter:
    """One export; `run` does it."""

    def __init__(
        self,
        kept: Sequence[Path],
        rejected: Sequence[Path],
        output_dir: Path,
        settings: Mapping[str, Any],
        manifest: Path | None = None,
    ) -> None:
        self._settings = settings
        self._formats = list(dict.fromkeys(settings.get("formats") or ["messages"]))
        self._output_dir, self._manifest = output_dir, manifest
        self._ratios = Ratios.from_settings(settings)
        self._maker = ExampleMaker(AnswerForm.from_settings(settings))
        self._split_by = settings.get("split_by", "prompt")
        self._group_key = make_key(self._split_by, settings, "export.split_by")
        self._limits = self._make_limits()
        if "huggingface" in self._formats:
            find_license(settings)
        self._index = RowIndex([(path, True) for path in kept] + [(path, False) for path in rejected])
        self._index.limits = [array("Q") for _ in self._limits]
        self._refuse_packed()
        self._columns = Columns()
        self._counts = ExportCounts()
        self._contamination: ReferenceIndex | None = None
        self._hits: Counter[tuple[str, str]] = Counter()

    def _refuse_packed(self) -> None:
        packed = [path for path, _ in self._index.files if path.suffix in {".gz", ".zst"}]
        if packed and self._preferences:
            raise ConfigError(
                f"{packed[0]}: {self._preferences[0]} reads rows out of order: a packed file must be unpacked first"
            )

    def _make_limits(self) -> list[tuple[KeyOf, int]]:
        limits = self._settings.get("limits") or {}
        return [(make_key(name, self._settings, f"export.limits.{name}"), int(limit)) for name, limit in limits.items()]

    @property
    def _tables(self) -> list[str]:
        return [name for name in self._formats if name in {"parquet", "huggingface"}]

    @property
    def _preferences(self) -> list[str]:
        return [name for name in self._formats if name in {"dpo", "kto"}]

    def run(self) -> ExportCounts:
        """Export, and return the counts.

        Raises:
            ConfigError: If the settings contradict one another.
            InputError: If a row cannot be used, or the splits leak.
        """
        self._read()
        plan = self._make_plan()
        self._write(plan)
        publish_json(self._output_dir / EXPORT_SUMMARY, self._summary(plan))
        return self._counts

    # --- first pass -------------------------------------------------------------------------------------------

    def _read(self) -> None:
        settings = self._settings.get("decontaminate")
        if settings is None:
            self._read_files(None)
            return
        self._contamination = load_references(settings, self._settings.get("sql_dialect", "sqlite"))
        with publish(self._output_dir / "decontamination.jsonl") as report:
            self._read_files(report)
        publish_json(self._output_dir / "decontamination.json", self._contamination_report(self._contamination))

    def _read_files(self, report: RowWriter | None) -> None:
        for number, (path, kept) in enumerate(self._index.files):
            self._index.starts.append(len(self._index))
            for located in iter_located(path):
                self._read_row(located, number, kept, report)

    def _read_row(self, located: Located, number: int, kept: bool, report: RowWriter | None) -> None:
        index, row = self._index, located.row
        index.add_identity(located, number, kept)
        example = self._maker.make(row)
        reason = "no_answer" if example is None else self._find_contamination(row, kept, report)
        index.usable.append(reason is None)
        index.prompt.append(splits.hash64(prompt_key(example.prompt)) if example else 0)
        index.group.append(splits.hash64(self._group_key(row)) if example else 0)
        for column, (key, _) in zip(index.limits, self._limits, strict=True):
            column.append(splits.hash64(key(row)) if example else 0)
        self._read_given_split(row)
        if kept:
            self._counts.rows += 1
            if reason is not None:
                self._counts.left_out[reason] += 1
            elif self._tables and example is not None:
                self._columns.see(self._table_row(row, example))

    def _read_given_split(self, row: Row) -> None:
        name = self._settings.get("split_field")
        where = f"export.split_field: row {row['sample_id']}: field {name!r}"
        self._index.given_split.append(_NO_SPLIT if name is None else splits.read_split(row.get(name), where))

    def _find_contamination(self, row: Row, kept: bool, report: RowWriter | None) -> str | None:
        if self._contamination is None or report is None:
            return None
        hit = self._contamination.find(row, list(self._settings.get("sql_fields", ("gold_sql", "sql"))))
        if hit is None:
            return None
        drops = self._settings["decontaminate"].get("action", "drop") == "drop"
        report.write({**hit.as_report(row), "kept": kept, "dropped": drops})
        if kept:
            self._hits[hit.reference.file, hit.method] += 1
        return "contaminated" if drops else None

    def _contamination_report(self, index: ReferenceIndex) -> Row:
        by_file = {name: {**counts, "contaminated": 0} for name, counts in index.files.items()}
        by_method: Counter[str] = Counter(dict.fromkeys(index.methods, 0))
        for (name, method), count in self._hits.items():
            by_file[name]["contaminated"] += count
            by_method[method] += count
        return {
            "checked": self._counts.rows,
            "contaminated": self._hits.total(),
            "dropped": self._counts.left_out["contaminated"],
            "by_method": dict(by_method),
            "by_file": by_file,
            "settings": dict(self._settings["decontaminate"]),
        }

    # --- the plan ---------------------------------------------------------------------------------------------

    def _make_plan(self) -> Plan:
        index = self._index
        kept = index.flags("kept").astype(np.bool_)
        used = self._apply_limits(index.flags("usable").astype(np.bool_), kept)
        groups = splits.join_groups(index.column("prompt"), index.column("group"))
        places = splits.place_groups(groups, str(self._settings.get("split_seed", "potstill")))
        borders = splits.find_borders(places[used & kept], self._ratios)
        split = splits.assign_splits(places, borders)
        if self._settings.get("split_field") is not None:
            split = index.flags("given_split")
            self._check_given_splits(split[used])
        distinct = np.unique(groups[used & kept])
        joined = len(np.unique(index.column("group")[used & kept])) - len(distinct)
        return Plan(used, split, len(distinct), joined, borders)

    def _check_given_splits(self, split: NDArray[np.uint8]) -> None:
        absent = [name for number, name in enumerate(SPLITS) if name not in self._ratios.names()]
        found = [name for name in absent if (split == SPLITS.index(name)).any()]
        if found:
            raise ConfigError(
                f"export.split_field: rows name the split {found[0]!r}, and export.{found[0]}_ratio is 0; "
                "give it a ratio above 0, so that its file is part of the export"
            )

    def _apply_limits(self, used: NDArray[np.bool_], kept: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Apply each limit in turn to what the one before left; kept rows and negatives each have their own room."""
        verdicts = self._index.flags("verdict")
        for part in (kept, ~kept & np.isin(verdicts, (Verdict.WRONG, Verdict.ERROR))):
            for column, (_, limit) in zip(self._index.limits, self._limits, strict=True):
                at = np.flatnonzero(used & part)
                keys = np.frombuffer(column, dtype=np.uint64)[at]
                stay = splits.choose_limited(keys, self._index.column("itself")[at], limit)
                used[at[~stay]] = False
                if part is kept:
                    self._counts.left_out["over_limit"] += int((~stay).sum())
        return used

    # --- second pass ------------------------------------------------------------------------------------------

    def _write(self, plan: Plan) -> None:
        ledger = splits.SplitLedger(("prompt", "group"))
        with ExitStack() as stack:
            outputs = self._open_outputs(stack)
            places = stack.enter_context(publish(self._output_dir / EXPORT_SPLITS))
            for position, row in self._iter_rows():
                split, used = int(plan.split[position]), bool(plan.used[position])
                kept = bool(self._index.kept[position])
                places.write(_describe_place(row, split, kept=kept, used=used))
                if used and kept:
                    self._write_row(row, position, split, outputs, ledger)
            for name in self._preferences:
                self._write_preferences(name, plan, outputs, ledger)
            self._check_leaks(ledger, plan)
        self._remove_stale()
        if "huggingface" in self._formats:
            write_card(self._output_dir / "huggingface", self._card())

    def _open_outputs(self, stack: ExitStack) -> dict[tuple[str, int], RowWriter | ParquetWriter]:
        outputs: dict[tuple[str, int], RowWriter | ParquetWriter] = {}
        for name in self._formats:
            self._counts.formats[name] = dict.fromkeys(self._ratios.names(), 0)
            for split in self._ratios.names():
                path = self._output_dir / get_table_path(name, split)
                number = SPLITS.index(split)
                outputs[name, number] = (
                    stack.enter_context(publish_parquet(path, self._columns))
                    if name in self._tables
                    else stack.enter_context(publish(path))
                )
        return outputs

    def _iter_rows(self) -> Iterator[tuple[int, Row]]:
        position = 0
        for path, _ in self._index.files:
            for located in iter_located(path):
                yield position, located.row
                position += 1

    def _write_row(
        self,
        row: Row,
        position: int,
        split: int,
        outputs: Mapping[tuple[str, int], RowWriter | ParquetWriter],
        ledger: splits.SplitLedger,
    ) -> None:
        example = self._maker.make(row)
        assert example is not None
        self._counts.exported += 1
        self._note(ledger, example, split, position)
        carried = carry_fields(row, self._settings)
        for name in self._tables:
            self._put(name, split, self._table_row(row, example), outputs)
        for name in (name for name in self._formats if name in JSONL_SHAPES):
            shaped = JSONL_SHAPES[name](example)
            if shaped is None:
                self._counts.not_held[name] += 1
            else:
                self._put(name, split, {**shaped, **carried}, outputs)

    def _note(self, ledger: splits.SplitLedger, example: Example, split: int, position: int) -> None:
        ledger.add("prompt", splits.hash64(prompt_key(example.prompt)), split, position)
        ledger.add("group", self._index.group[position], split, position)

    def _put(self, name: str, split: int, row: Row, outputs: Mapping[tuple[str, int], Any]) -> None:
        outputs[name, split].write(row)
        self._counts.formats[name][SPLITS[split]] += 1

    def _table_row(self, row: Row, example: Example) -> Row:
        """Return the row of a table: the fields asked for (all by default), the conversation with its answer."""
        names = self._settings.get("columns") or [name for name in row if name not in _LEFT_OUT_COLUMNS]
        table = {name: clean_values(row.get(name)) for name in names if name != "messages"}
        score = self._settings.get("score_name", "score")
        renamed = {score if name == "score" else name: value for name, value in table.items()}
        return {"messages": [*example.prompt, example.answer], **renamed}

    # --- preference data --------------------------------------------------------------------------------------

    def _write_preferences(
        self,
        name: str,
        plan: Plan,
        outputs: Mapping[tuple[str, int], RowWriter | ParquetWriter],
        ledger: splits.SplitLedger,
    ) -> None:
        with ExitStack() as stack:
            streams = [stack.enter_context(path.open("rb")) for path, _ in self._index.files]
            for positions in self._iter_samples(plan, pairs=name == "dpo"):
                candidates = [self._read_candidate(position, streams) for position in positions]
                for row, candidate in self._shape_preferences(name, candidates):
                    split = int(plan.split[candidate.position])
                    self._note(ledger, candidate.example, split, candidate.position)
                    self._put(name, split, {**row, **carry_fields(candidate.row, self._settings)}, outputs)

    def _shape_preferences(self, name: str, candidates: list[Candidate]) -> Iterator[tuple[Row, Candidate]]:
        if name == "kto":
            yield from ((to_kto(one), one) for one in candidates)
            return
        limit = int((self._settings.get("dpo") or {}).get("max_pairs", 4))
        for group in group_by_prompt(candidates):
            yield from ((to_dpo(chosen, rejected), chosen) for chosen, rejected in make_pairs(group, limit))

    def _iter_samples(self, plan: Plan, *, pairs: bool) -> Iterator[list[int]]:
        """Yield the positions of each sample's judged rows, samples in the order of their first row.

        Args:
            plan: Which rows are used.
            pairs: Leave out samples without a right and a wrong answer; negatives over the limit count there too,
                since the limit on the right answers bounds the pairs.
        """
        index = self._index
        verdicts = index.flags("verdict")
        judged = (index.flags("usable") != 0) & (verdicts != Verdict.UNKNOWN)
        judged &= plan.used | (verdicts != Verdict.GOOD) if pairs else plan.used
        at = np.flatnonzero(judged)
        order = at[np.argsort(index.column("sample")[at], kind="stable")]
        sample = index.column("sample")[order]
        starts = np.flatnonzero(np.concatenate((sample[:1] == sample[:1], sample[1:] != sample[:-1])))
        ends = np.append(starts[1:], len(order))
        for number in np.argsort(order[starts], kind="stable"):
            group = order[starts[number] : ends[number]]
            good = verdicts[group] == Verdict.GOOD
            if not pairs or (good.any() and not good.all()):
                yield group.tolist()

    def _read_candidate(self, position: int, streams: Sequence[Any]) -> Candidate:
        number = self._index.file_of(position)
        stream = streams[number]
        stream.seek(self._index.offset[position])
        row = parse_line(stream.readline(), self._index.files[number][0], position - self._index.starts[number] + 1)
        example = self._maker.make(row)
        assert example is not None
        return Candidate(position, row, example, Verdict(self._index.verdict[position]))

    # --- the end ----------------------------------------------------------------------------------------------

    def _check_leaks(self, ledger: splits.SplitLedger, plan: Plan) -> None:
        leaks = [*ledger.find_leaks("prompt"), *ledger.find_leaks("group")]
        if not leaks:
            return
        shown = "; ".join(
            f"one {leak.kind} in {self._name_row(leak.first, plan)} and in {self._name_row(leak.second, plan)}"
            for leak in leaks[:3]
        )
        raise InputError(
            f"export: {len(leaks)} texts stand in more than one split (group: {self._split_by}): {shown}. "
            "Nothing was exported. Mend the field that names the splits, or leave it out (export.split_field: null)"
        )

    def _name_row(self, position: int, plan: Plan) -> str:
        number = self._index.file_of(position)
        with open_binary(self._index.files[number][0]) as stream:
            stream.seek(self._index.offset[position])
            row = loads(stream.readline())
        return f"{SPLITS[plan.split[position]]} (row {row['sample_id'][:12]})"

    def _remove_stale(self) -> None:
        """Remove files of an earlier export with other ratios: a test file that is now half of train."""
        expected = {self._output_dir / name for name in get_export_files(self._settings)}
        for name in self._formats:
            for split in SPLITS:
                path = self._output_dir / get_table_path(name, split)
                if path not in expected:
                    path.unlink(missing_ok=True)

    def _card(self) -> Card:
        return Card(
            settings=self._settings,
            splits=self._counts.formats["huggingface"],
            columns=list(self._columns.types),
            manifest=self._manifest,
            left_out=dict(self._counts.left_out),
            split_by=self._split_by,
        )

    def _summary(self, plan: Plan) -> Row:
        counts = self._counts
        return {
            "rows": counts.rows,
            "exported": counts.exported,
            "left_out": {name: count for name, count in sorted(counts.left_out.items()) if count},
            "formats": counts.formats,
            "not_held": dict(counts.not_held),
            "split": {
                "by": self._settings.get("split_field") or self._split_by,
                "groups": plan.groups,
                "groups_joined_by_a_prompt": plan.joined,
                "ratios": dict(zip(SPLITS, self._ratios.as_list(), strict=True)),
                "borders": [round(border / 2**64, 9) for border in plan.borders],
                "empty": [name for name in self._ratios.names() if not self._rows_in(plan, name)],
            },
            "columns_as_json_text": self._columns.as_json_text(),
        }

    def _rows_in(self, plan: Plan, name: str) -> int:
        kept = self._index.flags("kept").astype(np.bool_)
        return int(((plan.split == SPLITS.index(name)) & plan.used & kept).sum())


def _describe_place(row: Row, split: int, *, kept: bool, used: bool) -> Row:
    return {
        "sample_id": row["sample_id"],
        "sample_index": row.get("sample_index", 0),
        "split": SPLITS[split],
        "kept": kept,
        "used": used,
    }
