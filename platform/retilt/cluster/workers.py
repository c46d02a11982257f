"""One function on N workers of Ray Train, used by training and evaluation: place, start, watch, collect."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import ray
import ray.train
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2.api.config import FailureConfig

from retilt import ranks
from retilt.cluster.messages import Display, Messages, Update
from retilt.cluster.resources import place_workers
from retilt.evaluation.report import code_version
from retilt.training import parallel
from retilt.types import InputError, Reporter, RetiltError, StorageError, TrainingError

START_ATTEMPTS = 3
"""Ray retries a worker group that does not start; without a limit it would retry for ever."""


class Work(Protocol):
    """What each worker runs; returns the result (rank 0's counts)."""

    def __call__(self, arguments: Mapping[str, Any], reporter: Reporter, /) -> dict[str, Any]: ...


class RayReporter:
    """A worker's view of Ray Train (types.Reporter)."""

    def __init__(self, messages: Any) -> None:
        self._messages = messages

    def progress(self, update: Mapping[str, Any]) -> None:
        """Send a line of progress to the driver; never waits."""
        self._messages.push.remote(dict(update))

    def report(self, metrics: Mapping[str, Any]) -> None:
        """Tell Ray Train of an epoch; every rank waits for the others here."""
        ray.train.report(dict(metrics))


def _worker(loop_config: dict[str, Any]) -> None:
    messages = loop_config["messages"]
    if ray.get(messages.failure.remote()) is not None:
        return  # Ray restarted the group after an error that a restart cannot mend
    parallel.use_threads(loop_config["threads"])
    try:
        _require_code(loop_config["code"])
        result = loop_config["work"](loop_config["arguments"], RayReporter(messages))
    except RetiltError as problem:
        ray.get(messages.fail.remote(problem.exit_code, str(problem)))
        if not problem.on_all_ranks:
            raise  # the other ranks wait in a collective; only an end of this process frees them
        return
    if ranks.rank() == 0:
        ray.get(messages.finish.remote(result))


def _require_code(driver: dict[str, str]) -> None:
    """Refuse a node whose image holds another version than the driver runs: half a run each is worth nothing."""
    if (mine := code_version()) != driver:
        raise InputError(
            f"a worker runs other code ({mine}) than the driver ({driver}); give the cluster's image and the checkout "
            "the same version, or submit with --runtime-env deploy/job-env.yaml"
        )


def on_workers(
    work: Work,
    arguments: Mapping[str, Any],
    *,
    workers: int,
    threads: int | None,
    gpu: bool,
    show: Callable[[Update], None],
) -> dict[str, Any]:
    """Run ``work`` on ``workers`` ranks of the connected cluster and return rank 0's result.

    Errors in a worker come back as what they are: InputError (exit 2), StorageError (3), TrainingError (4).
    """
    resources = place_workers(workers, threads, gpu)
    messages = Messages.remote()  # type: ignore[attr-defined]
    logging.getLogger("ray.train").setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory(prefix="retilt-ray-train-") as folder:
        # Ray keeps a snapshot of its own there. It is not used to resume (our manifests are) and its format changes
        # between Ray versions, so it does not go into the run's folder.
        trainer = TorchTrainer(
            _worker,
            train_loop_config={
                "work": work, "arguments": dict(arguments), "threads": int(resources["CPU"]), "messages": messages,
                "code": code_version(),
            },
            scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpu, resources_per_worker=resources),
            run_config=RunConfig(
                name="run", storage_path=folder, failure_config=FailureConfig(controller_failure_limit=START_ATTEMPTS)
            ),
        )  # fmt: skip
        with Display(messages, show):
            try:
                trainer.fit()
            except ray.train.TrainingFailedError as problem:
                _raise_failure(messages)
                raise TrainingError(f"a worker ended: {_root(problem)}") from problem
    _raise_failure(messages)
    result = ray.get(messages.result.remote())
    if result is None:
        raise TrainingError("the workers ended without a result")
    return dict(result)


def _raise_failure(messages: Any) -> None:
    failure = ray.get(messages.failure.remote())
    if failure is not None:
        kinds: dict[int, type[RetiltError]] = {2: InputError, 3: StorageError}
        raise kinds.get(failure[0], TrainingError)(failure[1])


def _root(problem: BaseException) -> str:
    """The last line of Ray's nested error, which names the cause."""
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    return lines[-1] if lines else type(problem).__name__
