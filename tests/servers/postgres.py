"""A real PostgreSQL server on loopback, from Debian's packages, for as long as a test needs it."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


@contextmanager
def running_postgres(statements: Sequence[str]) -> Iterator[str]:
    """Start a server with a database `shop` and a role `reader`; yield the connection string, `{db_id}` in it.

    Args:
        statements: What is run in `shop` by its owner.
    """
    psycopg = pytest.importorskip("psycopg", reason="psycopg is not installed (pip install potstill[postgresql])")
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    found = str(programs[-1]) if programs else shutil.which("initdb")
    if found is None:
        pytest.skip("no PostgreSQL server is installed (apt-get install postgresql)")
    user = _user_of_the_server()
    folder = Path(tempfile.mkdtemp(prefix="potstill-pg-"))
    if user is not None:
        shutil.chown(folder, user)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "user": user, "cwd": folder}
    subprocess.run([found, "-D", str(folder / "data"), "-U", "owner", "-A", "trust", "--no-sync"], check=True, **quiet)
    options = ["-F", "-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={folder}", "-p", str(port)]
    server = subprocess.Popen([str(Path(found).with_name("postgres")), "-D", str(folder / "data"), *options], **quiet)
    try:
        base = f"host=127.0.0.1 port={port}"
        _prepare(psycopg, base, statements)
        yield f"{base} dbname={{db_id}} user=reader"
    finally:
        server.terminate()
        server.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


def _user_of_the_server() -> str | None:
    """Return the user that the server runs as: PostgreSQL refuses to run as root."""
    if os.getuid() != 0:
        return None
    try:
        pwd.getpwnam("postgres")
    except KeyError:
        pytest.skip("PostgreSQL does not run as root, and there is no user `postgres`")
    return "postgres"


def _prepare(psycopg: Any, base: str, statements: Sequence[str]) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            connection = psycopg.connect(f"{base} dbname=postgres user=owner", autocommit=True)
            break
        except psycopg.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
    with connection:
        connection.execute("CREATE ROLE reader LOGIN")
        connection.execute("CREATE DATABASE shop")
    with psycopg.connect(f"{base} dbname=shop user=owner", autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)
