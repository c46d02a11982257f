"""Logits in tiles: the arithmetic over catalogue rows that softmax, divergences, ranks and top-k share.

A logit is ``h·r/‖r‖`` for a hidden state h and a row r of the item table; rows are normalised tile by tile, so neither
a normalised copy of the table nor anything of size positions × items exists. A ``bias`` is added to each row's logit:
−∞ takes a row out. Logits are in the unit of hidden states and biases. Where powers of them are taken, that is ln 2
(both come multiplied by log2 e), because torch's ``exp2`` takes a third of the time of its ``exp`` on CPU.

Letters: N positions, R rows, D width, K rows of a tile. Every tile lives in memory that the next one uses again: fresh
memory costs as much as the product, as its pages must be zeroed first.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

TILE_ROWS = 2048
TILE_POSITIONS = 512
"""A tile of logits is 4 MiB of float32: larger ones leave the caches, smaller ones spend time between them."""
LOG2_E = math.log2(math.e)
SMALLEST_NORM = 1e-6


def parts(size: int, step: int) -> Iterator[slice]:
    """Consecutive slices of at most ``step`` that cover ``size``."""
    for start in range(0, size, step):
        yield slice(start, min(start + step, size))


def unit(rows_KD: Tensor, dtype: torch.dtype) -> Tensor:
    """Rows divided by their norms, in ``dtype``."""
    return torch.nn.functional.normalize(rows_KD.to(dtype), dim=1, eps=SMALLEST_NORM)


@dataclass(frozen=True)
class Tile:
    """Some rows, normalised."""

    rows: slice
    unit_KD: Tensor
    inverse_K1: Tensor
    """1 / norm of each row."""
    _bias_K: Tensor | None
    _buffer: Tensor

    def logits(self, hidden_PD: Tensor) -> Tensor:
        """(P, K) for at most ``TILE_POSITIONS`` positions; overwritten by the next call."""
        out = self._buffer[: len(hidden_PD) * len(self.unit_KD)].view(len(hidden_PD), len(self.unit_KD))
        torch.mm(hidden_PD, self.unit_KD.T, out=out)
        return out if self._bias_K is None else out.add_(self._bias_K)

    def through_norm(self, grad_KD: Tensor, out: Tensor) -> None:
        """Gradient of the normalised rows → gradient of the rows, into ``out``; uses ``grad_KD`` up."""
        along_K1 = (self.unit_KD * grad_KD).sum(1, keepdim=True)
        along_K1.masked_fill_(self.inverse_K1 >= 1 / SMALLEST_NORM, 0)  # divided by a constant there
        torch.mul(grad_KD.addcmul_(self.unit_KD, along_K1, value=-1), self.inverse_K1, out=out)


def tiles(rows_RD: Tensor, bias_R: Tensor | None, dtype: torch.dtype) -> Iterator[Tile]:
    """All rows, tile after tile, normalised in ``dtype``."""
    step = min(TILE_ROWS, len(rows_RD))
    biased = set() if bias_R is None else set((bias_R.nonzero()[:, 0] // TILE_ROWS).tolist())
    buffer = torch.empty(TILE_POSITIONS * step, dtype=dtype, device=rows_RD.device)
    memory = torch.empty(step, rows_RD.shape[1], dtype=dtype, device=rows_RD.device)
    for number, some in enumerate(parts(len(rows_RD), TILE_ROWS)):
        rows_KD = rows_RD[some].to(dtype)
        inverse_K1 = torch.linalg.vector_norm(rows_KD, dim=1, keepdim=True).clamp_(min=SMALLEST_NORM).reciprocal_()
        unit_KD = memory[: len(rows_KD)]
        torch.mul(rows_KD, inverse_K1, out=unit_KD)
        bias_K = bias_R[some].to(dtype) if bias_R is not None and number in biased else None
        yield Tile(some, unit_KD, inverse_K1, bias_K, buffer)


def skip(logits_PK: Tensor, place_P: Tensor | None, rows: slice) -> Tensor:
    """Take one row out of each position's logits: the row ``place_P`` of all rows (−1: none)."""
    if place_P is not None:
        local_P = place_P - rows.start
        hit = ((local_P >= 0) & (local_P < logits_PK.shape[1])).nonzero().squeeze(1)
        logits_PK[hit, local_P[hit]] = -torch.inf
    return logits_PK


def log_sum_exp(
    hidden_ND: Tensor, rows_RD: Tensor, bias_R: Tensor | None, skip_N: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Maximum and Σ 2^(logit − maximum) of each position over these rows, kept up to date tile by tile."""
    dtype = hidden_ND.dtype
    top_N = torch.full((len(hidden_ND),), torch.finfo(dtype).min, dtype=dtype, device=hidden_ND.device)
    total_N = torch.zeros_like(top_N)
    for tile in tiles(rows_RD, bias_R, dtype):
        for at in parts(len(hidden_ND), TILE_POSITIONS):
            logits = skip(tile.logits(hidden_ND[at]), None if skip_N is None else skip_N[at], tile.rows)
            high = torch.maximum(top_N[at], logits.amax(1))
            total_N[at] = total_N[at] * (top_N[at] - high).exp2_() + logits.sub_(high[:, None]).exp2_().sum(1)
            top_N[at] = high
    return top_N, total_N


def log_sum_exp_backward(
    hidden_ND: Tensor,
    rows_RD: Tensor,
    bias_R: Tensor | None,
    lse_N: Tensor,
    grad_N: Tensor,
    skip_N: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Gradients of Σ grad · log-sum-exp (in nats) by the hidden states, as they were before log2 e, and by the rows.

    ``lse_N`` is the log-sum-exp in units of ln 2. Positions are weighted outside the tiles: each hidden state once
    before the product that sums over positions, each sum over rows once at the end.
    """
    grad_hidden_ND, grad_rows_RD = torch.zeros_like(hidden_ND), torch.empty_like(rows_RD)
    weighted_ND = hidden_ND * (grad_N / LOG2_E)[:, None]
    grad_unit = torch.empty(
        min(TILE_ROWS, len(rows_RD)), rows_RD.shape[1], dtype=hidden_ND.dtype, device=rows_RD.device
    )
    for tile in tiles(rows_RD, bias_R, hidden_ND.dtype):
        grad_KD = grad_unit[: len(tile.unit_KD)].zero_()
        for at in parts(len(hidden_ND), TILE_POSITIONS):
            logits = skip(tile.logits(hidden_ND[at]), None if skip_N is None else skip_N[at], tile.rows)
            p = logits.sub_(lse_N[at, None]).exp2_()
            grad_hidden_ND[at].addmm_(p, tile.unit_KD)
            grad_KD.addmm_(p.T, weighted_ND[at])
        tile.through_norm(grad_KD, grad_rows_RD[tile.rows])
    return grad_hidden_ND.mul_(grad_N[:, None]), grad_rows_RD
