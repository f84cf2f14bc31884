"""The executor's settings: every field has a default and a help text, and the settings check themselves.

No `from __future__ import annotations` here: Snakemake reads the types of the fields, not their names.
"""
# ruff: noqa: UP006, UP045 - Snakemake's argument parser knows `Optional[List[str]]`, not `list[str] | None`
# ruff: noqa: RUF009 - `one` and `several` return what `dataclasses.field` returns

import os
import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, List, NamedTuple, Optional  # noqa: UP035 - as above

from snakemake_interface_common.exceptions import WorkflowError
from snakemake_interface_executor_plugins.settings import ExecutorSettingsBase  # type: ignore[import-untyped]

from .locks import remove_locks_after_death

#: Region -> (clusters, the first is the default; base URL).
REGIONS: dict[str, tuple[tuple[str, ...], str]] = {
    "cn-beijing": (("auriga",), "https://console.siflow.cn/sfapi"),
    "cn-shanghai": (("hercules", "changliu", "shmaas"), "https://console.siflow.cn/sfapi"),
    "cn-wulanchabu": (("draco",), "https://console.siflow.cn/sfapi"),
    "longmen": (("longmen",), "https://console.siflow.cn/sfapi"),
    "zhuoguang": (("zhuoguang",), "https://console.siflow.cn/sfapi"),
    "taihua": (("taihua",), "https://console.siflow.cn/sfapi"),
    "ap-southeast": (("aries",), "https://console.scitix.ai/sfapi"),
    "us-east": (("cetus",), "https://console.scitix.ai/sfapi"),
    "us-west": (("pisces", "volans"), "https://console.scitix.ai/sfapi"),
}
PRIORITIES = ("high", "medium", "low")
TYPES = ("pod", "pytorchjob")
KEY_ID, KEY_SECRET = "SIFLOW_ACCESS_KEY_ID", "SIFLOW_ACCESS_KEY_SECRET"


class Volume(NamedTuple):
    """A shared volume and where it is mounted."""

    volume: str
    mount: str

    def as_body(self) -> dict[str, Any]:
        """The volume as the platform wants it: digits are an id, all else is a name."""
        named = {"volumeId": int(self.volume)} if self.volume.isdecimal() else {"volumeName": self.volume}
        return {**named, "mountDir": self.mount}


