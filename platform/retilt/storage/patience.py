"""Trying again: actions on remote stores that may be repeated are, and each time is counted and logged."""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import TypeVar

import tenacity

from retilt.storage.stores import attempts, is_transient, timeout
from retilt.types import StorageError

PATIENCE = 120
"""Seconds for which one action is tried before the store is given up."""

T = TypeVar("T")
_log = logging.getLogger("retilt.storage")
_lock = threading.Lock()
_counts: Counter[str] = Counter()
_repeating: ContextVar[bool] = ContextVar("retilt_storage_repeating", default=False)
_limit: ContextVar[tuple[float | None, bool]] = ContextVar("retilt_storage_limit", default=(None, False))
"""Seconds where not PATIENCE, and whether to keep silent."""


def retries() -> int:
    """How often this process has repeated an action because a store failed."""
    return _counts["retries"]


@contextlib.contextmanager
def within(seconds: float, silently: bool = False) -> Iterator[None]:
    """Inside, and in this thread, ``retried`` gives up after ``seconds`` and not after PATIENCE.

    ``silently``: what is repeated is not shown.
    """
    token = _limit.set((seconds, silently))
    try:
        yield
    finally:
        _limit.reset(token)


def _show(state: tenacity.RetryCallState) -> None:
    with _lock:
        _counts["retries"] += 1
    assert state.outcome is not None
    level = logging.DEBUG if _limit.get()[1] else logging.WARNING
    _log.log(level, "%s; trying again in %.1f s", state.outcome.exception(), state.upcoming_sleep)


def retried(action: Callable[[], T]) -> T:
    """The result of an action that may be repeated, and is when a remote store fails, after growing random pauses.

    Inside another ``retried`` the outer one repeats. S3 clients made inside try once, because what the AWS SDK repeats
    is neither counted nor shown.

    Raises:
        StorageError: it went on failing for PATIENCE seconds; says how often and how long it was tried.
    """
    if _repeating.get():
        return action()
    seconds = _limit.get()[0]
    limit = PATIENCE if seconds is None else seconds
    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(is_transient),
        wait=tenacity.wait_random_exponential(multiplier=0.25, min=0.05, max=5),
        stop=tenacity.stop_before_delay(limit),
        before_sleep=_show,
    )
    once, inside, started = attempts.set(1), _repeating.set(True), time.monotonic()
    longest = timeout.set(max(1, math.ceil(limit)))
    try:
        return retrying(action)
    except tenacity.RetryError as problem:
        last = problem.last_attempt
        tried = f"tried {last.attempt_number} times in {time.monotonic() - started:.0f} s"
        raise StorageError(f"{last.exception()}; {tried}") from last.exception()
    finally:
        attempts.reset(once)
        timeout.reset(longest)
        _repeating.reset(inside)
