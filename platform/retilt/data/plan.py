"""The global order of samples: a pure function of row counts, seed and epoch, the same for any number of workers.

Row groups, permuted by (seed, epoch), are dealt to L lanes; consecutive rounds of dealing form a window. Every lane
cuts the users of its window into S slices of equal positions, and one permutation, common to all lanes, orders the
slices: global batch n of an epoch is slice order[n] of every lane. Rank r of W reads only lanes ≡ r mod W, so a batch
is the same set of users for any W ≤ L, and the number of batches follows from row counts alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from retilt.data.dataset import Dataset
from retilt.types import InputError

WINDOW_BATCHES = 32
"""Batches that a window holds about: enough users for slices of one length, few enough to keep in memory."""
JITTER = 0.1
"""Relative change of the sort key, drawn anew each epoch, so that users of a slice meet others the next time."""

_GROUPS, _SLICES, _USERS = range(3)
"""What a permutation is of; a part of its key."""

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Cursor:
    """Where a run stands in the global order: the next batch to train on."""

    epoch: int
    batch: int


@dataclass(frozen=True)
class Window:
    """Row groups that every lane holds at once, and the batches made of them."""

    epoch: int
    number: int
    first: int
    """Number within the epoch of the window's first batch."""
    slices: int
    """S: slices of each lane, batches of the window."""
    groups: tuple[tuple[int, ...], ...]
    """Per lane, its row groups as numbers in the manifest's order; a lane may have none."""


def check_world(lanes: int, world: int) -> None:
    """Raise InputError where there are more workers than lanes: some would have nothing to read."""
    if world > lanes:
        raise InputError(f"workers = {world}, but the data set has {lanes} lanes; use workers of at most that")


def lanes_of(lanes: int, rank: int, world: int) -> range:
    """The lanes that one rank reads: ≡ rank mod world."""
    check_world(lanes, world)
    return range(rank, lanes, world)


@dataclass(frozen=True)
class Plan:
    """The order of a data set's users over all epochs; ``rows_G`` are the users of each row group."""

    rows_G: tuple[int, ...]
    lanes: int
    batch_users: int
    """Mean number of users in a global batch."""
    seed: int

    def __post_init__(self) -> None:
        if self.batch_users < self.lanes:
            raise InputError(
                f"batch_users = {self.batch_users}, but the data set has {self.lanes} lanes; use at least that"
            )

    @classmethod
    def of(cls, dataset: Dataset, batch_users: int, seed: int) -> Plan:
        """The plan of a data set; InputError where ``batch_users`` is smaller than the number of lanes."""
        return cls(tuple(group.rows for group in dataset.row_groups), dataset.lanes, batch_users, seed)

    def windows(self, epoch: int) -> list[Window]:
        """The windows of an epoch in their order."""
        permuted = _permutation(len(self.rows_G), _GROUPS, self.seed, epoch)
        rounds = -(-len(permuted) // self.lanes)
        number = min(rounds, max(1, round(sum(self.rows_G) / (WINDOW_BATCHES * self.batch_users))))
        # Evenly many rounds a window: a short last one would have few users for slices of one length.
        edges = [i * rounds // number * self.lanes for i in range(number + 1)]
        windows: list[Window] = []
        first = 0
        for w, (start, end) in enumerate(itertools.pairwise(edges)):
            part = permuted[start:end]
            groups = tuple(tuple(part[lane :: self.lanes].tolist()) for lane in range(self.lanes))
            slices = max(1, round(sum(self.rows_G[g] for g in part) / self.batch_users))
            windows.append(Window(epoch, w, first, slices, groups))
            first += slices
        return windows

    def batches(self, epoch: int) -> int:
        """Number of global batches of an epoch."""
        last = self.windows(epoch)[-1]
        return last.first + last.slices

    def advance(self, cursor: Cursor) -> Cursor:
        """The cursor after one batch more; after an epoch's last batch, the next epoch's first."""
        if cursor.batch + 1 < self.batches(cursor.epoch):
            return Cursor(cursor.epoch, cursor.batch + 1)
        return Cursor(cursor.epoch + 1, 0)

    def order(self, window: Window) -> list[int]:
        """Which slice of every lane each batch of the window is."""
        order: list[int] = _permutation(window.slices, _SLICES, self.seed, window.epoch, window.number).tolist()
        return order

    def cut(self, window: Window, lane: int, positions_U: Ints) -> list[Ints]:
        """The S slices of a lane's window, each the numbers of its users, sorted by length up to ``JITTER``.

        Args:
            window: of this plan.
            lane: 0 … L − 1.
            positions_U: trained positions of each user of the lane's window in reading order; users with none are
                in no slice.

        Returns:
            S arrays; their sums of positions differ from the mean by at most half a user's at either end.
        """
        users_U = np.flatnonzero(positions_U)
        random_U = _random(len(users_U), _USERS, self.seed, window.epoch, window.number, lane)
        factor_U = 1 + JITTER * (2 * (random_U / 2.0**64) - 1)
        users_U = users_U[np.argsort(positions_U[users_U] * factor_U, kind="stable")]
        sizes_U = positions_U[users_U]
        ends_U = np.cumsum(sizes_U)
        total = int(sizes_U.sum())
        # A user belongs to the slice in which the middle of its positions lies; in integers, to be exact.
        slice_U = (2 * ends_U - sizes_U) * window.slices // max(2 * total, 1)
        edges = np.searchsorted(slice_U, np.arange(1, window.slices))
        return np.split(users_U, edges)


def _random(size: int, *key: int) -> npt.NDArray[np.uint64]:
    # Raw words of a bit generator are fixed by NumPy's compatibility policy; Generator.permutation is not.
    words: npt.NDArray[np.uint64] = np.random.Philox(np.random.SeedSequence(key)).random_raw(size)
    return words


def _permutation(size: int, *key: int) -> Ints:
    return np.argsort(_random(size, *key), kind="stable")


def dealt(rows_G: Sequence[int], lanes: int, rank: int, world: int) -> list[int]:
    """Row groups of one rank where the order does not matter: group g belongs to lane g mod L."""
    mine = set(lanes_of(lanes, rank, world))
    return [g for g in range(len(rows_G)) if g % lanes in mine]
