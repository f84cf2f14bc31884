"""The Kubernetes profile as far as it can be tried without a cluster: Snakemake and its plugins accept it."""

import json
import subprocess

import pytest

from tests.workflow.runs import ROOT, SNAKEMAKE

pytest.importorskip(
    "snakemake_executor_plugin_kubernetes", reason="the package snakemake-executor-plugin-kubernetes is not installed"
)
pytest.importorskip("snakemake_storage_plugin_s3", reason="the package snakemake-storage-plugin-s3 is not installed")


def test_every_entry_of_the_profile_is_a_setting_that_snakemake_knows() -> None:
    """Snakemake's own parser, with the plugins that are installed, accepts the profile and reads our values."""
    code = (
        "import json, sys; from snakemake.cli import parse_args; _, args = parse_args(sys.argv[1:]);"
        "print(json.dumps([args.executor, args.default_storage_provider, args.kubernetes_namespace,"
        " sorted(args.groups), args.container_image]))"
    )
    command = [SNAKEMAKE[0], "-c", code, "--profile", str(ROOT / "profiles/kubernetes")]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    executor, storage, namespace, groups, image = json.loads(done.stdout.splitlines()[-1])
    assert (executor, storage, namespace, image) == (
        "kubernetes",
        "s3",
        "default",
        "registry.example.com/potstill:0.1.0",
    )
    assert groups == ["clean_answers", "execute_answers", "filter_answers", "judge_answers", "score_answers"]
