"""A small job over a fake teacher, for the tests of the engine."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from potstill.config.model import Model, load_model
from potstill.generate.chunk import GenerateCounts
from potstill.stages.generate import generate_chunk
from tests.servers.handle import Server


@dataclass
class Work:
    """A folder with rows, a model file and a store.

    Attributes:
        folder: Where they lie.
        server: The teacher.
        client: More of the model file's `client_config`.
        chat: More of its `chat_config`.
        more: Other blocks of it.
    """

    folder: Path
    server: Server
    client: dict[str, Any] = field(default_factory=dict)
    chat: dict[str, Any] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)

    def rows(self, *texts: str, **fields: Any) -> None:
        """Write one row per text."""
        with (self.folder / "rows.jsonl").open("w") as stream:
            for text in texts:
                row = {"sample_id": f"id-{text}", "messages": [{"role": "user", "content": text}], **fields}
                stream.write(json.dumps(row) + "\n")

    def model(self) -> Model:
        """Write the model file and load it."""
        client = {"base_url": self.server.url, "timeout": 5, **self.client}
        document = {
            "client_config": client,
            "chat_config": {"model": "fake", "max_tokens": 100, **self.chat},
            **self.more,
        }
        path = self.folder / "model.yaml"
        path.write_text(json.dumps(document))
        return load_model(path)

    def run(
        self, concurrency: int = 8, first_row: int = 0, skip: Callable[[Any], str | None] | None = None, **settings: Any
    ) -> GenerateCounts:
        """Run the job."""
        return generate_chunk(
            self.folder / "rows.jsonl",
            self.folder / "answered.jsonl",
            self.folder / "failed.jsonl",
            self.folder / "not_asked.jsonl",
            model=self.model(),
            settings=settings,
            concurrency=concurrency,
            answers_dir=self.folder / "answers",
            first_row=first_row,
            skip=skip,
            run_id="test",
        )

    def read(self, name: str) -> list[dict[str, Any]]:
        """Return the rows of an output file."""
        with (self.folder / f"{name}.jsonl").open(newline="\n") as stream:  # other line ends may stand in a text
            return [json.loads(line) for line in stream]
