"""What the Snakefile needs to know of a run before its DAG is built: stages, chunks, models, paths.

Plain Python, so that it can be tested without Snakemake; the rule files only spell it out.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import yaml

from potstill.chunks import chunk_names, count_chunks
from potstill.config.model import load_model
from potstill.config.run import STAGE_FOLDERS, Config, complete_config
from potstill.errors import ConfigError
from potstill.holders import hold, recover
from potstill.readers import count_rows, expand_inputs
from potstill.reports.files import keeps_stages, stage_ending
from potstill.routing import get_routes

#: The resource that generate jobs with a rate limit take one of.
RATE_LIMITED = "rate_limited_jobs"

#: The folder that Snakemake keeps in the working directory.
SNAKEMAKE_FOLDER = Path(".snakemake")

#: Snakemake's own `--max-jobs-per-timespan`: jobs, and seconds.
_DEFAULT_JOB_RATE = (100, 1)

#: Bytes of input from which on `chunks.compress: auto` packs: what no one opens in an editor any more.
_PACKED_FROM = 4 << 20

_DATABASE_ENDINGS = {".sqlite", ".sqlite3", ".db", ".duckdb"}

#: Flags with which Snakemake looks at a workflow and runs nothing.
_LOOKING = re.compile(
    r"-[a-zA-Z]*n[a-zA-Z]*|--dry-?run|--dag|--rulegraph|--filegraph|--d3dag|--lint|--report|--summary|-S"
    r"|--detailed-summary|-D|--list.*|-l|--unlock|--cleanup-metadata|--delete-.*|--archive|--containerize|--touch|-t"
)


#: A brace that opens no object of a JSON text.
_BRACE_IN_TEXT = re.compile(r'\{(?=[^"}])')


def to_parameter(value: Any) -> str:
    """Return a value as JSON that can stand among a rule's params.

    A brace inside a text (`dbname={db_id}`) is escaped: Snakemake would take it for a wildcard.
    """
    return _BRACE_IN_TEXT.sub(r"\\u007b", json.dumps(value, ensure_ascii=False))


@dataclass(frozen=True)
class Plan:
    """A run, known before its DAG is built.

    Args:
        config: The completed config.
        inputs: The input files.
        chunks: The names of the chunks, in order.
    """

    config: Config
    inputs: Sequence[Path]
    chunks: Sequence[str]

    #: Keys of `generate` that say how fast to ask, not what.
    pace_keys: ClassVar = (
        "concurrency",
        "batch_size",
        "requests_per_minute",
        "tokens_per_minute",
        "parallel_jobs",
        "outage_timeout_s",
        "batch_wait",
    )

    @property
    def folder(self) -> str:
        """The run's folder."""
        return f"{self.config['output_dir'].rstrip('/')}/{self.config['run']}"

    @property
    def ending(self) -> str:
        """The ending of a chunk's files."""
        return stage_ending(self.config)

    @property
    def keeps_stages(self) -> bool:
        """Whether the files of stages stay when nothing needs them any more."""
        return keeps_stages(self.config)

    @property
    def keeps_filtered(self) -> bool:
        """Whether a chunk's kept and rejected rows stay: with a target they are counted in later runs too."""
        return self.keeps_stages or self.has_target

    @property
    def models(self) -> dict[str, Any]:
        """The models of the config, by alias."""
        return {model["alias"]: model for model in self.config["models"]}

    @property
    def model_pattern(self) -> str:
        """A regular expression that fits the aliases and nothing else."""
        return "|".join(re.escape(alias) for alias in self.models)

    @property
    def routes(self) -> list[dict[str, Any]]:
        """Which rows go to which model; empty where every model takes all."""
        return get_routes(self.config["models"])

    @property
    def has_target(self) -> bool:
        """Whether the run stops asking once enough rows are kept."""
        return self.config["generate"]["target_kept"] is not None

    @property
    def target_settings(self) -> str:
        """What decides which rows are kept, as JSON: with a change, rows that were kept before do not count any more."""
        stages = {stage: self.config[stage] for stage in (*list(STAGE_FOLDERS)[1:], "filter", "rounds", "cascade")}
        generate = self.without(self.config["generate"], *self.pace_keys)
        return to_parameter({"generate": generate, **stages, "routes": self.routes})

    @property
    def priority(self) -> int:
        """The priority of the stages after `generate`: with a target, rows are judged before further ones are asked."""
        return 1 if self.has_target else 0

    @property
    def cascade(self) -> list[str]:
        """The aliases of the models that form a cascade, in order; none without one."""
        cascade: list[str] = self.config["cascade"]
        return cascade

    @property
    def rounds(self) -> range:
        """The numbers of the rounds; a single one unless the config has `rounds`."""
        rounds = self.config["rounds"]
        return range(1, 1 + (rounds["max"] if rounds else 1))

    @property
    def round_pattern(self) -> str:
        """A regular expression for the wildcard `model` of rules that work on one chunk of one round.

        The first round's files lie in the model's folder, those of later ones in `{model}/rounds/{round}`.
        """
        later = "|".join(map(str, self.rounds[1:]))
        return rf"(?:{self.model_pattern})(?:/rounds/(?:{later}))?" if later else self.model_pattern

    def in_rounds(self, patterns: str | Sequence[str]) -> list[str]:
        """Return path patterns with `{model}` for every round, the first round first."""
        patterns = [patterns] if isinstance(patterns, str) else patterns
        folders = ["{model}", *(f"{{model}}/rounds/{number}" for number in self.rounds[1:])]
        return [pattern.replace("{model}", folder) for folder in folders for pattern in patterns]

    @staticmethod
    def split_round(folder: str) -> tuple[str, int]:
        """Return the alias and the round's number that the wildcard `model` of one chunk's rules stands for."""
        alias, _, number = folder.partition("/rounds/")
        return alias, int(number or 1)

    def round_before(self, folder: str, chunk: str) -> list[str]:
        """Return the files of a chunk's round before the one in a folder: kept, rejected and not asked rows."""
        alias, number = self.split_round(folder)
        if number == 1:
            return []
        before = alias if number == 2 else f"{alias}/rounds/{number - 1}"
        not_asked = f"{self.folder}/{{model}}/generated/{{chunk}}.not_asked{self.ending}"
        return [path.format(model=before, chunk=chunk) for path in (self.kept_output, *self.rejected_output, not_asked)]

    def round_settings(self, folder: str) -> str:
        """Return the settings of `generate` for the round in a folder, as JSON."""
        rounds, (_, number) = self.config["rounds"], self.split_round(folder)
        settings = self.without(self.config["generate"], *self.pace_keys)
        settings |= {"samples": rounds["samples"], "first_sample": (number - 1) * rounds["samples"]}
        # The first round does not run again when the rule for stopping changes.
        return json.dumps(
            settings if number == 1 else {**settings, "stop_when": rounds["stop_when"]}, ensure_ascii=False
        )

    def solved_before(self, alias: str, chunk: str) -> list[str]:
        """Return the kept rows of a chunk of the models that come before one in the cascade."""
        before = self.cascade[: self.cascade.index(alias)] if alias in self.cascade else []
        patterns = self.in_rounds(self.kept_output)
        return [pattern.format(model=model, chunk=chunk) for model in before for pattern in patterns]

    def has(self, stage: str) -> bool:
        """Say whether a stage is switched on."""
        return stage == "generate" or self.config[stage] is not None

    def stage_output(self, stage: str) -> str:
        """Return the path pattern of a chunk after a stage."""
        return f"{self.folder}/{{model}}/{STAGE_FOLDERS[stage]}/{{chunk}}{self.ending}"

    def stage_before(self, stage: str) -> str:
        """Return the stage whose rows a stage reads: the nearest one before it that is on."""
        stages = list(STAGE_FOLDERS)
        before = stages[: stages.index(stage)] if stage in stages else stages
        return next(name for name in reversed(before) if self.has(name))

    @property
    def kept_output(self) -> str:
        """The path pattern of a chunk's kept rows: the filter's, or the last stage's where there is no filter."""
        return (
            f"{self.folder}/{{model}}/filtered/{{chunk}}.kept{self.ending}"
            if self.has("filter")
            else self.stage_output(self.stage_before("filter"))
        )

    @property
    def rejected_output(self) -> list[str]:
        """The path pattern of a chunk's rejected rows; none without a filter."""
        return [f"{self.folder}/{{model}}/filtered/{{chunk}}.rejected{self.ending}"] if self.has("filter") else []

    @property
    def gold_audit(self) -> list[str]:
        """The gold audit of the run; none when nothing is executed."""
        return [f"{self.folder}/gold_audit.jsonl"] if self.has("execute") else []

    @property
    def pace(self) -> str:
        """How fast to ask: keys of `generate` whose change must not make a job run again, as `key=value,…`."""
        generate = self.config["generate"]
        keys = [key for key in self.pace_keys if key != "concurrency" and generate[key] is not None]
        return ",".join(f"{key}={generate[key]:g}" for key in keys)

    @property
    def job_limits(self) -> dict[str, int]:
        """What a generate job takes of `RATE_LIMITED`: with a rate limit, only so many jobs ask as share it."""
        generate = self.config["generate"]
        limited = any(generate[key] is not None for key in ("requests_per_minute", "tokens_per_minute"))
        return {RATE_LIMITED: 1} if limited else {}

    @property
    def has_variants(self) -> bool:
        """Whether matches must hold on changed copies of the databases too."""
        return self.has("execute") and self.config["execute"]["variants"] > 0

    @property
    def variants(self) -> list[str]:
        """The list of changed copies of the databases; none when there are no such copies."""
        return [f"{self.folder}/prepared/variants.json"] if self.has_variants else []

    @property
    def workers(self) -> int:
        """Worker processes of a job that runs statements."""
        return int(self.config["execute"]["workers"])

    @property
    def skips_bad_gold(self) -> bool:
        """Whether rows with a bad gold query are not asked."""
        return self.has("execute") and self.config["execute"]["on_bad_gold"] == "skip"

    @property
    def pilot_summary(self) -> list[str]:
        """The summary of the prepared rows, which tells a pilot which rows are the first ones; none otherwise."""
        return [] if self.config["generate"]["max_rows"] is None else [f"{self.folder}/prepared/summary.json"]

    @property
    def generate_options(self) -> str:
        """The options of the command of `generate_answers` for what is switched on.

        Each option costs time in every job of the DAG, so that the others are left out.
        """
        options = {
            "gold": ("input", self.skips_bad_gold),
            "execute": ("params", self.skips_bad_gold),
            "summary": ("input", bool(self.pilot_summary)),
            "held_out": ("input", bool(self.students)),
            "solved": ("input", bool(self.cascade)),
            "target": ("input", self.has_target),
            "round_before": ("input", len(self.rounds) > 1),
            "routes": ("params", bool(self.routes)),
            "env_file": ("params", bool(self.env_files)),
        }
        return "".join(f" --{name.replace('_', '-')} {{{kind}.{name}:q}}" for name, (kind, on) in options.items() if on)

    @property
    def env_files(self) -> list[str]:
        """The files of variables that jobs read."""
        env_file = self.config["environment"]["env_file"]
        return [] if env_file is None else [env_file]

    @property
    def config_params(self) -> dict[str, Any]:
        """The config as params, one for each section: Snakemake names the ones that changed."""
        names = ("run", "output_dir", "answers_dir")
        sections = {key: value for key, value in self.config.items() if key not in names}
        return {"names": {key: self.config[key] for key in names}, **sections}

    @property
    def templates(self) -> list[str]:
        """The template files that prompts are made from."""
        template = self.config["prompt"]["template"]
        return [] if template is None else [template]

    @property
    def databases(self) -> list[Path]:
        """The database files that statements may run on."""
        execute = self.config["execute"]
        if execute is None:
            return []
        if execute["engine"] == "postgresql":
            return []
        if execute["database"] is not None:
            return [Path(execute["database"])]
        folder = Path(execute["database_dir"])
        return sorted(
            path for pattern in ("*", "*/*") for path in folder.glob(pattern) if path.suffix in _DATABASE_ENDINGS
        )

    def settings(self, stage: str, without: Sequence[str] = ()) -> str:
        """Return a stage's section of the config as JSON, for a command line."""
        settings = self.without(self.config[stage], *without)
        if stage in ("score", "filter"):
            settings["dialect"] = self.dialect
        return to_parameter(settings)

    @property
    def dialect(self) -> str:
        """The SQL dialect of the statements."""
        clean = self.config["clean"] or {}
        return clean.get("transpile_to") or clean.get("dialect") or "sqlite"

    @staticmethod
    def without(section: Mapping[str, Any], *keys: str) -> dict[str, Any]:
        """Return a section of the config without the keys that do not change a rule's output."""
        return {key: value for key, value in section.items() if key not in keys}

    def targets(self) -> list[str]:
        """Return what a run makes by default."""
        targets = [f"{self.folder}/config.yaml", f"{self.folder}/gates.passed.json"]
        for model in self.models:
            targets += [f"{self.folder}/{model}/merged.jsonl", f"{self.folder}/{model}/stats.json"]
            if self.config["export"] is not None:
                targets.append(f"{self.folder}/{model}/export/summary.json")
        if self.cascade:
            targets.append(f"{self.folder}/cascade/merged.jsonl")
            if self.config["export"] is not None:
                targets.append(f"{self.folder}/cascade/export/summary.json")
        if self.students:
            targets.append(f"{self.folder}/score_agreement.json")
        return targets

    @property
    def students(self) -> list[str]:
        """The aliases of the models with `role: student`."""
        return [alias for alias, model in self.models.items() if model["role"] == "student"]

    @property
    def teacher(self) -> str:
        """The alias of the first model that is no student."""
        return next(alias for alias, model in self.models.items() if model["role"] != "student")

    def owns(self, path: str) -> bool:
        """Say whether a path lies in this run's folder (below a module's prefix too)."""
        return f"/{self.folder.lstrip('/')}/" in f"/{path}"

    def server_resources(self) -> dict[str, int]:
        """Return what the models' own servers need (`server.resources`), the most of each kind."""
        needed: dict[str, int] = {}
        for model in self.config["models"]:
            server = load_model(Path(model["config"])).server or {}
            for name, amount in (server.get("resources") or {}).items():
                needed[name] = max(amount, needed.get(name, 0))
        return needed


