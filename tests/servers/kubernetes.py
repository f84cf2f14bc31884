"""As much of the Kubernetes API as Snakemake's plugin uses, on loopback; pods are processes of this machine.

Secrets and jobs are taken as they come; a job's container really runs: its command and arguments, in an empty folder of
its own in place of the working directory, with the environment that its `env` names, the secrets filled in, and the
image's `ENV`. It sees the whole machine otherwise, so volumes are folders of the same path. `GET /seen` tells the bodies.
"""

from __future__ import annotations

import argparse
import base64
import json
import re
import subprocess
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

_JOB = re.compile(r"/apis/batch/v1/namespaces/([^/]+)/jobs(?:/([^/]+))?(/status)?")
_CORE = re.compile(r"/api/v1/namespaces/([^/]+)/(secrets|pods)(?:/([^/]+))?(/log)?")


class Cluster:
    """What the API server knows.

    Args:
        image: The environment that the image gives its containers.
        folder: Where pods have their folders.
    """

    def __init__(self, image: dict[str, str], folder: Path) -> None:
        self.image = image
        self.folder = folder
        self.secrets: dict[str, Any] = {}
        self.jobs: dict[str, Any] = {}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.seen: list[dict[str, Any]] = []
        self.lock = threading.Lock()

    def start(self, body: dict[str, Any]) -> None:
        """Run a job's only container."""
        name = body["metadata"]["name"]
        container = body["spec"]["template"]["spec"]["containers"][0]
        pod = self.folder / name
        (pod / "workdir").mkdir(parents=True)
        (pod / "home").mkdir()
        env = {**self.image, "HOME": str(pod / "home"), "XDG_CACHE_HOME": str(pod / "home/.cache")}
        for entry in container.get("env", []):
            reference = entry["valueFrom"]["secretKeyRef"]
            value = self.secrets[reference["name"]]["data"][reference["key"]]
            env[entry["name"]] = base64.b64decode(value).decode()
        with (pod / "log").open("wb") as log:
            command = [*container["command"], *container["args"]]
            self.processes[name] = subprocess.Popen(
                command, cwd=pod / "workdir", env=env, stdout=log, stderr=log, start_new_session=True
            )
        self.jobs[name] = body

    def job(self, name: str) -> dict[str, Any]:
        """Return a job with its status."""
        code = self.processes[name].poll()
        status = {"active": 1} if code is None else {"succeeded": 1} if code == 0 else {"failed": 1}
        return {**self.jobs[name], "status": status}

    def pod(self, name: str) -> dict[str, Any]:
        """Return the pod of a job."""
        code = self.processes[name].poll()
        state = {"running": {}} if code is None else {"terminated": {"exitCode": code}}
        container = {
            "name": "snakemake",
            "ready": code is None,
            "restartCount": 0,
            "image": "i",
            "imageID": "i",
            "state": state,
        }
        return {"metadata": {"name": f"{name}-pod"}, "status": {"containerStatuses": [container]}}


class Handler(BaseHTTPRequestHandler):
    """One request."""

    cluster: Cluster

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def reply(self, value: Any, status: int = 200) -> None:
        """Send JSON, or text."""
        data = value.encode() if isinstance(value, str) else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain" if isinstance(value, str) else "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_POST(self) -> None:
        """Create a secret or a job."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        cluster = self.cluster
        with cluster.lock:
            cluster.seen.append({"path": self.path, "body": body})
            if _JOB.fullmatch(self.path):
                cluster.start(body)
            else:
                cluster.secrets[body["metadata"]["name"]] = body
        self.reply(body, 201)

    def do_GET(self) -> None:
        """Tell about a job, its pods, a pod's log."""
        url, cluster = urlsplit(self.path), self.cluster
        with cluster.lock:
            if url.path == "/seen":
                self.reply({"created": cluster.seen, "secrets": list(cluster.secrets)})
            elif job := _JOB.fullmatch(url.path):
                name = job[2]
                self.reply(cluster.job(name)) if name in cluster.jobs else self.missing()
            elif (core := _CORE.fullmatch(url.path)) and core[4]:
                self.reply((cluster.folder / core[3].removesuffix("-pod") / "log").read_text(errors="replace"))
            else:
                name = parse_qs(url.query)["labelSelector"][0].removeprefix("job-name=")
                items = [cluster.pod(name)] if name in cluster.jobs else []
                self.reply({"items": items})

    def missing(self) -> None:
        """Say that there is no such thing."""
        self.reply({"kind": "Status", "status": "Failure", "code": 404}, 404)

    def do_DELETE(self) -> None:
        """Delete a job (and kill its container), a pod or a secret."""
        path, cluster = urlsplit(self.path).path, self.cluster
        with cluster.lock:
            if job := _JOB.fullmatch(path):
                process = cluster.processes[job[2]]
                if process.poll() is None:
                    process.kill()
                    process.wait()
                cluster.jobs.pop(job[2], None)
            elif (core := _CORE.fullmatch(path)) and core[2] == "secrets":
                cluster.secrets.pop(core[3], None)
        self.reply({"kind": "Status", "status": "Success"})


def main() -> None:
    """Serve, and print the address first; all containers end with the server."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--settings", type=json.loads, required=True)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        cluster = Cluster(args.settings["image"], Path(folder))
        handler = type("Bound", (Handler,), {"cluster": cluster})
        server = ThreadingHTTPServer(("127.0.0.1", args.port), handler)
        print(f"http://127.0.0.1:{server.server_port}", flush=True)
        try:
            server.serve_forever()
        finally:
            for process in cluster.processes.values():
                process.kill()


if __name__ == "__main__":
    main()
