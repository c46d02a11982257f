"""The sampled softmax: each position's target against drawn negatives; its cost does not depend on the catalogue.

    log π̂(a|s) = h·e_a − log( exp(h·e_a) + Σ_j m_j exp(h·e_j) / (R q_j) )

over the distinct negatives j ≠ a, drawn m_j times in R draws from a proposal q. The sum estimates that of the exact
softmax over the other items (importance sampling: Bengio and Senécal, 2008), so the gradient's bias goes to zero as R
grows, whatever q is. The target is not drawn and gets no correction (Khrylchenko et al., "Correcting the LogQ
Correction", 2025); a negative equal to it, an accidental hit, is left out. ``logq=false`` leaves the factor 1 / (R q_j)
out, as Meta's public experiments do with uniform negatives.

Draws are hashes (counter.py): of seed and step where all positions share them, else of example and position too. So any
number of workers trains on the same negatives.

Letters: P positions of this rank, K distinct negatives, R draws, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from retilt import ranks
from retilt.models.counter import keys, mix, words
from retilt.models.softmax import LN_2
from retilt.models.tiles import LOG2_E, log_sum_exp, log_sum_exp_backward, parts, unit
from retilt.types import Batch, InputError

PAIR_NUMBERS = 1 << 20
"""Numbers of the embeddings that are gathered at once where every position has its own negatives."""


@dataclass(frozen=True)
class Candidates:
    """The negatives of one step."""

    item_K: Tensor
    """int64, distinct."""
    bias_K: Tensor
    """float32, log(m / (R q)) of each; 0 where every position has its own draws."""
    place_PR: Tensor | None
    """int64, each position's own draws as places in ``item_K``; None: all positions share all of them."""
    bias_PR: Tensor | None
    """float32, log(1 / (R q)) of these draws."""


@dataclass(frozen=True)
class Sampler:
    """How negatives are drawn; built once a run."""

    proposal: Literal["uniform", "popularity", "in_batch"]
    negatives: Literal["shared", "per_position"]
    count: int
    """R. In-batch negatives are the batch's targets, however many there are."""
    logq: bool
    cumulative_V: Tensor
    """int64 (V + 1,), running sum of the items' masses: 1 for an active item, or its number of training events."""

    @classmethod
    def of(
        cls,
        proposal: Literal["uniform", "popularity", "in_batch"],
        negatives: Literal["shared", "per_position"],
        count: int,
        logq: bool,
        active: Tensor,
        train_counts: Tensor,
    ) -> Sampler:
        """``active`` bool and ``train_counts`` int64, both (V + 1,); padding is never drawn."""
        mass = active.long() if proposal == "uniform" else train_counts * active
        mass[0] = 0
        return cls(proposal, negatives, count, logq, mass.cumsum(0))

    def to(self, device: torch.device) -> Sampler:
        """The same with its sums on ``device``."""
        return replace(self, cumulative_V=self.cumulative_V.to(device))

    def log_q(self, item: Tensor) -> Tensor:
        """log q of items, float32, the shape of ``item``."""
        mass = self.cumulative_V[item] - self.cumulative_V[item - 1]
        return (mass.double() / self.cumulative_V[-1]).log().float()

    def draw(self, batch: Batch, seed: int, step: int) -> Candidates:
        """The negatives of a step. Collective for in-batch ones: those of the global batch."""
        device = batch.item_BT.device
        if self.proposal == "in_batch":
            target_P = batch.target_item_P
            return self._shared(ranks.gather(target_P, ranks.sizes(len(target_P), device)), others=1)
        if self.negatives == "shared":
            key = mix(keys(torch.zeros(1, dtype=torch.int64, device=device), 1, seed, step)[0])
            return self._shared(self._items(words(key, self.count)[0]), others=0)
        key_P = keys(batch.example_B, batch.item_BT.shape[1], seed, step)[batch.supervised_BT]
        # Dropout hashes the same keys further; so do these, with a constant of their own.
        drawn_PR = self._items(words(mix(key_P ^ 0x3C6EF372), self.count))
        item_K, place = torch.unique(drawn_PR, return_inverse=True)
        bias_K = -self.log_q(item_K).add_(torch.tensor(float(self.count)).log()) if self.logq else item_K.float() * 0
        return Candidates(item_K, torch.zeros_like(bias_K), place, bias_K[place])

    def _items(self, word: Tensor) -> Tensor:
        return torch.searchsorted(self.cumulative_V, word % self.cumulative_V[-1], right=True)

    def _shared(self, drawn: Tensor, others: int) -> Candidates:
        """``others`` of the draws are the position's own target and so no draw for it."""
        item_K, times_K = torch.unique(drawn, return_counts=True)
        bias_K = times_K.float().log()
        if self.logq:
            bias_K -= self.log_q(item_K) + torch.tensor(max(1, len(drawn) - others)).log()
        return Candidates(item_K, bias_K, None, None)


