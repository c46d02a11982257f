"""Why workers ended, in words: Ray's errors, of which most lines are about Ray, to one line about the cause."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ray
from ray.train.v2._internal.exceptions import (
    UserExceptionWithTraceback,
    WorkerHealthCheckFailedError,
    WorkerHealthCheckTimeoutError,
)
from ray.train.v2.api.callback import UserCallback

_LONGEST = 300
_SIGNS = {
    "low on memory": "Ray killed it because its node ran low on memory",
    "node has died": "its node is lost",
    "node was terminated": "its node is lost",
    "preempted": "its node is lost",
}
_ECHOES = ("Connection reset by peer", "Connection closed by peer", "Broken pipe", "Timed out waiting")
"""What gloo says on the others; the end of a node shows only seconds later."""


class Watch(UserCallback):
    """Tells the driver of workers that ended; it lives in Ray Train's controller."""

    def __init__(self, messages: Any) -> None:
        self._messages = messages

    def after_exception(self, run_context: Any, worker_exceptions: Mapping[int, Exception]) -> None:
        """Called by Ray once a failure."""
        self._messages.ended.remote(which(worker_exceptions))


def which(errors: Mapping[int, Exception]) -> str:
    """The worker that ended, and why; of several the one whose process died, as the others ended because of it."""
    first = min(errors, key=lambda rank: (isinstance(errors[rank], UserExceptionWithTraceback), rank))
    if any(sign in str(errors[first]) for sign in _ECHOES):
        return f"a worker or its node is lost or hangs (worker {first} lost the connection to it)"
    return f"worker {first} ended ({why(errors[first])})"


def why(error: BaseException) -> str:
    """The cause in one line."""
    if isinstance(error, WorkerHealthCheckTimeoutError):
        return "it did not answer; it hung or its machine is out of reach"
    if isinstance(error, WorkerHealthCheckFailedError):
        error = error.health_check_failure
    if isinstance(error, ray.exceptions.NodeDiedError):
        return "its node is lost"
    if isinstance(error, ray.exceptions.RayActorError):
        if error.preempted:
            return "its node is lost"
        return next((words for sign, words in _SIGNS.items() if sign in str(error)), "killed by a signal, or crashed")
    return last_line(error)


def cause(problem: BaseException) -> str:
    """Why a whole run ended: ``which`` worker, or what Ray Train's controller says."""
    if isinstance(problem, ray.train.WorkerGroupError) and problem.worker_failures:
        return which(problem.worker_failures)
    if isinstance(problem, ray.train.ControllerError):
        return last_line(problem.controller_failure)
    if isinstance(problem, ray.exceptions.RayActorError):
        return f"Ray Train's controller ended ({why(problem)})"
    return last_line(problem)


def last_line(problem: BaseException) -> str:
    """The last line of an error, which in a traceback names the cause."""
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    return lines[-1][:_LONGEST] if lines else type(problem).__name__
