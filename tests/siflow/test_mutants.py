"""The tests can fail: the plugin is broken on purpose in many ways, and each break must be caught.

`SIFLOW_MUTANTS=1 pytest tests/siflow/test_mutants.py`, or the row `M` of the chaos campaign.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.siflow.rig import ROOT

PLUGIN = "snakemake_executor_plugin_siflow"


class Mutant(NamedTuple):
    """One break: in which file, what becomes what, and which tests must notice."""

    name: str
    file: str
    before: str
    after: str
    tests: str = "tests/siflow/test_dispatcher.py"


MUTANTS = [
    Mutant(
        "create again while the first is in doubt",
        "dispatcher.py",
        "        if now < attempt.posted_at + grace or attempt.looks < 2:\n            return\n",
        "",
    ),
    Mutant(
        "intent is not written",
        "dispatcher.py",
        'self._note(attempt, "intent", sync=False, t=self._time.wall())',
        "pass",
    ),
    Mutant(
        "nothing is taken over",
        "dispatcher.py",
        "        if chosen is not None:\n",
        "        if chosen is not None and False:\n",
    ),
    Mutant("changed work is taken over", "dispatcher.py", "same_members(work.members, attempt.members)", "True"),
    Mutant("no wait for a stopped predecessor", "dispatcher.py", "                work.blockers.append(attempt)\n", ""),
    Mutant(
        "one 404 means lost",
        "dispatcher.py",
        "if attempt.not_found < 3 or now < attempt.not_found_since + self._settings.lost_after:",
        "if False:",
    ),
    Mutant(
        "Succeeded is success",
        "work.py",
        '    outcome = (report or {}).get("outcome")\n',
        '    return Proof.DONE\n    outcome = (report or {}).get("outcome")\n',
    ),
    Mutant(
        "outputs are not looked at",
        "work.py",
        'Proof.DONE if all(is_visible(path, told) for path, told in report["outputs"].items()) else Proof.LATE',
        "Proof.DONE",
    ),
    Mutant("Unknown has ended", "states.py", "return status in ENDED", 'return status in ENDED or status == "Unknown"'),
    Mutant(
        "an error leaves the round",
        "dispatcher.py",
        "                except ApiError as error:\n                    self._complain(str(error))\n",
        "                except ApiError:\n                    raise\n",
    ),
    Mutant(
        "platform faults count", "dispatcher.py", "if work.infra_faults > self._settings.infra_retries:", "if True:"
    ),
    Mutant(
        "a preempted task counts as stopped by a person",
        "states.py",
        "return any(word in message.lower() for word in PREEMPTION_WORDS)",
        "return False",
    ),
    Mutant(
        "throttled creates are failures",
        "dispatcher.py",
        "except (Unreachable, Throttled, Unauthorized) as error:",
        "except (Unreachable, Unauthorized) as error:",
    ),
    Mutant("the fence is not raised", "dispatcher.py", "        self._folder.raise_fence(work.key, number)\n", ""),
    Mutant(
        "cancel forgets creates in doubt",
        "dispatcher.py",
        '        left = [a for a in self.live_attempts() if a.status != "Stopping"]\n',
        "        left = [a for a in self.live_attempts() if a.uuid and a.status]\n",
    ),
    Mutant(
        "any task may be stopped",
        "dispatcher.py",
        'if match is None or match["run"] != self._folder.run[:8]:',
        "if match is None:",
    ),
    Mutant(
        "the list is trusted to filter", "dispatcher.py", "            self._filtered = False\n", "            pass\n"
    ),
    Mutant(
        "a torn ledger is not repaired",
        "folder.py",
        '        whole = content[: content.rfind(b"\\n") + 1]\n',
        "        whole = content\n",
    ),
    Mutant(
        "every task is asked for singly",
        "dispatcher.py",
        "a for a in self.live_attempts() if a.label not in shown and",
        "a for a in self.live_attempts() if True and",
    ),
    Mutant(
        "the fence is not read",
        "wrapper.py",
        "if newest.isdecimal() and int(newest) > self.attempt:",
        "if False:",
        "tests/siflow/test_wrapper.py",
    ),
    Mutant(
        "old outputs count",
        "wrapper.py",
        "or (after[path] == before[path] and path not in kept)",
        "",
        "tests/siflow/test_wrapper.py",
    ),
    Mutant(
        "missing inputs do not matter",
        "wrapper.py",
        "if missing := wait_for_inputs(spec, guard):",
        "if missing := []:",
        "tests/siflow/test_wrapper.py",
    ),
    Mutant(
        "two processes of one attempt",
        "wrapper.py",
        "            self.wait_until_still(self.alive, self.check_fence)\n",
        "            return\n",
        "tests/siflow/test_wrapper.py",
    ),
    Mutant(
        "children outlive the wrapper",
        "wrapper.py",
        "            end_descendants(grace=2.0)\n",
        "            pass\n",
        "tests/siflow/test_wrapper.py",
    ),
    Mutant(
        "a create is repeated after doubt",
        "client.py",
        'answer = self._signed("POST", "", body=body, headers=headers)',
        'answer = self._repeated("POST", "", body=body, headers=headers)',
        "tests/siflow/test_client.py",
    ),
    Mutant(
        "Retry-After is ignored",
        "client.py",
        "            self.pacer.close_for(parse_retry_after(retry_after))\n",
        "            pass\n",
        "tests/siflow/test_client.py",
    ),
]


def break_it(folder: Path, mutant: Mutant) -> None:
    """Make a broken copy of the plugin."""
    shutil.copytree(ROOT / "src" / PLUGIN, folder / PLUGIN, ignore=shutil.ignore_patterns("__pycache__"))
    file = folder / PLUGIN / mutant.file
    text = file.read_text()
    assert text.count(mutant.before) >= 1, f"{mutant.name}: the text to break is not in {mutant.file}"
    file.write_text(text.replace(mutant.before, mutant.after, 1))


@pytest.mark.skipif(not os.environ.get("SIFLOW_MUTANTS"), reason="some minutes; part of `make siflow-chaos`")
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name.replace(" ", "-"))
def test_each_break_is_caught(tmp_path: Path, mutant: Mutant) -> None:
    """At least one test fails when the plugin is broken in this way."""
    break_it(tmp_path, mutant)
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT / "src")]),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-q",
        "-p",
        "no:cacheprovider",
        "--timeout",
        "40",
        "--no-header",
        mutant.tests,
    ]
    result = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=250, check=False)
    assert result.returncode == 1, f"{mutant.name} was not noticed:\n{result.stdout[-2000:]}"


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name.replace(" ", "-"))
def test_each_break_can_be_made(tmp_path: Path, mutant: Mutant) -> None:
    """The text that a mutant breaks is still in the code, so that the campaign does not go stale."""
    break_it(tmp_path, mutant)
    compile((tmp_path / PLUGIN / mutant.file).read_text(), mutant.file, "exec")
