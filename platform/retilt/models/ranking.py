"""Exact ranks and top-k over the rows that one rank holds: float32 tiles find, float64 decides.

A tile's logits are float32 with a known error bound: in units of 2⁻²⁴ · ‖h‖, D for a product of D terms in any order,
D / 2 + 3 for the norms of the rows and the division by them, the rest of (3/2 D + 8) for the rounding of h and of what
is compared with (Higham, "Accuracy and Stability of Numerical Algorithms", 3.1). A bias b adds 4 · 2⁻²⁴ · |b|: for
its own rounding, the sum's and that of what is compared with. Only logits that lie closer than that to a decision are
computed again in float64. So ranks are those of float64, independent of tiles, batches and workers, at little more
than the price of one float32 product.

Letters: N positions, R rows held here, D width, K rows of a tile.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from retilt.models.tiles import SMALLEST_NORM, TILE_POSITIONS, TILE_ROWS, parts, tiles

TIE = 1e-9
"""Logits closer than this are equal. They are float64 from float32 tables, whose rounding differs by about 1e-15."""
PAIRS = 1 << 15
"""Pairs of a position and a row that are scored at once."""
CHUNK = 32
EXTRA = 16
"""Candidates beyond k that top-k collects, so that float32's rounding cannot push out one of the k."""
LISTED = 1 << 22
"""Most candidates that are listed at once."""


@dataclass(frozen=True)
class Seen:
    """Items that take no part at some positions: (M,) pairs in the order of the items."""

    position: Tensor
    item: Tensor

    @classmethod
    def of(cls, item_M: Tensor, length_N: Tensor) -> Seen:
        """From items position after position, ``length_N`` of them at each."""
        position_M = torch.arange(len(length_N), device=item_M.device).repeat_interleave(length_N)
        item_M, order = item_M.sort()
        return cls(position_M[order], item_M)

    def among(self, position_N: Tensor, positions: int) -> Seen:
        """Those of some positions (distinct), numbered as in ``position_N``."""
        number = torch.full((positions,), -1, device=self.item.device)
        number[position_N] = torch.arange(len(position_N), device=self.item.device)
        found = number[self.position]
        return Seen(found[found >= 0], self.item[found >= 0])

    def between(self, first: int, last: int) -> Seen:
        """Those among items ``first`` … ``last`` (exclusive)."""
        low, high = torch.searchsorted(self.item, self.item.new_tensor([first, last])).tolist()
        return Seen(self.position[low:high], self.item[low:high])

    def mask(self, logits_PK: Tensor, at: slice, first: int) -> None:
        """Make these items' logits −∞ in a tile of positions ``at`` whose rows are items ``first`` …"""
        some = self.between(first, first + logits_PK.shape[1])
        here = ((some.position >= at.start) & (some.position < at.stop)).nonzero().squeeze(1)
        logits_PK[some.position[here] - at.start, some.item[here] - first] = -torch.inf


