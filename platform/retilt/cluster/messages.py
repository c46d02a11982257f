"""What workers tell the driver while they run, and the driver the workers: an actor between them."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from retilt.types import ERRORS, TrainingError

Update = Mapping[str, Any]


@ray.remote(num_cpus=0)
class Messages:
    """Holds what was sent until it is fetched; the first failure, the number of checkpoints and the result stay."""

    def __init__(self) -> None:
        self._updates: deque[Update] = deque(maxlen=1000)
        self._failure: tuple[str, str] | None = None
        self._result: dict[str, Any] | None = None
        self._committed = 0
        self._stopping = False
        self._room: Any = None

    def push(self, update: Update) -> None:
        """Add an update; ``committed`` says that a checkpoint of that step stands."""
        self._updates.append(update)
        if "committed" in update:
            self._committed += 1

    def fetch(self) -> list[Update]:
        """Take all updates."""
        found = list(self._updates)
        self._updates.clear()
        return found

    def ended(self, reason: str) -> None:
        """Note that a worker ended; after an error that no restart mends this is its echo, and no news."""
        if self._failure is None and not self._stopping:
            self._updates.append({"note": f"{reason}; all workers start again from the last checkpoint"})

    def fail(self, name: str, message: str) -> None:
        """Keep the first failure (its class in types.ERRORS and its message): the others follow from it."""
        self._failure = self._failure or (name, message)

    def failure(self) -> tuple[str, str] | None:
        """Class and message of the first failure."""
        return self._failure

    def finish(self, result: dict[str, Any]) -> None:
        """Keep rank 0's result."""
        self._result = result

    def result(self) -> dict[str, Any] | None:
        """Rank 0's result, None before the end."""
        return self._result

    def committed(self) -> int:
        """Number of checkpoints that were written since the job began."""
        return self._committed

    def hold(self, room: Any) -> None:
        """Remember the placement group that the workers run in."""
        self._room = room

    def room(self) -> Any:
        """The placement group of the workers, None before the first of them."""
        return self._room

    def stop(self) -> None:
        """Ask the workers to end at the next step."""
        self._stopping = True

    def stopping(self) -> bool:
        """Whether they are asked to."""
        return self._stopping


def on_this_node() -> Any:
    """The actor, on the driver's node: any other may be lost while the run goes on."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return Messages.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]


def raise_failure(messages: Any) -> None:
    """Raise what a worker failed with as what it was: InputError, StorageError, TrainingError or Stopped."""
    if (failure := ray.get(messages.failure.remote())) is not None:
        raise ERRORS.get(failure[0], TrainingError)(failure[1])
