"""What the person who started a λ search sees: a line for each trial that ends, on a terminal a bar below them."""

from __future__ import annotations

import time

from retilt.cluster.display import duration, training_line
from retilt.cluster.messages import Update
from retilt.types import Stopped
from retilt.workflows.progress import Bars


class Trials(Bars):
    """Tells of the trials of one rung."""

    def __init__(self, trials: int) -> None:
        super().__init__()
        self._trials, self._done = trials, 0
        self._whole = self._bars.add_task("trials", total=trials, said="")

    def show(self, update: Update) -> None:
        """An update of a trial's workers, or of its end."""
        name = update.get("trial", "search")
        if "note" in update:
            self.say(f"{name}: {update['note']}")
        elif update.get("ended"):
            self._done += 1
            failure = update["failure"]
            stopped = failure is not None and failure[0] == Stopped.__name__
            said = "done" if failure is None else "stopped" if stopped else f"failed: {failure[1]}"
            self.say(f"{self._done} of {self._trials} trials, {self._time()}: {name} {said}")
            self._bars.update(self._whole, completed=self._done, said=self._time())
        elif "epoch" in update:
            if update.get("epoch_done"):
                self.say(f"{name}: {training_line(update)}")
            else:
                self._bars.update(self._whole, said=f"{name} epoch {update['epoch']}/{update['epochs']}")

    def _time(self) -> str:
        spent = time.monotonic() - self._began
        if not self._done:
            return duration(spent)
        left = spent / self._done * (self._trials - self._done)
        return f"{duration(spent)}, about {duration(left)} left of this rung"
