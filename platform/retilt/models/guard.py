"""Keeps gradients that are not finite out of every parameter, on all ranks together.

A sharded table is updated inside the backward pass. Its lookup is the first operation of the forward pass and so the
last of the backward pass: when its gradient arrives, those of the dense parameters are there too. There the ranks agree
whether all of them are finite; if not, the table's gradient becomes zero (row-wise Adagrad then changes neither row nor
accumulator) and the step leaves the dense update out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from retilt import ranks


class Guard:
    """What the ranks agreed on in the last backward pass."""

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self.finite = True
        """Every gradient was finite on every rank."""
        self.finite_here = True
        """Every gradient of this rank was."""

    def agree(self, looked_up: Sequence[Tensor] = ()) -> bool:
        """Whether the network's gradients, and those ``looked_up``, are finite on all ranks. Collective."""
        gradients = [*looked_up, *(parameter.grad for parameter in self._network.parameters())]
        self.finite_here = all(_finite(gradient) for gradient in gradients if gradient is not None)
        device = looked_up[0].device if looked_up else next(self._network.parameters()).device
        self.finite = float(ranks.sum_(torch.tensor(float(not self.finite_here), device=device))) == 0
        return self.finite

    def watch(self, history_BTD: Tensor, rows_RD: Tensor) -> tuple[Tensor, Tensor]:
        """The same tensors, whose gradients pass through ``agree`` on their way to a sharded table."""
        return _Watched.apply(history_BTD, rows_RD, self)  # type: ignore[no-any-return, no-untyped-call]


def _finite(gradient: Tensor) -> bool:
    """Whether every number is finite, and its sum over the ranks will be; no copy of the tensor is made."""
    if not gradient.numel():
        return True
    low, high = torch.aminmax(gradient)  # both are NaN where one number is
    limit = torch.finfo(gradient.dtype).max / ranks.world()
    return bool((low >= -limit) & (high <= limit))


class _Watched(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, history_BTD: Tensor, rows_RD: Tensor, guard: Guard) -> tuple[Tensor, Tensor]:
        ctx.guard = guard
        return history_BTD.view_as(history_BTD), rows_RD.view_as(rows_RD)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.guard.agree(grads):
            return (*grads, None)
        return (*(torch.zeros_like(grad) for grad in grads), None)