def plan_run(
    config: Mapping[str, Any], files: Sequence[str | Path] = (), overrides: Mapping[str, Any] | None = None
) -> Plan:
    """Validate a config and work out the run.

    Args:
        config: What the user wrote.
        files: The config files it comes from, for messages.
        overrides: What of it stood on the command line (`--config`): Snakemake leaves nested values there as text.

    Raises:
        ConfigError: If the config cannot be used.
    """
    where = f"config {', '.join(os.path.relpath(file) for file in files)}" if files else "config"
    completed = complete_config(_retype(config, overrides or {}), where)
    inputs = expand_inputs(completed["input"]["path"])
    chunks = completed["chunks"]
    if chunks["compress"] == "auto":
        chunks["compress"] = "zst" if sum(path.stat().st_size for path in inputs) >= _PACKED_FROM else "none"
    count = chunks["count"] if "count" in chunks else count_chunks(_count_input(inputs), chunks["rows"])
    return Plan(completed, inputs, chunk_names(count))


def _retype(value: Any, override: Any) -> Any:
    """Return a value in which what came as text from the command line has the type that YAML gives it."""
    if isinstance(override, Mapping) and isinstance(value, Mapping):
        return {key: _retype(item, override[key]) if key in override else item for key, item in value.items()}
    if isinstance(override, list) and isinstance(value, list) and len(override) == len(value):
        return [_retype(item, other) for item, other in zip(value, override, strict=True)]
    if isinstance(override, str) and value == override:
        with contextlib.suppress(yaml.YAMLError):
            return yaml.safe_load(override)
    return value


