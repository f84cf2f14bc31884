"""A provider with OpenAI's batch API and seeded faults: `python -m tests.servers.batch --port 0 [--settings JSON]`.

Its first line on stdout is its base URL. It serves `/v1/files`, `/v1/batches` and, for what goes online,
`/v1/chat/completions`; the same conversation gets the same answer on both ways. `GET /stats` tells what it saw, above
all how often each row was answered (that is: paid for); `POST /control` changes its behaviour.
"""

# ruff: noqa: D102 - the class is what is explained here; its methods say what they do by their names
from __future__ import annotations

import argparse
import asyncio
import collections
import hashlib
import itertools
import json
import random
import signal
import time
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from tests.servers.openai import row_of

DEFAULTS: dict[str, Any] = {
    #: Seconds from a batch's creation to its end; its states follow one another in that time.
    "seconds": 0.2,
    #: Batches stay in progress.
    "hold": False,
    #: Row -> what happens to its line: an HTTP status, `expired`, `missing`, `null_error`, `garbage`, `length`; or a
    #: list of these, for one batch after the other.
    "rows": {},
    #: The first so many batches expire (or are cut off by a cancel) with this share of their lines done.
    "expire": 0,
    "done_share": 0.5,
    #: The first so many batches are refused with these errors.
    "refuse": 0,
    "refuse_errors": [{"code": "invalid_json_line", "message": "line 1 is no JSON", "line": 1}],
    #: So many creations succeed and their reply is lost: the connection breaks, or a 500 comes.
    "lose_create": 0,
    "lose_create_500": 0,
    #: So many creations fail with a 500 without any effect.
    "create_500": 0,
    #: So many requests of whatever kind meet this status.
    "trouble": 0,
    "trouble_status": 429,
    #: So many downloads break off in the middle of a line, in a way that HTTP does not show.
    "torn_downloads": 0,
    "page": 2,
    "content": None,
    "key": None,
    "no_batches": False,
}


