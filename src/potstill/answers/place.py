"""Where the answer store lies: in a folder, or in a bucket of which a folder of this machine is the working copy."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from potstill.errors import ConfigError, InputError

_URL = re.compile(r"s3://[A-Za-z0-9][A-Za-z0-9._-]+(/[^/\s?#]+)*/?")


def is_remote(place: str) -> bool:
    """Say whether an `answers_dir` is a bucket, not a folder.

    Raises:
        ConfigError: If it is an address of another kind.
    """
    if "://" not in place:
        return False
    if not _URL.fullmatch(place):
        raise ConfigError(f"answers_dir: found {place}; allowed are a folder and s3://bucket/prefix")
    return True


@contextlib.contextmanager
def opened_answers(place: str, model: str) -> Iterator[Path]:
    """Yield the folder to use as `answers_dir`.

    For a bucket that is a working copy on this machine, which knows of all answers in the bucket; what is appended to it
    is uploaded now and then, and when the block ends.

    Args:
        place: A config's `answers_dir`.
        model: The model's name as sent.

    Raises:
        ConfigError: If the place is none, or the bucket cannot be used.
        TryAgainError: If the service cannot be reached.
    """
    if not is_remote(place):
        yield Path(place)
        return
    from potstill.answers.key import slug
    from potstill.answers.remote import WorkingCopy

    copy = WorkingCopy(place, slug(model))
    copy.pull(model=model)
    with copy.uploading():
        yield copy.root


def look_up(place: str, model: str) -> Path:
    """Return the folder to use as `answers_dir` by those who only look answers up."""
    if not is_remote(place):
        return Path(place)
    from potstill.answers.key import slug
    from potstill.answers.remote import WorkingCopy

    copy = WorkingCopy(place, slug(model))
    copy.pull()
    return copy.root


def fetch_stores(place: str) -> Path:
    """Return the folder that holds all stores of an `answers_dir`, with every record, for those who read them all."""
    if not is_remote(place):
        return Path(place)
    from potstill.answers.remote import WorkingCopy, open_bucket

    root = None
    for name in open_bucket(place.rstrip("/")).folders():
        copy = WorkingCopy(place, name)
        copy.pull()
        copy.fetch_all()
        root = copy.root
    if root is None:
        raise InputError(f"{place}: no answer store there; --answers-dir names the config's answers_dir")
    return root