class InstanceSize(NamedTuple):
    """What one unit of an instance type has."""

    cpus: int
    mem_mb: int

    def units_for(self, threads: int, mem_mb: int) -> int:
        """How many units hold so many threads and so much memory."""
        by_cpu = -(-threads // self.cpus) if self.cpus else 1
        by_mem = -(-mem_mb // self.mem_mb) if self.mem_mb else 1
        return max(1, by_cpu, by_mem)


def parse_volume(text: str) -> Volume:
    """Parse `ID_OR_NAME:/mount/dir`."""
    name, separator, mount = text.partition(":")
    if not (separator and name and mount.startswith("/")):
        raise ValueError(f"{text!r} is not ID_OR_NAME:/MOUNT/DIR, for example 5:/volume/data")
    return Volume(name, mount)


def parse_size(text: str) -> tuple[str, InstanceSize]:
    """Parse `NAME:cpus=2,mem_mb=8192`."""
    name, _, rest = text.partition(":")
    parts = dict(part.partition("=")[::2] for part in rest.split(","))
    good = set(parts) <= {"cpus", "mem_mb"} and parts.get("cpus") and all(v.isdecimal() for v in parts.values())
    if not (name and good and int(parts["cpus"]) > 0):
        raise ValueError(f"{text!r} is not NAME:cpus=N[,mem_mb=N], for example sci.c23-2:cpus=2,mem_mb=8192")
    return name, InstanceSize(int(parts["cpus"]), int(parts.get("mem_mb") or 0))


def one(text: str, default: Any = None, **more: Any) -> Any:
    """A field with one value."""
    return field(default=default, metadata={"help": text, **more})


def several(text: str) -> Any:
    """A field with several values."""
    more = {"nargs": "+", "parse_func": list, "unparse_func": list}
    return field(default=None, metadata={"help": text, **more})


@dataclass
class ExecutorSettings(ExecutorSettingsBase):  # type: ignore[misc]  # untyped upstream
    """Settings of the SiFlow executor; a field without a value comes from the task template, else it has a default."""

    region: str = one("Region of the platform.", "cn-beijing")
    cluster: Optional[str] = one("Cluster in the region. Default: the region's first.")
    base_url: Optional[str] = one("Base URL of the API, ending in /sfapi. Default: the region's.")
    env_file: Optional[Path] = one(
        f"File with {KEY_ID}=… and {KEY_SECRET}=… (and other variables that secret_env names); "
        "it wins over the environment and is read again when it changes."
    )
    name_prefix: str = one("How the names of all tasks begin: letters, digits, dashes.", "snakemake")
    resource_pool: Optional[str] = one("Resource pool. A rule's own: resources: siflow_pool.")
    priority: Optional[str] = one(
        "high, medium or low. Default: medium. A rule's own: resources: siflow_priority.", choices=PRIORITIES
    )
    guarantee: bool = one("Ask for places that are not preempted. A rule's own: resources: siflow_guarantee=1.", False)
    image: Optional[str] = one("Name of the image. A rule's own: resources: siflow_image.")
    image_version: Optional[str] = one("Version of the image. A rule's own: resources: siflow_image_version.")
    image_url: Optional[str] = one("URL of the image. A rule's own: resources: siflow_image_url.")
    image_type: Optional[str] = one("preset or custom; left out by default.", choices=("preset", "custom"))
    type: Optional[str] = one("pod or pytorchjob. Default: pod.", choices=TYPES)
    workers: Optional[int] = one("Workers of a task. Default: 1 with pod, 0 (the master alone) with pytorchjob.")
    instance: Optional[List[str]] = several(
        "Instance types, tried in order. A rule's own: resources: siflow_instance (several: separated by commas)."
    )
    count_per_pod: Optional[int] = one(
        "Units of the instance per pod, where neither the rule (resources: siflow_count_per_pod) nor "
        "instance_size says how many. Default: 1."
    )
    instance_size: Optional[List[str]] = several(
        "What one unit of an instance has, as NAME:cpus=N,mem_mb=N; with it, a job's threads and mem_mb become "
        "the units per pod."
    )
    volumes: Optional[List[str]] = several("Shared volumes as ID_OR_NAME:/MOUNT/DIR; one holds the working directory.")
    fault_tolerance: Optional[int] = one("How often the platform itself restarts a failed task. Default: 0.")
    task_template: Optional[Path] = one(
        "YAML file with fields of the task's body (camelCase, as the API has them), "
        "used where settings and rules say nothing."
    )
    python: Optional[str] = one("Python interpreter in the task. Default: the one that runs Snakemake.")
    env: Optional[List[str]] = several(
        "Variables for the tasks that are no secrets: NAME (its value here) or NAME=VALUE. PYTHONPATH goes along."
    )
    secret_env: Optional[List[str]] = several(
        "Names of variables with secrets that the tasks need. They travel as files of mode 0600 on the shared volume; "
        "the task has NAME and NAME_FILE. A missing one is an error, unless written NAME?."
    )
    env_in_body: Optional[List[str]] = several(
        "Names of variables that travel as hidden taskEnv of the task instead; the platform then knows their values."
    )
    on_exit: str = one(
        "What Ctrl-C or SIGTERM does with live tasks: stop them, or detach (the same command later takes them over).",
        "stop",
        choices=("stop", "detach"),
    )
    page_size: int = one("Tasks per page of a list.", 100)
    max_calls_per_second: float = one("Calls to the API per second, all kinds together.", 20.0)
    request_timeout: float = one("Seconds after which a call is given up.", 20.0)
    poll_seconds: float = one("Seconds between two looks at the tasks while things change.", 2.0)
    poll_seconds_max: float = one("Seconds between two looks while nothing changes.", 30.0)
    list_grace: float = one("Seconds for which a new task may be missing from the list.", 60.0)
    lost_after: float = one("Seconds of 'not found' after which a task counts as lost.", 60.0)
    unknown_after: float = one(
        "Seconds in an unclear state after which a task is stopped and submitted again; 0: never.", 3600.0
    )
    infra_retries: int = one(
        "How often a job is submitted again after a fault of the platform, without costing an attempt.", 10
    )
    infra_backoff: float = one("Seconds before the first such submission; they double, up to 5 minutes.", 10.0)
    retry_delay: float = one(
        "Seconds before a job that failed by itself is submitted again (Snakemake's --retries).", 10.0
    )
    input_wait: float = one("Seconds that a task waits for inputs that the volume shows late.", 120.0)
    lease: float = one("Seconds without a sign of life after which another process may take a task's work over.", 15.0)
    status_line_seconds: float = one("Seconds between two lines with the state of all tasks.", 60.0)

    def __post_init__(self) -> None:
        """Check all fields; all that is wrong is said at once."""
        problems = [text for check in CHECKS for text in check(self)]
        if problems:
            raise WorkflowError("SiFlow settings:\n" + "\n".join(f"  {text}" for text in problems))
        # The one moment at which Snakemake lets a plugin act before it looks at its lock.
        remove_locks_after_death(Path(".snakemake"))

    @property
    def effective_cluster(self) -> str:
        """The cluster given, or the region's first."""
        return self.cluster or REGIONS[self.region][0][0]

    @property
    def effective_base_url(self) -> str:
        """The base URL given, or the region's, without a slash at its end."""
        return (self.base_url or REGIONS[self.region][1]).rstrip("/")

    @property
    def parsed_volumes(self) -> list[Volume]:
        """The volumes."""
        return [parse_volume(text) for text in self.volumes or []]

    @property
    def sizes(self) -> dict[str, InstanceSize]:
        """Instance name -> what one unit has."""
        return dict(parse_size(text) for text in self.instance_size or [])


def flag(name: str) -> str:
    """The name of a field on the command line."""
    return "--siflow-" + name.replace("_", "-")


def check_region(given: ExecutorSettings) -> list[str]:
    """A known region with one of its clusters, unless a base URL says that the installation is another one."""
    if given.base_url and given.cluster and given.region:
        return []
    if given.region not in REGIONS:
        return [f"--siflow-region {given.region!r}: one of {', '.join(REGIONS)} (or give base URL and cluster too)"]
    clusters = REGIONS[given.region][0]
    if given.cluster and given.cluster not in clusters:
        return [f"--siflow-cluster {given.cluster!r}: region {given.region} has {', '.join(clusters)}"]
    return []


def check_base_url(given: ExecutorSettings) -> list[str]:
    """A URL that a request can be sent to, without a key in it."""
    url = given.base_url
    if url is not None and not re.fullmatch(r"https?://[^\s@?#]+", url):
        return [f"--siflow-base-url {url!r}: must be http(s)://HOST[:PORT]/sfapi, without user, query or fragment"]
    return []


def check_name_prefix(given: ExecutorSettings) -> list[str]:
    """A prefix that leaves room for run, key and attempt in a name."""
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,18}[a-z0-9])?", given.name_prefix):
        return [
            f"--siflow-name-prefix {given.name_prefix!r}: a-z, 0-9 and dashes, a letter first, at most 20 characters"
        ]
    return []


