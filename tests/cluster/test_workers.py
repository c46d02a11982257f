"""The pieces of cluster/workers.py that need no cluster; tests/faults/test_ray.py has the rest."""

from __future__ import annotations

import contextlib
import os
import signal

import pytest
import ray
from ray.train.v2._internal.exceptions import (
    UserExceptionWithTraceback,
    WorkerHealthCheckFailedError,
    WorkerHealthCheckTimeoutError,
)

from retilt.cluster import failures, resources, stopping, train
from retilt.cluster.display import TrainingDisplay
from retilt.config import TrainConfig, build
from retilt.types import Stopped


def died(text: str) -> WorkerHealthCheckFailedError:
    error = ray.exceptions.ActorDiedError()
    error.error_msg = text
    return WorkerHealthCheckFailedError("A worker health check failed.", failure=error)


def raised(text: str) -> UserExceptionWithTraceback:
    return UserExceptionWithTraceback(ValueError(text), f"Traceback …\n  File …\n{text}")


def test_the_worker_that_died_is_named_before_those_that_only_noticed():
    errors = {0: raised("RuntimeError: Connection reset by peer"), 1: died("Worker unexpectedly exits.")}
    assert failures.which(errors) == "worker 1 ended (killed by a signal, or crashed)"
    alone = "a worker or its node is lost or hangs (worker 0 lost the connection to it)"
    assert failures.which({0: errors[0]}) == alone


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (died("the node was running low on memory"), "Ray killed it because its node ran low on memory"),
        (died("The actor died because its node has died."), "its node is lost"),
        (died("some causes: (1) the process was killed by the OOM killer"), "killed by a signal, or crashed"),
        (WorkerHealthCheckTimeoutError("x"), "it did not answer; it hung or its machine is out of reach"),
        (raised("ValueError: no"), "ValueError: no"),
    ],
)
def test_why_a_worker_ended(error: Exception, said: str):
    assert failures.why(error) == said


def test_what_ends_a_run_names_the_worker_or_the_controller():
    assert failures.cause(ray.train.WorkerGroupError("", {2: raised("ValueError: no")})) == (
        "worker 2 ended (ValueError: no)"
    )
    assert failures.cause(ray.train.ControllerError(OSError("disk full"))) == "disk full"


def test_the_grace_period_is_rays_in_a_submitted_job(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    monkeypatch.setenv("RAY_JOB_STOP_WAIT_TIME_S", "7")
    assert stopping.grace(60) == 60
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert stopping.grace(60) == 7
    monkeypatch.delenv("RAY_JOB_STOP_WAIT_TIME_S")
    assert stopping.grace(60) == 3
    assert stopping.grace(2) == 2


def test_sigterm_leaves_the_block_and_the_handler_goes_with_it():
    before = signal.getsignal(signal.SIGTERM)
    ended = pytest.raises(Stopped, match="SIGTERM: stopped")
    with ended, stopping.released_on_sigterm(), contextlib.suppress(Exception):  # as a library might
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_exit_that_nobody_asked_for_stays_one():
    with pytest.raises(SystemExit), stopping.released_on_sigterm():
        raise SystemExit(3)


@pytest.mark.parametrize(
    ("cpus", "workers", "threads", "expected"),
    [([4.0], (1, 2), None, 2), ([2.0], (1, 3), None, 2), ([2.0, 2.0], (1, 4), None, 1), ([4.0], (1, 2), 3, 3)],
)
def test_a_range_of_workers_gets_threads_for_the_most_that_fit(
    monkeypatch: pytest.MonkeyPatch, cpus: list[float], workers: tuple[int, int], threads: int | None, expected: int
):
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": each}} for each in cpus])
    monkeypatch.setattr(resources, "_autoscaler_maximum", dict)
    assert resources.place_workers(workers, threads, gpu=False)["CPU"] == expected


def test_a_note_is_shown_as_it_stands_and_a_checkpoint_not_at_all(capsys: pytest.CaptureFixture[str]):
    show = TrainingDisplay()
    show({"committed": 3})
    show({"note": "worker 1 ended"})
    assert capsys.readouterr().out == "worker 1 ended\n"


def test_the_plan_says_how_many_workers_and_when_checkpoints_are_written():
    config = build(TrainConfig, {"dataset": "d", "output": "o", "workers": [1, 4], "checkpoint": {"every_steps": 5}})
    assert train._in_words(config.worker_range) == "1 to 4 workers"
    assert train._cadence(config) == "every 5 steps, every 2:00 minutes and after each epoch"