class Provider:
    """What the server knows and has seen."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = {**DEFAULTS, **settings}
        self.reset()

    def reset(self) -> None:
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, dict[str, Any]] = {}
        self.answered: collections.Counter[str] = collections.Counter()
        self.sent: collections.Counter[str] = collections.Counter()
        self.online: collections.Counter[str] = collections.Counter()
        self.calls: collections.Counter[str] = collections.Counter()
        self.bodies: list[Any] = []
        self.number = itertools.count(1)

    def stats(self) -> dict[str, Any]:
        return {
            "batches": len(self.batches),
            "statuses": [self.look(batch)["status"] for batch in self.batches.values()],
            "sizes": [batch["request_counts"]["total"] for batch in self.batches.values()],
            "metadata": [batch["metadata"] for batch in self.batches.values()],
            "uploads": sum(name.startswith("file-in") for name in self.files),
            "answered": dict(self.answered),
            "online": dict(self.online),
            "calls": dict(self.calls),
        }

    def strikes(self, name: str) -> bool:
        """Return whether a fault that strikes so many times strikes now."""
        if self.settings[name] <= 0:
            return False
        self.settings[name] -= 1
        return True

    # -- files ------------------------------------------------------------------------------------------------

    def store(self, prefix: str, data: bytes) -> str:
        name = f"file-{prefix}{next(self.number)}"
        self.files[name] = data
        return name

    # -- batches ----------------------------------------------------------------------------------------------

    def create(self, body: dict[str, Any]) -> dict[str, Any]:
        data = self.files[body["input_file_id"]]
        lines, errors = [], []
        seen: set[str] = set()
        for number, raw in enumerate(data.splitlines(), 1):
            line = json.loads(raw)
            if line["custom_id"] in seen or len(line["custom_id"]) > 64:
                errors.append({"code": "duplicate_custom_id", "message": "custom_id", "line": number})
            if line["url"] != body["endpoint"] or line["method"] != "POST" or line["body"].get("stream"):
                errors.append({"code": "invalid_request", "message": "url, method or stream", "line": number})
            seen.add(line["custom_id"])
            lines.append(line)
        if len(lines) > 50_000 or not lines:
            errors.append({"code": "invalid_file", "message": "too many lines, or none", "line": None})
        if self.strikes("refuse"):
            errors = self.settings["refuse_errors"]
        now = time.time()
        batch = {
            "id": f"batch_{next(self.number)}",
            "object": "batch",
            "endpoint": body["endpoint"],
            "errors": None,
            "input_file_id": body["input_file_id"],
            "completion_window": body["completion_window"],
            "status": "validating",
            "output_file_id": None,
            "error_file_id": None,
            "created_at": int(now),
            "request_counts": {"total": len(lines), "completed": 0, "failed": 0},
            "metadata": body.get("metadata"),
            "_at": now,
            "_lines": lines,
            "_errors": errors,
            "_expires": not errors and self.strikes("expire"),
        }
        self.batches[batch["id"]] = batch
        return batch

    def look(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Bring a batch to where it is by now."""
        age, seconds = time.time() - batch["_at"], self.settings["seconds"]
        status = batch["status"]
        if status == "cancelling" and time.time() - batch["_cancelling"] > seconds / 2:
            self.end(batch, "cancelled", "batch_cancelled", cut=True)
        elif status in {"validating", "in_progress", "finalizing"} and age > seconds / 4:
            if batch["_errors"]:
                batch["status"], batch["errors"] = "failed", {"object": "list", "data": batch["_errors"]}
            elif self.settings["hold"] or age < seconds / 2:
                batch["status"] = "in_progress"
            elif age < seconds:
                batch["status"] = "finalizing"
            elif batch["_expires"]:
                self.end(batch, "expired", "batch_expired", cut=True)
            else:
                self.end(batch, "completed", "", cut=False)
        return batch

    def cancel(self, batch: dict[str, Any]) -> None:
        batch["status"], batch["_cancelling"] = "cancelling", time.time()

    def end(self, batch: dict[str, Any], status: str, code: str, *, cut: bool) -> None:
        lines = batch["_lines"]
        done = int(len(lines) * self.settings["done_share"]) if cut else len(lines)
        output, errors = [], []
        for line in lines[:done]:
            self.work(line, output, errors)
        for line in lines[done:]:
            message = {"code": code, "message": "This request could not be executed before the window ended."}
            errors.append({"custom_id": line["custom_id"], "response": None, "error": message})
        random.Random(batch["id"]).shuffle(output)
        counts = batch["request_counts"]
        counts["completed"], counts["failed"] = len(output), len(errors)
        batch["status"] = status
        for name, found in (("output", output), ("error", errors)):
            if found:
                data = b"".join(json.dumps({"id": f"req_{n}", **x}).encode() + b"\n" for n, x in enumerate(found))
                batch[f"{name}_file_id"] = self.store(name, data)

    def work(self, line: dict[str, Any], output: list[Any], errors: list[Any]) -> None:
        row = row_of(line["body"])
        number = self.sent[row]
        self.sent[row] += 1
        self.bodies.append(line["body"])
        planned = self.settings["rows"].get(row)
        fault = planned[min(number, len(planned) - 1)] if isinstance(planned, list) else planned
        name = line["custom_id"]
        if fault == "missing":
            return
        if fault == "expired":
            errors.append({"custom_id": name, "response": None, "error": {"code": "batch_expired", "message": "late"}})
        elif fault == "null_error":
            errors.append({"custom_id": name, "response": None, "error": {"code": "oops", "message": "internal"}})
        elif isinstance(fault, int):
            body = {"error": {"message": f"fault {fault}", "type": "fault", "code": None}}
            errors.append({"custom_id": name, "response": {"status_code": fault, "body": body}, "error": None})
        else:
            self.answered[row] += 1
            body = self.document(line["body"], row) if fault != "garbage" else {"choices": []}
            if fault == "length":
                body["choices"][0]["finish_reason"] = "length"
            output.append({"custom_id": name, "response": {"status_code": 200, "body": body}, "error": None})

    def document(self, body: dict[str, Any], row: str) -> dict[str, Any]:
        content = self.settings["content"]
        if isinstance(content, list):
            content = content[min(sum(m["role"] == "assistant" for m in body["messages"]), len(content) - 1)]
        seed = body.get("seed", "")
        text = content or f"SELECT '{hashlib.blake2b(f'{row}/{seed}'.encode(), digest_size=16).hexdigest()}'"
        return {
            "id": "chatcmpl-fake",
            "object": "chat.completion",
            "model": f"{body.get('model')}-served",
            "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 20, "completion_tokens": 10, "total_tokens": 30},
        }


def shown(batch: dict[str, Any]) -> dict[str, Any]:
    """Return a batch as clients see it."""
    return {name: value for name, value in batch.items() if not name.startswith("_")}


def error(status: int, message: str, code: str | None = None) -> web.Response:
    """Return an error reply."""
    headers = {"Retry-After": "0.05"} if status == 429 else None
    return web.json_response({"error": {"message": message, "code": code}}, status=status, headers=headers)


