"""When a job that asks again for old answers began: its restarts after a kill must not ask for the new ones too."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

from potstill.rows import loads, publish_json


def began_at(store: Path, job: str) -> float:
    """Return when a job first began, as seconds since 1970; it begins now unless an earlier start did not end.

    Args:
        store: The folder of the model's answers.
        job: A name that all starts of the job share.
    """
    file = _file(store, job)
    try:
        return float(loads(file.read_bytes())["began_at"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        now = time.time()
        publish_json(file, {"began_at": now, "job": job})
        return now


def forget(store: Path, job: str) -> None:
    """Take a job's beginning away: it has ended, the next start is a new one."""
    _file(store, job).unlink(missing_ok=True)


def _file(store: Path, job: str) -> Path:
    return store / "began" / f"{hashlib.sha256(job.encode('utf-8', 'surrogatepass')).hexdigest()[:24]}.json"
