"""The simulator as a fixture."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.siflow.rig import Simulator


@pytest.fixture
def simulator(tmp_path: Path) -> Iterator[Simulator]:
    """A simulator without faults, gone with all its tasks at the end."""
    with Simulator(tmp_path / "platform") as running:
        yield running
