"""Objects in a bucket, through boto3: the few things that the answer store needs, with errors of ours.

Where to find the service and with which keys is what boto3 finds itself (`AWS_ENDPOINT_URL`, `AWS_ACCESS_KEY_ID`, files
in `~/.aws`, a pod's role), else what Snakemake's storage plugin has been told (`SNAKEMAKE_STORAGE_S3_…`).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

from potstill.errors import ConfigError, PotstillError, TryAgainError
from potstill.secrets import redact, remember

#: Answers of the service that only a person can mend.
_FORBIDDEN = frozenset({301, 400, 401, 403})


class Stored(NamedTuple):
    """An object: its name below the prefix, and its bytes."""

    name: str
    size: int


class Bucket:
    """The objects below a prefix.

    Args:
        url: `s3://bucket/prefix`.

    Raises:
        ConfigError: If boto3 is not installed.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._bucket, _, prefix = self.url.removeprefix("s3://").partition("/")
        self._prefix = f"{prefix}/" if prefix else ""
        self._client = _connect()

    def list(self, prefix: str) -> Iterator[Stored]:
        """Yield the objects whose names begin with a text."""
        start = len(self._prefix)
        with self._errors(prefix):
            pages = self._client.get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self._bucket, Prefix=self._prefix + prefix):
                for item in page.get("Contents", ()):
                    yield Stored(item["Key"][start:], item["Size"])

    def folders(self) -> Iterator[str]:
        """Yield the names of the folders right below the prefix."""
        with self._errors(""):
            pages = self._client.get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self._bucket, Prefix=self._prefix, Delimiter="/"):
                for item in page.get("CommonPrefixes", ()):
                    yield item["Prefix"][len(self._prefix) : -1]

    def get(self, name: str, start: int = 0, end: int | None = None) -> bytes | None:
        """Return an object's bytes, or a piece of them; None if there is no such object."""
        wanted = {} if end is None else {"Range": f"bytes={start}-{end - 1}"}
        try:
            with self._errors(name):
                reply = self._client.get_object(Bucket=self._bucket, Key=self._prefix + name, **wanted)
                with contextlib.closing(reply["Body"]) as body:
                    data: bytes = body.read()
                    return data
        except _Missing:
            return None

    def put(self, name: str, data: bytes) -> None:
        """Store an object whole; it is there when this returns, or it is not there at all."""
        with self._errors(name):
            self._client.put_object(Bucket=self._bucket, Key=self._prefix + name, Body=data)

    def delete(self, name: str) -> None:
        """Remove an object; one that is gone already is fine."""
        with self._errors(name):
            self._client.delete_object(Bucket=self._bucket, Key=self._prefix + name)

    @contextlib.contextmanager
    def _errors(self, name: str) -> Iterator[None]:
        from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, ParamValidationError

        try:
            yield
        except ClientError as error:
            raise self._error_of(name, error.response) from error
        except (NoCredentialsError, ParamValidationError) as error:
            raise ConfigError(f"{self.url}: {redact(str(error))}; {_ADVICE}") from error
        except BotoCoreError as error:
            raise TryAgainError(
                f"{self.url}/{name}: {redact(str(error))}; nothing is lost: give the same command again"
            ) from error

    def _error_of(self, name: str, response: dict[str, Any]) -> Exception:
        """Return the error that a reply stands for, told by status and code."""
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        code = response.get("Error", {}).get("Code", "")
        message = redact(f"{self.url}/{name}: {status} {code}: {response.get('Error', {}).get('Message', '')}")
        if code in ("NoSuchBucket", "InvalidAccessKeyId", "SignatureDoesNotMatch") or status in _FORBIDDEN:
            return ConfigError(f"{message}; {_ADVICE}")
        if status == 404:
            return _Missing(message)
        return TryAgainError(f"{message}; nothing is lost: give the same command again")


_ADVICE = (
    "answers_dir names a bucket that must exist, with a key that may list, read, write and delete: AWS_ACCESS_KEY_ID and "
    "AWS_SECRET_ACCESS_KEY (or SNAKEMAKE_STORAGE_S3_ACCESS_KEY and …_SECRET_KEY), AWS_ENDPOINT_URL for a service other than Amazon's"
)


class _Missing(PotstillError):
    """Raised inside this module when there is no such object."""


def _connect() -> Any:
    try:
        import boto3
        from botocore.config import Config
    except ImportError as error:
        raise ConfigError(
            "answers_dir is s3://…, and the package boto3 is not installed: pip install 'potstill[s3]'"
        ) from error
    settings = {
        "endpoint_url": _variable("ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
        "region_name": _variable("REGION", "AWS_REGION", "AWS_DEFAULT_REGION") or "us-east-1",
        "aws_access_key_id": _variable("ACCESS_KEY", "AWS_ACCESS_KEY_ID"),
        "aws_secret_access_key": _variable("SECRET_KEY", "AWS_SECRET_ACCESS_KEY"),
        "aws_session_token": _variable("TOKEN", "AWS_SESSION_TOKEN"),
    }
    for name in ("aws_secret_access_key", "aws_session_token"):
        if settings[name]:
            remember(settings[name] or "")
    config = Config(
        connect_timeout=10,
        read_timeout=60,
        max_pool_connections=16,
        # AWS_MAX_ATTEMPTS says how often; three times unless it is set.
        retries={"mode": "standard"},
        # Other services than Amazon's take a checksum trailer for a part of the object.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    return boto3.session.Session().client("s3", config=config, **settings)


def _variable(plugins: str, *own: str) -> str | None:
    """Return a setting: None leaves it to boto3, which reads its own variables and files."""
    if any(os.environ.get(name) for name in own):
        return next(os.environ[name] for name in own if os.environ.get(name))
    return os.environ.get(f"SNAKEMAKE_STORAGE_S3_{plugins}") or None
