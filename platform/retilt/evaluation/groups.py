"""Groups of targets that tell for whom a policy is better: by the user's activity, the item's popularity, tied times.

They divide the targets of the headline group (``high_return`` where there is one, else ``high_reward``, else ``all``),
so that each group's difference is a part of the difference that the report is about. Bounds follow from the data set
alone: all policies are compared on the same targets.

Legend: P targets, U users, V items, G groups.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from retilt import ranks
from retilt.data.collate import Ints, Part
from retilt.data.dataset import Dataset
from retilt.data.split import bounds_array
from retilt.data.stream import user_lengths
from retilt.ranks import together
from retilt.types import Batch

ACTIVITY = ("activity_low", "activity_middle", "activity_high")
POPULARITY = ("popularity_low", "popularity_middle", "popularity_high")
TIMES = ("tied", "untied")
NAMES = (*ACTIVITY, *POPULARITY, *TIMES)
WITHIN = "within/"
"""What a tally puts before these names: its own ``untied`` divides all targets."""


def headline(min_reward: float | None) -> str:
    """The group of targets by which a run's epochs are chosen; evaluations may add ``high_return`` before it."""
    return "all" if min_reward is None else "high_reward"


@dataclass(frozen=True)
class Division:
    """Where the groups are cut; values up to a cut belong below it, so equal ones are never parted."""

    activity: tuple[int, int]
    """Events of a user before the held-out part: cuts between thirds of the users."""
    popularity: tuple[int, int]
    """Training events of an item: cuts between the items on which the least, the middle and the last third of all
    training events fall. The last third falls on few items, the head of the catalogue."""
    train_counts: Tensor
    """(V + 1,) training events of each item, by which popularity is told."""

    def members(self, batch: Batch) -> Tensor:
        """Which group each target of an evaluation batch belongs to, bool (G, P), in the order of ``NAMES``."""
        assert batch.earlier_B is not None
        assert batch.untied_P is not None
        targets_B = batch.supervised_BT.sum(1)
        before_B = batch.earlier_B + batch.supervised_BT.long().argmax(1)
        activity_P = before_B.repeat_interleave(targets_B)
        popularity_P = self.train_counts[batch.target_item_P]
        thirds = [*_thirds(activity_P, self.activity), *_thirds(popularity_P, self.popularity)]
        return torch.stack([*thirds, ~batch.untied_P, batch.untied_P])


def _thirds(value_P: Tensor, cuts: tuple[int, int]) -> list[Tensor]:
    third_P = torch.bucketize(value_P, torch.tensor(cuts, dtype=value_P.dtype))
    return [third_P == third for third in range(3)]


def divide(dataset: Dataset, part: Part, train_counts: Tensor) -> Division:
    """The division of a part's targets. Collective; reads the lengths of all users.

    ``train_counts`` (V + 1,) are the training events of each item at the cut by which all policies are compared.
    """
    own = together(lambda: _activity(user_lengths(dataset, ranks.rank(), ranks.world()), part, dataset.k))
    parts = [np.array(each, dtype=np.int64) for each in ranks.gather_object(own.tolist())]
    users = np.zeros(max(map(len, parts), default=0), dtype=np.int64)
    for each in parts:
        users[: len(each)] += each
    counts = train_counts.sort().values.numpy()
    return Division(_cuts(np.arange(len(users)), users), _cuts(counts, counts), train_counts)


def _activity(lengths: Iterable[tuple[Ints, Ints]], part: Part, k: int) -> Ints:
    """Number of users with 0, 1, 2, … events before the held-out part."""
    users = np.zeros(0, dtype=np.int64)
    for _, length_U in lengths:
        found = np.bincount(bounds_array(length_U, k)[0 if part == "validation" else 1], minlength=len(users))
        found[: len(users)] += users
        users = found
    return users


def _cuts(value: Ints, mass: Ints) -> tuple[int, int]:
    """The smallest of ascending values up to which a third and two thirds of the mass lie."""
    below = np.cumsum(mass)
    low, high = (int(value[np.searchsorted(below * 3, below[-1] * share)]) for share in (1, 2))
    return low, high
