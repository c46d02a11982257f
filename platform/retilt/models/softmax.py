"""The exact softmax over the catalogue, in tiles: nothing of size positions × items exists, forward or backward.

``log π(a|s) = h·e_a − log Σ_j exp(h·e_j)`` over all active items j. With a sharded table every rank works through the
rows it owns for the positions of *all* ranks: hidden states are gathered, the log-sum-exp and the target's logit are
all-reduced. A replicated table needs no communication. Evaluation's exact ranks come from the same tiles.

Letters: P this rank's positions, N positions of all ranks that share the rows (P if replicated), R rows held here,
D width, K rows of a tile. float32 throughout; float64 where the policy is evaluated.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from retilt import ranks

TILE_ROWS = 2048
TILE_POSITIONS = 256
"""A tile of logits is 2 MiB of float32, about one core's second-level cache."""
TIE = 1e-9
"""Scores closer than this are equal. They are float64 from float32 tables, whose rounding differs by about 1e-15."""


@dataclass(frozen=True)
class Rows:
    """The rows a rank's softmax covers."""

    rows_RD: Tensor
    first: int
    inactive_R: Tensor
    """bool: padding and items withdrawn from the catalogue; their probability is 0."""
    sharded: bool
    """Rows are spread over ranks (collectives needed) rather than replicated."""

    def gather(self, x_P: Tensor) -> Tensor:
        """All ranks' values where rows are sharded, this rank's otherwise."""
        return ranks.gather(x_P, ranks.sizes(len(x_P), x_P.device)) if self.sharded else x_P

    def own(self, x_N: Tensor, positions: int) -> Tensor:
        """This rank's part of gathered values."""
        if not self.sharded:
            return x_N
        before = sum(ranks.sizes(positions, x_N.device)[: ranks.rank()])
        return x_N[before : before + positions]

    def sum_(self, x: Tensor) -> Tensor:
        """Sum over the ranks that hold other rows."""
        return ranks.sum_(x) if self.sharded else x

    def holds(self, item_N: Tensor) -> Tensor:
        """Which items are rows of this rank, bool."""
        return (item_N >= self.first) & (item_N < self.first + len(self.rows_RD))


def _parts(size: int, step: int) -> Iterator[slice]:
    for start in range(0, size, step):
        yield slice(start, min(start + step, size))


class _LogProb(torch.autograd.Function):
    """log π of one item per position. Saves O(N + R), recomputes the tiles backward."""

    @staticmethod
    def forward(ctx: Any, hidden_PD: Tensor, rows_RD: Tensor, item_P: Tensor, rows: Rows) -> Tensor:
        hidden_ND, item_N = rows.gather(hidden_PD), rows.gather(item_P)
        top_N, total_N = _log_sum_exp(hidden_ND, rows_RD, rows.inactive_R)
        if rows.sharded:
            highest_N = ranks.max_(top_N.clone())
            total_N = ranks.sum_(total_N.mul_((top_N - highest_N).exp_()))
            top_N = highest_N
        lse_N = top_N.add_(total_N.log_())
        mine_N = rows.holds(item_N)
        local = item_N[mine_N] - rows.first
        hit_N = torch.zeros_like(lse_N)
        hit_N[mine_N] = (hidden_ND[mine_N] * rows_RD[local]).sum(1)
        ctx.save_for_backward(hidden_ND, rows_RD, lse_N, mine_N, local)
        ctx.rows, ctx.positions = rows, len(hidden_PD)
        return rows.own(rows.sum_(hit_N).sub_(lse_N), len(hidden_PD))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden_ND, rows_RD, lse_N, mine_N, local = ctx.saved_tensors
        rows: Rows = ctx.rows
        grad_N = rows.gather(grads[0].contiguous())
        grad_hidden_ND, grad_rows_RD = torch.zeros_like(hidden_ND), torch.zeros_like(rows_RD)
        buffer = torch.empty(TILE_POSITIONS * TILE_ROWS, dtype=hidden_ND.dtype, device=hidden_ND.device)
        for some in _parts(len(rows_RD), TILE_ROWS):
            rows_KD, grad_KD, inactive = rows_RD[some], grad_rows_RD[some], _indices(rows.inactive_R[some])
            for at in _parts(len(hidden_ND), TILE_POSITIONS):
                p = _logits(hidden_ND[at], rows_KD, inactive, buffer).sub_(lse_N[at, None]).exp_()
                p.mul_(grad_N[at, None].neg())
                grad_hidden_ND[at].addmm_(p, rows_KD)
                grad_KD.addmm_(p.T, hidden_ND[at])
        weight = grad_N[mine_N, None]
        grad_rows_RD.index_add_(0, local, weight * hidden_ND[mine_N])
        grad_hidden_ND[mine_N] += weight * rows_RD[local]
        return rows.own(rows.sum_(grad_hidden_ND), ctx.positions), grad_rows_RD, None, None


def _indices(mask_K: Tensor) -> Tensor | None:
    return mask_K.nonzero().squeeze(1) if bool(mask_K.any()) else None


