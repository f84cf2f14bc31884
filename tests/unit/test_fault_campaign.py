"""The short form of the fault campaign (`make fault-test`)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults import PARTS, Campaign


@pytest.mark.slow
@pytest.mark.parametrize("part", ["mixed", "outages"])
def test_every_bound_holds(tmp_path: Path, part: str) -> None:
    """Under faults and outages every row ends, none is blamed for them, and nothing is sent before its time."""
    campaign = Campaign(tmp_path, rows=2000, seed=3, patience=4)
    PARTS[part](campaign)
    assert not campaign.broken