@dataclass(frozen=True)
class Scores:
    """Logits of N positions for the rows of one rank."""

    hidden_ND: Tensor
    """float64."""
    rows_RD: Tensor
    bias_R: Tensor
    """Added to the logits of each row; −∞ for a row that takes no part."""
    first: int
    """Item of the first row."""

    @property
    def _slack_N(self) -> Tensor:
        """Most that a float32 logit of each position differs from the float64 one."""
        norm_N: Tensor = torch.linalg.vector_norm(self.hidden_ND, dim=1)
        return norm_N.mul_((1.5 * self.hidden_ND.shape[1] + 8) * 2.0**-24).add_(self._finite_R.abs().max() * 2.0**-22)

    @cached_property
    def _finite_R(self) -> Tensor:
        """Biases of the rows that take part, 0 for the others: a withdrawn item can still be asked for its rank."""
        return self.bias_R.masked_fill(self.bias_R == -torch.inf, 0)

    def of(self, position_M: Tensor, item_M: Tensor) -> Tensor:
        """Logits of pairs, (M,), float64; 0 for rows of other ranks."""
        score_M = self.hidden_ND.new_zeros(len(item_M))
        held = ((item_M >= self.first) & (item_M < self.first + len(self.rows_RD))).nonzero().squeeze(1)
        for part in parts(len(held), PAIRS):
            score_M[held[part]] = self._pairs(self.hidden_ND, position_M[held[part]], item_M[held[part]])
        return score_M

    def _pairs(self, hidden_ND: Tensor, position_M: Tensor, item_M: Tensor) -> Tensor:
        row_M = item_M - self.first
        rows_MD = self.rows_RD.index_select(0, row_M).to(hidden_ND.dtype)  # copies whole rows; indexing goes by numbers
        norm_M = torch.linalg.vector_norm(rows_MD, dim=1).clamp_(min=SMALLEST_NORM)
        score_M = hidden_ND.index_select(0, position_M).mul_(rows_MD).sum(1).div_(norm_M)
        return score_M.add_(self._finite_R.index_select(0, row_M))

    def _reach(self, position_M: Tensor, item_M: Tensor, floor_N: Tensor) -> Tensor:
        """Which pairs, all of rows held here, reach their position's floor, bool: by float32 where that is sure."""
        hidden_ND, slack_N, found = self.hidden_ND.float(), self._slack_N, []
        for part in parts(len(item_M), PAIRS):
            position, item = position_M[part], item_M[part]
            floor_M, slack_M = floor_N[position], slack_N[position]
            score_M = self._pairs(hidden_ND, position, item).double()
            doubtful = ((score_M - floor_M).abs() <= slack_M).nonzero().squeeze(1)
            score_M[doubtful] = self.of(position[doubtful], item[doubtful])
            found.append(score_M >= floor_M)
        return torch.cat(found) if found else torch.empty(0, dtype=torch.bool, device=floor_N.device)

    def counted(self, item_N: Tensor) -> Tensor:
        """Which items are active rows of this rank, int64."""
        local_N = item_N - self.first
        held_N = (local_N >= 0) & (local_N < len(self.rows_RD))
        return (held_N & (self.bias_R[local_N.clamp(0, len(self.rows_RD) - 1)] > -torch.inf)).long()

    def count(self, floor_N: Tensor) -> Tensor:
        """Active rows of this rank whose logit reaches each position's floor, int64."""
        hidden_ND, slack_N = self.hidden_ND.float(), self._slack_N
        low_N1, high_N1 = (floor_N - slack_N).float()[:, None], (floor_N + slack_N).float()[:, None]
        above_N = torch.zeros_like(floor_N)
        doubts = _Doubts(low_N1, high_N1)
        buffer = torch.empty(TILE_POSITIONS * TILE_ROWS, device=floor_N.device)
        for tile in tiles(self.rows_RD, self.bias_R, torch.float32):
            for at in parts(len(floor_N), TILE_POSITIONS):
                logits = tile.logits(hidden_ND[at])
                reached = buffer[: logits.numel()].view_as(logits)  # float: its sum is vectorised
                sure = torch.ge(logits, high_N1[at], out=reached).sum(1)
                maybe = torch.ge(logits, low_N1[at], out=reached).sum(1)
                above_N[at] += sure
                doubts.look(logits, (maybe > sure).nonzero().squeeze(1), at.start, tile.rows.start, reached)
        position, row = doubts.found()
        for part in parts(len(position), PAIRS):
            reaches = self.of(position[part], row[part] + self.first) >= floor_N[position[part]]
            above_N.index_add_(0, position[part], reaches.to(above_N.dtype))
        return above_N.long()

    def count_seen(self, floor_N: Tensor, seen: Seen) -> Tensor:
        """This rank's seen, active items that reach each position's floor, int64."""
        mine = self.counted(seen.item) > 0
        position, item = seen.position[mine], seen.item[mine]
        count_N = torch.zeros(len(floor_N), dtype=torch.int64, device=floor_N.device)
        return count_N.index_add_(0, position, self._reach(position, item, floor_N).long())

    def top_k(self, k: int, seen: Seen) -> tuple[Tensor, Tensor]:
        """The k best unseen, active rows of each position: logits (N, k), best first, and items (N, k); 0 for none.

        A few more than k are collected by their float32 logits and ordered by float64 ones. A position where a row that
        was left out might belong among the k (there are many equals) is repeated with more of them.
        """
        logit_Nk = self.hidden_ND.new_full((len(self.hidden_ND), k), -torch.inf)
        item_Nk = torch.zeros(len(self.hidden_ND), k, dtype=torch.int64, device=self.hidden_ND.device)
        left, kept = torch.arange(len(self.hidden_ND), device=self.hidden_ND.device), k + EXTRA
        while len(left):
            again = []
            for part in parts(len(left), max(1, LISTED // kept)):
                position = left[part]
                here = Scores(self.hidden_ND[position], self.rows_RD, self.bias_R, self.first)
                logit_Nk[position], item_Nk[position], sure = here._ordered(
                    k, kept, seen.among(position, len(logit_Nk))
                )
                again.append(position[~sure])
            left, kept = torch.cat(again), 4 * kept
        return logit_Nk, item_Nk

    def _ordered(self, k: int, kept: int, seen: Seen) -> tuple[Tensor, Tensor, Tensor]:
        """Logits and items of the k best of the ``kept`` best by float32, and where these are sure to be the best."""
        found = _Best(len(self.hidden_ND), min(kept, len(self.rows_RD)), self.hidden_ND.device)
        hidden_ND = self.hidden_ND.float()
        for tile in tiles(self.rows_RD, self.bias_R, torch.float32):
            for at in parts(len(hidden_ND), TILE_POSITIONS):
                logits = tile.logits(hidden_ND[at])
                seen.mask(logits, at, tile.rows.start + self.first)
                found.add(logits, at, tile.rows.start)
        found.merge()
        there = found.row_Nk >= 0
        score_Nk = torch.full_like(found.value_Nk, -torch.inf, dtype=self.hidden_ND.dtype)
        item_Nk = torch.where(there, found.row_Nk + self.first, 0)
        score_Nk[there] = self.of(there.nonzero()[:, 0], item_Nk[there])
        logit_Nk, item_Nk = best(score_Nk, item_Nk, k)
        # Nothing was left out, or what was lies below the k-th by more than both can be wrong.
        whole = found.floor_N == -torch.inf
        return logit_Nk, item_Nk, whole | (found.floor_N + 2 * self._slack_N < logit_Nk[:, -1])


class _Doubts:
    """Pairs whose float32 logits lie in low ≤ logit < high: those to be decided in float64. They are few."""

    def __init__(self, low_N1: Tensor, high_N1: Tensor) -> None:
        self._low_N1, self._high_N1 = low_N1, high_N1
        self._middle_N1, half_N1 = (low_N1 + high_N1) / 2, (high_N1 - low_N1) / 2
        # They are looked for by the distance from the middle, which rounding may blur a little.
        self._within_N1 = -(half_N1 + 1e-6 * (self._middle_N1.abs() + half_N1))
        self._pairs: list[tuple[Tensor, Tensor, Tensor]] = []

    def look(self, logits_PK: Tensor, which: Tensor, position: int, row: int, memory: Tensor) -> None:
        """Note those of the positions ``which`` of a tile that begins at ``position`` and ``row``."""
        if not len(which):
            return
        distance = torch.index_select(logits_PK, 0, which, out=memory[: len(which)])
        at = which + position
        distance.sub_(self._middle_N1.index_select(0, at)).abs_().neg_()
        found, local = _above(distance, self._within_N1.index_select(0, at))
        self._pairs.append((at[found], local + row, logits_PK[which[found], local]))

    def found(self) -> tuple[Tensor, Tensor]:
        """Positions and rows of all pairs."""
        if not self._pairs:
            return (self._low_N1.new_empty(0, dtype=torch.int64),) * 2
        position, row, logit = (torch.cat(each) for each in zip(*self._pairs, strict=True))
        inside = (logit >= self._low_N1[position, 0]) & (logit < self._high_N1[position, 0])
        return position[inside], row[inside]


class _Best:
    """The best rows of each position so far, by float32 logits; new ones are collected and merged now and then."""

    def __init__(self, positions: int, k: int, device: torch.device) -> None:
        self.value_Nk = torch.full((positions, k), -torch.inf, device=device)
        self.row_Nk = torch.full((positions, k), -1, device=device)
        self._new: list[tuple[Tensor, Tensor, Tensor]] = []
        self._count = 0

    @property
    def floor_N(self) -> Tensor:
        """The weakest that is kept; −∞ while there is room."""
        return self.value_Nk[:, -1]

    def add(self, logits_PK: Tensor, at: slice, first: int) -> None:
        """Look at a tile of positions ``at`` and rows ``first`` …"""
        floor_P1 = self.floor_N[at, None]
        if bool((floor_P1 == -torch.inf).any()):
            value, row = logits_PK.topk(min(self.value_Nk.shape[1], logits_PK.shape[1]), dim=1)
            position, place = (value > floor_P1).nonzero(as_tuple=True)
            value, row = value[position, place], row[position, place]
        else:
            position, row = _above(logits_PK, floor_P1)
            value = logits_PK[position, row]
        self._new.append((position + at.start, value, row + first))
        self._count += len(position)
        if self._count > self.value_Nk.numel() // 2:
            self.merge()

    def merge(self) -> None:
        """Take the new ones in."""
        positions, k = self.value_Nk.shape
        position = torch.arange(positions, device=self.row_Nk.device).repeat_interleave(k)
        every = [(position, self.value_Nk.flatten(), self.row_Nk.flatten()), *self._new]
        position, value, row = (torch.cat(each) for each in zip(*every, strict=True))
        order = value.argsort(descending=True, stable=True)
        order = order[position[order].argsort(stable=True)]
        position = position[order]
        length = torch.bincount(position, minlength=positions)
        place = torch.arange(len(position), device=position.device) - (length.cumsum(0) - length)[position]
        kept = place < k
        self.value_Nk[position[kept], place[kept]] = value[order][kept]
        self.row_Nk[position[kept], place[kept]] = row[order][kept]
        self._new, self._count = [], 0


def _above(value_PK: Tensor, floor_P1: Tensor) -> tuple[Tensor, Tensor]:
    """Where values exceed each position's floor, which few do: a chunk's maximum tells whether any of it does."""
    size = CHUNK if value_PK.shape[1] % CHUNK == 0 else 1
    chunks = value_PK.view(len(value_PK), -1, size)
    position, chunk = (chunks.amax(2) > floor_P1).nonzero(as_tuple=True)
    which, place = (chunks[position, chunk] > floor_P1[position]).nonzero(as_tuple=True)
    return position[which], chunk[which] * size + place


def best(logit_NM: Tensor, item_NM: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best of M candidates of each position, equals in the order of their items; filled up with −∞ and item 0."""
    missing = max(0, k - logit_NM.shape[1])
    logit_NM = torch.nn.functional.pad(logit_NM, (0, missing), value=-torch.inf)
    item_NM, by_item = torch.nn.functional.pad(item_NM, (0, missing)).sort(dim=1, stable=True)
    logit_NM, order = logit_NM.gather(1, by_item).sort(dim=1, descending=True, stable=True)
    return logit_NM[:, :k], item_NM.gather(1, order)[:, :k].where(logit_NM[:, :k] > -torch.inf, 0)
