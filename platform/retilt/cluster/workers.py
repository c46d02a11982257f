"""One function on N workers of Ray Train, used by training and evaluation: place, start, watch, restart, collect."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ray
import ray.train
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2.api.config import FailureConfig, RunConfig, ScalingConfig
from ray.train.v2.torch.torch_trainer import TorchTrainer

from retilt.cluster import stopping
from retilt.cluster.display import Display
from retilt.cluster.failures import Watch, cause
from retilt.cluster.messages import Update, on_this_node, raise_failure
from retilt.cluster.rank import GlooOrNccl, Work, run_rank
from retilt.cluster.resources import kernel_kills, place_workers
from retilt.evaluation.report import code_version
from retilt.types import Stopped, TrainingError

RESTARTS = 3
"""Failures of the workers after which a run ends unless a checkpoint was written since the first of them."""
START_ATTEMPTS = 10
"""Ray retries workers that find no room; without a limit it would retry for ever."""
POLL_SECONDS = 1.0
"""Between two looks of Ray Train at its workers; its own 2 s are a tenth of a restart."""
ROOM_SECONDS = 20
"""How long a range of workers waits for the room that Ray thinks there is, before it counts anew. Ray's count is up to
20 s old, so after the loss of a node it would wait its usual 60 s for what is gone."""
RESIZE_SECONDS = 60.0
"""How often a range of workers looks for room for more; each change costs the steps since the last checkpoint."""


class _Trainer(TorchTrainer):
    """Ray's trainer without two things that it does beside training."""

    def _create_default_callbacks(self) -> list[Any]:
        """Without the cleaner of placement groups, which _fit does better.

        The cleaner asks whichever Ray started last on the machine for the controller, and when that does not know it,
        takes the workers' room from under them; until it is answered, it holds up the end of a run, by up to 12 s.
        """
        callbacks = super()._create_default_callbacks()
        return [each for each in callbacks if not isinstance(each, PlacementGroupCleanerCallback)]

    def _register_sigint_handler(self, controller: Any) -> None:
        """Ctrl-C stays KeyboardInterrupt and exit 130; Ray makes it an exit 1 and leaves its handler behind."""


def on_workers(
    work: Work,
    arguments: Mapping[str, Any],
    *,
    workers: int | tuple[int, int],
    threads: int | None,
    gpu: bool,
    show: Callable[[Update], None],
    hang_seconds: int = 300,
    stop_seconds: int | None = None,
    resize_seconds: float = RESIZE_SECONDS,
    estimate: str = "",
    messages: Any = None,
) -> dict[str, Any]:
    """Run ``work`` on ``workers`` ranks (or fewest to most) of the connected cluster and return rank 0's result.

    When a worker ends or does not answer for ``hang_seconds``, ``work`` starts again on all of them, as long as there
    is progress (``reporter.progress({"committed": step})``). With ``stop_seconds`` SIGTERM asks for a last checkpoint
    and leaves that long for it; without, there is nothing to write and ``session.connect`` ends at once. ``estimate``
    is a sentence about the memory of a worker, told where one had too little. ``messages`` is the actor between driver
    and workers where the caller has one, to ask them to stop.

    Raises:
        InputError, StorageError, TrainingError, Stopped: what a worker raised, as what it is.
        TrainingError: the workers ended again and again without progress.
        Stopped: SIGTERM, and too little time for a last checkpoint.
    """
    resources = place_workers(workers, threads, gpu)
    messages = messages or on_this_node()
    logging.getLogger("ray.train").setLevel(logging.WARNING)
    task = {
        "work": work, "arguments": dict(arguments), "threads": int(resources["CPU"]), "messages": messages,
        "code": code_version(),
    }  # fmt: skip
    scaling = ScalingConfig(
        num_workers=workers,
        use_gpu=gpu,
        resources_per_worker=resources,
        elastic_resize_monitor_interval_s=resize_seconds,
    )
    trainer = _trainer(task, scaling, hang_seconds, estimate)
    stop = None
    if stop_seconds:
        stop = stopping.Checkpointing(messages.stop.remote, stop_seconds, lambda line: show({"note": line}))
    settings = ray_train_settings(hang_seconds, workers)
    with Display(messages, show), settings, stop() if stop else contextlib.nullcontext():
        _fit(trainer, messages, lambda: _stopped(stop, messages), estimate)
    result = ray.get(messages.result.remote())
    if result is None:
        raise TrainingError("the workers ended without a result")
    return dict(result)


def _trainer(
    task: dict[str, Any], scaling: ScalingConfig, hang_seconds: int, estimate: str
) -> Callable[[str], TorchTrainer]:
    """Makes Ray's trainer, given a folder for it.

    Ray keeps a snapshot of its own there. It is not used to resume (our manifests are) and its format changes between
    Ray versions, so it does not go into the run's folder. Only the controller, on this node, reads it.
    """

    def trainer(folder: str) -> TorchTrainer:
        failures = FailureConfig(max_failures=RESTARTS, controller_failure_limit=START_ATTEMPTS)
        watch = Watch(task["messages"], estimate)
        return _Trainer(
            run_rank,
            train_loop_config=task,
            torch_config=GlooOrNccl(timeout_s=hang_seconds),
            scaling_config=scaling,
            run_config=RunConfig(name="run", storage_path=folder, failure_config=failures, callbacks=[watch]),
        )

    return trainer


def _stopped(stop: stopping.Checkpointing | None, messages: Any) -> bool:
    """Whether the end was asked for: by SIGTERM, or by whoever else holds the messages."""
    return (stop is not None and stop.asked) or bool(ray.get(messages.stopping.remote()))


def _fit(trainer: Callable[[str], TorchTrainer], messages: Any, stopped: Callable[[], bool], estimate: str) -> None:
    """Run Ray Train, which has a budget of restarts, and do it again as long as there is progress."""
    kills = kernel_kills()
    while True:
        before = ray.get(messages.committed.remote())
        try:
            with tempfile.TemporaryDirectory(prefix="retilt-ray-train-") as folder:
                trainer(folder).fit()
            break
        except (ray.train.TrainingFailedError, ray.exceptions.RayActorError) as problem:
            raise_failure(messages)
            if stopped():
                raise Stopped(
                    "SIGTERM: the workers ended before a last checkpoint; the same command continues"
                ) from problem
            reason = cause(problem, estimate, killed=kernel_kills() > kills)
            if ray.get(messages.committed.remote()) == before:
                raise TrainingError(f"{reason}; {RESTARTS} restarts brought no new checkpoint") from problem
            ray.get(messages.ended.remote(reason))
            if room := ray.get(messages.room.remote()):
                ray.util.remove_placement_group(room)  # what a controller that died leaves until the driver ends
    raise_failure(messages)


@contextlib.contextmanager
def ray_train_settings(hang_seconds: int, workers: int | tuple[int, int]) -> Iterator[None]:
    """Ray Train's settings by environment, which it hands on to its controller and the workers."""
    settings = {
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": str(POLL_SECONDS),
        "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": str(hang_seconds),
    }
    if not isinstance(workers, int):
        settings["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(ROOM_SECONDS)
    with environment(settings):
        yield


@contextlib.contextmanager
def environment(settings: Mapping[str, str]) -> Iterator[None]:
    """Variables of this process's environment inside the block; afterwards it is as before."""
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
