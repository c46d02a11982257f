"""What runs in a worker process around the work itself: its reporter, its end when the driver's end leaves it alone."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import ray
import ray.train
from ray.train.torch import TorchConfig

from retilt import ranks
from retilt.evaluation.report import code_version
from retilt.training import parallel
from retilt.types import InputError, Reporter, RetiltError, Stopped

POLL_SECONDS = 0.5
"""Between two questions of rank 0 whether to stop; the others only see whether the driver is there."""
OTHERS_SECONDS = 5.0
ECHO_SECONDS = 2.0
"""By how much a worker's error comes later: twice the time between two looks of Ray Train."""
_PR_SET_PDEATHSIG = 1
_Backend: Any = TorchConfig().backend_cls


class Work(Protocol):
    """What each worker runs; returns the result (rank 0's counts)."""

    def __call__(self, arguments: Mapping[str, Any], reporter: Reporter, /) -> dict[str, Any]: ...


class _WithoutFarewell(_Backend):  # type: ignore[misc] # Ray publishes no type
    """Workers are killed at their end; Ray would first wait 30 s for a hung one to leave the process group."""

    def on_shutdown(self, worker_group: Any, backend_config: Any) -> None:
        """Nothing."""


@dataclass
class GlooOrNccl(TorchConfig):
    """gloo on CPUs and NCCL on GPUs; ``timeout_s`` is what a collective waits for a worker that does not answer."""

    @property
    def backend_cls(self) -> Any:
        return _WithoutFarewell


class RayReporter:
    """A worker's view of Ray Train (types.Reporter)."""

    def __init__(self, messages: Any) -> None:
        self._messages = messages
        self._stop = False
        threading.Thread(target=self._watch, name="watch", daemon=True).start()

    def progress(self, update: Mapping[str, Any]) -> None:
        """Send a line of progress, a note or ``committed`` to the driver; never waits."""
        self._messages.push.remote(dict(update))

    def stop_requested(self) -> bool:
        """Whether the driver wants the run to end; known on rank 0 half a second later."""
        return self._stop

    def report(self, metrics: Mapping[str, Any]) -> None:
        """Tell Ray Train of an epoch; every rank waits for the others here."""
        ray.train.report(dict(metrics))

    def _watch(self) -> None:
        """Ask whether to stop, and end this process if the one that would take its result is gone."""
        pause = threading.Event()
        while not pause.wait(POLL_SECONDS if ranks.rank() == 0 else OTHERS_SECONDS):
            try:
                self._stop = ray.get(self._messages.stopping.remote(), timeout=30)
            except ray.exceptions.ActorDiedError:
                os._exit(1)
            except ray.exceptions.RayError:
                continue  # an unsteady network is no end


def run_rank(task: dict[str, Any]) -> None:
    """Ray Train's function: the work, and its error or result to the driver."""
    messages = task["messages"]
    _end_with_the_node()
    if not _worth_starting(messages):
        return
    parallel.use_threads(task["threads"])
    try:
        _require_code(task["code"])
        result = task["work"](task["arguments"], RayReporter(messages))
    except RetiltError as problem:
        _fail(messages, problem)
        if not problem.on_all_ranks:
            raise  # the other ranks wait in a collective; only an end of this process frees them
        return
    except Exception:
        # Mostly the loss of a connection to a worker that died, whose own end Ray should see first and tell.
        time.sleep(ECHO_SECONDS if ranks.world() > 1 else 0)
        raise
    if ranks.rank() == 0:
        ray.get(messages.finish.remote(result))


def _worth_starting(messages: Any) -> bool:
    """Not after an error that Ray's restart of the group cannot mend, nor after SIGTERM; rank 0 asks for all."""
    mine = ranks.rank() == 0
    if mine:
        ray.get(messages.hold.remote(ray.util.get_current_placement_group()))
    if mine and ray.get(messages.stopping.remote()):
        _fail(messages, Stopped("SIGTERM: no worker was at work; the same command continues from the last checkpoint"))
    return bool(ranks.broadcast_object(mine and ray.get(messages.failure.remote()) is None))


def _fail(messages: Any, problem: RetiltError) -> None:
    ray.get(messages.fail.remote(type(problem).__name__, str(problem)))


def _end_with_the_node() -> None:
    """Have Linux kill this process when Ray's node process, its parent, ends: a stopped process cannot notice it."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _require_code(driver: dict[str, str]) -> None:
    """Refuse a node whose image holds another version than the driver runs: half a run each is worth nothing."""
    if (mine := code_version()) != driver:
        raise InputError(
            f"a worker runs other code ({mine}) than the driver ({driver}); give the cluster's image and the checkout "
            "the same version, or submit with --runtime-env deploy/job-env.yaml; where a file changed while the job "
            "ran, put it back and give the same command (with the change it also goes on, one half of each code)"
        )
