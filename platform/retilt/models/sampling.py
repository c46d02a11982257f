"""Independent draws from the exact softmax, from the rows that one rank holds: inverse CDF, a level at a time.

A draw is a number in [0, 1): a place in the running sum of probabilities over all items in their order. One pass over
the tiles (tiles.py) gives each position's mass in each of them, without the items that the position has seen. The
number then falls on a rank, on one of that rank's tiles and, when this tile has been worked out again for the
positions that chose it, on an item; what is left of it at one level is the number of the next. As the order is that of
the items, neither tiles nor the division of rows over ranks matter but for rounding.

Within a level masses are integers, at most 2⁶² in sum: their running sum is exact and never falls, on any device, so
what has no mass (padding, withdrawn and seen items) is never chosen. Less than M · 2⁻⁶² of the largest of M masses is
none.

Letters: N positions, T tiles of this rank's rows, K draws of a position, M masses of a level.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from retilt.models.ranking import Seen
from retilt.models.tiles import LOG2_E, TILE_POSITIONS, parts, tiles

WHOLE = 2.0**62


@dataclass(frozen=True)
class Masses:
    """What N positions can draw from the rows of one rank; logits and their masses' logarithms in units of ln 2."""

    hidden_ND: Tensor
    rows_RD: Tensor
    bias_R: Tensor
    first: int
    """Item of the first row."""
    seen: Seen
    """Items that are not drawn."""

    def of_tiles(self) -> Tensor:
        """Logarithm of Σ 2^logit over each tile's unseen rows, (N, T), float64; −∞ where none is left."""
        found = []
        for tile in tiles(self.rows_RD, self.bias_R, self.hidden_ND.dtype):
            log_mass_N = self.hidden_ND.new_empty(len(self.hidden_ND), dtype=torch.float64)
            for at in parts(len(log_mass_N), TILE_POSITIONS):
                logits = tile.logits(self.hidden_ND[at])
                self.seen.mask(logits, at, self.first + tile.rows.start)
                top = _top(logits)
                log_mass_N[at] = logits.sub_(top).exp2_().sum(1).double().log2_().add_(top[:, 0])
            found.append(log_mass_N)
        return torch.stack(found, 1)

    def items(self, log_mass_NT: Tensor, share_NK: Tensor, mine_NK: Tensor) -> Tensor:
        """Items of the draws that fall on this rank's rows, int64 (N, K), 0 for those of others.

        ``log_mass_NT`` is what ``of_tiles`` gave and is used up; ``share_NK`` says how far into this rank's mass each
        draw falls.
        """
        tile_NK, share_NK = choose(log_mass_NT, share_NK)
        item_NK = torch.zeros_like(tile_NK)
        for number, tile in enumerate(tiles(self.rows_RD, self.bias_R, self.hidden_ND.dtype)):
            here_NK = mine_NK & (tile_NK == number)
            position = here_NK.any(1).nonzero().squeeze(1)
            first = self.first + tile.rows.start
            seen = self.seen.between(first, self.first + tile.rows.stop).among(position, len(item_NK))
            for at in parts(len(position), TILE_POSITIONS):
                some = position[at]
                logits = tile.logits(self.hidden_ND[some])
                seen.mask(logits, at, first)
                place, _ = choose(logits, share_NK[some])
                item_NK[some] = torch.where(here_NK[some], place + first, item_NK[some])
        return item_NK


def total(log_mass_NT: Tensor) -> Tensor:
    """Logarithm of the sum of masses, (N,), in units of ln 2 as they are."""
    return (log_mass_NT / LOG2_E).logsumexp(1) * LOG2_E


def choose(log_mass_NM: Tensor, share_NK: Tensor) -> tuple[Tensor, Tensor]:
    """Which of M masses each share of their sum, in [0, 1), falls on, int64, and the share of that mass it falls on.

    Both (N, K). Uses ``log_mass_NM`` (in units of ln 2) up. Where all masses are 0 it is the first of them.
    """
    upto_NM = log_mass_NM.sub_(_top(log_mass_NM)).exp2_().mul_(WHOLE / log_mass_NM.shape[1]).long().cumsum_(1)
    whole_N1 = upto_NM[:, -1:]
    at_NK = torch.minimum((share_NK * whole_N1).long(), whole_N1 - 1)
    # Of masses that are not finite none is found; the loss says so later, for all ranks.
    chosen_NK = torch.searchsorted(upto_NM, at_NK, right=True).clamp_(max=upto_NM.shape[1] - 1)
    before_NK = upto_NM.gather(1, (chosen_NK - 1).clamp_(min=0)).masked_fill_(chosen_NK == 0, 0)
    mass_NK = (upto_NM.gather(1, chosen_NK) - before_NK).clamp_(min=1)
    return chosen_NK, (at_NK - before_NK) / mass_NK.double()


def _top(log_mass_NM: Tensor) -> Tensor:
    """The largest, (N, 1); finite where all are −∞."""
    return log_mass_NM.amax(1, keepdim=True).clamp_(min=torch.finfo(log_mass_NM.dtype).min)
