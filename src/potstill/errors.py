"""Every error that potstill raises on purpose, and the exit status that each one stands for.

```
PotstillError                1   something that we can name went wrong
├── InputError               1   a file of the user's holds what cannot be used
├── ConservationError        1   rows were lost or doubled between two stages
├── StoreError               1   the answer store is damaged; the message says which file and byte
├── TryAgainError           75   nothing is wrong with the work: an outage, a full disk, a live holder
└── ConfigError             78   a config, a model file, a template or a key must be mended first
```

A message says what was found, where (file and key, or file and line), what is allowed and what to do.
The command line and the scripts print it in one line, without a traceback; anything else is a bug and
keeps its traceback.
"""

from __future__ import annotations


class PotstillError(Exception):
    """The base of all errors below; raise one of its children where one fits."""

    exit_status = 1


class InputError(PotstillError):
    """Raised when a file of the user's is missing, is not what it should be, or has too many bad rows."""


class ConservationError(PotstillError):
    """Raised when kept + rejected + failed + not asked does not equal what was prepared."""


class StoreError(PotstillError):
    """Raised when a journal or an index of the answer store is damaged where a crash cannot explain it."""


class TryAgainError(PotstillError):
    """Raised when the same command will do later: an outage, a full disk, a lock that a live process holds."""

    exit_status = 75


class ConfigError(PotstillError):
    """Raised when a person must change a config, a model file, a template, a variable or a key first."""

    exit_status = 78
