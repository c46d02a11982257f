"""Trying again: actions on remote stores that may be repeated are, and each time is counted and logged."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import TypeVar

import tenacity

from retilt.storage.stores import attempts, is_transient
from retilt.types import StorageError

PATIENCE = 120
"""Seconds for which one action is tried before the store is given up."""

T = TypeVar("T")
_log = logging.getLogger("retilt.storage")
_lock = threading.Lock()
_counts: Counter[str] = Counter()
_repeating: ContextVar[bool] = ContextVar("retilt_storage_repeating", default=False)
_patience: ContextVar[float | None] = ContextVar("retilt_storage_patience", default=None)


def retries() -> int:
    """How often this process has repeated an action because a store failed."""
    return _counts["retries"]


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """Inside, ``retried`` gives up after ``seconds`` and not after PATIENCE (in this thread)."""
    token = _patience.set(seconds)
    try:
        yield
    finally:
        _patience.reset(token)


def _show(state: tenacity.RetryCallState) -> None:
    with _lock:
        _counts["retries"] += 1
    assert state.outcome is not None
    _log.warning("%s; trying again in %.1f s", state.outcome.exception(), state.upcoming_sleep)


def retried(action: Callable[[], T]) -> T:
    """The result of an action that may be repeated, and is when a remote store fails, after growing random pauses.

    Inside another ``retried`` the outer one repeats. S3 clients made inside try once, because what the AWS SDK repeats
    is neither counted nor shown.

    Raises:
        StorageError: it went on failing for PATIENCE seconds; says how often and how long it was tried.
    """
    if _repeating.get():
        return action()
    limit = _patience.get()
    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(is_transient),
        wait=tenacity.wait_random_exponential(multiplier=0.25, min=0.05, max=5),
        stop=tenacity.stop_before_delay(PATIENCE if limit is None else limit),
        before_sleep=_show,
    )
    once, inside, started = attempts.set(1), _repeating.set(True), time.monotonic()
    try:
        return retrying(action)
    except tenacity.RetryError as problem:
        last = problem.last_attempt
        tried = f"tried {last.attempt_number} times in {time.monotonic() - started:.0f} s"
        raise StorageError(f"{last.exception()}; {tried}") from last.exception()
    finally:
        attempts.reset(once)
        _repeating.reset(inside)