def _count_input(inputs: Sequence[Path]) -> int:
    """Return the number of input lines; a count is remembered for as long as the file stays the same."""
    memory = SNAKEMAKE_FOLDER / "potstill-line-counts.json"
    try:
        known: dict[str, int] = json.loads(memory.read_bytes())
    except (OSError, ValueError):
        known = {}
    counts = {}
    for path in inputs:
        status = path.stat()
        key = f"{path} {status.st_size} {status.st_mtime_ns}"
        counts[key] = known[key] if key in known else count_rows(path)
    if counts.keys() - known.keys() and memory.parent.is_dir():
        temporary = memory.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(json.dumps(counts))
        temporary.replace(memory)
    return sum(counts.values())


def refuse_keep_incomplete(asked: bool) -> None:
    """Refuse a flag with which Snakemake takes a half-written output of a failed job for a finished one.

    Args:
        asked: Whether `--keep-incomplete` is set.

    Raises:
        ConfigError: If it is.
    """
    if asked:
        raise ConfigError(
            "--keep-incomplete (on the command line or in a profile) is refused: Snakemake would take the half-written output "
            "of a job that failed for a whole one, and the next run would merge too few rows without a word. Leave it out: every "
            "answer that was paid for is in the answer store anyway, and is not asked for again"
        )


