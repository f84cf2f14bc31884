"""The identity of an answer: a hash of what was asked, and of nothing else."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

import orjson

from potstill.config.model import LIMIT_NAMES, TRANSPORT_PARAMETERS
from potstill.records import canonical_json

#: Raised when the canonical form changes: answers of another version are never found.
KEY_VERSION = 1

#: Bytes of a key that the index holds. Two of 10 billion answers share them with a chance of 1 in 10^19;
#: the whole key stands in the journal's line and is compared.
PREFIX_BYTES = 16

_NOT_IDENTITY = TRANSPORT_PARAMETERS | set(LIMIT_NAMES) | {"n", "messages"}


class KeyMaker:
    """Makes the keys of one set of parameters; what all its requests share is hashed once.

    Args:
        parameters: The body of a request, model name included.
    """

    def __init__(self, parameters: Mapping[str, Any]) -> None:
        identity = {
            name: value for name, value in parameters.items() if name not in _NOT_IDENTITY and value is not None
        }
        start = f'{{"format":{KEY_VERSION},"parameters":{canonical_json(identity)},"messages":'
        self._start = hashlib.sha256(start.encode("utf-8", "surrogatepass"))

    def keys(self, messages: Any, samples: tuple[int, ...]) -> list[bytes]:
        """Return the key of each sample of a conversation."""
        shared = self._start.copy()
        shared.update(_messages_bytes(messages))
        keys = []
        for sample in samples:
            one = shared.copy()
            one.update(b',"sample":%d}' % sample)
            keys.append(one.digest())
        return keys


def _messages_bytes(messages: Any) -> bytes:
    try:
        return orjson.dumps(messages, option=orjson.OPT_SORT_KEYS)
    except TypeError:
        # Lone surrogates and big integers, which orjson refuses.
        return canonical_json(messages).encode("utf-8", "surrogatepass")


def slug(name: str) -> str:
    """Return the folder of a model name: readable, safe, and different for different names.

    >>> slug("gpt-oss-120b")
    'gpt-oss-120b'
    >>> slug("Qwen/Qwen3-8B")
    'Qwen_Qwen3-8B-60d6e3d9'
    """
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", name)[:100].lstrip(".") or "model"
    if plain == name and name == name.lower():
        return plain
    # Two names may look the same once cleaned, or on a filesystem that folds case.
    return f"{plain}-{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"
