"""One optimizer step: sums over ranks, one backward, the dense and the table's update; or none of it on any rank."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch

from retilt import ranks
from retilt.models.policy import CataloguePolicy
from retilt.types import Algorithm, Batch, Statistics

Outcome = Literal["taken", "loss", "gradient", "spike"]


@dataclass(frozen=True)
class StepResult:
    """What a step did, equal on all ranks but for ``culprit``."""

    outcome: Outcome
    """Whether it was taken; else why not: the loss or a gradient was not finite, or the loss jumped."""
    loss: float
    """Σ total / Σ count over all ranks: the objective that was descended."""
    count: float
    sums: dict[str, float]
    """``positions`` and the algorithm's metrics, each summed over all ranks' positions."""
    raised: dict[str, int] = field(default_factory=dict)
    """How many ranks raised each of the ``signals``."""
    culprit: bool = False
    """The loss or a gradient of *this* rank was not finite."""


def take_step(
    policy: CataloguePolicy,
    dense: torch.optim.Optimizer,
    algorithm: Algorithm,
    batch: Batch,
    statistics: Statistics,
    step: int,
    signals: Mapping[str, bool],
    is_spike: Callable[[float], bool],
) -> StepResult:
    """Descend the algorithm's loss on one global batch of which ``batch`` is this rank's share. Collective.

    A step that is not taken leaves every parameter and optimizer state, the table's included, as it was on all ranks.
    ``signals`` of this rank travel with the sums, at no cost of their own.
    """
    loss = algorithm.loss(policy.train(step), batch, statistics)
    metrics = {**loss.metrics, "positions": batch.supervised_BT.sum()}
    names = sorted(metrics)
    packed = torch.stack(
        [loss.count.double(), loss.total.detach().double(), *(metrics[name].double() for name in names)]
    )
    flags = torch.tensor([float(raised) for raised in signals.values()], dtype=torch.float64, device=packed.device)
    found = ranks.sum_(torch.cat([packed, flags])).tolist()
    count, total, sums = found[0], found[1], found[2 : 2 + len(names)]
    raised = {name: int(n) for name, n in zip(signals, found[2 + len(names) :], strict=True)}
    mean = total / (count or 1.0)

    def result(outcome: Outcome, culprit: bool = False) -> StepResult:
        return StepResult(outcome, mean, count, dict(zip(names, sums, strict=True)), raised, culprit)

    if not math.isfinite(total):
        return result("loss", culprit=not bool(torch.isfinite(loss.total)))
    if is_spike(mean):
        return result("spike")
    dense.zero_grad(set_to_none=True)
    policy.table.clear()
    # DDP, FSDP and TorchRec average gradients over ranks; a batch without any weight has no gradient to scale.
    (loss.total * (ranks.world() / (count or 1.0))).backward()  # type: ignore[no-untyped-call]
    # A sharded table has agreed inside the backward pass, before its update.
    if not (policy.guard.finite if policy.table.sharded else policy.guard.agree()):
        return result("gradient", culprit=not policy.guard.finite_here)
    dense.step()
    policy.table.step()
    return result("taken")
