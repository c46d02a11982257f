"""jobs/pretrain.py and jobs/posttrain.py: check, start the workers, show progress, say where the result is."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from retilt import lease, storage
from retilt.algorithms.online import Online
from retilt.algorithms.reward_model import RewardModel
from retilt.cluster import resources, session
from retilt.cluster.display import TrainingDisplay, duration, say
from retilt.cluster.stopping import released_on_sigterm
from retilt.cluster.workers import on_workers
from retilt.config import TrainConfig, plain
from retilt.models.catalog import plan_table, planned_rows
from retilt.training import cost, loop, planning
from retilt.training.parallel import choose_device
from retilt.training.planning import Room, Sizes, gigabytes
from retilt.training.run import PlannedRun, check_output, finished, plan_run


def run(config: TrainConfig, dry_run: bool = False) -> dict[str, Any]:
    """Train (or continue, or find finished) the run that ``config`` describes; returns its result."""
    _require_shared(config)
    planned = plan_run(config)
    sizes = Sizes.of(planned.config, planned.dataset)
    memory = estimates(planned.config, sizes) if dry_run else [_memory(sizes)]
    for line in [*describe(planned), *memory]:
        say(line)
    if dry_run:
        _require_room(planned.config, sizes)
        return {}
    check_output(planned)
    with released_on_sigterm(), lease.hold(planned.config.output) as held:
        check_output(planned)  # again: who held it may have begun another run
        result = finished(planned) or _train(planned, sizes, held.token)
    for line in summarise(planned, result):
        say(line)
    return result


def _train(planned: PlannedRun, sizes: Sizes, token: str) -> dict[str, Any]:
    config = planned.config
    gpu = choose_device(config.device).type == "cuda"
    _require_room(config, sizes)
    with session.connect():
        _require_shared(config)
        _require_room(config, sizes)
        return on_workers(
            loop.train,
            {**planned.task(), "lease": token},
            workers=worker_numbers(config),
            threads=config.threads,
            gpu=gpu,
            show=TrainingDisplay(),
            hang_seconds=config.hang_seconds,
            stop_seconds=config.stop_seconds,
            estimate=f"a worker was to need {planning.in_words(planning.memory(sizes))}: {planning.less(sizes)}",
        )


def _require_shared(config: TrainConfig) -> None:
    """Before there is a connection this refuses what no worker could reach; with one, what other nodes do not see."""
    for key in ("dataset", "initial", "reward_model", "judge", "output"):
        if place := getattr(config, key):
            session.require_shared(place, key, config.storage.shared_filesystem)


def _room(config: TrainConfig, workers: int) -> Room | None:
    given = config.memory_per_worker and 1e9 * config.memory_per_worker
    return resources.room_of_worker(workers, config.threads, choose_device(config.device).type == "cuda", given)


def _require_room(config: TrainConfig, sizes: Sizes) -> None:
    """Before there is a connection this refuses what has no room on this machine; with one, on the cluster's nodes."""
    planning.require_room(sizes, lambda workers: _room(config, workers))


def describe(planned: PlannedRun) -> list[str]:
    """What the run will do, before it does it."""
    config, data = planned.config, planned.dataset
    placement = config.placement_for(data.items)
    algorithm = ", ".join(f"{name}={value}" for name, value in plain(config.algorithm).items() if name != "name")
    method = f"{config.algorithm.name} ({algorithm})" if algorithm else config.algorithm.name
    lines = [
        f"{method} on {data.name}: {data.users:,} users, {data.items:,} items; "
        f"protocol {config.protocol}, {config.epochs} epochs of {config.batch_users} users a batch",
        f"item table {placement} with {config.optimizer_for(placement)}, {_softmax(config)}, "
        f"{_in_words(config.worker_range)}; seed {config.seed}",
        f"checkpoint {_cadence(config)}; a worker without an answer for {config.hang_seconds} s is started again",
    ]
    if config.initial:
        lines.append(f"starts from {config.initial}")
    if planned.warning:
        lines.append(f"warning: {planned.warning}")
    return [*lines, f"writes to {config.output}"]


