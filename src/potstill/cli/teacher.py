"""Serve recorded answers as an OpenAI-compatible server on loopback."""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

from potstill.cli.arguments import port_number


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    parser.add_argument("--port", type=port_number, required=True, help="port on 127.0.0.1; 0 takes a free one")
    parser.add_argument(
        "--answers", type=Path, required=True, metavar="FILE", help="JSONL of prompts and their answers"
    )
    parser.add_argument("--model", default="replay", metavar="NAME", help="name given by /v1/models (default: replay)")
    parser.add_argument("--latency", type=float, default=0.0, metavar="S", help="seconds an answer takes, on average")
    parser.add_argument("--seed", type=int, default=0, help="seed of the differences in latency (default: 0)")


def run(args: argparse.Namespace) -> int:
    """Serve until stopped; the first line on stdout is the base URL."""
    from potstill.teacher import Answers, Teacher, serve

    teacher = Teacher(Answers.load(args.answers), model=args.model, latency_s=args.latency, seed=args.seed)
    asyncio.run(serve(teacher, args.port))
    return 0
