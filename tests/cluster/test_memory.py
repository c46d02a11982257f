"""A worker that Ray's memory monitor kills, on a real cluster that allows little more than is in use already."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retilt.cluster import resources, session, workers
from retilt.cluster.messages import Update
from retilt.types import Reporter, TrainingError

ALLOWED = 2_500_000_000
"""Bytes beyond those in use: Ray's own processes take about half of them."""
PIECE = 50_000_000


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    lines = Path("/proc/meminfo").read_text().splitlines()
    total = next(float(line.split()[1]) * 1024 for line in lines if line.startswith("MemTotal:"))
    used = total - resources.free_memory() + ALLOWED
    monkeypatch.setenv("RAY_memory_usage_threshold", f"{used / total:.4f}")
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "100")
    with session.connect(cpus=1, dashboard=False):
        yield


def fill(arguments: Mapping[str, Any], reporter: Reporter) -> dict[str, Any]:
    """Take memory until killed; twice as much as is allowed at the most."""
    held = []
    for _ in range(2 * ALLOWED // PIECE):
        held.append(np.ones(PIECE // 8))
        time.sleep(0.01)
    time.sleep(10)
    return {}


@pytest.mark.slow
def test_a_worker_that_ray_kills_for_its_memory_is_told_as_that_with_the_estimate_beside_it(
    cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "RESTARTS", 0)  # three of them would only take longer
    shown: list[Update] = []
    estimate = "a worker was to need about 1.00 GB (table 1.00)"
    with pytest.raises(TrainingError) as ended:
        workers.on_workers(fill, {}, workers=1, threads=1, gpu=False, show=shown.append, estimate=estimate)
    said = f"worker 0 ended (out of memory: Ray killed it because its node had too little left); {estimate}"
    assert str(ended.value) == f"{said}; 0 restarts brought no new checkpoint"
    assert [update["note"] for update in shown] == [f"{said}; all workers start again from the last checkpoint"]
