"""A key that was refused a moment ago is not tried again by every other job of the run."""

from __future__ import annotations

import contextlib
import hashlib
import time
from pathlib import Path

from potstill.config.model import Model
from potstill.errors import ConfigError, PotstillError
from potstill.rows import loads, publish_json
from potstill.secrets import redact

#: Seconds after which a refused key may be tried again.
_LIFE_S = 60.0


def note_refused(store: Path, base: str, key: str | None, message: str) -> None:
    """Remember that a server refused a key; the file's name is a hash of both, the key itself stands nowhere."""
    # The job ends with the refusal itself, whatever becomes of the note.
    with contextlib.suppress(PotstillError):
        publish_json(_file(store, base, key), {"at": time.time(), "endpoint": base, "message": redact(message)})


def check_refused(store: Path, model: Model) -> None:
    """Stop at once if one of the model's servers has just refused the key that we would send.

    Raises:
        ConfigError: With the message of the job that was refused.
    """
    key = model.key.read()
    for address in model.addresses:
        file = _file(store, address.base, key)
        try:
            note = loads(file.read_bytes())
            age = time.time() - float(note["at"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            continue
        if 0 <= age < _LIFE_S:
            raise ConfigError(f"{note['message']} (another job was told so {age:.0f} s ago; this one has not asked)")
        file.unlink(missing_ok=True)


def _file(store: Path, base: str, key: str | None) -> Path:
    mark = hashlib.sha256(f"{base}\0{key or ''}".encode("utf-8", "surrogatepass")).hexdigest()[:32]
    return store / "refused" / f"{mark}.json"
