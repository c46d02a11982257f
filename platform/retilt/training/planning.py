"""What a worker will hold in memory, part by part, and how many workers have room for a run; before any of them starts.

The sum should be a little more than a worker really takes at its peak; ``tests/benchmarks/memory_estimate.py`` compares
the two, and the constants below come from it. Sizes are bytes, numbers have four of them unless said otherwise. A
reward model is taken to be as large as the policy, as one is that was trained from the same policy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch

from retilt.algorithms.online import Online
from retilt.algorithms.reward_model import RewardModel
from retilt.config import Placement, TableOptimizer, TrainConfig
from retilt.data.dataset import Dataset
from retilt.data.plan import Plan
from retilt.models.backbone import Model
from retilt.models.catalog import plan_table, stored_width
from retilt.models.tiles import TILE_POSITIONS, TILE_ROWS
from retilt.training.checkpoint import RANGE_ROWS
from retilt.training.judge import frozen_models
from retilt.types import InputError

PROCESS = 600e6
"""A worker that has nothing to work on yet: Python, torch, TorchRec, Arrow, Ray (570 MB measured)."""
ITEM = 110
"""Of each item of the vocabulary: counts and flag (17), sums for the proposal (8), columns of a part as they are read.

Measured when all columns were read at once; since they are read part by part it is more than is taken.
"""
GAPS = 250e6
"""Most that is lost between allocations: those above 32 MB have pages of their own."""
DRAW = 32
"""Of each draw where every position has its own negatives."""
EVENT = 16
"""Of each event in the windows that are read ahead: item, reward, time."""
DRAWN = 20
"""Of each item that an online objective tries: the item, its reward and two log-probabilities."""
ON_HOST = frozenset({"process", "items", "batches", "checkpoint"})
"""Parts that are in the host's memory where the policy is on a GPU."""


