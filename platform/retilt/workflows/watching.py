"""What the person who started a λ search sees: a line for each trial that ends, on a terminal a bar below them."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from retilt.cluster.display import duration, training_line
from retilt.cluster.messages import Update


class Trials:
    """Tells of the trials of one rung."""

    def __init__(self, trials: int, at_once: int) -> None:
        self._trials, self._at_once, self._done = trials, at_once, 0
        self._bars = Progress(
            TextColumn("{task.description}"), BarColumn(30), TextColumn("{task.fields[said]}"), TimeElapsedColumn(),
            console=Console(), disable=not sys.stdout.isatty(),
        )  # fmt: skip
        self._whole = self._bars.add_task("trials", total=trials, said="")
        self._began = time.monotonic()

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        with self._bars:
            yield

    def show(self, update: Update) -> None:
        """An update of a trial's workers, or of its end."""
        name = update.get("trial", "search")
        if "note" in update:
            self.say(f"{name}: {update['note']}")
        elif update.get("ended"):
            self._done += 1
            failure = update["failure"]
            said = "done" if failure is None else f"failed: {failure[1]}"
            self.say(f"{self._done} of {self._trials} trials, {self._time()}: {name} {said}")
            self._bars.update(self._whole, completed=self._done, said=self._time())
        elif "epoch" in update:
            if update.get("epoch_done"):
                self.say(f"{name}: {training_line(update)}")
            else:
                self._bars.update(self._whole, said=f"{name} epoch {update['epoch']}/{update['epochs']}")

    def say(self, line: str) -> None:
        """One line that stays."""
        if self._bars.disable:
            print(line, flush=True)
        else:
            self._bars.print(line, markup=False, highlight=False)

    def _time(self) -> str:
        spent = time.monotonic() - self._began
        if not self._done:
            return duration(spent)
        left = spent / self._done * (self._trials - self._done)
        return f"{duration(spent)}, about {duration(left)} left of this rung"
