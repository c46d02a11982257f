"""Many tasks of Ray, a few at a time, their results in the order in which they were asked for.

Errors travel as values: what a task raises, Ray logs with a traceback before the one sentence that is for the user.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from typing import Any

import ray

from retilt.types import RetiltError

TASKS_PER_CPU = 2
"""Tasks under way: enough that none waits for the driver, few enough that a failure need not wait for long."""
END_SECONDS = 60
"""How long the end of tasks under way is waited for after a failure, before what they write is deleted."""


def value(reference: Any) -> Any:
    """What a task returned; raises it if it is an error."""
    found = ray.get(reference)
    if isinstance(found, RetiltError):
        raise found
    return found


def in_turn(start: Callable[..., Any], arguments: Iterable[tuple[Any, ...]]) -> Generator[Any, None, None]:
    """What ``start`` returns for each of ``arguments``, in their order, with TASKS_PER_CPU of the tasks under way.

    ``start`` starts a task and returns its reference, several of them, or a generator of them. When this is closed
    early, it waits for the tasks under way. Cancelling them is no way out: in Ray 2.60 that crashes or hangs the
    driver where a task ends at the same moment.
    """
    waiting: deque[Any] = deque()
    underway: list[Any] = []
    try:
        for each in arguments:
            waiting.append(start(*each))
            underway.append(_end(waiting[-1]))
            while len(underway) > TASKS_PER_CPU * _cpus():
                _, underway = ray.wait(underway, num_returns=1)
            while waiting and _end(waiting[0]) not in underway:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()
    finally:
        if underway:
            ray.wait(underway, num_returns=len(underway), timeout=END_SECONDS)


def _cpus() -> float:
    resources: Any = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return max(1.0, float(resources.get("CPU", 1)))


def _end(started: Any) -> Any:
    """The reference that is ready when the task has ended: a generator's own, the only one, or the first of several."""
    if isinstance(started, ray.ObjectRefGenerator):
        return started.completed()
    return started[0] if isinstance(started, list) else started
