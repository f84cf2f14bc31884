"""The life of a `server:` block's server: shared, waited for, and gone with its jobs, whatever is killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from potstill.config.locate import workflow_root
from potstill.errors import ConfigError, PotstillError, TryAgainError
from potstill.servers import fill_command, plan_server, running_server
from tests.servers.waiting import answers, eventually, processes_with

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc: Linux only")

JOB = """
import json, sys
from potstill.servers import running_server
with running_server(json.loads(sys.argv[1])) as url:
    print(url, flush=True)
    sys.stdin.read()
"""
CONTROLLER = """
import subprocess, sys
while line := sys.stdin.readline():
    subprocess.run([sys.executable, "-c", *sys.argv[1:]], stdin=subprocess.DEVNULL)
"""


class Place:
    """A temporary folder of its own for servers, jobs that use it, and the processes of both."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.starts = folder / "starts"
        self.url = ""
        self._started: list[subprocess.Popen[str]] = []
        self._env = os.environ | {"TMPDIR": str(folder / "tmp")}
        (folder / "tmp").mkdir()

    def block(self, before: str = "", **more: Any) -> dict[str, Any]:
        """A server block whose command line names this folder and counts its starts."""
        command = f"echo x >> {self.starts}; {before} exec {{python}} -m http.server {{port}} --directory {self.folder}"
        return {"command": command, "ready_url": "/", **more}

    def job(self, block: dict[str, Any], *, wait: bool = True) -> subprocess.Popen[str]:
        """Start a job in a group of its own; it runs until its stdin is closed."""
        return self._start([sys.executable, "-c", JOB, json.dumps(block)], wait=wait)

    def controller(self, block: dict[str, Any]) -> subprocess.Popen[str]:
        """Start a process whose name is snakemake; each line sent to it runs one short job."""
        script = self.folder / "snakemake"
        script.write_text(CONTROLLER)
        return self._start([sys.executable, str(script), JOB, json.dumps(block)], wait=False)

    def _start(self, words: list[str], *, wait: bool) -> subprocess.Popen[str]:
        job = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=self._env, start_new_session=True
        )
        self._started.append(job)
        if wait:
            assert job.stdout
            self.url = job.stdout.readline().strip()
            assert self.url.startswith("http://")
        return job

    def servers(self) -> set[int]:
        """The server processes that run now."""
        return {
            pid for pid, line in processes_with(str(self.folder)).items() if "http.server" in line and JOB not in line
        }

    def supervisors(self) -> set[int]:
        """The supervisors and guards of this place."""
        states = self.folder.glob("tmp/potstill-*/servers/*/state.json")
        pids = {json.loads(path.read_text())["pid"] for path in states}
        return pids & processes_with("potstill.supervisor").keys()

    def start_count(self) -> int:
        """How often a server was started."""
        return self.starts.read_text().count("x")

    def close(self) -> None:
        """End all that the test started."""
        for job in self._started:
            job.kill()
            job.communicate()
        assert eventually(lambda: not self.servers())


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.close()


@pytest.fixture
def own_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary folder for servers that this process itself starts."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def test_server_answers_inside_the_block_and_is_gone_after_it(own_tmp: Path) -> None:
    """The yielded URL answers while the block runs, and the server ends with it."""
    block = {"command": f"{{python}} -m http.server {{port}} --directory {own_tmp}", "ready_url": "/"}
    with running_server(block) as url:
        assert url.startswith("http://127.0.0.1:")
        assert answers(url)
        assert processes_with(str(own_tmp))
    assert eventually(lambda: not processes_with(str(own_tmp)))


def test_parallel_jobs_share_one_server(place: Place) -> None:
    """Jobs that start at the same moment are served by one server, which outlives the first to end."""
    jobs = [place.job(place.block(), wait=False) for _ in range(4)]
    urls = {job.stdout.readline() for job in jobs if job.stdout}
    assert len(urls) == 1
    assert place.start_count() == 1
    jobs[0].communicate("")
    jobs[1].communicate("")
    assert place.servers()
    jobs[2].communicate("")
    jobs[3].communicate("")
    assert eventually(lambda: not place.servers())
    assert place.start_count() == 1


