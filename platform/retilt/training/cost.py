"""What a step should cost in time: a count of operations and bytes, divided by what a machine does in a second.

The model is meant for comparing sizes, placements and numbers of workers, and for projecting to machines that are not
at hand; it knows neither latency nor overlap, and the constants say how often data are touched, not how fast a kernel
could be. docs/scaling.md compares it with measured steps.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from retilt.models.tiles import TILE_POSITIONS, TILE_ROWS
from retilt.training.parallel import use_threads
from retilt.training.planning import Sizes

NETWORK = 1e9
"""Bytes a second between workers where nothing better is known: 10 Gbit/s less its overhead, or gloo on one machine."""
SOFTMAX = 1.3
"""Time of the exact softmax over that of its four products: exponentials and sums."""
TOUCHED = 6
"""How often what a layer keeps is written or read: forward, backward, gradients."""
PROBE_SECONDS, LEAST_REPEATS = 0.1, 5
_COPIED = 1 << 23
"""Numbers that the probe copies, more than a cache holds."""


@dataclass(frozen=True)
class Machine:
    """What one worker does in a second."""

    flops: float
    """Floating point operations of float32 products the size of a softmax tile."""
    memory: float
    """Bytes read or written."""
    network: float = NETWORK
    """Bytes sent to other workers."""


def measured(device: torch.device, width: int, threads: int = 1) -> Machine:
    """This machine, by products and copies of a tenth of a second each, on one thread of its CPU or on its GPU.

    ``threads`` of a CPU are taken to be that many times as fast at products, and no faster at memory: measured together
    they would show what else runs on the machine, as each waits for the slowest.
    """
    before = torch.get_num_threads()
    use_threads(1)
    hidden = torch.randn(TILE_POSITIONS, width, device=device)
    rows = torch.randn(TILE_ROWS, width, device=device)
    logits = torch.empty(TILE_POSITIONS, TILE_ROWS, device=device)
    source = torch.ones(_COPIED, device=device)
    target = torch.empty_like(source)
    product = _fastest(lambda: torch.mm(hidden, rows.T, out=logits), device)
    copy = _fastest(lambda: target.copy_(source), device)
    use_threads(before)
    pace = 2 * TILE_POSITIONS * TILE_ROWS * width / product
    return Machine(pace if device.type == "cuda" else threads * pace, 2 * 4 * _COPIED / copy)


def _fastest(action: Callable[[], object], device: torch.device) -> float:
    """Seconds of ``action``; the least of many, as whatever else runs on the machine only adds to it."""
    action()  # its memory is fresh
    least, end, repeats = math.inf, time.perf_counter() + PROBE_SECONDS, 0
    while repeats < LEAST_REPEATS or time.perf_counter() < end:
        repeats += 1
        began = time.perf_counter()
        action()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        least = min(least, time.perf_counter() - began)
    return least


def step_seconds(sizes: Sizes, machine: Machine) -> dict[str, float]:
    """Seconds of an average step: ``compute``, ``update`` of the table and the backbone, ``communication``.

    An online objective's has several updates. What comes before them, three models' forward passes and draws, takes
    about as long as one, and each has the divergence to work out beside log-probabilities.
    """
    positions, updates = sizes.trained * sizes.share, 1 if sizes.tries is None else sizes.tries.passes
    operations, touched = _backbone(sizes, positions * sizes.states)
    products, gathered = _softmax(sizes, positions)
    if sizes.tries is not None:
        products *= 2 * sizes.tries.positions / sizes.trained
    compute = (operations + products) / machine.flops + (touched + gathered) / machine.memory
    return {
        "compute": compute * (updates if sizes.tries is None else updates + 1),
        "update": updates * _updated(sizes, positions) / machine.memory,
        "communication": updates * _sent(sizes, positions) / machine.network,
    }


def _backbone(sizes: Sizes, positions: float) -> tuple[float, float]:
    """Operations, and bytes touched: every parameter is a product's, attention runs once more in its backward pass."""
    model = sizes.model
    passes = 4 if sizes.recomputed else 3
    attention = 7 * 2 * model.max_length / 2 * model.width * model.blocks  # seven products of which half is masked
    return positions * (2 * passes * sizes.dense + attention), TOUCHED * 4 * model.kept_per_position * positions


def _softmax(sizes: Sizes, positions: float) -> tuple[float, float]:
    """Operations of the four products, logits twice and two gradients; bytes where embeddings are gathered for each."""
    row = sizes.row // 4
    if sizes.negatives is None:
        pairs = (sizes.trained if sizes.placement == "row_wise" else positions) * sizes.rows
        return SOFTMAX * 4 * 2 * pairs * row, 0
    pairs = positions * sizes.negatives
    return SOFTMAX * 4 * 2 * pairs * row, TOUCHED * sizes.row * pairs if sizes.own_negatives else 0


def _updated(sizes: Sizes, positions: float) -> float:
    """Bytes touched by optimizers: of the whole table where every row has a gradient, else of the rows looked up."""
    table = sizes.rows * sizes.row
    if sizes.placement == "row_wise":
        touched = TOUCHED * (table if sizes.negatives is None else _asked(sizes, positions) * sizes.row)
    else:
        # The lookup's dense gradient is cleared and summed, DDP copies it to a bucket and back, Adam touches seven.
        touched = ((3 if sizes.workers == 1 else 7) + (7 if sizes.optimizer == "adam" else 9)) * table
    return touched + 7 * 4 * sizes.dense


def _asked(sizes: Sizes, positions: float) -> float:
    """Rows that one worker looks up, were all of them distinct: histories, and targets and negatives if asked for.

    Targets are under a sampled softmax, and where they are tried.
    """
    negatives = (sizes.negatives or 0) * (positions if sizes.own_negatives else 1)
    further = negatives + (0.0 if sizes.negatives is None and not sizes.logged_tried else positions)
    return min(float(sizes.items), positions + further)


def _sent(sizes: Sizes, positions: float) -> float:
    """Bytes that one worker sends."""
    dense = (12 if sizes.fsdp else 8) * sizes.dense  # all-reduce; or two gathers and a reduce-scatter
    if sizes.placement == "replicated":
        rows = 2.0 * sizes.rows * sizes.row  # all-reduce of the gradient
    else:
        rows = _asked(sizes, positions) * (8 + 2 * sizes.row)  # the numbers, the embeddings, their gradients
        if sizes.negatives is None:
            rows += 3 * sizes.trained * sizes.row  # hidden states are gathered, their gradients all-reduced
    return (dense + rows) * (sizes.workers - 1) / sizes.workers
