"""One step: sums over ranks, one backward, the dense and the table's update; or none of it on any rank.

An online objective draws first (explore.py) and then makes several such updates, its passes, on what it drew.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import torch

from retilt import ranks
from retilt.algorithms.online import Online
from retilt.models.policy import CataloguePolicy
from retilt.training.explore import explore
from retilt.types import Algorithm, Batch, Companions, Statistics

Outcome = Literal["taken", "loss", "gradient", "spike"]


@dataclass(frozen=True)
class StepResult:
    """What a step did, equal on all ranks but for ``culprit``."""

    outcome: Outcome
    """Whether it was taken; else why not: the loss or a gradient was not finite, or the loss jumped."""
    loss: float
    """Σ total / Σ count over all ranks: the objective that was descended, before the (first) update."""
    total: float
    count: float
    """Σ total and Σ count, over the passes too."""
    sums: dict[str, float]
    """``positions`` and the algorithm's metrics, each summed over all ranks' positions and the passes."""
    raised: dict[str, int] = field(default_factory=dict)
    """How many ranks raised each of the ``signals``."""
    culprit: bool = False
    """The loss or a gradient of *this* rank was not finite."""

    def then(self, following: StepResult) -> StepResult:
        """Of a pass and those before it; one that was not taken is what the step is then said to be."""
        if following.outcome != "taken":
            return replace(following, raised=self.raised)
        sums = {name: value + following.sums[name] for name, value in self.sums.items()}
        return replace(self, total=self.total + following.total, count=self.count + following.count, sums=sums)


def take_step(
    policy: CataloguePolicy,
    dense: torch.optim.Optimizer,
    algorithm: Algorithm,
    batch: Batch,
    statistics: Statistics,
    step: int,
    signals: Mapping[str, bool],
    is_spike: Callable[[float], bool],
    companions: Companions | None = None,
) -> StepResult:
    """Descend the algorithm's loss on one global batch of which ``batch`` is this rank's share. Collective.

    An update that is not taken leaves every parameter and optimizer state, the table's included, as it was on all
    ranks. Of an online objective's passes the first that is not finite ends the step; updates of the passes before it
    stay. Whether the loss jumped is asked before the first update only, so a step after which the run goes back has
    changed nothing. ``signals`` of this rank travel with the first sums, at no cost of their own.
    """
    if not isinstance(algorithm, Online):
        return _update(policy.train(step), dense, algorithm, batch, statistics, signals, is_spike)
    assert companions is not None
    explored = explore(policy.train(step, dropout=False), companions, algorithm, batch)
    result = _update(policy, dense, algorithm, explored, statistics, signals, is_spike)
    for _ in range(algorithm.passes - 1):
        if result.outcome != "taken":
            break
        result = result.then(_update(policy, dense, algorithm, explored, statistics, {}, lambda loss: False))
    return result


def _update(
    policy: CataloguePolicy,
    dense: torch.optim.Optimizer,
    algorithm: Algorithm,
    batch: Batch,
    statistics: Statistics,
    signals: Mapping[str, bool],
    is_spike: Callable[[float], bool],
) -> StepResult:
    """One optimizer update, with the policy in training mode. Collective."""
    loss = algorithm.loss(policy, batch, statistics)
    metrics = {"positions": batch.supervised_BT.sum(), **loss.metrics}
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
        return StepResult(outcome, mean, total, count, dict(zip(names, sums, strict=True)), raised, culprit)

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
