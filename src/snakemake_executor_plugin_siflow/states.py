"""The platform's words for the state of a task, and what each one means for a job."""

from __future__ import annotations

ALIVE = frozenset({"Pending", "PartialPending", "Running", "Stopping"})
SUCCEEDED = "Succeeded"
STOPPED = "Stopped"
ENDED = frozenset({SUCCEEDED, "Failed", "Error", STOPPED})
WAITING = frozenset({"Pending", "PartialPending"})

#: Words by which `statusMsg` tells that the platform, not a person, stopped a task. The platform has no code for it.
PREEMPTION_WORDS = ("preempt", "evict", "抢占", "驱逐")


def is_ended(status: str) -> bool:
    """Whether a task with this status will never run again; `Unknown` and every new word count as alive."""
    return status in ENDED


def is_unclear(status: str) -> bool:
    """Whether the status says neither that the task lives nor that it has ended."""
    return status not in ALIVE and status not in ENDED


def was_preempted(message: str) -> bool:
    """Whether the text beside the status says that the platform took the task's place away."""
    return any(word in message.lower() for word in PREEMPTION_WORDS)
