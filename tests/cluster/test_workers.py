"""The pieces of cluster/workers.py that need no cluster; tests/faults/test_ray.py has the rest."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import traceback
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest
import ray
import torch
from ray.train.v2._internal.exceptions import (
    UserExceptionWithTraceback,
    WorkerHealthCheckFailedError,
    WorkerHealthCheckTimeoutError,
)

from retilt.cluster import failures, lanes, rank, resources, stopping, train
from retilt.cluster.display import TrainingDisplay
from retilt.config import TrainConfig, build
from retilt.evaluation.report import code_version
from retilt.types import InputError, Stopped


def died(text: str) -> WorkerHealthCheckFailedError:
    error = ray.exceptions.ActorDiedError()
    error.error_msg = text
    return WorkerHealthCheckFailedError("A worker health check failed.", failure=error)


def killed_by_ray(text: str) -> WorkerHealthCheckFailedError:
    return WorkerHealthCheckFailedError("A worker health check failed.", failure=ray.exceptions.OutOfMemoryError(text))


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
        (
            killed_by_ray("2 worker(s) were killed due to the node running low on memory.\nRefer to the documentation"),
            "out of memory: Ray killed it because its node had too little left",
        ),
        (died("The actor died because its node has died."), "its node is lost"),
        (died("some causes: (1) the process was killed by the OOM killer"), "killed by a signal, or crashed"),
        (WorkerHealthCheckTimeoutError("x"), "it did not answer; it hung or its machine is out of reach"),
        (raised("ValueError: no"), "ValueError: no"),
    ],
)
def test_why_a_worker_ended(error: Exception, said: str):
    assert failures.why(error) == said


@pytest.mark.parametrize(
    "allocate",
    [
        lambda: torch.empty(1 << 50),
        lambda: np.empty(1 << 50),
        lambda: pa.allocate_buffer(1 << 60),
        lambda: bytearray(1 << 62),
    ],
    ids=["torch", "numpy", "arrow", "python"],
)
def test_a_refused_allocation_is_told_as_that_with_the_estimate_beside_it(allocate: Callable[[], object]):
    with pytest.raises((RuntimeError, MemoryError)) as refused:
        allocate()
    said = "".join(traceback.format_exception_only(refused.value))
    assert re.fullmatch(
        r"worker 0 ended \(out of memory: .+\); about 2 GB", failures.which({0: raised(said)}, "about 2 GB")
    )


def test_a_kill_is_the_kernels_for_lack_of_memory_only_if_it_has_counted_one():
    errors = {1: died("Worker unexpectedly exits.")}
    assert failures.which(errors, "about 2 GB") == "worker 1 ended (killed by a signal, or crashed)"
    said = "worker 1 ended (out of memory: the kernel killed it); about 2 GB"
    assert failures.cause(ray.train.WorkerGroupError("", errors), "about 2 GB", killed=True) == said
    assert resources.kernel_kills() >= 0


def test_who_ran_out_of_memory_is_named_before_who_lost_the_connection_to_it():
    errors = {0: raised("RuntimeError: Connection closed by peer"), 1: raised("MemoryError: Unable to allocate 8 EiB")}
    assert failures.which(errors) == "worker 1 ended (out of memory: MemoryError: Unable to allocate 8 EiB)"


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


def test_a_lane_has_room_where_each_of_its_workers_has_it_on_one_node():
    node, small = {"CPU": 3.0, "GPU": 1.0, "memory": 1e9}, {"CPU": 1.0, "memory": 1e9}
    assert lanes.that_fit([node, node], {"CPU": 2.0}, workers=1) == 2  # three by the sum
    assert lanes.that_fit([node, node], {"CPU": 2.0}, workers=2) == 1
    assert lanes.that_fit([node, node, small], {"CPU": 1.0}, workers=2) == 3
    assert lanes.that_fit([node, node, small], {"CPU": 1.0, "GPU": 1.0}, workers=1) == 2
    assert lanes.that_fit([], {"CPU": 1.0}, workers=1) == 0


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


def test_a_worker_whose_code_is_not_the_drivers_is_refused_with_what_to_do():
    mine = code_version()
    rank._require_code(mine)
    with pytest.raises(InputError, match=r"runs other code.*--runtime-env.*file changed.*same command"):
        rank._require_code(mine | {"source_sha256": "0" * 64})
