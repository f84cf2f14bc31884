"""The pages say what the code does."""

from __future__ import annotations

import ast
from pathlib import Path

import yaml

from snakemake_executor_plugin_siflow.document import README, with_table
from snakemake_executor_plugin_siflow.settings import ExecutorSettings
from snakemake_executor_plugin_siflow.task import RESOURCES
from tests.siflow.rig import ROOT

PLUGIN = ROOT / "src" / "snakemake_executor_plugin_siflow"


def test_settings_table_is_that_of_the_code() -> None:
    """The table is what `python -m snakemake_executor_plugin_siflow.document` would write."""
    text = README.read_text(encoding="utf-8")
    assert with_table(text) == text


def test_all_resources_are_explained() -> None:
    """Every resource that a rule may have is on the page."""
    text = README.read_text(encoding="utf-8")
    assert [name for name in RESOURCES if f"`{name}`" not in text] == []


def test_profile_sets_only_what_there_is() -> None:
    """The shipped profile passes validation, and every entry of it has a setting."""
    profile = yaml.safe_load((ROOT / "profiles" / "siflow" / "config.yaml").read_text())
    given = {
        name.removeprefix("siflow-").replace("-", "_"): value
        for name, value in profile.items()
        if name.startswith("siflow-")
    }
    ExecutorSettings(**given)


def test_the_plugin_stands_alone() -> None:
    """The plugin imports nothing of potstill, and the wrapper nothing but the standard library."""
    for file in PLUGIN.glob("*.py"):
        assert not [name for name in imported(file) if name.split(".")[0] == "potstill"], file
    import sys

    assert imported(PLUGIN / "wrapper.py") <= {*sys.stdlib_module_names, "collections.abc"}


def imported(file: Path) -> set[str]:
    """The modules that a file imports by name."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module or "")
    return found
