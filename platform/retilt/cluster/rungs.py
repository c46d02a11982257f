"""A rung of a search by Ray Tune: trials side by side, each of which starts a Ray Train run of its own.

The function that Tune runs has no work of its own, so that it asks for no CPU but for a trace of its node: on a small
cluster drivers that hold a CPU each would leave none to the workers they wait for (ray-project/ray 54305). It stands on
the node of whoever started the search, which no autoscaler takes away. Tune's records of a rung go to a temporary
folder: what a search resumes from are the runs themselves.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray import tune
from ray.tune.progress_reporter import TrialProgressCallback
from ray.tune.stopper import NoopStopper

from retilt.cluster import trial
from retilt.cluster.display import Display
from retilt.cluster.messages import Update, on_this_node
from retilt.cluster.stopping import Checkpointing
from retilt.cluster.trial import Task
from retilt.cluster.workers import environment
from retilt.types import ERRORS, RetiltError, Stopped, StorageError, TrainingError

REPEATS = 3
"""Times that a trial is begun again whose process was killed; it goes on from its last checkpoint."""
_QUIET = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # a CSV, a JSON and a TensorBoard log a trial, of a single line
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C stays KeyboardInterrupt
    "TUNE_MAX_PENDING_TRIALS_PG": "1",  # more are started by max_concurrent_trials only
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # the new one prints its settings even when told to be silent
}


class _Silent(TrialProgressCallback):
    """In place of Tune's own, which prints each trial's last result even when told to be silent."""

    def on_trial_result(self, *_: Any, **__: Any) -> None:
        """Nothing: ``show`` tells of it."""

    on_trial_error = on_trial_complete = on_trial_result


class _Over(NoopStopper):
    """Begins no further trial when SIGTERM has come and those at work have ended with their checkpoints."""

    def __init__(self, over: Callable[[], bool]) -> None:
        self._over = over

    def stop_all(self) -> bool:
        """Whether Tune is to end."""
        return self._over()

    def __reduce__(self) -> tuple[type[NoopStopper], tuple[()]]:
        # Tune keeps the experiment's settings in a file that nothing here reads.
        return NoopStopper, ()


def run_rung(
    tasks: Sequence[Task],
    *,
    at_once: int,
    stop_seconds: int,
    show: Callable[[Update], None],
) -> dict[str, str]:
    """Conduct every task, ``at_once`` side by side; returns why trials failed, by name.

    Args:
        tasks: of different names.
        at_once: trials that may run at the same time.
        stop_seconds: grace period after SIGTERM, in which the trials at work write checkpoints.
        show: gets the workers' updates with ``trial``, the name, and ``ended`` with a trial's last one.

    Raises:
        StorageError: a store failed; the other trials have ended first.
        Stopped: SIGTERM.
    """
    board, groups = on_this_node(), {task["name"]: on_this_node() for task in tasks}
    at_work: set[str] = set()

    def shown(update: Update) -> None:
        if update.get("ended"):
            at_work.discard(update["trial"])
        elif "trial" in update:
            at_work.add(update["trial"])
        if "committed" not in update:
            show(update)

    def ask() -> None:
        board.stop.remote()
        for messages in groups.values():
            messages.stop.remote()

    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # a killed trial's traceback; trial.py says so in words
    stop = Checkpointing(ask, stop_seconds, lambda line: show({"note": line}))
    with (
        tempfile.TemporaryDirectory(prefix="retilt-ray-tune-") as folder,
        environment(_QUIET),
        Display(board, shown),
        stop(),
    ):
        over = _Over(lambda: stop.asked and not at_work)
        results = _tuner(tasks, groups, board, at_once, folder, over).fit()
    found = [results[place] for place in range(len(results))]
    metrics = {each.config["task"]["name"]: each.metrics or {} for each in found if each.config}
    if stop.asked:
        raise Stopped("SIGTERM: stopped, with checkpoints; the same command continues")
    failures: dict[str, str] = {}
    for task in tasks:
        name = task["name"]
        died = (TrainingError.__name__, f"the trial's process ended {REPEATS + 1} times")
        failure: tuple[str, str] | None = metrics.get(name, {}).get("failure", died)
        if failure is not None:
            error = ERRORS.get(failure[0], TrainingError)(failure[1])
            if isinstance(error, StorageError | Stopped):
                raise error
            failures[name] = str(error)
    return failures


def _tuner(
    tasks: Sequence[Task], groups: dict[str, Any], board: Any, at_once: int, folder: str, over: _Over
) -> tune.Tuner:
    node = f"node:{ray.util.get_node_ip_address()}"  # type: ignore[no-untyped-call]
    function = tune.with_resources(tune.with_parameters(_conduct, groups=groups, board=board), {node: 0.001})
    return tune.Tuner(
        function,
        param_space={"task": tune.grid_search([dict(task) for task in tasks])},
        # A process conducts one trial after the other, so that the next need not load the libraries again.
        tune_config=tune.TuneConfig(max_concurrent_trials=at_once, reuse_actors=True, trial_dirname_creator=_folder),
        run_config=tune.RunConfig(
            name="rung",
            storage_path=folder,
            verbose=0,
            callbacks=[_Silent()],
            stop=over,
            failure_config=tune.FailureConfig(max_failures=REPEATS),
        ),
    )


def _folder(trial: Any) -> str:
    return str(trial.trial_id)


def _conduct(config: dict[str, Any], groups: dict[str, Any], board: Any) -> None:
    """Tune's function: a failure that would come again is a result; only a process that dies makes Tune repeat it."""
    task, failure = config["task"], None
    if ray.get(board.stopping.remote()):
        failure = (Stopped.__name__, "stopped before this began")
    else:
        board.push.remote({"trial": task["name"], "began": True})
        try:
            trial.conduct(task, groups[task["name"]], board)
        except RetiltError as problem:
            failure = (type(problem).__name__, " ".join(str(problem).split()))
    ray.get(board.push.remote({"trial": task["name"], "ended": True, "failure": failure}))
    tune.report({"failure": failure})
