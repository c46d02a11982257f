"""Steps on lanes: what may be done now, side by side, until nothing is left; and how long that will take."""

from __future__ import annotations

import concurrent.futures
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from retilt.cluster.lanes import Lane, UnstartedError, stop_all
from retilt.types import InputError, Stopped, TrainingError
from retilt.workflows import running
from retilt.workflows.plan import Plan
from retilt.workflows.steps import (
    Derived,
    Deriving,
    Evaluating,
    Failed,
    Measured,
    Outcome,
    Predicting,
    Step,
    Trained,
    Training,
    turn,
)

LOOK_SECONDS = 1.0
"""Between two looks whether SIGTERM came, while nothing else happens."""

AtWork = dict["Future[Outcome]", tuple[Step, Lane, float]]


class Schedule:
    """The outcomes so far, and what follows from them."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.done: dict[str, Outcome] = {}
        self._seconds = self._cost = 0.0

    def open(self) -> list[Step]:
        """Steps without an outcome whose turn has come, in the order of the plan; the others may follow from theirs.

        A step that needs one that failed fails with it.
        """
        while True:
            waiting = {step.key: step for step in self.plan.steps(self.done) if step.key not in self.done}
            turns = {key: turn(step, self.done) for key, step in waiting.items()}
            failed = {key: each for key, each in turns.items() if isinstance(each, Failed)}
            if not failed:
                return [step for key, step in waiting.items() if turns[key]]
            self.done |= failed

    def find(self) -> None:
        """Take the outcomes of everything that was done before."""
        looked = set[str]()
        while steps := [step for step in self.open() if step.key not in looked]:
            for step in steps:
                looked.add(step.key)
                there, outcome = running.look(step)
                if there:
                    self.done[step.key] = outcome

    def end(self, step: Step, outcome: Outcome, seconds: float) -> None:
        """Count in a step that was done here and took so long.

        A run may have trained a part of its epochs before this session; they count as what they took then.
        """
        if isinstance(outcome, Trained):
            before = self._epochs().get(step.place, 0)
            seconds = max(seconds, sum(epoch["seconds"] for epoch in outcome.epochs[before:]))
        self._seconds += seconds
        self._cost += self._costs([step])
        self.done[step.key] = outcome

    def left(self) -> list[Step]:
        """Everything that is still to be done, as if each run had its best epoch last."""
        done: dict[str, Outcome] = dict(self.done)
        found: dict[str, Step] = {}
        while steps := [step for step in self.plan.steps(done) if step.key not in done]:
            found |= {step.key: step for step in steps}
            done |= {step.key: _supposed(step, self.plan.rewards) for step in steps}
        return list(found.values())

    def seconds_left(self, lanes: int) -> float | None:
        """Seconds until everything is done, at the pace so far; None before a step has ended here."""
        return self._costs(self.left()) * self._seconds / self._cost / lanes if self._cost else None

    def _costs(self, steps: Sequence[Step]) -> float:
        """What steps cost together; of a run that goes on only the epochs that it has not yet."""
        most = self._epochs()
        total = 0.0
        for step in steps:
            place, _, epochs = step.key.partition("@")
            before, now = most.get(place, 0), int(epochs or 1)
            total += step.cost * max(0, now - before) / now
            most[place] = max(before, now)
        return total

    def _epochs(self) -> dict[str, int]:
        """How many epochs each place has had; 1 for what is not a run."""
        most: dict[str, int] = {}
        for key in self.done:
            place, _, epochs = key.partition("@")
            most[place] = max(most.get(place, 0), int(epochs or 1))
        return most


def _supposed(step: Step, rewards: Mapping[str, Any]) -> Outcome:
    if isinstance(step.what, Evaluating):
        return Measured(dict.fromkeys(step.what.wanted, 0.0))
    if isinstance(step.what, Deriving | Predicting):
        return Derived(rewards)
    if not isinstance(step.what, Training):
        return None
    config = step.what.config
    metric = f"validation/{config.selection_metric}"
    return Trained(tuple({metric: float(epoch), "seconds": 0.0} for epoch in range(config.epochs)), {"ess_ratio": 0.9})


def work_through(
    schedule: Schedule, lanes: Sequence[Lane], stopped: Callable[[], bool], show: Callable[[Step, Outcome], None]
) -> None:
    """Do all that is left, each lane one step at a time; ``show`` gets each step that has ended, and its outcome.

    A step that fails takes with it what needs it, and nothing else.

    Raises:
        Stopped: SIGTERM came; what was at work has written a checkpoint.
        StorageError: a store failed, for all of them; the others have stopped in order.
        InputError, TrainingError: no worker can be started.
    """
    free, at_work = list(lanes), AtWork()
    pool = ThreadPoolExecutor(len(lanes), thread_name_prefix="step")
    try:
        while True:
            for step in _ready(schedule, at_work):
                if free and not stopped():
                    lane = free.pop(0)
                    future = pool.submit(running.do, step, lane, len(lanes))
                    at_work[future] = (step, lane, time.monotonic())
            if not at_work:
                break
            ended, _ = concurrent.futures.wait(at_work, LOOK_SECONDS, concurrent.futures.FIRST_COMPLETED)
            for future in ended:
                step, lane, began = at_work.pop(future)
                free.append(lane)
                outcome = _outcome(future)
                if not isinstance(outcome, Stopped):
                    schedule.end(step, outcome, time.monotonic() - began)
                    show(step, outcome)
    except Exception:
        stop_all(lanes)
        concurrent.futures.wait(at_work)
        raise
    finally:
        pool.shutdown(wait=False)  # after SystemExit nothing is waited for: the end of the connection ends them
    assert stopped() or not schedule.left(), "steps wait for each other"
    if stopped():
        raise Stopped("SIGTERM: stopped, with checkpoints; the same command continues")


def _ready(schedule: Schedule, at_work: AtWork) -> list[Step]:
    """Open steps that write to no folder in which another is at work."""
    places = {step.place for step, _, _ in at_work.values()}
    found = []
    for step in schedule.open():
        if step.place not in places:
            places.add(step.place)
            found.append(step)
    return found


def _outcome(future: Future[Outcome]) -> Outcome | Stopped:
    try:
        return future.result()
    except Stopped as problem:
        return problem
    except UnstartedError as problem:
        raise problem.reason from None
    except (InputError, TrainingError) as problem:
        return Failed(" ".join(str(problem).split()))
