"""Training steps on random users without data files, on ranks that ``tests.spawning`` has started.

``prepare`` builds a policy in the rank's process and keeps it there; ``take`` takes steps with it. Items are drawn by
1 / rank, histories have equal lengths, so that a step's cost depends on the sizes alone.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from tests.benchmarks.measuring import memory_mib

from retilt import ranks
from retilt.algorithms.bc import BC
from retilt.models.hstu import HSTU
from retilt.models.sampled import Sampler
from retilt.training.assemble import Blueprint, assemble
from retilt.training.step import take_step
from retilt.types import Batch, Statistics

SIZES: dict[str, Any] = {
    "items": 10_000,
    "width": 64,
    "users": 32,
    "length": 50,
    "softmax": "sampled",
    "negatives": 4096,
    "blocks": 2,
}
_held: dict[str, Any] = {}


def prepare(sizes: dict[str, Any]) -> dict[str, float]:
    """Build a policy over a row-wise table on this rank; MiB before it and with it."""
    _held.clear()
    before = memory_mib("VmRSS")
    chosen = {**SIZES, **sizes}
    items, width = chosen["items"], chosen["width"]
    model = HSTU(max_length=chosen["length"], width=width, blocks=chosen["blocks"], heads=2, head_width=width // 2)
    active = torch.ones(items + 1, dtype=torch.bool)
    sampler = None
    if chosen["softmax"] == "sampled":
        sampler = Sampler.of("uniform", "shared", chosen["negatives"], True, active, active)
    blueprint = Blueprint(model, items, "row_wise", "row_wise_adagrad", 1e-3, 0.05, 0.1, 0)
    ranks.single()
    policy, dense = assemble(blueprint, active, torch.device("cpu"), sampler)
    _held.update(policy=policy, dense=dense, step=0, **chosen)
    return {"before": before, "with": memory_mib("VmRSS")}


def take(steps: int) -> dict[str, float]:
    """Seconds a step and the most MiB that this process has had."""
    batches = [_batch(_held["step"] + n) for n in range(steps)]
    ranks.barrier()
    began = time.perf_counter()
    for batch in batches:
        result = take_step(
            _held["policy"], _held["dense"], BC(), batch, Statistics(1, 1, 5, 3), _held["step"], {}, lambda _: False
        )
        assert result.outcome == "taken"
        _held["step"] += 1
    return {"seconds": (time.perf_counter() - began) / steps, "peak": memory_mib("VmHWM")}


def _batch(step: int) -> Batch:
    """This rank's share of a global batch that is the same for any number of ranks."""
    users, length, world = _held["users"], _held["length"], ranks.world()
    generator = torch.Generator().manual_seed(step)
    item = torch.exp(
        torch.rand(users, length + 1, generator=generator) * torch.log(torch.tensor(float(_held["items"])))
    )
    share = slice(users * ranks.rank() // world, users * (ranks.rank() + 1) // world)
    item = item.long().clamp_(1, _held["items"])[share]
    supervised = torch.ones_like(item, dtype=torch.bool)
    supervised[:, 0] = False
    time_BT = torch.arange(length + 1).expand_as(item) * 10**9
    example = torch.arange(users)[share]
    return Batch(
        item, torch.ones_like(item).float(), time_BT, supervised, torch.full_like(example, length + 1), example
    )


def held() -> dict[str, float]:
    """MiB that this process holds now."""
    return {"held": memory_mib("VmRSS")}