def test_other_commands_have_their_own_server(place: Place) -> None:
    """Two commands that differ never share a server."""
    place.job(place.block())
    place.job(place.block(before="true;"))
    assert len(place.servers()) == 2


def test_a_variable_in_the_command_tells_servers_apart(own_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same command line means another server when a variable that it reads has another value."""
    monkeypatch.setenv("MODEL", "small")
    small = plan_server({"command": "serve $MODEL --port {port}"}, None)
    monkeypatch.setenv("MODEL", "large")
    assert plan_server({"command": "serve $MODEL --port {port}"}, None).folder != small.folder


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_server_ends_with_a_killed_job(place: Place, number: signal.Signals) -> None:
    """A job that is killed or interrupted leaves no server and no supervisor."""
    job = place.job(place.block())
    os.killpg(job.pid, number)
    assert eventually(lambda: not place.servers() and not place.supervisors())


def test_server_ends_with_a_killed_supervisor_and_comes_back_for_the_job(place: Place) -> None:
    """SIGKILL of the supervisor takes the server with it; the job that still runs gets a new one on the same port."""
    job = place.job(place.block())
    (old,) = place.servers()
    (supervisor,) = place.supervisors()
    os.kill(supervisor, signal.SIGKILL)
    assert eventually(lambda: old not in place.servers())
    assert eventually(lambda: answers(place.url))
    job.communicate("")
    assert eventually(lambda: not place.servers())


def test_server_ends_when_supervisor_and_guard_are_killed_at_once(place: Place) -> None:
    """The kernel ends the server when both processes that look after it are killed."""
    job = place.job(place.block())
    (supervisor,) = place.supervisors()
    children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
    job.kill()
    for pid in (supervisor, *map(int, children)):
        os.kill(pid, signal.SIGKILL)
    assert eventually(lambda: not place.servers())


def test_killed_guard_and_server_come_back_for_the_job(place: Place) -> None:
    """A server that dies under a running job is started again on its port."""
    place.job(place.block())
    (old,) = place.servers()
    os.kill(old, signal.SIGKILL)
    assert eventually(lambda: old not in place.servers())
    assert eventually(lambda: answers(place.url))


def test_children_in_other_sessions_end_too(place: Place) -> None:
    """A process that the server put into a session of its own is stopped with it."""
    marker = place.folder / "astray"
    job = place.job(place.block(before=f"setsid sh -c 'sleep 1000; : {marker}' &"))
    assert processes_with(str(marker))
    job.communicate("")
    assert eventually(lambda: not processes_with(str(marker)))


def test_a_server_that_ignores_sigterm_is_killed(place: Place) -> None:
    """A server that does not go by itself gets SIGKILL after the grace period."""
    job = place.job(place.block(before="trap '' TERM;"))
    job.communicate("")
    assert eventually(lambda: not place.servers())


def test_linger_serves_the_next_job_and_ends_with_the_controller(place: Place) -> None:
    """Between two jobs of a living Snakemake the server stays; when Snakemake is killed, it goes."""
    controller = place.controller(place.block())
    assert controller.stdin
    for _ in range(2):
        controller.stdin.write("\n")
        controller.stdin.flush()
        assert controller.stdout
        assert controller.stdout.readline().startswith("http://")
    assert eventually(lambda: not processes_with(JOB.strip().splitlines()[0]) or place.servers())
    assert place.start_count() == 1
    assert place.servers()
    controller.kill()
    assert eventually(lambda: not place.servers() and not place.supervisors())


def test_an_idle_server_makes_room_for_one_that_needs_its_resource(place: Place) -> None:
    """A server that waits for the next job gives up its GPU at once, and the other starts only when it is gone."""
    gpu = {"resources": {"gpu": 1}}
    controller = place.controller(place.block(**gpu))
    controller.stdin.write("\n")  # type: ignore[union-attr]
    controller.stdin.flush()  # type: ignore[union-attr]
    assert controller.stdout
    assert controller.stdout.readline().startswith("http://")
    (idle,) = place.servers()
    place.job(place.block(before=f"kill -0 {idle} && exit 9;", **gpu))
    assert idle not in place.servers()
    place.job(place.block(before="true;", resources={"disk": 1}))
    assert len(place.servers()) == 2


def test_a_busy_server_keeps_its_resource(place: Place) -> None:
    """Where jobs use a server, one with the same resource starts beside it: the scheduler has counted both."""
    gpu = {"resources": {"gpu": 1}}
    place.job(place.block(**gpu))
    place.job(place.block(before="true;", **gpu))
    assert len(place.servers()) == 2


def test_a_server_that_dies_at_start_is_a_config_error_with_its_log(own_tmp: Path) -> None:
    """The message is one line with the exit status and the end of the server's log; the log itself is logged."""
    block = {"command": "echo loading; echo no such model: gpt-0; exit 3 # {port}"}
    with (
        pytest.raises(
            ConfigError, match=r"status 3 before it was ready; its log .* ends: loading \| no such model: gpt-0$"
        ),
        running_server(block),
    ):
        pass


def test_a_command_that_goes_to_the_background_is_told_so(own_tmp: Path) -> None:
    """A command that returns at once, though with success, is no server; what it left behind is stopped."""
    marker = f"{own_tmp}/astray"
    block = {"command": f"sh -c 'sleep 1000; : {marker}' & # {{port}}"}
    with pytest.raises(ConfigError, match="must stay in the foreground"), running_server(block):
        pass
    assert eventually(lambda: not processes_with(marker))


def test_a_job_that_is_done_does_not_wait_for_a_restart(own_tmp: Path) -> None:
    """A job ends at once although the server that died under it has not come back yet."""
    mark = own_tmp / "first"
    block = {
        "command": f"test -e {mark} && exec sleep 1000; touch {mark}; exec {{python}} -m http.server {{port}}",
        "ready_url": "/",
        "startup_timeout_s": 600,
    }
    with running_server(block):
        (state,) = own_tmp.glob("potstill-*/servers/*/state.json")
        os.kill(json.loads(state.read_text())["pid"], signal.SIGTERM)
        assert eventually(lambda: json.loads(state.read_text())["phase"] == "starting")


def test_a_failed_start_is_tried_again_by_the_next_job(own_tmp: Path) -> None:
    """A failure of an earlier job is not remembered against a later one."""
    block = {"command": f"test -e {own_tmp}/cure && exec {{python}} -m http.server {{port}}", "ready_url": "/"}
    with pytest.raises(ConfigError, match="before it was ready"), running_server(block):
        pass
    (own_tmp / "cure").touch()
    with running_server(block) as url:
        assert url


def test_a_missing_program_is_named(own_tmp: Path) -> None:
    """The shell's own words about a missing program reach the user."""
    with (
        pytest.raises(ConfigError, match="vllm-nowhere"),
        running_server({"command": "vllm-nowhere serve --port {port}"}),
    ):
        pass


def test_a_slow_start_is_try_again(own_tmp: Path) -> None:
    """A server that is not ready in time is stopped, and the message names the key and what was last seen."""
    sleep = f"import time; time.sleep(1000)  # {own_tmp}"
    block = {"command": f"echo loading; exec {{python}} -c '{sleep}' {{port}}", "startup_timeout_s": 0.5}
    with (
        pytest.raises(TryAgainError, match=r"not ready after 0.5 s \(startup_timeout_s\).*loading$"),
        running_server(block),
    ):
        pass
    assert eventually(lambda: not processes_with(sleep))


def test_a_wrong_ready_url_is_told(own_tmp: Path) -> None:
    """A server that answers 404 at ready_url is not ready, and the message says what it answered."""
    block = {
        "command": f"{{python}} -m http.server {{port}} --directory {own_tmp}",
        "ready_url": "/v1/modles",
        "startup_timeout_s": 1,
    }
    with pytest.raises(TryAgainError, match=r"/v1/modles: HTTP 404"), running_server(block):
        pass


def test_a_port_lost_in_a_race_is_replaced(own_tmp: Path) -> None:
    """A server that finds its port taken is started on another one."""
    mark = own_tmp / "first"
    block = {
        "command": f"test -e {mark} || {{ echo {{port}} > {mark}; echo 'Address already in use'; exit 1; }}; "
        "exec {python} -m http.server {port}",
        "ready_url": "/",
    }
    with running_server(block) as url:
        assert f":{mark.read_text().strip()}/" not in url


def test_a_fixed_port_that_is_taken_is_a_config_error(own_tmp: Path) -> None:
    """With a fixed port, a stranger on it is named as the reason, not asked for answers."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as stranger:
        block = {"command": "sleep 1000", "port": stranger.getsockname()[1]}
        with pytest.raises(ConfigError, match="is taken by another process"), running_server(block):
            pass


def test_base_url_and_log_of_the_user_are_used(own_tmp: Path) -> None:
    """`{port}` is filled into the model's own base URL, and the log goes where the block says."""
    log = own_tmp / "logs" / "server.log"
    block = {"command": "echo hello; exec {python} -m http.server {port}", "ready_url": "/", "log": str(log)}
    with running_server(block, base_url="http://localhost:{port}/api/v1") as url:
        assert url.startswith("http://localhost:")
        assert url.endswith("/api/v1")
        assert "hello" in log.read_text()


def test_braces_of_the_user_stay(own_tmp: Path) -> None:
    """Only our own words are filled into a command; JSON in it is left alone."""
    filled = fill_command("""{python} x --overrides '{"a": {"b": 1}}' --port {port} {workflow}/config""")
    assert """'{"a": {"b": 1}}' --port {port} """ in filled
    assert filled.startswith(sys.executable)
    assert filled.endswith(f"{workflow_root()}/config")


@pytest.mark.parametrize(
    ("command", "base_url", "missing"),
    [
        ("serve --port 8000", "http://127.0.0.1:{port}/v1", "server.command"),
        ("serve --port {port}", "http://127.0.0.1:8000/v1", "client_config.base_url"),
    ],
)
def test_a_free_port_must_reach_both_sides(own_tmp: Path, command: str, base_url: str, missing: str) -> None:
    """`port: auto` with {port} in one place only is a mistake that is named."""
    with pytest.raises(ConfigError, match=f"{missing} has no {{port}}"):
        plan_server({"command": command}, base_url)


def test_the_port_of_the_base_url_is_fixed_where_nothing_asks_for_a_free_one(own_tmp: Path) -> None:
    """A command and an address that both name a port need no `port` key."""
    assert plan_server({"command": "serve --port 8000"}, "http://127.0.0.1:8000/v1").port == 8000


def test_a_supervisor_that_cannot_work_is_an_error_not_a_loop(own_tmp: Path) -> None:
    """When the supervisor itself fails each time, the caller hears of it."""
    block = {"command": "{python} -m http.server {port}"}
    (Path(plan_server(block, None).folder) / "state.json").mkdir()
    with pytest.raises(PotstillError, match="its supervisor ended 5 times"), running_server(block):
        pass


def test_a_log_that_cannot_be_written_is_named(own_tmp: Path) -> None:
    """The message names the path of the log that the block asks for."""
    (own_tmp / "file").touch()
    block = {"command": "{python} -m http.server {port}", "log": f"{own_tmp}/file/server.log"}
    with pytest.raises(TryAgainError, match=r"/file: (Not a directory|File exists)"), running_server(block):
        pass


def test_an_empty_command_is_a_config_error(own_tmp: Path) -> None:
    """A block without a command says what to write."""
    with pytest.raises(ConfigError, match="command is empty"):
        plan_server({"command": "  "}, None)


def test_a_runtime_folder_that_others_can_enter_is_refused(own_tmp: Path) -> None:
    """A folder that another user could have prepared is not used."""
    folder = own_tmp / f"potstill-{os.getuid()}"
    folder.mkdir(mode=0o755)
    folder.chmod(0o755)
    with pytest.raises(ConfigError, match="mode 0700"):
        plan_server({"command": "serve {port}"}, None)
    shutil.rmtree(folder)
    (own_tmp / "elsewhere").mkdir(mode=0o700)
    folder.symlink_to(own_tmp / "elsewhere")
    with pytest.raises(ConfigError, match="mode 0700"):
        plan_server({"command": "serve {port}"}, None)
