"""What a worker will hold in memory, part by part, and how many workers have room for a run; before any of them starts.

The sum should be a little more than a worker really takes at its peak; ``tests/benchmarks/memory_estimate.py`` compares
the two, and the constants below come from it. Sizes are bytes, numbers have four of them unless said otherwise. No
method of this version keeps a reference policy beside the one it trains, so there is no part for that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch

from retilt.config import Placement, TableOptimizer, TrainConfig
from retilt.data.dataset import Dataset
from retilt.data.plan import Plan
from retilt.models.backbone import Model
from retilt.models.catalog import plan_table, stored_width
from retilt.models.tiles import TILE_POSITIONS, TILE_ROWS
from retilt.training.checkpoint import RANGE_ROWS
from retilt.types import InputError

PROCESS = 600e6
"""A worker that has nothing to work on yet: Python, torch, TorchRec, Arrow, Ray (570 MB measured)."""
ITEM = 110
"""Of each item of the vocabulary: the columns as they are read; 17 of these bytes stay, and sums for the proposal."""
DRAW = 36
"""Of each draw where every position has its own negatives."""
EVENT = 16
"""Of each event in the windows that are read ahead: item, reward, time."""
ON_HOST = frozenset({"process", "items", "batches", "checkpoint"})
"""Parts that are in the host's memory where the policy is on a GPU."""


