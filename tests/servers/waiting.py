"""What tests of servers and kills look at: processes by their command line, an address, something that is to come."""

from __future__ import annotations

import http.client
import os
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit


def eventually(holds: Callable[[], object], limit_s: float = 60.0) -> bool:
    """Wait until something holds; the limit only bounds a failing test."""
    deadline = time.monotonic() + limit_s
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def processes_with(word: str) -> dict[int, str]:
    """The processes whose command line holds a word, without this one."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if word in line and int(entry.name) != os.getpid():
            found[int(entry.name)] = line
    return found


def answers(url: str) -> bool:
    """Whether a server answers GET / at the host of a URL, asked without a proxy."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=5)
    try:
        connection.request("GET", "/")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()
