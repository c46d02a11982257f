"""What the person who started a job sees while the workers run."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any

import ray

from retilt.cluster.messages import Update
from retilt.types import Stopped


class Display:
    """Shows the workers' updates on the driver while it waits for them: ``with Display(messages, show): …``."""

    def __init__(self, messages: Any, show: Callable[[Update], None], interval: float = 0.5) -> None:
        self._messages, self._show, self._interval = messages, show, interval
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="display", daemon=True)

    def __enter__(self) -> Display:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._stop.set()
        # After SIGTERM every second counts.
        self._thread.join(timeout=0.5 if kind in (Stopped, SystemExit) else 2)

    def _run(self) -> None:
        while not self._stop.wait(self._interval):
            self._drain(10)
        self._drain(1)

    def _drain(self, timeout: float) -> None:
        try:
            updates = ray.get(self._messages.fetch.remote(), timeout=timeout)
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
        retries = update.get("storage_retries")
        store = f"  the store failed and was tried again {retries:.0f} times" if retries else ""
        return f"{epoch} done in {duration(update['seconds'])}  {loss}  {pace}{validation}{store}"
    return f"{epoch} step {update['step']}  {loss}  {pace}  {duration(update['seconds_left'])} left"


class TrainingDisplay:
    """Lines for a log; on a terminal the line of the running epoch is overwritten in place."""

    def __init__(self) -> None:
        self._terminal = sys.stdout.isatty()

    def __call__(self, update: Update) -> None:
        """Show one update: a ``note`` as it stands; a checkpoint that was ``committed`` is no news."""
        if "committed" in update:
            return
        line, stays = (update["note"], True) if "note" in update else (training_line(update), "epoch_done" in update)
        if not self._terminal:
            say(line)
        else:
            sys.stdout.write(f"\r\033[K{line}\n" if stays else f"\r\033[K{line}")
            sys.stdout.flush()