def check_choices(given: ExecutorSettings) -> list[str]:
    """Fields with a closed list of values."""
    return [
        f"{flag(item.name)} {getattr(given, item.name)!r}: one of {', '.join(item.metadata['choices'])}"
        for item in fields(given)
        if item.metadata.get("choices") and getattr(given, item.name) not in (None, *item.metadata["choices"])
    ]


#: Field -> the least value that it may have.
LEAST = {
    "workers": 0,
    "count_per_pod": 1,
    "fault_tolerance": 0,
    "page_size": 1,
    "max_calls_per_second": 0.1,
    "request_timeout": 0.5,
    "poll_seconds": 0.1,
    "poll_seconds_max": 0.1,
    "list_grace": 0,
    "lost_after": 0,
    "unknown_after": 0,
    "infra_retries": 0,
    "infra_backoff": 0,
    "retry_delay": 0,
    "input_wait": 0,
    "lease": 2,
    "status_line_seconds": 1,
}


def check_numbers(given: ExecutorSettings) -> list[str]:
    """Numbers that are large enough."""
    return [
        f"{flag(name)} {value}: must be at least {least}"
        for name, least in LEAST.items()
        if (value := getattr(given, name)) is not None and not value >= least
    ]


def check_lists(given: ExecutorSettings) -> list[str]:
    """Fields whose values have a form of their own."""
    problems = []
    for name, parse in (("volumes", parse_volume), ("instance_size", parse_size)):
        for text in getattr(given, name) or []:
            try:
                parse(text)
            except ValueError as error:
                problems.append(f"{flag(name)}: {error}")
    return problems


