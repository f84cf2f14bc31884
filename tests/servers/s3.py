"""An S3 server on loopback: moto's, with a way to make it fail and a count of what it was asked.

`POST /control` with `{"fail": 503}` (or 403; 0 ends it) and, if wished, `{"methods": ["PUT"]}`; `GET /stats` tells
`{"PUT": 3, …}` and how many bytes were sent in answers to GET.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

from tests.servers.handle import Server, running

BUCKET = "answers"


class Faulty:
    """moto's application, behind a switch."""

    def __init__(self, application: Callable[..., Any]) -> None:
        self._application = application
        self._fail, self._methods = 0, ["GET", "PUT", "DELETE", "HEAD", "POST"]
        self._counts: collections.Counter[str] = collections.Counter()
        self._lock = threading.Lock()

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Any:
        """Answer one request."""
        path, method = environ["PATH_INFO"], environ["REQUEST_METHOD"]
        if path in ("/control", "/stats"):
            start("200 OK", [("Content-Type", "application/json")])
            return [self._answer(path, environ)]
        with self._lock:
            self._counts[method] += 1
        if self._fail and method in self._methods:
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            code = {403: "AccessDenied", 503: "SlowDown"}[self._fail]
            start(f"{self._fail} {code}", [("Content-Type", "application/xml")])
            return [f"<Error><Code>{code}</Code><Message>told to</Message></Error>".encode()]
        return self._application(environ, start)

    def _answer(self, path: str, environ: dict[str, Any]) -> bytes:
        if path == "/stats":
            return json.dumps(self._counts).encode()
        changes = json.loads(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
        self._fail = changes.get("fail", self._fail)
        self._methods = changes.get("methods", self._methods)
        if changes.get("reset"):
            self._counts.clear()
        return b"{}"


def main() -> None:
    """Serve, and print the address first."""
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    port = parser.parse_args().port
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    application = Faulty(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", port, application, threaded=True)
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()


#: What a client needs to know, beside the address: moto takes any key.
KEYS = {"AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "thing-secret", "AWS_DEFAULT_REGION": "us-east-1"}


def variables(server: Server) -> dict[str, str]:
    """Return the environment in which boto3 and Snakemake's plugin find the server."""
    return {
        **KEYS,
        "AWS_ENDPOINT_URL": server.url,
        "SNAKEMAKE_STORAGE_S3_ENDPOINT_URL": server.url,
        "SNAKEMAKE_STORAGE_S3_ACCESS_KEY": KEYS["AWS_ACCESS_KEY_ID"],
        "SNAKEMAKE_STORAGE_S3_SECRET_KEY": KEYS["AWS_SECRET_ACCESS_KEY"],
    }


def client(server: Server) -> Any:
    """Return a client of the server."""
    import boto3

    return boto3.client(
        "s3",
        endpoint_url=server.url,
        region_name="us-east-1",
        aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
    )


@contextlib.contextmanager
def s3_server() -> Iterator[Server]:
    """Run the server, with an empty bucket, for the length of a block."""
    with running("tests.servers.s3") as server:
        client(server).create_bucket(Bucket=BUCKET)
        yield server


def names(server: Server, prefix: str = "") -> list[str]:
    """Return the names of all objects below a prefix."""
    pages = client(server).get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
    return sorted(item["Key"] for page in pages for item in page.get("Contents", ()))


if __name__ == "__main__":
    main()