def lift_job_rate(settings: Any) -> None:
    """Take away Snakemake's default limit of 100 jobs a second; one that the user has set stays.

    With a limit, each look at the jobs sets a timer for another one, and those timers never end: after some hundred
    jobs Snakemake 9.27 looks hundreds of times a second, and takes a whole core.

    Args:
        settings: Snakemake's scheduling settings; None where nothing is going to run.
    """
    limit = getattr(settings, "max_jobs_per_timespan", None)
    if limit is not None and (limit.max_jobs, limit.timespan) == _DEFAULT_JOB_RATE:
        settings.max_jobs_per_timespan = None


def enter_folder(plan: Plan, arguments: Sequence[str]) -> None:
    """Clear away what a killed run left in the working directory, and register this one.

    Args:
        plan: The run; only its own outputs are ever removed.
        arguments: The command line of Snakemake: a dry run or a report clears up too, but holds nothing.
    """
    # Tasks on SiFlow outlive their controller and are taken over by the next one: their outputs are not ours to remove.
    remote = (SNAKEMAKE_FOLDER / "siflow" / "run_id").exists()
    found = recover(SNAKEMAKE_FOLDER, (lambda _: False) if remote else plan.owns)
    if found.locks_removed or found.outputs_removed:
        _say(
            f"an earlier run here was killed: {found.locks_removed} locks and {len(found.outputs_removed)} unfinished "
            "files removed; nothing that was answered is asked again"
        )
    for holder in found.living:
        _say(
            f"another run is working in this folder ({holder.describe()}); it is respected. If you know that it is dead "
            "and it ran on another machine, `snakemake --unlock` frees the folder"
        )
    if not any(_LOOKING.fullmatch(argument) for argument in arguments):
        hold(SNAKEMAKE_FOLDER)


