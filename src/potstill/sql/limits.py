"""How much one statement may cost."""

from __future__ import annotations

from dataclasses import dataclass

#: Steps of SQLite's virtual machine that one second of the time limit stands for. A plain scan does some 130
#: million a second here; a third of it leaves room, so that a loaded machine gives the same verdict as an idle one.
VM_STEPS_PER_SECOND = 40_000_000


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of one statement. `timeout_s` is wall clock; the step budget fires first on a busy processor.

    Attributes:
        timeout_s: Seconds of wall clock.
        kill_grace_s: Seconds after the timeout at which the worker process is killed.
        max_vm_steps: Budget of virtual machine steps (SQLite only).
        max_rows: Rows of a result.
        max_result_bytes: Bytes of a result's cells; a number counts eight.
        max_value_bytes: Bytes of one text, blob or row inside the engine.
        max_sql_bytes: Bytes of a statement.
        max_memory_bytes: What the engine may allocate.
        clock: What `now` means, so that a run can be repeated.
    """

    timeout_s: float = 5.0
    kill_grace_s: float = 2.0
    max_vm_steps: int = 5 * VM_STEPS_PER_SECOND
    max_rows: int = 100_000
    max_result_bytes: int = 50_000_000
    max_value_bytes: int = 10_000_000
    max_sql_bytes: int = 1_000_000
    max_memory_bytes: int = 512_000_000
    clock: str = "2025-01-01 00:00:00"
