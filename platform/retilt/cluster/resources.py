"""Whether the cluster can hold the workers: found out before anything waits for them."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import ray
import torch

from retilt.training.planning import Room
from retilt.types import InputError

USABLE = 0.9
"""Of what is free: Ray's own processes take some, and its monitor kills workers where 95% of a node are used."""
_MEMORY = ("memory", "object_store_memory")
"""Ray's resources that together are what was free on a node when Ray was started there; training stores no objects."""
_CGROUPS = {
    "/sys/fs/cgroup": ("memory.max", "memory.current", "inactive_file"),
    "/sys/fs/cgroup/memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}
"""Where a container finds its limit: version 2 and 1. Files that are only cached are counted as used, but can go."""


def threads_that_fit(cpus_of_nodes: list[float], workers: int) -> int:
    """Most threads (CPUs) a worker can have so that all workers fit on the nodes; 0 if one each is too many."""
    best = 0
    for threads in range(1, int(max(cpus_of_nodes, default=0)) + 1):
        if sum(int(cpus // threads) for cpus in cpus_of_nodes) >= workers:
            best = threads
    return best


def room_of_worker(workers: int, threads: int | None, gpu: bool, given: float | None) -> Room | None:
    """What each of so many workers may take; None where that is not known (yet).

    On a connected cluster Ray fills one node before it goes on to the next, so the memory of a node is divided by as
    many as its CPUs (GPUs) have room for. Before Ray is started on this machine, it is what is free here, divided by
    all of them. ``given`` bytes take the place of what is found: of the GPU's memory where there is one.
    """
    host = _shared_by(workers, threads, gpu)
    if gpu:
        return Room(math.inf if host is None else host, given or float(torch.cuda.mem_get_info()[0]))
    host = given or host
    return None if host is None else Room(host)


def _shared_by(workers: int, threads: int | None, gpu: bool) -> float | None:
    if not ray.is_initialized():
        return None if os.environ.get("RAY_ADDRESS") else USABLE * free_memory() / workers
    if _autoscaler_maximum():
        return None  # its nodes are still to come
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    each = threads or threads_that_fit([float(node.get("CPU", 0)) for node in nodes], workers) or 1
    shares = []
    for node in nodes:
        fitting = int(node.get("GPU", 0)) if gpu else int(node.get("CPU", 0) // each)
        if fitting:
            shares.append(USABLE * sum(float(node.get(name, 0)) for name in _MEMORY) / min(fitting, workers))
    return min(shares, default=None)


def free_memory() -> float:
    """Bytes that processes may still take on this machine, or in this container if its limit is lower."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(float(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    for folder, (limit, used, cached) in _CGROUPS.items():
        place = Path(folder)
        if (place / limit).exists() and (most := (place / limit).read_text().strip()) != "max":
            stat = dict(line.split() for line in (place / "memory.stat").read_text().splitlines())
            free = min(free, float(most) - float((place / used).read_text()) + float(stat.get(cached, 0)))
    return free


def kernel_kills() -> int:
    """Processes that the kernel of this machine has killed for lack of memory since it was started."""
    lines = Path("/proc/vmstat").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))


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