def _logits(hidden_ND: Tensor, rows_KD: Tensor, inactive: Tensor | None, buffer: Tensor) -> Tensor:
    """One tile in reused memory (fresh memory costs as much as the product: its pages must be zeroed first)."""
    out = buffer[: len(hidden_ND) * len(rows_KD)].view(len(hidden_ND), len(rows_KD))
    torch.mm(hidden_ND, rows_KD.T, out=out)
    return out if inactive is None else out.index_fill_(1, inactive, -torch.inf)


def _log_sum_exp(hidden_ND: Tensor, rows_RD: Tensor, inactive_R: Tensor) -> tuple[Tensor, Tensor]:
    """Running maximum and Σ exp(logit − maximum) of each position over this rank's rows."""
    top_N = torch.full(
        (len(hidden_ND),), torch.finfo(hidden_ND.dtype).min, dtype=hidden_ND.dtype, device=hidden_ND.device
    )
    total_N = torch.zeros_like(top_N)
    buffer = torch.empty(TILE_POSITIONS * TILE_ROWS, dtype=hidden_ND.dtype, device=hidden_ND.device)
    for some in _parts(len(rows_RD), TILE_ROWS):
        inactive = _indices(inactive_R[some])
        for at in _parts(len(hidden_ND), TILE_POSITIONS):
            tile = _logits(hidden_ND[at], rows_RD[some], inactive, buffer)
            high = torch.maximum(top_N[at], tile.amax(1))
            total_N[at] = total_N[at] * (top_N[at] - high).exp_() + tile.sub_(high[:, None]).exp_().sum(1)
            top_N[at] = high
    return top_N, total_N


@dataclass(frozen=True)
class CatalogueSoftmax:
    """π(· | s) at the P supervised positions of a batch (types.Distribution)."""

    hidden_PD: Tensor
    rows: Rows

    def log_prob(self, item_P: Tensor) -> Tensor:
        """Exact log-probability of one item per position, shape (P,). Collective where rows are sharded."""
        return _LogProb.apply(self.hidden_PD, self.rows.rows_RD, item_P, self.rows)  # type: ignore[no-any-return, no-untyped-call]

    @torch.no_grad()
    def ranks(self, item_P: Tensor, seen_item: Tensor, seen_length_P: Tensor) -> Tensor:
        """Exact rank of one item per position among active, unseen items (1 = best; last among equals), int64.

        Items that score as high as the target or higher are counted over all rows; the seen ones among them, and the
        target itself, are then taken off. Scores are compared in the precision of ``hidden_PD`` (float64 from a policy
        in evaluation mode), which makes the rank independent of tiles, batches and workers.
        """
        rows = self.rows
        hidden_ND, item_N = rows.gather(self.hidden_PD), rows.gather(item_P)
        mine_N = rows.holds(item_N)
        score_N = hidden_ND.new_zeros(len(item_N))
        score_N[mine_N] = (hidden_ND[mine_N] * rows.rows_RD[item_N[mine_N] - rows.first]).sum(1)
        floor_N = rows.sum_(score_N).sub_(TIE)
        above_N = self._count(hidden_ND, floor_N)
        above_N -= (mine_N & ~self._withdrawn(item_N, mine_N)).long()
        above_N -= self._count_seen(hidden_ND, floor_N, rows.gather(seen_item), rows.gather(seen_length_P))
        return rows.own(rows.sum_(above_N), len(item_P)) + 1

    def _withdrawn(self, item_N: Tensor, mine_N: Tensor) -> Tensor:
        """Which of this rank's items are inactive (and so were not counted), bool; False for other ranks' items."""
        found = torch.zeros_like(mine_N)
        found[mine_N] = self.rows.inactive_R[item_N[mine_N] - self.rows.first]
        return found

    def _count(self, hidden_ND: Tensor, floor_N: Tensor) -> Tensor:
        """Active rows of this rank that reach each position's floor, int64."""
        above_N = torch.zeros(len(hidden_ND), dtype=torch.int64, device=hidden_ND.device)
        buffer = torch.empty(TILE_POSITIONS * TILE_ROWS, dtype=hidden_ND.dtype, device=hidden_ND.device)
        for some in _parts(len(self.rows.rows_RD), TILE_ROWS):
            rows_KD, inactive = self.rows.rows_RD[some], _indices(self.rows.inactive_R[some])
            for at in _parts(len(hidden_ND), TILE_POSITIONS):
                above_N[at] += (_logits(hidden_ND[at], rows_KD, inactive, buffer) >= floor_N[at, None]).sum(1)
        return above_N

    def _count_seen(self, hidden_ND: Tensor, floor_N: Tensor, seen_item: Tensor, seen_length_N: Tensor) -> Tensor:
        """This rank's seen, active items that reach each position's floor, int64."""
        position = torch.arange(len(hidden_ND), device=hidden_ND.device).repeat_interleave(seen_length_N)
        mine = self.rows.holds(seen_item)
        mine &= ~self._withdrawn(seen_item, mine)
        position, local = position[mine], seen_item[mine] - self.rows.first
        count_N = torch.zeros(len(hidden_ND), dtype=torch.int64, device=hidden_ND.device)
        for part in _parts(len(local), TILE_POSITIONS * TILE_ROWS // 8):
            where = position[part]
            score = (hidden_ND[where] * self.rows.rows_RD[local[part]]).sum(1)
            count_N.index_add_(0, where, (score >= floor_N[where]).long())
        return count_N