def _say(message: str) -> None:
    print(f"potstill: {message}", file=sys.stderr)


def write_log(plan: Plan) -> None:
    """Merge the logs of a run's jobs into its `logs/run.log`, in time order."""
    from potstill.reports.runlog import write_run_log

    folder = Path(plan.folder) / "logs"
    if folder.is_dir():
        write_run_log(folder)


def _first_counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in list(counts.items())[:6])


def describe_results(plan: Plan, folder: Path | None = None) -> str:
    """Say in a few lines what came out, for each model, and where to look."""
    root = folder or Path(plan.folder)
    lines = []
    for alias in plan.models:
        path = root / alias / "stats.json"
        if not path.is_file():
            continue
        stats = json.loads(path.read_bytes())
        counts = ", ".join(
            f"{stats[name]} {name.replace('_', ' ')}" for name in ("kept", "rejected", "failed", "not_asked")
        )
        groups = (("rejected", "reject_reason_counts"), ("not asked", "not_asked_reason_counts"))
        reasons = "; ".join(f"{word}: {found}" for word, key in groups if (found := _first_counts(stats[key])))
        lines.append(f"{alias}: {counts}" + (f" ({reasons})" if reasons else ""))
        lines.append(
            f"  look at {root / alias}/: merged.jsonl, rejected.jsonl, failed.jsonl, stats.json, reports/, export/"
        )
    if plan.cascade:
        lines.append(
            f"the best answer to each row: {root / 'cascade' / 'merged.jsonl'}, costs in summary.json beside it"
        )
    if (root / "report.html").is_file():
        lines.append(f"open first: {root / 'report.html'}")
    elif (root / "gold_audit.json").is_file():
        lines.append(_describe_audit(root / "gold_audit.json"))
    return "\n".join(lines)


def _describe_audit(path: Path) -> str:
    audit = json.loads(path.read_bytes())
    statuses = ", ".join(f"{name} {count}" for name, count in audit["statuses"].items())
    return f"gold audit: {audit['rows']} rows, {audit['distinct']} distinct gold queries ({statuses}), {audit['bad']} bad: {path}"
