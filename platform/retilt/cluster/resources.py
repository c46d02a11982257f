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


def place_workers(workers: int | tuple[int, int], threads: int | None, gpu: bool) -> dict[str, float]:
    """Resources of one worker on the connected cluster; of a range, threads for the most workers if they fit.

    Raises:
        InputError: more workers (of a range: the fewest) or threads than the cluster has, or its autoscaler may add.
    """
    fewest, most = (workers, workers) if isinstance(workers, int) else workers
    nodes = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    cpus = [float(node["Resources"].get("CPU", 0)) for node in nodes]
    gpus = sum(float(node["Resources"].get("GPU", 0)) for node in nodes)
    limit = _autoscaler_maximum()
    wanted = threads or threads_that_fit(cpus, most) or threads_that_fit(cpus, fewest) or 1
    named = f"workers = {fewest}" if fewest == most else f"workers = [{fewest}, {most}], which is {fewest} at least,"
    if gpu and fewest > max(gpus, limit.get("GPU", 0)):
        raise InputError(f"{named} with device=cuda, but the cluster has {gpus:g} GPUs; use workers of at most that")
    if wanted > threads_that_fit(cpus, fewest) and fewest * wanted > limit.get("CPU", 0):
        each = "1 CPU" if wanted == 1 else f"{wanted} CPUs (threads)"
        raise InputError(
            f"{named} of {each} each, but the cluster has {sum(cpus):g} CPUs on {len(cpus)} node(s)"
            f"{_may_add(limit)}; use fewer workers or threads, or a larger cluster"
        )
    return {"CPU": wanted, **({"GPU": 1} if gpu else {})}


def _autoscaler_maximum() -> dict[str, Any]:
    """What the cluster may grow to, empty without an autoscaler. The same source as Ray Train's own check."""
    from ray._private.state import state

    return dict(state.get_max_resources_from_cluster_config() or {})


def _may_add(limit: dict[str, Any]) -> str:
    return f" and may grow to {limit['CPU']:g} CPUs" if limit.get("CPU") else ""
