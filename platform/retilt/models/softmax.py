"""The exact softmax over the catalogue: nothing of size positions × items exists, forward or backward.

``log π(a|s) = h·e_a + b_a − log Σ_j exp(h·e_j + b_j)`` over all active items j, with e the normalised rows of the item
table and b the items' biases, 0 unless a policy is tilted by them (π · exp(b) / Z: the paper's eq. 7 for a reward of
the item alone, b = r/λ). Where the table is sharded, every rank works through the rows it owns for the positions of
*all* ranks: hidden states are gathered, the log-sum-exp and the items' logits are all-reduced. A replicated table needs
no communication. Entropy, KL, draws, exact ranks and top-k come from the same tiles (tiles.py, sampling.py,
ranking.py).

Letters: P this rank's positions, N positions of all ranks that share the rows (P if replicated), K items of a position,
R rows held here, D width. float32 throughout; float64 where the policy is evaluated.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from retilt import ranks
from retilt.models import counter, ranking, sampling
from retilt.models.tiles import LOG2_E, TILE_POSITIONS, Tile, log_sum_exp, log_sum_exp_backward, parts, tiles, unit

LN_2 = math.log(2)


@dataclass(frozen=True)
class Rows:
    """Which rows of the catalogue a rank's softmax covers."""

    first: int
    last: int
    """Exclusive."""
    bias_R: Tensor
    """Added to the logits of each row, in nats; −∞ for padding and withdrawn items: their probability is 0."""
    sharded: bool
    """Rows are spread over ranks (collectives needed) rather than replicated."""

    def tile_bias(self, dtype: torch.dtype) -> Tensor:
        """``bias_R`` in units of ln 2, as tiles take it."""
        return self.bias_R.to(dtype) * LOG2_E

    def gather(self, x_P: Tensor) -> Tensor:
        """All ranks' values where rows are sharded, this rank's otherwise."""
        return ranks.gather(x_P, ranks.sizes(len(x_P), x_P.device)) if self.sharded else x_P

    def own(self, x_N: Tensor, positions: int) -> Tensor:
        """This rank's part of gathered values."""
        if not self.sharded:
            return x_N
        before = sum(ranks.sizes(positions, x_N.device)[: ranks.rank()])
        return x_N[before : before + positions]

    def of_each(self, x_N: Tensor) -> Tensor:
        """Values of each of the ranks that hold other rows, (W, N, …)."""
        return ranks.gather(x_N[None], [1] * ranks.world()) if self.sharded else x_N[None]

    def sum_(self, x: Tensor) -> Tensor:
        """Sum over the ranks that hold other rows."""
        return ranks.sum_(x) if self.sharded else x

    def max_(self, x: Tensor) -> Tensor:
        """Maximum over the ranks that hold other rows."""
        return ranks.max_(x) if self.sharded else x

    def holds(self, item_N: Tensor) -> Tensor:
        """Which items are rows of this rank, bool."""
        return (item_N >= self.first) & (item_N < self.last)


def _log_normaliser(hidden_ND: Tensor, rows_RD: Tensor, bias_R: Tensor, rows: Rows) -> Tensor:
    """Log-sum-exp over the rows of all ranks, (N,); it, hidden states and biases in units of ln 2."""
    top_N, total_N = log_sum_exp(hidden_ND, rows_RD, bias_R)
    if rows.sharded:
        highest_N = rows.max_(top_N.clone())
        total_N = rows.sum_(total_N.mul_((top_N - highest_N).exp2_()))
        top_N = highest_N
    return top_N.add_(total_N.log2_())


@dataclass(frozen=True)
class _Known:
    """A policy at the positions of all ranks, with what every quantity over the catalogue is worked out from."""

    hidden_ND: Tensor
    rows_RD: Tensor
    bias_R: Tensor
    """This, ``lse_N`` and hidden states are in units of ln 2."""
    lse_N: Tensor

    @classmethod
    def of(cls, hidden_PD: Tensor, rows_RD: Tensor, rows: Rows) -> _Known:
        """Collective where rows are sharded."""
        hidden_ND = rows.gather(hidden_PD) * LOG2_E
        bias_R = rows.tile_bias(hidden_ND.dtype)
        return cls(hidden_ND, rows_RD.detach(), bias_R, _log_normaliser(hidden_ND, rows_RD, bias_R, rows))

    def tiles(self) -> Iterator[Tile]:
        return tiles(self.rows_RD, self.bias_R, self.hidden_ND.dtype)


