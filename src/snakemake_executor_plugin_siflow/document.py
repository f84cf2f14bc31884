"""Writes the settings table of README.md from the code: `python -m snakemake_executor_plugin_siflow.document`."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from .settings import ExecutorSettings, flag

README = Path(__file__).with_name("README.md")
BEGIN, END = "<!-- settings: begin -->", "<!-- settings: end -->"


def settings_table() -> str:
    """All settings as a Markdown table."""
    lines = ["| setting | default | meaning |", "| --- | --- | --- |"]
    lines += [
        f"| `{flag(item.name)}` | {shown(item.default)} | {item.metadata['help']} |"
        for item in fields(ExecutorSettings)
    ]
    return "\n".join(lines)


def shown(default: Any) -> str:
    """A default value in a table; nothing where there is none."""
    return "" if default is None else f"`{default:g}`" if isinstance(default, float) else f"`{default}`"


def with_table(text: str) -> str:
    """A page with its table as the code has it."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{settings_table()}\n{END}{after}"


if __name__ == "__main__":
    README.write_text(with_table(README.read_text(encoding="utf-8")), encoding="utf-8")
