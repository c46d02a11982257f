"""Keeps gradients that are not finite out of every parameter, on all ranks together.

A sharded table is updated inside the backward pass. Its lookup is the first operation of the forward pass and so the
last of the backward pass: when its gradient arrives, those of the dense parameters are there too (under FSDP their sums
over the ranks, taken as the backward pass leaves a layer). There the ranks agree whether all of them are finite; if
not, the table's gradient becomes zero (row-wise Adagrad then changes neither row nor accumulator) and the step leaves
the dense update out.
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
        dense = [parameter.grad for parameter in self._network.parameters() if parameter.grad is not None]
        own = _not_finite([*looked_up, *(each for each in dense if not ranks.is_spread(each))])
        bad = own.clone()
        if sums := [ranks.part(each) for each in dense if ranks.is_spread(each)]:
            if sums[0].is_cuda:
                torch.cuda.synchronize()  # FSDP adds up on a stream of its own
            bad += _not_finite(sums)
        self.finite = float(ranks.sum_(bad)) == 0
        if looked_up:  # else DDP has summed them already, and a rank's own are not to be told
            self.finite_here = float(own) == 0
        return self.finite

    def watch(self, *tensors: Tensor, collective: bool) -> tuple[Tensor, ...]:
        """The same tensors, whose gradients are looked at on their way back.

        ``collective`` ones, a sharded table's lookup, pass through ``agree``; the network's outputs tell whether this
        rank's part of the loss was it.
        """
        return _Watched.apply(self, collective, *tensors)  # type: ignore[no-any-return, no-untyped-call]

    def look(self, gradients: Sequence[Tensor]) -> None:
        """Note whether these gradients of this rank are finite."""
        self.finite_here = float(_not_finite(gradients)) == 0


def _not_finite(gradients: Sequence[Tensor]) -> Tensor:
    """1 if a number is not finite, or its sum over the ranks may not be, else 0; copies no tensor, waits for none."""
    found = []
    for gradient in gradients:
        if gradient.numel():
            low, high = torch.aminmax(gradient)  # both are NaN where one number is
            limit = torch.finfo(gradient.dtype).max / ranks.world()
            found.append(~((low >= -limit) & (high <= limit)))
    return torch.stack(found).any().float() if found else torch.zeros((), device=gradients[0].device)


class _Watched(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, guard: Guard, collective: bool, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.guard, ctx.collective = guard, collective
        return tuple(each.view_as(each) for each in tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if not ctx.collective:
            ctx.guard.look(grads)
        elif not ctx.guard.agree(grads):
            grads = tuple(torch.zeros_like(grad) for grad in grads)
        return (None, None, *grads)