class _LogProb(torch.autograd.Function):
    """log π of K items per position. Saves O(N K + R), recomputes the tiles backward, once for all K."""

    @staticmethod
    def forward(ctx: Any, hidden_PD: Tensor, rows_RD: Tensor, item_PK: Tensor, known: _Known, rows: Rows) -> Tensor:
        hidden_ND, bias_R, lse_N, item_NK = known.hidden_ND, known.bias_R, known.lse_N, rows.gather(item_PK)
        mine_NK = rows.holds(item_NK)
        position, local = mine_NK.nonzero()[:, 0], item_NK[mine_NK] - rows.first
        hit_NK = lse_N.new_zeros(item_NK.shape)
        # A target of training may be withdrawn: infinity would lose the whole step.
        own_bias = bias_R[local].nan_to_num(neginf=0.0)
        hit_NK[mine_NK] = (hidden_ND[position] * unit(rows_RD[local], hidden_ND.dtype)).sum(1) + own_bias
        ctx.save_for_backward(hidden_ND, rows_RD, bias_R, lse_N, mine_NK, position, local)
        ctx.rows, ctx.positions = rows, len(hidden_PD)
        return rows.own(rows.sum_(hit_NK).sub_(lse_N[:, None]).mul_(LN_2), len(hidden_PD))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden_ND, rows_RD, bias_R, lse_N, mine_NK, position, local = ctx.saved_tensors
        rows: Rows = ctx.rows
        grad_NK = rows.gather(grads[0].contiguous())
        grad_hidden_ND, grad_rows_RD = log_sum_exp_backward(hidden_ND, rows_RD, bias_R, lse_N, -grad_NK.sum(1))
        with torch.enable_grad():
            target = rows_RD[local].requires_grad_()
            unit_MD = unit(target, hidden_ND.dtype)
        weight = grad_NK[mine_NK][:, None]
        grad_hidden_ND.index_add_(0, position, weight * unit_MD.detach())
        (grad_target,) = torch.autograd.grad(unit_MD, target, weight * hidden_ND[position] / LOG2_E)
        grad_rows_RD.index_add_(0, local, grad_target)
        return rows.own(rows.sum_(grad_hidden_ND), ctx.positions), grad_rows_RD, None, None, None


@dataclass(frozen=True)
class _Compared:
    """Two policies at the same positions, or one policy and nothing."""

    mine: _Known
    other: _Known | None

    def tiles(self) -> Iterator[tuple[Tile, Tile | None]]:
        """The same rows of both."""
        if self.other is None:
            yield from ((tile, None) for tile in self.mine.tiles())
        else:
            yield from zip(self.mine.tiles(), self.other.tiles(), strict=True)

    def logs(self, tile: Tile, at: slice) -> tuple[Tensor, Tensor]:
        """π and log2 π of a tile at some positions."""
        log = tile.logits(self.mine.hidden_ND[at]).sub(self.mine.lse_N[at, None])
        p = log.exp2()
        return p, log.masked_fill_(p == 0, 0)  # 0 · log 0 = 0

    def ratio(self, p: Tensor, log: Tensor, other: Tile | None, at: slice) -> Tensor:
        """log2(π / ρ) from log2 π, which is used up (it stays itself where there is no ρ)."""
        if other is None:
            return log
        assert self.other is not None
        log.sub_(other.logits(self.other.hidden_ND[at])).add_(self.other.lse_N[at, None])
        return log.masked_fill_(p == 0, 0)


