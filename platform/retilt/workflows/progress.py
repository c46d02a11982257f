"""What the person who started a reproduction sees: on a terminal a line a lane, in a log a line a step."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from retilt.cluster.display import duration
from retilt.cluster.messages import Update
from retilt.workflows.scheduling import Schedule
from retilt.workflows.steps import Failed, Measured, Outcome, Step, Trained


class Bars:
    """On a terminal bars below the lines that are said, in a log the lines alone."""

    def __init__(self) -> None:
        self._bars = Progress(
            TextColumn("{task.description}"), BarColumn(30), TextColumn("{task.fields[said]}"), TimeElapsedColumn(),
            console=Console(), disable=not sys.stdout.isatty(),
        )  # fmt: skip
        self._began = time.monotonic()

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        with self._bars:
            yield

    def say(self, line: str) -> None:
        """One line that stays."""
        if self._bars.disable:
            print(line, flush=True)
        else:
            self._bars.print(line, markup=False, highlight=False)


class Steps(Bars):
    """Tells of steps as they end, and on a terminal of what each lane is at."""

    def __init__(self, schedule: Schedule, lanes: int) -> None:
        super().__init__()
        self._schedule, self._lanes = schedule, lanes
        left = schedule.left()
        self._whole = self._bars.add_task(
            "steps", total=len(schedule.done) + len(left), completed=len(schedule.done), said=""
        )
        self._rows = [self._bars.add_task(f"lane {lane + 1}", total=None, said="") for lane in range(lanes)]

    def lane(self, number: int, update: Update) -> None:
        """A worker's line of progress, or its note, which stays."""
        if "note" in update:
            self.say(f"lane {number + 1}: {update['note']}")
        elif "epoch" in update:
            said = f"epoch {update['epoch']}/{update['epochs']}  loss {update['loss']:.4f}"
            self._bars.update(self._rows[number], said=said, total=update["epochs"], completed=update["epoch"] - 1)

    def ended(self, step: Step, outcome: Outcome) -> None:
        """A step that has ended."""
        done, left = len(self._schedule.done), len(self._schedule.left())
        self.say(f"{done} of about {done + left} steps, {self._time()}: {step.place} {_in_words(outcome)}")
        self._bars.update(self._whole, completed=done, total=done + left, said=self._time())

    def _time(self) -> str:
        left = self._schedule.seconds_left(self._lanes)
        spent = duration(time.monotonic() - self._began)
        return spent if left is None else f"{spent}, about {duration(left)} left"


def _in_words(outcome: Outcome) -> str:
    if isinstance(outcome, Failed):
        return f"failed: {outcome.reason}"
    if isinstance(outcome, Measured):
        return "done, " + ", ".join(f"ndcg@10 {value:.4f} ({name})" for name, value in outcome.values.items())
    if not isinstance(outcome, Trained):
        return "done"
    value = outcome.epochs[-1].get("validation/ndcg@10")
    return f"done, {len(outcome.epochs)} epochs" + ("" if value is None else f", validation ndcg@10 {value:.4f}")
