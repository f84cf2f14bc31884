"""Snakemake's own tests for executor plugins, against the simulator."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import snakemake.common.tests

from snakemake_executor_plugin_siflow import ExecutorSettings
from tests.siflow.rig import KEYS, ROOT, Simulator


class TestSiflow(snakemake.common.tests.TestWorkflowsLocalStorageBase):
    """The workflows that every executor must be able to run."""

    __test__ = True

    @pytest.fixture(autouse=True)
    def _platform(self, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        for name, value in KEYS.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
        here = Path.cwd()
        with Simulator(tmp_path_factory.mktemp("platform") / "state") as running:
            self.url = running.url
            yield
        monkeypatch.chdir(here)

    def get_executor(self) -> str:
        """The executor's name."""
        return "siflow"

    def get_executor_settings(self) -> ExecutorSettings:
        """Settings for the simulator."""
        return ExecutorSettings(
            base_url=self.url,
            image="img",
            resource_pool="pool",
            instance=["sci.c23-2"],
            poll_seconds=0.5,
            poll_seconds_max=1.0,
        )
