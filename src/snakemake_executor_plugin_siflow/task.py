"""The body of a task: the task template, over it the settings, over them the job's own resources."""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from .settings import PRIORITIES, TYPES, ExecutorSettings

#: Resource of a rule -> field of the body, for those that are copied.
COPIED = {
    "siflow_pool": "resourcePool",
    "siflow_priority": "priority",
    "siflow_image": "image",
    "siflow_image_version": "imageVersion",
    "siflow_image_url": "imageUrl",
    "siflow_image_type": "imageType",
    "siflow_type": "type",
}
RESOURCES = (*COPIED, "siflow_instance", "siflow_count_per_pod", "siflow_guarantee", "siflow_workers")
#: Field of the body -> setting, for those that are copied.
FROM_SETTINGS = {
    "resourcePool": "resource_pool",
    "priority": "priority",
    "image": "image",
    "imageVersion": "image_version",
    "imageUrl": "image_url",
    "imageType": "image_type",
    "type": "type",
    "workers": "workers",
}
#: What a template may set, with the type that it must have.
TEMPLATE = {
    "type": str,
    "image": str,
    "imageVersion": str,
    "imageUrl": str,
    "imageType": str,
    "workers": int,
    "resourcePool": str,
    "priority": str,
    "guarantee": bool,
    "instances": list,
    "volumes": list,
    "datasets": list,
    "models": list,
    "taskEnv": list,
    "enhancements": dict,
    "product": str,
    "module": str,
    "oss": str,
    "timezone": str,
}
REQUIRED = {
    "image": "--siflow-image, resources: siflow_image",
    "resourcePool": "--siflow-resource-pool, resources: siflow_pool",
    "instances": "--siflow-instance, resources: siflow_instance",
}


class TaskError(Exception):
    """Raised when a job cannot become a task; the message says which setting or resource is wrong."""


def load_template(path: Path | None) -> dict[str, Any]:
    """Read and check the task template."""
    if path is None:
        return {}
    try:
        template = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, yaml.YAMLError) as error:
        raise TaskError(f"task template {path}: {error}") from error
    if not isinstance(template, dict):
        raise TaskError(f"task template {path}: must be a mapping of fields of the body")
    for name, value in template.items():
        if name not in TEMPLATE:
            raise TaskError(f"task template {path}: {name!r} is not allowed{nearest(str(name), list(TEMPLATE))}")
        if not isinstance(value, TEMPLATE[name]) or (TEMPLATE[name] is int and isinstance(value, bool)):
            raise TaskError(f"task template {path}: {name} must be of type {TEMPLATE[name].__name__}, found {value!r}")
    return template


def nearest(name: str, known: list[str]) -> str:
    """A hint at the name that was probably meant."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]}?" if close else f"; allowed: {', '.join(known)}"


def task_name(name_prefix: str, run: str, key: str, attempt: int) -> str:
    """The name prefix of an attempt; by it alone the attempt's task is found again."""
    return f"{name_prefix}-{run[:8]}-{key[:12]}-a{attempt}"


NAME = re.compile(r"(?P<prefix>.+-(?P<run>[0-9a-f]{8})-(?P<key>[0-9a-f]{12})-a(?P<attempt>[0-9]+))(?:-[^/]*)?")


def job_key(run: str, outputs: list[str], fallback: str) -> str:
    """The key of a piece of work: the same for every controller that sees the same outputs in the same run."""
    text = "\0".join([run, *(sorted(outputs) or [fallback])])
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:12]