class Site:
    """The paths."""

    def __init__(self, provider: Provider) -> None:
        self.provider = provider

    def app(self) -> web.Application:
        app = web.Application(client_max_size=300 << 20, middlewares=[self.guard])
        app.add_routes(
            [
                web.get("/stats", self.stats),
                web.get("/bodies", self.bodies),
                web.post("/control", self.control),
                web.get("/v1/models", self.models),
                web.post("/v1/chat/completions", self.chat),
                web.post("/v1/files", self.upload),
                web.get("/v1/files/{id}/content", self.download),
                web.post("/v1/batches", self.create),
                web.get("/v1/batches", self.list_batches),
                web.get("/v1/batches/{id}", self.retrieve),
                web.post("/v1/batches/{id}/cancel", self.cancel),
            ]
        )
        return app

    @web.middleware
    async def guard(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        settings, path = self.provider.settings, request.path
        if not path.startswith("/v1/"):
            return await handler(request)
        self.provider.calls[f"{request.method} {path.split('/')[2]}"] += 1
        if settings["key"] and request.headers.get("Authorization") != f"Bearer {settings['key']}":
            return error(401, "wrong key", "invalid_api_key")
        if settings["no_batches"] and "/chat/" not in path:
            return error(404, "no such path")
        if self.provider.strikes("trouble"):
            return error(settings["trouble_status"], "trouble")
        return await handler(request)

    async def stats(self, _: web.Request) -> web.Response:
        return web.json_response(self.provider.stats())

    async def bodies(self, _: web.Request) -> web.Response:
        return web.json_response(self.provider.bodies)

    async def control(self, request: web.Request) -> web.Response:
        changes = await request.json()
        if changes.pop("reset", False):
            self.provider.reset()
        self.provider.settings.update(changes)
        return web.json_response({})

    async def models(self, _: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "fake", "object": "model"}]})

    async def chat(self, request: web.Request) -> web.Response:
        body = await request.json()
        row = row_of(body)
        self.provider.online[row] += 1
        return web.json_response(self.provider.document(body, row))

    async def upload(self, request: web.Request) -> web.Response:
        form = await request.post()
        data = form.get("file")
        if form.get("purpose") != "batch" or not isinstance(data, web.FileField):
            return error(400, "purpose must be batch, and file a file")
        name = self.provider.store("in", data.file.read())
        return web.json_response({"id": name, "object": "file", "purpose": "batch", "filename": data.filename})

    async def download(self, request: web.Request) -> web.StreamResponse:
        data = self.provider.files.get(request.match_info["id"])
        if data is None:
            return error(404, "no such file")
        if self.provider.strikes("torn_downloads"):
            data = data[: len(data) - 20]
        return web.Response(body=data, content_type="application/octet-stream")

    async def create(self, request: web.Request) -> web.Response:
        if self.provider.strikes("create_500"):
            return error(500, "nothing was done")
        body = await request.json()
        if body.get("input_file_id") not in self.provider.files:
            return error(400, "no such file")
        batch = self.provider.create(body)
        if self.provider.strikes("lose_create_500"):
            return error(500, "it was done all the same")
        if self.provider.strikes("lose_create"):
            assert request.transport is not None
            request.transport.abort()
        return web.json_response(shown(batch))

    async def list_batches(self, request: web.Request) -> web.Response:
        newest = list(reversed(self.provider.batches.values()))
        names = [batch["id"] for batch in newest]
        start = names.index(request.query["after"]) + 1 if "after" in request.query else 0
        end = start + min(int(request.query.get("limit", 20)), self.provider.settings["page"])
        page = [shown(self.provider.look(batch)) for batch in newest[start:end]]
        return web.json_response({"object": "list", "data": page, "has_more": end < len(newest)})

    def _batch(self, request: web.Request) -> dict[str, Any] | None:
        batch = self.provider.batches.get(request.match_info["id"])
        return None if batch is None else self.provider.look(batch)

    async def retrieve(self, request: web.Request) -> web.Response:
        batch = self._batch(request)
        return error(404, "no such batch") if batch is None else web.json_response(shown(batch))

    async def cancel(self, request: web.Request) -> web.Response:
        batch = self._batch(request)
        if batch is None:
            return error(404, "no such batch")
        if batch["status"] not in {"validating", "in_progress", "finalizing", "cancelling"}:
            return error(409, f"a batch that is {batch['status']} cannot be cancelled")
        self.provider.cancel(batch)
        return web.json_response(shown(batch))


async def serve(provider: Provider, port: int) -> None:
    """Serve on loopback until SIGTERM or SIGINT."""
    runner = web.AppRunner(Site(provider).app(), access_log=None, shutdown_timeout=0.2)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port).start()
        print(f"http://127.0.0.1:{runner.addresses[0][1]}/v1", flush=True)
        over = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, over.set)
        await over.wait()
    finally:
        await runner.cleanup()


def main() -> None:
    """Serve, as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--settings", type=json.loads, default={})
    args = parser.parse_args()
    asyncio.run(serve(Provider(args.settings), args.port))


if __name__ == "__main__":
    main()
