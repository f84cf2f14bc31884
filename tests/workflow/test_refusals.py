"""Settings of Snakemake that would lose rows without a word are refused before anything runs."""

from pathlib import Path

import pytest
import yaml

from tests.workflow.runs import Run


@pytest.mark.parametrize("way", ["flag", "short flag", "profile"])
def test_keep_incomplete_is_refused_wherever_it_is_set(tmp_path: Path, way: str) -> None:
    """Snakemake would count the half of an output as the whole; the message says so, and no file of the run is made."""
    small = Run(tmp_path, rows=4)
    (tmp_path / "profile").mkdir()
    (tmp_path / "profile/config.yaml").write_text(yaml.safe_dump({"keep-incomplete": True}))
    flags = {"flag": ["--keep-incomplete"], "short flag": ["--keep-inc"], "profile": ["--profile", "profile"]}[way]
    refused = small.snakemake(*flags, check=False)
    assert refused.returncode == 1
    assert "--keep-incomplete (on the command line or in a profile) is refused" in refused.stdout
    assert "Traceback (most recent call last)" not in refused.stdout
    assert not small.results.exists()


def test_a_summary_needs_no_settings_of_a_run(tmp_path: Path) -> None:
    """Snakemake looks at a workflow without saying how it would run it."""
    assert "merged.jsonl" in Run(tmp_path, rows=4).snakemake("--summary").stdout