def label_value(text: str) -> str:
    """A text in the form that label values have everywhere: short, letters, digits, `_`, `.`, `-`."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", text)[:60].strip("_.-") or "job"


class TaskFactory:
    """Makes bodies.

    Args:
        settings: The executor's settings.
    """

    def __init__(self, settings: ExecutorSettings) -> None:
        self._settings = settings
        self._template = load_template(settings.task_template)
        self._sizes = settings.sizes

    def body(self, resources: Mapping[str, Any], threads: int, rule: str) -> dict[str, Any]:
        """The body for a job, all but name, labels, variables and command.

        Raises:
            TaskError: When a resource is wrong or a field that is needed has no value.
        """
        self._check_resources(resources, rule)
        body: dict[str, Any] = {"type": "pod", "priority": "medium", "guarantee": False, "datasets": [], "models": []}
        body.update({"enhancements": self._enhancements(), "volumes": []})
        body.update(self._template)
        given = {name: getattr(self._settings, setting) for name, setting in FROM_SETTINGS.items()}
        body.update({name: value for name, value in given.items() if value is not None})
        if self._settings.fault_tolerance is not None:
            body["enhancements"] = {**body["enhancements"], **self._enhancements()}
        if self._settings.volumes:
            body["volumes"] = [volume.as_body() for volume in self._settings.parsed_volumes]
        body["guarantee"] = bool(resources.get("siflow_guarantee", self._settings.guarantee or body["guarantee"]))
        body.update({name: str(resources[key]) for key, name in COPIED.items() if resources.get(key) not in (None, "")})
        body["instances"] = self._instances(body, resources, threads, rule)
        body["workers"] = int(resources.get("siflow_workers", body.get("workers", 1 if body["type"] == "pod" else 0)))
        self._check(body, rule)
        return body

    def _enhancements(self) -> dict[str, Any]:
        """Fault tolerance as the platform wants it."""
        restarts = self._settings.fault_tolerance or 0
        return {"faultTolerance": {"enabled": restarts > 0, "maxRetryCount": restarts}}

    def _check_resources(self, resources: Mapping[str, Any], rule: str) -> None:
        """Refuse a misspelled resource of ours, and values of the wrong kind."""
        for name in resources:
            if name.startswith("siflow_") and name not in RESOURCES:
                raise TaskError(f"rule {rule}: resource {name} is not known{nearest(name, list(RESOURCES))}")
        for name, least in (("siflow_count_per_pod", 1), ("siflow_workers", 0), ("siflow_guarantee", 0)):
            value = resources.get(name, least)
            if not isinstance(value, int) or value < least:
                raise TaskError(f"rule {rule}: resource {name}={value!r} must be a whole number of at least {least}")

    def _instances(
        self, body: dict[str, Any], resources: Mapping[str, Any], threads: int, rule: str
    ) -> list[dict[str, Any]]:
        """The instances and how many units of each."""
        own = str(resources.get("siflow_instance") or "")
        names = [name.strip() for name in own.split(",") if name.strip()] or self._settings.instance or []
        if not names and "siflow_count_per_pod" not in resources:
            return list(body.get("instances") or [])
        names = names or [str(item.get("name")) for item in body.get("instances") or []]
        return [{"name": name, "countPerPod": self._count(name, resources, threads)} for name in names]

    def _count(self, name: str, resources: Mapping[str, Any], threads: int) -> int:
        """Units per pod: what the rule says, else what threads and memory need, else the setting."""
        if "siflow_count_per_pod" in resources:
            return int(resources["siflow_count_per_pod"])
        if name in self._sizes:
            memory = resources.get("mem_mb", 0)
            return self._sizes[name].units_for(threads, memory if isinstance(memory, int) else 0)
        return self._settings.count_per_pod or 1

    def _check(self, body: dict[str, Any], rule: str) -> None:
        """Refuse a body that the platform would refuse."""
        for name, where in REQUIRED.items():
            if not body.get(name):
                raise TaskError(f"rule {rule}: {name} has no value; give {where}, or {name} in the task template")
        for name, allowed in (("priority", PRIORITIES), ("type", TYPES)):
            if body[name] not in allowed:
                raise TaskError(f"rule {rule}: {name} {body[name]!r} is not one of {', '.join(allowed)}")