def check_env_names(given: ExecutorSettings) -> list[str]:
    """Names of variables, and no secret given where a name is meant."""
    secret = [
        f"{flag(name)}: give the name of a variable, never its value"
        for name in ("secret_env", "env_in_body")
        for text in getattr(given, name) or []
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*\??", text)
    ]
    plain = [
        f"{flag('env')} {text!r}: must be NAME or NAME=VALUE"
        for text in given.env or []
        if not re.fullmatch(r"(?s)[A-Za-z_][A-Za-z0-9_]*(=.*)?", text)
    ]
    return secret + plain


def check_files(given: ExecutorSettings) -> list[str]:
    """Files that must be there."""
    named = ((name, getattr(given, name)) for name in ("env_file", "task_template"))
    return [f"{flag(name)} {path}: no such file" for name, path in named if path and not Path(path).is_file()]


CHECKS = (
    check_region,
    check_base_url,
    check_name_prefix,
    check_choices,
    check_numbers,
    check_lists,
    check_env_names,
    check_files,
)


def read_env_file(path: Path) -> dict[str, str]:
    """Read `NAME=VALUE` lines, with or without `export` and quotes; the value is taken as it stands between them."""
    values: dict[str, str] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        match = re.fullmatch(r"\s*(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)\s*=\s*(.*?)\s*", line)
        if match and not line.lstrip().startswith("#"):
            name, value = match.groups()
            quoted = len(value) > 1 and value[0] in "'\"" and value[-1] == value[0]
            values[name] = value[1:-1] if quoted else value
    return values


class Environment:
    """Variables from the env file and the process; the file is read again when it changes."""

    def __init__(self, env_file: Optional[Path]) -> None:
        self._file = env_file
        self._stamp: Optional[tuple[int, int]] = None
        self._values: dict[str, str] = {}

    def refresh(self) -> bool:
        """Read the file again if it has changed; returns whether it had."""
        if self._file is None:
            return False
        try:
            info = self._file.stat()
            stamp = (info.st_mtime_ns, info.st_size)
            if stamp == self._stamp:
                return False
            self._values = read_env_file(self._file)
        except OSError:
            # The file is being replaced, or the volume does not answer: keep what we have.
            return False
        self._stamp = stamp
        return True

    def get(self, name: str) -> Optional[str]:
        """The value of a variable."""
        self.refresh()
        return self._values.get(name) or os.environ.get(name)


class Keys(NamedTuple):
    """The access key."""

    key_id: str
    secret: str


def find_keys(environment: Environment, env_file: Optional[Path]) -> Keys:
    """The access key from the environment or the env file.

    Raises:
        WorkflowError: When one is missing; it names the variable.
    """
    values = {name: environment.get(name) for name in (KEY_ID, KEY_SECRET)}
    missing = [name for name, value in values.items() if not value]
    if missing:
        place = (
            f"in {env_file} or the environment"
            if env_file
            else "in the environment, or name a file by --siflow-env-file"
        )
        raise WorkflowError(
            f"SiFlow: {' and '.join(missing)} not set; set {'it' if len(missing) == 1 else 'them'} {place}."
        )
    return Keys(str(values[KEY_ID]).strip(), str(values[KEY_SECRET]).strip())