@dataclass(frozen=True)
class Tries:
    """What an online objective tries in a step."""

    positions: float
    """Positions of a global batch, at most."""
    draws: int
    """Items at each."""
    divergence: bool
    """The divergence from the reference is descended, not only logged."""
    passes: int
    """Updates on them."""

    @classmethod
    def of(cls, config: TrainConfig, trained: float) -> Tries | None:
        """Of a configuration whose batches have ``trained`` positions on average; None where nothing is tried."""
        algorithm = config.algorithm
        if not isinstance(algorithm, Online):
            return None
        most = math.inf if algorithm.contexts is None else config.batch_users * algorithm.contexts
        return cls(min(trained, most), algorithm.draws, algorithm.name == "ppo", algorithm.passes)


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
    tries: Tries | None = None
    frozen: int = 0
    """Models beside the one that is trained."""
    logged_tried: bool = False
    """The logged item of every trained position is tried as one position more, as by a reward model."""

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
        trained = config.batch_users * min(model.max_length, mean)
        negatives = round(trained) if config.proposal == "in_batch" else config.negative_count
        return cls(
            model=model,
            dense=_parameters(model),
            items=dataset.items,
            placement=placement,
            optimizer=config.optimizer_for(placement),
            negatives=None if config.softmax == "exact" else negatives,
            own_negatives=config.negatives == "per_position",
            trained=trained,
            positions=max(positions, dataset.lanes * min(model.max_length, 16 * mean)),
            evaluated=min(config.batch_users, largest) * model.max_length,
            slices=slices,
            lanes=dataset.lanes,
            workers=config.worker_range[0],
            fsdp=config.parallel == "fsdp",
            recomputed=config.activation_checkpointing,
            tries=Tries.of(config, trained),
            frozen=frozen_models(config),
            logged_tried=isinstance(config.algorithm, RewardModel),
        )

    @property
    def states(self) -> int:
        """What the backbone works out of each trained position: its state, and that of its logged item if tried."""
        return 2 if self.logged_tried else 1

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
        "activations": _activations(sizes, positions * sizes.states),
        # Parameters, gradients, two moments; DDP's buckets; the float64 copy that validation takes.
        "backbone": 16 * whole + (0 if sizes.workers == 1 or sizes.fsdp else 4 * whole) + 8 * sizes.dense,
        "frozen": sizes.frozen * (table + 4 * rows + 4 * sizes.dense),
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
    (``numerics``) each is turned into 64-bit integers, beside the gradient of the step before. A divergence that is
    descended has its own beside the softmax's.
    """
    further = int(sizes.tries is not None and sizes.tries.divergence)
    if sizes.placement == "row_wise":
        return (1 if sizes.negatives is None else 0) + further
    if sizes.workers > 1:
        return 4 + further
    return (2 if sizes.negatives is None else 1) + further


def _softmax(sizes: Sizes) -> float:
    """Hidden states, their gradients and weighted forms, a tile of logits; or negatives and their embeddings."""
    tiles = 2 * 4 * TILE_POSITIONS * TILE_ROWS + 4 * TILE_ROWS * sizes.row
    positions = sizes.trained * sizes.share
    if sizes.tries is not None:
        # Of the reference too; embeddings of the items, their gradients and norms; what exploring keeps.
        tried = sizes.tries.positions * (1 if sizes.placement == "row_wise" else sizes.share)
        return tried * (10 * sizes.row + sizes.tries.draws * (4 * sizes.row + DRAWN)) + tiles
    if sizes.negatives is None:
        # Those of all workers where the rows are shared out.
        return 5 * sizes.row * (sizes.trained if sizes.placement == "row_wise" else positions) + tiles
    draws = positions * sizes.negatives if sizes.own_negatives else sizes.negatives
    found = positions + min(float(sizes.items), draws)
    return 4 * sizes.row * found + 5 * sizes.row * positions + DRAW * draws + tiles


def _activations(sizes: Sizes, positions: float) -> float:
    """What the backbone keeps for its backward pass, two layers more, and gaps; or what validation needs if it is more.

    The two layers are the one that is being worked at and gradients on their way; gaps are what allocations of several
    sizes leave between them. Validation keeps nothing, but works in float64 and with batches of its own. Nor does a
    reward model that is asked about items, each of which is a position more.
    """
    asked = 0.0 if sizes.tries is None else sizes.tries.positions * sizes.share * sizes.tries.draws
    numbers = sizes.model.kept_per_position
    layer = 4 * numbers / sizes.model.blocks
    kept = 4 * positions * (sizes.model.blocks * sizes.model.width if sizes.recomputed else numbers)
    training = kept + min(kept / 2, GAPS) + 2 * layer * positions
    return max(training, 2 * layer * sizes.evaluated, 2 * layer * (positions + asked))


@dataclass(frozen=True)
class Room:
    """Bytes that one worker may take."""

    host: float
    device: float | None = None
    """Of its GPU; None where it computes on the CPU."""


def fits(sizes: Sizes, room: Room) -> bool:
    """Whether a worker has room; for a sharded table TorchRec's planner says so."""
    parts, kind = memory(sizes), "cpu" if room.device is None else "cuda"
    host = sum(size for name, size in parts.items() if kind == "cpu" or name in ON_HOST)
    if host > room.host:
        return False
    left = room.host - host if room.device is None else room.device - (sum(parts.values()) - host)
    if sizes.placement == "replicated":
        return left >= 0
    own = parts["table"] + parts["optimizer"]
    return plan_table(sizes.items + 1, sizes.row // 4, sizes.workers, kind, left + own) is not None


def require_room(sizes: Sizes, room: Callable[[int], Room | None]) -> None:
    """Refuse a run whose workers have no room; ``room`` says how much one of that many has (None: nobody knows).

    Raises:
        InputError: names what a worker needs and has, and the smallest number of workers that would have room.
    """
    here = room(sizes.workers)
    if here is None or fits(sizes, here):
        return
    most = sizes.lanes if sizes.placement == "replicated" else min(sizes.lanes, math.isqrt(sizes.items + 1))
    others = [replace(sizes, workers=workers) for workers in range(1, most + 1)]
    if found := next((each for each in others if (its := room(each.workers)) and fits(each, its)), None):
        way_out = f"use workers={found.workers}"
    elif found := next((each for each in others if fits(each, here)), None):
        way_out = f"{found.workers} workers would have room if each had as much, on more or larger machines"
    else:
        way_out = f"no number of workers up to {most} would have room in as much: {less(sizes)}"
    has = gigabytes(here.host) if here.device is None else f"{gigabytes(here.device)} on its GPU"
    needed = in_words(memory(sizes))
    raise InputError(f"a worker needs {needed}, but each of {sizes.workers} has {has}; {way_out}")


def less(sizes: Sizes) -> str:
    """What makes a run need less memory in each worker."""
    table = "table=row_wise" if sizes.placement == "replicated" else "more workers"
    return f"use {table}, a smaller batch_users, or more memory"


def in_words(parts: Mapping[str, float]) -> str:
    """``about 3.10 GB (table 1.28, gradient 1.28, process 0.60)``: the sum, and the parts that make most of it."""
    total = sum(parts.values())
    large = sorted((size, name) for name, size in parts.items() if size >= total / 10)
    named = ", ".join(f"{name} {size / 1e9:.2f}" for size, name in reversed(large))
    return f"about {gigabytes(total)} ({named})"


def gigabytes(size: float) -> str:
    """``1.28 GB``."""
    return f"{size / 1e9:.2f} GB"