class _Divergence(torch.autograd.Function):
    """Σ_j π_j log(π_j / ρ_j) at each position for a fixed reference ρ; without one, Σ_j π_j log π_j.

    Gives Σ_j π_j log π_j in either case as well, without a gradient.
    """

    @staticmethod
    def forward(ctx: Any, hidden_PD: Tensor, rows_RD: Tensor, both: _Compared, rows: Rows) -> tuple[Tensor, Tensor]:
        mean_2N = both.mine.lse_N.new_zeros(2, len(both.mine.lse_N))
        for tile, other_tile in both.tiles():
            for at in parts(mean_2N.shape[1], TILE_POSITIONS):
                p, log = both.logs(tile, at)
                mean_2N[1, at] += (p * log).sum(1)
                if other_tile is not None:
                    mean_2N[0, at] += p.mul_(both.ratio(p, log, other_tile, at)).sum(1)
        mean_N, own_N = rows.sum_(mean_2N)
        mean_N = own_N if both.other is None else mean_N
        ctx.save_for_backward(mean_N)
        ctx.both, ctx.rows, ctx.positions = both, rows, len(hidden_PD)
        found = [rows.own(each * LN_2, len(hidden_PD)) for each in (mean_N, own_N)]
        ctx.mark_non_differentiable(found[1])
        return found[0], found[1]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (mean_N,) = ctx.saved_tensors
        rows: Rows = ctx.rows
        both: _Compared = ctx.both
        hidden_ND = both.mine.hidden_ND
        grad_N = rows.gather(grads[0].contiguous()) * LN_2
        weighted_ND = hidden_ND * (grad_N / LOG2_E)[:, None]
        grad_hidden_ND, grad_rows_RD = torch.zeros_like(hidden_ND), torch.empty_like(both.mine.rows_RD)
        for tile, other_tile in both.tiles():
            grad_KD = torch.zeros_like(tile.unit_KD)
            for at in parts(len(hidden_ND), TILE_POSITIONS):
                p, log = both.logs(tile, at)
                p.mul_(both.ratio(p, log, other_tile, at).sub_(mean_N[at, None]))
                grad_hidden_ND[at].addmm_(p, tile.unit_KD)
                grad_KD.addmm_(p.T, weighted_ND[at])
            tile.through_norm(grad_KD, grad_rows_RD[tile.rows])
        grad_hidden_ND = rows.sum_(grad_hidden_ND.mul_(grad_N[:, None]))
        return rows.own(grad_hidden_ND, ctx.positions), grad_rows_RD, None, None


