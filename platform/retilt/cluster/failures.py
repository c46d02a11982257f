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
OUT_OF_MEMORY = "out of memory"
"""In the words for a worker that had too little of it, whoever found out."""
_SIGNS = {
    "node has died": "its node is lost",
    "node was terminated": "its node is lost",
    "preempted": "its node is lost",
}
_ALLOCATORS = ("MemoryError", "can't allocate memory", "bad_alloc")
"""Python and NumPy, Arrow and CUDA (whose errors have longer names with this end); torch on CPU; C++."""
_ECHOES = ("Connection reset by peer", "Connection closed by peer", "Broken pipe", "Timed out waiting")
"""What gloo says on the others; the end of a node shows only seconds later."""


class Watch(UserCallback):
    """Tells the driver of workers that ended; it lives in Ray Train's controller."""

    def __init__(self, messages: Any, estimate: str) -> None:
        self._messages, self._estimate = messages, estimate

    def after_exception(self, run_context: Any, worker_exceptions: Mapping[int, Exception]) -> None:
        """Called by Ray once a failure."""
        self._messages.ended.remote(which(worker_exceptions, self._estimate))


def which(errors: Mapping[int, Exception], estimate: str = "", killed: bool = False) -> str:
    """The worker that ended, and why; of several the one whose process died, as the others ended because of it.

    ``estimate`` is said beside it where the worker had too little memory; ``killed``: see ``why``.
    """
    first = min(errors, key=lambda rank: (_is_echo(errors[rank]), _is_raised(errors[rank]), rank))
    if _is_echo(errors[first]):
        return f"a worker or its node is lost or hangs (worker {first} lost the connection to it)"
    reason = why(errors[first], killed)
    beside = f"; {estimate}" if estimate and OUT_OF_MEMORY in reason else ""
    return f"worker {first} ended ({reason}){beside}"


def _is_echo(error: Exception) -> bool:
    return any(sign in str(error) for sign in _ECHOES)


def _is_raised(error: Exception) -> bool:
    return isinstance(error, UserExceptionWithTraceback)


def why(error: BaseException, killed: bool = False) -> str:
    """The cause in one line; ``killed``: the kernel has killed a process of this machine for lack of memory."""
    if isinstance(error, WorkerHealthCheckTimeoutError):
        return "it did not answer; it hung or its machine is out of reach"
    if isinstance(error, WorkerHealthCheckFailedError):
        error = error.health_check_failure
    if isinstance(error, ray.exceptions.OutOfMemoryError):
        return f"{OUT_OF_MEMORY}: Ray killed it because its node had too little left"
    if isinstance(error, ray.exceptions.NodeDiedError):
        return "its node is lost"
    if isinstance(error, ray.exceptions.RayActorError):
        if error.preempted:
            return "its node is lost"
        unknown = f"{OUT_OF_MEMORY}: the kernel killed it" if killed else "killed by a signal, or crashed"
        return next((words for sign, words in _SIGNS.items() if sign in str(error)), unknown)
    said = last_line(error)
    return f"{OUT_OF_MEMORY}: {said}" if any(sign in said for sign in _ALLOCATORS) else said


def cause(problem: BaseException, estimate: str = "", killed: bool = False) -> str:
    """Why a whole run ended: ``which`` worker, or what Ray Train's controller says."""
    if isinstance(problem, ray.train.WorkerGroupError) and problem.worker_failures:
        return which(problem.worker_failures, estimate, killed)
    if isinstance(problem, ray.train.ControllerError):
        return last_line(problem.controller_failure)
    if isinstance(problem, ray.exceptions.RayActorError):
        return f"Ray Train's controller ended ({why(problem, killed)})"
    return last_line(problem)


def last_line(problem: BaseException) -> str:
    """The last line of an error, which in a traceback names the cause."""
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    return lines[-1][:_LONGEST] if lines else type(problem).__name__
