"""What workers tell the driver while they run: an actor between them, and the driver's display of it."""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import ray

Update = Mapping[str, Any]


@ray.remote(num_cpus=0)
class Messages:
    """Holds what the workers have sent until the driver fetches it; the first failure and the result stay."""

    def __init__(self) -> None:
        self._updates: deque[Update] = deque(maxlen=1000)
        self._failure: tuple[int, str] | None = None
        self._result: dict[str, Any] | None = None

    def push(self, update: Update) -> None:
        """Add an update."""
        self._updates.append(update)

    def fetch(self) -> list[Update]:
        """Take all updates."""
        found = list(self._updates)
        self._updates.clear()
        return found

    def fail(self, exit_code: int, message: str) -> None:
        """Keep the first failure: the others follow from it."""
        self._failure = self._failure or (exit_code, message)

    def failure(self) -> tuple[int, str] | None:
        """Exit code and message of the first failure."""
        return self._failure

    def finish(self, result: dict[str, Any]) -> None:
        """Keep rank 0's result."""
        self._result = result

    def result(self) -> dict[str, Any] | None:
        """Rank 0's result, None before the end."""
        return self._result


class Display:
    """Shows the workers' updates on the driver while it waits for them: ``with Display(messages, show): …``."""

    def __init__(self, messages: Any, show: Callable[[Update], None], interval: float = 0.5) -> None:
        self._messages, self._show, self._interval = messages, show, interval
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="display", daemon=True)

    def __enter__(self) -> Display:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=5)

    def _run(self) -> None:
        while not self._stop.wait(self._interval):
            self._drain()
        self._drain()

    def _drain(self) -> None:
        try:
            updates = ray.get(self._messages.fetch.remote(), timeout=10)
        except ray.exceptions.RayError:
            return  # the cluster is going away; whoever waits for the workers says why
        for update in updates:
            self._show(update)


def duration(seconds: float) -> str:
    """``75`` → ``1:15``, ``3700`` → ``1:01:40``."""
    minutes, left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{left:02d}" if hours else f"{minutes}:{left:02d}"


def say(line: str) -> None:
    """One line on standard output, at once."""
    print(line, flush=True)


def training_line(update: Update) -> str:
    """A training update in one line: loss, pace, time left; at an epoch's end its means and validation metrics."""
    epoch = f"epoch {update['epoch']}/{update['epochs']}"
    loss = f"loss {update['loss']:.4f}"
    pace = f"{update['positions_per_second']:,.0f} positions/s"
    if update.get("epoch_done"):
        measured = [
            f"{name.split('/')[1]} {value:.4f}" for name, value in update.items() if name.startswith("validation/")
        ]
        validation = f"  validation {', '.join(measured)}" if measured else ""
        return f"{epoch} done in {duration(update['seconds'])}  {loss}  {pace}{validation}"
    return f"{epoch} step {update['step']}  {loss}  {pace}  {duration(update['seconds_left'])} left"


class TrainingDisplay:
    """Lines for a log; on a terminal the line of the running epoch is overwritten in place."""

    def __init__(self) -> None:
        self._terminal = sys.stdout.isatty()

    def __call__(self, update: Update) -> None:
        """Show one update."""
        line = training_line(update)
        if not self._terminal:
            say(line)
        elif update.get("epoch_done"):
            sys.stdout.write(f"\r\033[K{line}\n")
        else:
            sys.stdout.write(f"\r\033[K{line}")
        sys.stdout.flush()
