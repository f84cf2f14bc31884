"""Logging for scripts and commands: one format, and no secret in it."""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path

FORMAT = "%(asctime)s %(levelname)s %(message)s"


class _Redact(logging.Filter):
    """Take every known secret out of a record before any handler formats it."""

    def filter(self, record: logging.LogRecord) -> bool:
        from potstill.secrets import redact

        record.msg, record.args = redact(record.getMessage()), ()
        if record.exc_info:
            record.exc_text = redact(logging.Formatter().formatException(record.exc_info))
            record.exc_info = None
        return True


def set_up_logging(log: Path | None = None, level: int = logging.INFO) -> None:
    """Send the records of `potstill` to a file, and to stderr when there is none.

    Args:
        log: The file, appended to; stderr when None.
        level: The lowest level that is written.
    """
    if log is None:
        handler: logging.Handler = logging.StreamHandler(sys.stderr)
    else:
        log.parent.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(log, encoding="utf-8")
    formatter = logging.Formatter(FORMAT, datefmt="%Y-%m-%dT%H:%M:%SZ")
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    handler.addFilter(_Redact())
    logging.basicConfig(level=level, handlers=[handler], force=True)
