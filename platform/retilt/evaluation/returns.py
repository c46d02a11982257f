"""Which held-out trajectories have a high return, as those of Table 6 of arXiv:2603.10279.

A user's return is the mean reward of the held-out events: a mean, so that users with fewer of them count alike. It is
high from a quantile on of what the users had before: the mean reward of each user's last k events before the part. So
the bound is fixed by events that every policy may have seen, and not by the part.

Legend: P targets or training events, U users.
"""

from __future__ import annotations

import functools
import operator

import numpy as np
import torch
from torch import Tensor

from retilt import ranks
from retilt.algorithms.transforms import user_means
from retilt.data.collate import Part
from retilt.data.dataset import Dataset
from retilt.data.statistics import QUANTILES, Rewards
from retilt.data.stream import training_events
from retilt.ranks import together
from retilt.types import Batch

PROTOCOL = {"validation": "select", "test": "refit"}
"""Whose training events are those before a part."""


def bound(dataset: Dataset, part: Part, quantile: float) -> float:
    """The smallest return that counts as high, in the unit of the reward. Collective; reads all training events.

    Of more than 65,536 different returns it is that of returns rounded to 12 bits.

    Args:
        dataset: whose events are looked at.
        part: before whose events.
        quantile: between 0 and 1; .75 leaves about a quarter of the users.
    """
    mine = together(lambda: _earlier(dataset, part))
    quantiles = functools.reduce(operator.add, ranks.gather_object(mine)).summary()["quantiles"]
    return float(quantiles[round(quantile * (QUANTILES - 1))])


def _earlier(dataset: Dataset, part: Part) -> Rewards:
    """The mean reward of each of this rank's users over the last k events before the part."""
    found = Rewards.of(np.zeros(0, dtype=np.float32))
    for each in training_events(dataset, PROTOCOL[part], ranks.rank(), ranks.world()):
        user_P = each.user_P
        later_P = user_P.bincount().cumsum(0)[user_P] - torch.arange(1, len(user_P) + 1)
        last_P = later_P < dataset.k
        mean_U = user_means(each.reward_P[last_P].double(), user_P[last_P])
        found += Rewards.of(mean_U.float().numpy())
    return found


def high(batch: Batch, least: float) -> Tensor:
    """Whether each target of an evaluation batch, which has all of a user's, is one of a high return, bool (P,)."""
    each = batch.positions
    # In float32, as the bound is.
    return (user_means(each.reward_P.double(), each.user_P).float() >= least)[each.user_P]