class _LogSumExp(torch.autograd.Function):
    """log Σ_j exp(h·e_j + bias_j) over K rows that all positions share, without row ``skip`` (−1: none)."""

    @staticmethod
    def forward(ctx: Any, hidden_PD: Tensor, rows_KD: Tensor, bias_K: Tensor, skip_P: Tensor) -> Tensor:
        hidden_PD, bias_K = hidden_PD * LOG2_E, bias_K * LOG2_E
        top_P, total_P = log_sum_exp(hidden_PD, rows_KD, bias_K, skip_P)
        lse_P = top_P.add_(total_P.log2_())
        ctx.save_for_backward(hidden_PD, rows_KD, bias_K, skip_P, lse_P)
        return lse_P * LN_2

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden_PD, rows_KD, bias_K, skip_P, lse_P = ctx.saved_tensors
        lse_P = lse_P.masked_fill(lse_P == -torch.inf, torch.inf)  # no negative is left: every weight is 0
        return *log_sum_exp_backward(hidden_PD, rows_KD, bias_K, lse_P, grads[0], skip_P), None, None


class _OwnLogSumExp(torch.autograd.Function):
    """The same where every position has its own draws: rows ``place_PR`` with ``bias_PR`` (−∞: left out)."""

    @staticmethod
    def forward(ctx: Any, hidden_PD: Tensor, unit_KD: Tensor, place_PR: Tensor, bias_PR: Tensor) -> Tensor:
        lse_P = hidden_PD.new_empty(len(hidden_PD))
        for at in _OwnLogSumExp.parts(place_PR, unit_KD):
            logits = torch.bmm(unit_KD[place_PR[at]], hidden_PD[at, :, None]).squeeze(2)
            lse_P[at] = logits.add_(bias_PR[at]).logsumexp(1)
        ctx.save_for_backward(hidden_PD, unit_KD, place_PR, bias_PR, lse_P)
        return lse_P

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden_PD, unit_KD, place_PR, bias_PR, lse_P = ctx.saved_tensors
        lse_P = lse_P.masked_fill(lse_P == -torch.inf, torch.inf)
        grad_hidden_PD, grad_KD = torch.empty_like(hidden_PD), torch.zeros_like(unit_KD)
        for at in _OwnLogSumExp.parts(place_PR, unit_KD):
            unit_PRD = unit_KD[place_PR[at]]
            logits = torch.bmm(unit_PRD, hidden_PD[at, :, None]).squeeze(2).add_(bias_PR[at])
            p_PR = logits.sub_(lse_P[at, None]).exp_().mul_(grads[0][at, None])
            grad_hidden_PD[at] = torch.bmm(p_PR[:, None], unit_PRD).squeeze(1)
            torch.mul(p_PR[:, :, None], hidden_PD[at, None], out=unit_PRD)
            grad_KD.index_add_(0, place_PR[at].flatten(), unit_PRD.flatten(0, 1))
        return grad_hidden_PD, grad_KD, None, None

    @staticmethod
    def parts(place_PR: Tensor, unit_KD: Tensor) -> Any:
        """Positions whose negatives' embeddings are gathered at once."""
        return parts(len(place_PR), max(1, PAIR_NUMBERS // (place_PR.shape[1] * unit_KD.shape[1])))


@dataclass(frozen=True)
class SampledSoftmax:
    """π̂(· | s) at the P supervised positions of a batch, for their targets only (types.Distribution's log_prob)."""

    hidden_PD: Tensor
    """L2-normalised hidden states divided by the temperature."""
    target_P: Tensor
    target_PD: Tensor
    """Rows of the targets, as they are stored."""
    negative_KD: Tensor
    """Rows of the negatives, as they are stored."""
    candidates: Candidates
    head_P: Tensor | None = None
    """What the network's head says of each position, if it has one (types.Likelihood)."""

    def log_prob(self, item_P: Tensor) -> Tensor:
        """Estimated log-probability of the batch's targets, shape (P,), differentiable; no collective.

        Raises:
            InputError: other items than the targets, whose embeddings this step has not looked up.
        """
        if not torch.equal(item_P, self.target_P):
            raise InputError(
                "softmax = 'sampled' knows the probability of a batch's targets only, and this method asks for that of "
                "other items: use softmax=exact"
            )
        target_P = (self.hidden_PD * unit(self.target_PD, self.hidden_PD.dtype)).sum(1)
        return target_P - torch.logaddexp(target_P, self._others())

    def _others(self) -> Tensor:
        """Estimated log Σ exp(logit) over all items but the target, (P,)."""
        drawn = self.candidates
        place_P = torch.searchsorted(drawn.item_K, self.target_P).clamp_(max=len(drawn.item_K) - 1)
        hit_P = drawn.item_K[place_P] == self.target_P
        if drawn.place_PR is None:
            skip_P = torch.where(hit_P, place_P, -1)
            return _LogSumExp.apply(self.hidden_PD, self.negative_KD, drawn.bias_K, skip_P)  # type: ignore[no-any-return, no-untyped-call]
        assert drawn.bias_PR is not None
        hit_PR = (drawn.place_PR == place_P[:, None]) & hit_P[:, None]
        bias_PR = drawn.bias_PR.masked_fill(hit_PR, -torch.inf)
        unit_KD = unit(self.negative_KD, self.hidden_PD.dtype)
        return _OwnLogSumExp.apply(self.hidden_PD, unit_KD, drawn.place_PR, bias_PR)  # type: ignore[no-any-return, no-untyped-call]