@dataclass(frozen=True)
class Sizes:
    """What the memory of a worker and the time of a step follow from."""

    model: Model
    dense: int
    """Parameters of the backbone."""
    items: int
    placement: Placement
    optimizer: TableOptimizer
    """Of the table."""
    negatives: int | None
    """Draws of a sampled softmax; None: exact."""
    own_negatives: bool
    """Every position draws its own."""
    trained: float
    """Positions of a global batch on average, without padding."""
    positions: float
    """Positions of a global batch with padding, as many as one may have."""
    evaluated: float
    """Positions of a worker's batch in validation."""
    slices: int
    """Batches of a window."""
    lanes: int
    workers: int
    fsdp: bool = False
    recomputed: bool = False
    """Activation checkpointing."""

    @classmethod
    def of(cls, config: TrainConfig, dataset: Dataset) -> Sizes:
        """Of a complete configuration; with the fewest workers where a range of them is given.

        How long the histories are is known on average only. A batch has users of about one length, of short ones many:
        padded to the longest of them it has up to 2.1 times the positions of an average batch where a window has few
        slices, and 1 + 10 / slices times where it has many (largest batches of ml-100k and ml-1m, with N = 50 to 1,000
        and 8 to 512 users).
        """
        model, placement = config.model, config.placement_for(dataset.items)
        assert model is not None
        mean = max(1.0, dataset.statistics(config.protocol)["events"] / dataset.users - 1)
        slices = max(window.slices for window in Plan.of(dataset, config.batch_users, config.seed).windows(0))
        spread = 1 + min(1.1, 10 / slices)
        positions = config.batch_users * min(model.max_length, 2 * mean) * spread
        largest = max(group.rows for group in dataset.row_groups)
        negatives = {"exact": None, "sampled": config.negative_count}[config.softmax]
        if negatives is not None and config.proposal == "in_batch":
            negatives = round(positions)
        return cls(
            model=model,
            dense=_parameters(model),
            items=dataset.items,
            placement=placement,
            optimizer=config.optimizer_for(placement),
            negatives=negatives,
            own_negatives=config.negatives == "per_position",
            trained=config.batch_users * min(model.max_length, mean),
            positions=max(positions, dataset.lanes * min(model.max_length, 16 * mean)),
            evaluated=min(config.batch_users, largest) * model.max_length,
            slices=slices,
            lanes=dataset.lanes,
            workers=config.worker_range[0],
            fsdp=config.parallel == "fsdp",
            recomputed=config.activation_checkpointing,
        )

    @property
    def share(self) -> float:
        """Largest part of a global batch that one worker has."""
        return -(-self.lanes // self.workers) / self.lanes

    @property
    def rows(self) -> int:
        """Most rows of the table that one worker holds."""
        return self.items + 1 if self.placement == "replicated" else -(-(self.items + 1) // self.workers)

    @property
    def row(self) -> int:
        """Bytes of a row."""
        return 4 * stored_width(self.model.width)


def _parameters(model: Model) -> int:
    with torch.device("meta"):
        return sum(each.numel() for each in model.build(0.0).parameters())


def memory(sizes: Sizes) -> dict[str, float]:
    """Bytes that a worker holds at its peak, by part; the first worker, whose part of a checkpoint is the largest."""
    rows, table, state = sizes.rows, sizes.rows * sizes.row, _state(sizes)
    whole = sizes.dense / (sizes.workers if sizes.fsdp else 1)
    positions = sizes.positions * sizes.share
    files = min(rows, RANGE_ROWS) * max(sizes.row, state)
    return {
        "process": PROCESS,
        "table": table,
        "optimizer": rows * state,
        "gradient": _gradients(sizes) * table,
        "softmax": _softmax(sizes),
        "activations": _activations(sizes, positions),
        # Parameters, gradients, two moments; DDP's buckets; the float64 copy that validation takes.
        "backbone": 16 * whole + (0 if sizes.workers == 1 or sizes.fsdp else 4 * whole) + 8 * sizes.dense,
        "items": ITEM * sizes.items,
        # Batches made ahead, one in the making and the one in use; three windows, each an array and its parts.
        "batches": 6 * 21 * positions + 3 * EVENT * sizes.slices * sizes.trained * sizes.share,
        # The copy, and a file of it that is being written: its tensors as bytes, and the file.
        "checkpoint": table + rows * state + 12 * sizes.dense + 2 * files,
    }


def _state(sizes: Sizes) -> int:
    """Bytes of the optimizer's state of a row."""
    return 2 * sizes.row if sizes.optimizer == "adam" else 4


def _gradients(sizes: Sizes) -> int:
    """How often there is a gradient of the size of a worker's table.

    Sharded: once, of all rows, for the exact softmax; a lookup's is of a few rows. Replicated: dense from the lookup,
    and once more from the exact softmax. Among several workers DDP has a copy, and where they compare their tables
    (``numerics``) each is turned into 64-bit integers, beside the gradient of the step before.
    """
    if sizes.placement == "row_wise":
        return 1 if sizes.negatives is None else 0
    if sizes.workers > 1:
        return 4
    return 2 if sizes.negatives is None else 1


def _softmax(sizes: Sizes) -> float:
    """Hidden states, their gradients and weighted forms, a tile of logits; or negatives and their embeddings."""
    tiles = 2 * 4 * TILE_POSITIONS * TILE_ROWS + 4 * TILE_ROWS * sizes.row
    positions = sizes.trained * sizes.share
    if sizes.negatives is None:
        # Those of all workers where the rows are shared out.
        return 5 * sizes.row * (sizes.trained if sizes.placement == "row_wise" else positions) + tiles
    draws = positions * sizes.negatives if sizes.own_negatives else sizes.negatives
    found = positions + min(float(sizes.items), draws)
    return 4 * sizes.row * found + 5 * sizes.row * positions + DRAW * draws + tiles


def _activations(sizes: Sizes, positions: float) -> float:
    """What the backbone keeps for its backward pass, half as much again, and two layers; or validation's if larger.

    The half is for gradients on their way and the gaps that allocations of other sizes leave, the two layers are the
    one that is being worked at. Validation keeps nothing, but works in float64 and with batches of its own.
    """
    kept, layer = sizes.model.kept_per_position, sizes.model.kept_per_position / sizes.model.blocks
    if sizes.recomputed:
        kept = sizes.model.blocks * sizes.model.width
    return 4 * max(positions * (1.5 * kept + 2 * layer), sizes.evaluated * 2 * layer)


@dataclass(frozen=True)
class Room:
    """Bytes that one worker may take."""

    host: float
    device: float | None = None
    """Of its GPU; None where it computes on the CPU."""


def fits(sizes: Sizes, room: Room) -> bool:
    """Whether a worker has room; for a sharded table TorchRec's planner says so."""
    parts = memory(sizes)
    device = {name: size for name, size in parts.items() if room.device is not None and name not in ON_HOST}
    host = sum(parts.values()) - sum(device.values())
    if room.device is None:
        left, kind = room.host - host, "cpu"
    elif host > room.host:
        return False
    else:
        left, kind = room.device - sum(device.values()), "cuda"
    if sizes.placement == "replicated":
        return left >= 0
    own = parts["table"] + parts["optimizer"]
    return plan_table(sizes.items + 1, sizes.row // 4, sizes.workers, kind, left + own) is not None


def require_room(sizes: Sizes, room: Callable[[int], Room]) -> None:
    """Refuse a run whose workers have no room; ``room`` says how much one of that many has.

    Raises:
        InputError: names what a worker needs and has, and the smallest number of workers that would have room.
    """
    here = room(sizes.workers)
    if fits(sizes, here):
        return
    numbers = range(1, _most_workers(sizes) + 1)
    if (found := next((n for n in numbers if fits(replace(sizes, workers=n), room(n))), None)) is not None:
        way_out = f"use workers={found}"
    elif (found := next((n for n in numbers if fits(replace(sizes, workers=n), here)), None)) is not None:
        way_out = f"{found} workers would have room if each had as much: use workers={found} on more or larger machines"
    else:
        other = "table=row_wise" if sizes.placement == "replicated" else "a smaller batch_users or model.max_length"
        way_out = f"no number of workers up to {numbers[-1]} would have room in as much; use {other}, or more memory"
    needed = in_words(memory(sizes))
    has = (
        gigabytes(here.host)
        if here.device is None
        else f"{gigabytes(here.device)} on its GPU and {gigabytes(here.host)}"
    )
    raise InputError(f"a worker needs {needed}, but each of {sizes.workers} has {has}; {way_out}")


def _most_workers(sizes: Sizes) -> int:
    return sizes.lanes if sizes.placement == "replicated" else min(sizes.lanes, math.isqrt(sizes.items + 1))


def in_words(parts: Mapping[str, float]) -> str:
    """``about 3.10 GB (table 1.28, gradient 1.28, process 0.60)``: the sum, and the parts that make most of it."""
    total = sum(parts.values())
    large = sorted((size, name) for name, size in parts.items() if size >= total / 10)
    named = ", ".join(f"{name} {size / 1e9:.2f}" for size, name in reversed(large))
    return f"about {gigabytes(total)} ({named})"


def gigabytes(size: float) -> str:
    """``1.28 GB``."""
    return f"{size / 1e9:.2f} GB"
