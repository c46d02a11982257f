"""SIGTERM, which ``ray job stop`` and Kubernetes send: a last checkpoint if there is time for one, then exit 75.

A handler only sets flags and leaves the rest to a thread, or leaves what the main thread waits in by SystemExit, which
no ``except Exception`` of a library keeps. Ray looks for signals once a second while it waits.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

import ray

from retilt.types import Stopped

ENOUGH = 10
"""Seconds of grace below which no checkpoint is tried."""
RELEASE = 5
"""Seconds of grace that are kept for the end of the processes."""
RAY_JOB_STOP_SECONDS = 3
"""What Ray leaves a submitted job between SIGTERM and SIGKILL unless RAY_JOB_STOP_WAIT_TIME_S says otherwise."""


def grace(stop_seconds: int) -> int:
    """Seconds from SIGTERM to SIGKILL: ``stop_seconds``, but in a submitted job at most what Ray leaves it."""
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" not in os.environ:
        return stop_seconds
    return min(stop_seconds, int(os.environ.get("RAY_JOB_STOP_WAIT_TIME_S", RAY_JOB_STOP_SECONDS)))


def exit_now() -> None:
    """End this process where it stands; Ray takes its workers down with it."""
    with contextlib.suppress(Exception):  # the signal may have come in the middle of a write
        sys.stdout.flush()
    os._exit(Stopped.exit_code)


@contextlib.contextmanager
def _handling(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """SIGTERM goes to ``handler`` inside the block; outside the main thread nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def released_on_sigterm() -> Iterator[None]:
    """For work that has nothing to write before its end: SIGTERM leaves the block at once.

    Raises:
        Stopped: SIGTERM came. A second one ends the process on the spot.
    """
    asked = False

    def handle(_signal: int, _frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            exit_now()
        asked = True
        raise SystemExit(Stopped.exit_code)

    with _handling(handle):
        try:
            yield
        except SystemExit:
            if not asked:
                raise
            raise Stopped("SIGTERM: stopped; the same command does the work") from None


class Checkpointing:
    """For training: SIGTERM asks the workers for a last checkpoint and leaves the block when the time is over.

    ``asked`` says whether it came. A second one ends the process on the spot. ``ask`` tells the
    workers, without waiting.

    Raises:
        Stopped: on leaving the block, if there was not enough time.
    """

    def __init__(self, ask: Callable[[], object], stop_seconds: int, show: Callable[[str], None]) -> None:
        self._tell, self._grace, self._show = ask, grace(stop_seconds), show
        self.asked = False
        self._late = False
        self._over = threading.Event()

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        with _handling(self._handle):
            try:
                yield
            except SystemExit:
                if not self.asked:
                    raise
                raise Stopped(self._too_little()) from None
            finally:
                self._over.set()

    def _handle(self, _signal: int, _frame: FrameType | None) -> None:
        if self.asked and not self._late:
            exit_now()
        self.asked = True
        if self._late or self._grace < ENOUGH:
            self._late = False
            raise SystemExit(Stopped.exit_code)
        threading.Thread(target=self._ask, name="stopping", daemon=True).start()

    def _ask(self) -> None:
        end = time.monotonic() + self._grace - RELEASE
        self._show(f"SIGTERM: writing a last checkpoint (up to {self._grace - RELEASE} s)")
        with contextlib.suppress(ray.exceptions.RayError):  # then it is late below
            self._tell()
        if not self._over.wait(max(0.0, end - time.monotonic())):
            self._late = True
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)

    def _too_little(self) -> str:
        end = "the same command continues from the last checkpoint"
        if self._grace >= ENOUGH:
            return f"SIGTERM: no checkpoint within {self._grace - RELEASE} s; workers released, {end}"
        if "RAY_JOB_CONFIG_JSON_ENV_VAR" not in os.environ:
            return f"SIGTERM: a grace period of {self._grace} s is too short for a checkpoint; {end}"
        return (
            f"SIGTERM: Ray gives this job only {self._grace} s, too short for a checkpoint; {end}. For more time set "
            "RAY_JOB_STOP_WAIT_TIME_S=60 in the head's environment or in runtime_env.env_vars (deploy/job-env.yaml)"
        )