@dataclass(frozen=True)
class CatalogueSoftmax:
    """π(· | s) at the P supervised positions of a batch, exact (types.Distribution)."""

    hidden_PD: Tensor
    """L2-normalised hidden states divided by the temperature."""
    rows_RD: Tensor
    """Rows of the item table that this rank covers, as they are stored."""
    rows: Rows
    head_P: Tensor | None = None
    """What the network's head says of each position, if it has one (types.Distribution)."""

    def log_prob(self, item: Tensor) -> Tensor:
        """Exact log π(a|s) in nats of one item per position, (P,), or of several, (P, K), differentiable.

        The work over the catalogue, forward and backward, is that of one item whatever K is. A withdrawn item, which
        has no probability, gets its logit's distance from the active ones' log-sum-exp: a target of training may be
        one. Collective where rows are sharded.
        """
        item_PK = item if item.dim() == 2 else item[:, None]
        return _LogProb.apply(self.hidden_PD, self.rows_RD, item_PK, self.known, self.rows).view_as(item)  # type: ignore[no-any-return, no-untyped-call]

    @functools.cached_property
    def known(self) -> _Known:
        """Worked out once for everything that is asked of this distribution. Collective where rows are sharded."""
        with torch.no_grad():
            return _Known.of(self.hidden_PD, self.rows_RD, self.rows)

    def at(self, kept_P: Tensor) -> CatalogueSoftmax:
        """The same at some of the positions; ``kept_P`` bool."""
        return replace(
            self, hidden_PD=self.hidden_PD[kept_P], head_P=None if self.head_P is None else self.head_P[kept_P]
        )

    def entropy(self) -> Tensor:
        """Exact entropy in nats, shape (P,), differentiable. Collective where rows are sharded."""
        return -self._divergence(None)[0]

    def kl(self, reference: CatalogueSoftmax) -> Tensor:
        """Exact KL(π ‖ reference) in nats, shape (P,), differentiable by π alone. Collective where rows are sharded.

        The D_KL of the paper's eq. 2. ``reference`` is another policy at the same positions, over the same items; its
        biases may be others.
        """
        return self._divergence(reference)[0]

    def kl_and_entropy(self, reference: CatalogueSoftmax) -> tuple[Tensor, Tensor]:
        """``kl``, and the entropy without a gradient from the same tiles. Collective where rows are sharded."""
        kl_P, negative_P = self._divergence(reference)
        return kl_P, -negative_P

    def _divergence(self, reference: CatalogueSoftmax | None) -> tuple[Tensor, Tensor]:
        both = _Compared(self.known, None if reference is None else reference.known)
        return _Divergence.apply(self.hidden_PD, self.rows_RD, both, self.rows)  # type: ignore[no-any-return, no-untyped-call]

    @torch.no_grad()
    def sample(self, draws: int, key_P: Tensor, seen_item: Tensor, seen_length_P: Tensor) -> Tensor:
        """Independent draws a ~ π(· | s) (the paper's eq. 1) among active, unseen items, int64 (P, draws).

        A function of π and the int32 ``key_P``: a hash of key and number of the draw is looked up in the running sum of
        probabilities over all items in their order (sampling.py). So tiles, ranks and placement change a draw only
        where it lies within rounding of the border between two items. ``seen_length_P`` of ``seen_item`` belong to each
        position. Where every active item is seen, item 0 (padding): the caller leaves such positions out. Collective
        where rows are sharded: each rank draws from its rows for the positions of all.
        """
        rows = self.rows
        hidden_ND, seen = rows.gather(self.hidden_PD) * LOG2_E, self._seen(seen_item, seen_length_P)
        here = sampling.Masses(hidden_ND, self.rows_RD, rows.tile_bias(hidden_ND.dtype), rows.first, seen)
        log_mass_NT = here.of_tiles()
        share_NK = counter.words(rows.gather(key_P), draws).double() / 2**62
        holder_NK, share_NK = sampling.choose(rows.of_each(sampling.total(log_mass_NT)).T.contiguous(), share_NK)
        mine_NK = holder_NK == (ranks.rank() if rows.sharded else 0)
        return rows.own(rows.sum_(here.items(log_mass_NT, share_NK, mine_NK)), len(key_P))

    @torch.no_grad()
    def unseen(self, seen_item: Tensor, seen_length_P: Tensor) -> Tensor:
        """Probability of all items but the seen ones, (P,); arguments as of ``sample``. Collective where sharded.

        Worked out in float64: rounded to the hidden states' precision it is the same however the rows are shared out.
        """
        rows = self.rows
        hidden_ND, seen = rows.gather(self.hidden_PD).double() * LOG2_E, self._seen(seen_item, seen_length_P)
        bias_R = rows.tile_bias(hidden_ND.dtype)
        masses = sampling.Masses(hidden_ND, self.rows_RD, bias_R, rows.first, seen)
        log_mass_N = sampling.total(rows.of_each(sampling.total(masses.of_tiles())).T)
        unseen_N = (log_mass_N - _log_normaliser(hidden_ND, self.rows_RD, bias_R, rows)).exp2()
        return rows.own(unseen_N, len(seen_length_P)).to(self.hidden_PD)

    @torch.no_grad()
    def ranks(self, item_P: Tensor, seen_item: Tensor, seen_length_P: Tensor) -> Tensor:
        """Exact rank of one item per position among active, unseen items (1 = best; last among equals), int64.

        Items that score as high as the target or higher are counted over all rows; the seen ones among them, and the
        target itself, are then taken off (ranking.py). Collective where rows are sharded.
        """
        rows = self.rows
        here, seen = self._scores(), self._seen(seen_item, seen_length_P)
        item_N = rows.gather(item_P)
        floor_N = rows.sum_(here.of(torch.arange(len(item_N), device=item_N.device), item_N)).sub_(ranking.TIE)
        above_N = here.count(floor_N) - here.counted(item_N)
        above_N -= here.count_seen(floor_N, seen)
        return rows.own(rows.sum_(above_N), len(item_P)) + 1

    @torch.no_grad()
    def top_k(self, k: int, seen_item: Tensor, seen_length_P: Tensor) -> tuple[Tensor, Tensor]:
        """The k best active, unseen items of each position, best first: logits (P, k) and items (P, k), int64.

        Equal logits are ordered by item. Where fewer than k items are left, item 0 with logit −∞ fills up. Collective
        where rows are sharded: each rank finds the best of its rows, and the ranks' lists are merged.
        """
        rows = self.rows
        here, seen = self._scores(), self._seen(seen_item, seen_length_P)
        logit_Nk, item_Nk = here.top_k(k, seen)
        if rows.sharded and ranks.world() > 1:
            logits, items = rows.of_each(logit_Nk), rows.of_each(item_Nk)
            logit_Nk, item_Nk = ranking.best(logits.transpose(0, 1).flatten(1), items.transpose(0, 1).flatten(1), k)
        return rows.own(logit_Nk, len(self.hidden_PD)), rows.own(item_Nk, len(self.hidden_PD))

    def _seen(self, seen_item: Tensor, seen_length_P: Tensor) -> ranking.Seen:
        """Of all ranks' positions."""
        return ranking.Seen.of(self.rows.gather(seen_item), self.rows.gather(seen_length_P))

    def _scores(self) -> ranking.Scores:
        """All ranks' positions and this rank's rows, in float64."""
        return ranking.Scores(
            self.rows.gather(self.hidden_PD).double(), self.rows_RD, self.rows.bias_R, self.rows.first
        )