def _memory(sizes: Sizes) -> str:
    return f"memory of a worker: {planning.in_words(planning.memory(sizes))}"


def estimates(config: TrainConfig, sizes: Sizes) -> list[str]:
    """What a dry run says of a worker's memory, part by part, of the table's placement, and of the time of a step."""
    parts, device, room = planning.memory(sizes), choose_device(config.device), _room(config, sizes.workers)
    free = "" if room is None else f" of {gigabytes(room.host if room.device is None else room.device)} for each worker"
    lines = ["memory of a worker at its peak:", *(f"  {name:12}{size / 1e6:9,.0f} MB" for name, size in parts.items())]
    lines.append(f"  {'together':12}{sum(parts.values()) / 1e6:9,.0f} MB{free}")
    if sizes.placement == "row_wise":
        rows = planned_rows(plan_table(sizes.items + 1, sizes.row // 4, sizes.workers, device.type))
        lines.append(f"rows of the table by TorchRec's planner: {rows[0]:,} on a worker, {rows[-1]:,} on the last")
    threads = config.threads or max(1, len(os.sched_getaffinity(0)) // sizes.workers)
    seconds = cost.step_seconds(sizes, cost.measured(device, sizes.row // 4, threads))
    named = ", ".join(f"{name} {each:.3f}" for name, each in seconds.items())
    return [*lines, f"a step: about {sum(seconds.values()):.3f} s ({named}) at the pace of this machine"]


def worker_numbers(config: TrainConfig) -> int | tuple[int, int]:
    """A number of workers, or the range to which Ray Train adapts them."""
    fewest, most = config.worker_range
    return fewest if fewest == most else (fewest, most)


def _softmax(config: TrainConfig) -> str:
    if config.softmax == "exact":
        return "exact softmax"
    drawn = "" if config.proposal == "in_batch" else f"{config.negative_count:,} {config.negatives} "
    return f"softmax sampled with {drawn}{config.proposal} negatives"


def _in_words(workers: tuple[int, int]) -> str:
    fewest, most = workers
    return f"{fewest} worker(s)" if fewest == most else f"{fewest} to {most} workers"


def _cadence(config: TrainConfig) -> str:
    """When checkpoints are written."""
    steps, seconds = config.checkpoint.every_steps, config.checkpoint.every_seconds
    parts = [f"every {steps} steps"] if steps else []
    parts += [f"every {duration(seconds)} minutes" if seconds >= 60 else f"every {seconds:g} s"] if seconds else []
    return " and ".join([*([", ".join(parts)] if parts else []), "after each epoch"])


def summarise(planned: PlannedRun, result: Mapping[str, Any]) -> list[str]:
    """Where the results are and what to run next."""
    config, best = planned.config, result["best"]
    policy = storage.join(config.output, "policy", "best" if best else "last")
    if isinstance(config.algorithm, RewardModel):
        found = [f"best epoch {best['epoch']}: validation mse {-best['value']:.4f}"] if best else []
        return [*found, f"reward model: {policy}"]
    # dpo and ppo weight no logged choice.
    weighted = config.algorithm.name != "bc" and not isinstance(config.algorithm, Online)
    lines = [_weights(result["weights"])] if weighted else []
    if best:
        lines.append(f"best epoch {best['epoch']}: validation {config.selection_metric} {best['value']:.4f}")
    lines.append(f"policy: {policy}")
    part = "validation" if config.protocol == "select" else "test"
    lines.append(
        f"next: python jobs/evaluate.py dataset={config.dataset} policies='[{config.output}]' part={part} "
        f"output={storage.join(storage.parent(config.output), 'evaluation')}"
    )
    return lines


def _weights(weights: Mapping[str, Any]) -> str:
    """How far weights are from equal; at trajectory level also how far a return is but a length."""
    line = (
        f"weights: effective sample size {weights['ess_ratio']:.3f} of n, "
        f"largest/mean {weights['max_over_mean_weight']:.1f}"
    )
    correlation = weights.get("returns", {}).get("correlation_length")
    return line if correlation is None else f"{line}; correlation of returns with lengths {correlation:+.2f}"
