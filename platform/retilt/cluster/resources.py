"""Whether the cluster can hold the workers: found out before anything waits for them."""

from __future__ import annotations

from typing import Any

import ray

from retilt.types import InputError


def threads_that_fit(cpus_of_nodes: list[float], workers: int) -> int:
    """Most threads (CPUs) a worker can have so that all workers fit on the nodes; 0 if one each is too many."""
    best = 0
    for threads in range(1, int(max(cpus_of_nodes, default=0)) + 1):
        if sum(int(cpus // threads) for cpus in cpus_of_nodes) >= workers:
            best = threads
    return best


def place_workers(workers: int, threads: int | None, gpu: bool) -> dict[str, float]:
    """Resources of one worker on the connected cluster.

    Raises:
        InputError: more workers (or threads) than the cluster has, or than its autoscaler may add.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    cpus = [float(node["Resources"].get("CPU", 0)) for node in nodes]
    gpus = sum(float(node["Resources"].get("GPU", 0)) for node in nodes)
    most = _autoscaler_maximum()
    fitting = threads_that_fit(cpus, workers)
    wanted = threads or fitting or 1
    if gpu and workers > max(gpus, most.get("GPU", 0)):
        raise InputError(
            f"workers = {workers} with device=cuda, but the cluster has {gpus:g} GPUs; use workers of at most that"
        )
    if wanted > fitting and workers * wanted > most.get("CPU", 0):
        each = "1 CPU" if wanted == 1 else f"{wanted} CPUs (threads)"
        raise InputError(
            f"workers = {workers} of {each} each, but the cluster has {sum(cpus):g} CPUs on {len(cpus)} node(s)"
            f"{_may_add(most)}; use fewer workers or threads, or a larger cluster"
        )
    return {"CPU": wanted, **({"GPU": 1} if gpu else {})}


def _autoscaler_maximum() -> dict[str, Any]:
    """What the cluster may grow to, empty without an autoscaler. The same source as Ray Train's own check."""
    from ray._private.state import state

    return dict(state.get_max_resources_from_cluster_config() or {})


def _may_add(most: dict[str, Any]) -> str:
    return f" and may grow to {most['CPU']:g} CPUs" if most.get("CPU") else ""
