"""One optimizer step: sums over ranks, one backward, the dense and the table's update."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from retilt import ranks
from retilt.models.policy import CataloguePolicy
from retilt.types import Algorithm, Batch, Statistics, TrainingError


@dataclass(frozen=True)
class StepResult:
    """What a step did, equal on all ranks."""

    loss: float
    """Σ total / Σ count over all ranks: the objective that was descended."""
    count: float
    sums: dict[str, float]
    """``positions`` and the algorithm's metrics, each summed over all ranks' positions."""


def take_step(
    policy: CataloguePolicy,
    dense: torch.optim.Optimizer,
    algorithm: Algorithm,
    batch: Batch,
    statistics: Statistics,
    step: int,
) -> StepResult:
    """Descend the algorithm's loss on one global batch of which ``batch`` is this rank's share. Collective.

    Raises:
        TrainingError: the loss is not finite; raised on every rank, before any parameter has moved.
    """
    loss = algorithm.loss(policy.train(step), batch, statistics)
    metrics = {**loss.metrics, "positions": batch.supervised_BT.sum()}
    names = sorted(metrics)
    packed = torch.stack(
        [loss.count.double(), loss.total.detach().double(), *(metrics[name].double() for name in names)]
    )
    count, total, *sums = ranks.sum_(packed).tolist()
    if not math.isfinite(total):
        raise TrainingError(f"the loss is {total} at step {step}; lower the learning rate or look at the rewards")
    dense.zero_grad(set_to_none=True)
    policy.table.clear()
    # DDP and TorchRec average gradients over ranks; a batch without any weight has no gradient to scale.
    (loss.total * (ranks.world() / (count or 1.0))).backward()  # type: ignore[no-untyped-call]
    dense.step()
    policy.table.step()
    return StepResult(total / (count or 1.0), count, dict(zip(names, sums, strict=True)))
