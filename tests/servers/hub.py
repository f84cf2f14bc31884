"""A hub for datasets on loopback: the part of the Hugging Face upload API that `upload_folder` speaks.

Repositories with commits, the question which files are large, large files by the Git LFS batch protocol (their sha256
is checked), commits as NDJSON. Large files through the Xet store are not part of it: the client is told to use LFS.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml

TOKEN = "hf_a_token_that_may_write"


@dataclass
class Repo:
    """A dataset repository: its files now, and its commits."""

    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    large: set[str] = field(default_factory=set)
    commits: list[str] = field(default_factory=list)

    @property
    def head(self) -> str:
        """The id of the last commit."""
        return hashlib.sha1(json.dumps(self.commits).encode()).hexdigest()

    def oid(self, path: str) -> str | None:
        """Return what the hub calls a file's content: the sha256 of a large one, else the id of the git blob."""
        content = self.files.get(path)
        if content is None:
            return None
        if path in self.large:
            return hashlib.sha256(content).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Hub:
    """What the server knows, for tests to look at."""

    url: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    uploads: int = 0
    forbidden_owner: str = "somebody-else"


class _Refused(Exception):
    def __init__(self, status: int, message: str, **more: str) -> None:
        super().__init__(message)
        self.status, self.more = status, more


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: tests look at `Hub.requests`."""

    def do_GET(self) -> None:
        self._answer("GET")

    def do_POST(self) -> None:
        self._answer("POST")

    def do_PUT(self) -> None:
        self._answer("PUT")

    def _answer(self, method: str) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.partition("?")[0]
        self.server.hub.requests.append(f"{method} {path}")
        for pattern, handler in _ROUTES:
            match = re.fullmatch(pattern, f"{method} {path}")
            if match:
                try:
                    self._send(200, handler(self, body, *match.groups()))
                except _Refused as refusal:
                    self._send(refusal.status, {"error": str(refusal), **refusal.more})
                return
        self._send(404, {"error": f"no such path: {path}"})

    def _send(self, status: int, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _check_token(self) -> None:
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise _Refused(401, "Invalid username or password.")

    def _repo(self, name: str) -> Repo:
        self._check_token()
        repo = self.server.hub.repos.get(name)
        if repo is None:
            raise _Refused(404, "Repository not found")
        return repo

    def create_repo(self, body: bytes) -> Any:
        self._check_token()
        asked = json.loads(body)
        if asked["organization"] == self.server.hub.forbidden_owner:
            raise _Refused(403, f"You don't have the rights to create a dataset under {asked['organization']}")
        name = f"{asked['organization']}/{asked['name']}"
        url = f"{self.server.hub.url}/datasets/{name}"
        if name in self.server.hub.repos:
            raise _Refused(409, "You already created this dataset repo", url=url)
        private = asked.get("private") or asked.get("visibility") == "private"
        self.server.hub.repos[name] = Repo(private=bool(private))
        return {"url": url}

    def validate_yaml(self, body: bytes) -> Any:
        asked = json.loads(body)
        header = yaml.safe_load(asked["content"].split("---")[1])
        missing = [] if "license" in header else [{"message": "license is missing"}]
        return {"errors": missing, "warnings": []}

    def preupload(self, body: bytes, name: str, revision: str) -> Any:
        repo = self._repo(name)
        paths = [one["path"] for one in json.loads(body)["files"]]
        modes = {path: "lfs" if path.endswith(".parquet") else "regular" for path in paths}
        return {
            "files": [
                {"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": repo.oid(path)}
                for path, mode in modes.items()
            ]
        }

    def lfs_batch(self, body: bytes, name: str) -> Any:
        self._repo(name)
        objects = [self._lfs_object(one) for one in json.loads(body)["objects"]]
        return {"transfer": "basic", "objects": objects}

    def _lfs_object(self, asked: Any) -> Any:
        if asked["oid"] in self.server.hub.objects:
            return asked
        url = f"{self.server.hub.url}/lfs/{asked['oid']}"
        return {**asked, "actions": {"upload": {"href": url}, "verify": {"href": f"{url}/verify"}}}

    def lfs_put(self, body: bytes, oid: str) -> Any:
        if hashlib.sha256(body).hexdigest() != oid:
            raise _Refused(400, "the content is not what its sha256 says")
        self.server.hub.objects[oid] = body
        self.server.hub.uploads += 1
        return {}

    def lfs_verify(self, body: bytes, oid: str) -> Any:
        if len(self.server.hub.objects.get(oid, b"")) != json.loads(body)["size"]:
            raise _Refused(404, "not uploaded")
        return {}

    def commit(self, body: bytes, name: str, revision: str) -> Any:
        repo = self._repo(name)
        lines = [json.loads(line) for line in body.splitlines() if line.strip()]
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                repo.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                repo.files[value["path"]] = self.server.hub.objects[value["oid"]]
                repo.large.add(value["path"])
        repo.commits.append(next(line["value"]["summary"] for line in lines if line["key"] == "header"))
        url = f"{self.server.hub.url}/datasets/{name}/commit/{repo.head}"
        return {"success": True, "commitOid": repo.head, "commitUrl": url, "hookOutput": ""}

    def repo_info(self, body: bytes, name: str, revision: str | None = None) -> Any:
        repo = self._repo(name)
        files = [{"rfilename": path} for path in sorted(repo.files)]
        return {"id": name, "sha": repo.head, "private": repo.private, "siblings": files, "tags": [], "downloads": 0}


_NAME = r"([\w.-]+/[\w.-]+)"
_ROUTES: list[tuple[str, Any]] = [
    (r"POST /api/repos/create", _Handler.create_repo),
    (r"POST /api/validate-yaml", _Handler.validate_yaml),
    (rf"POST /api/datasets/{_NAME}/preupload/([^/]+)", _Handler.preupload),
    (rf"POST /datasets/{_NAME}\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    (r"PUT /lfs/([0-9a-f]{64})", _Handler.lfs_put),
    (r"POST /lfs/([0-9a-f]{64})/verify", _Handler.lfs_verify),
    (rf"POST /api/datasets/{_NAME}/commit/([^/]+)", _Handler.commit),
    (rf"GET /api/datasets/{_NAME}/revision/([^/]+)", _Handler.repo_info),
    (rf"GET /api/datasets/{_NAME}", _Handler.repo_info),
]


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub = Hub(url=f"http://127.0.0.1:{self.server_address[1]}")


@contextmanager
def running_hub() -> Iterator[Hub]:
    """Run a hub on a free port of loopback for the time of a `with` block."""
    with _Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server.hub
        finally:
            server.shutdown()
            thread.join()
