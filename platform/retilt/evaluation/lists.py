"""What a policy recommends, whatever was chosen: catalogue coverage, Gini index and popularity of its top-10 lists.

    coverage@10     = share of the active items that are on some list
    gini@10         = Σ_i (2 i − V − 1) x_(i) / (V Σ x), x_(i) ascending: how often each of V active items is on a list;
                      0 where all are on as many, 1 where one item has all places
    popularity lift = mean over lists of (mean training events of the list's items ÷ those of the user's history);
                      above 1, lists are more popular than what the user chose before. An item counts at least one

Coverage and Gini index are no means over users, and resampling users loses some of the lists that only one of them
has. Their intervals come from a delete-a-group jackknife over 20 groups of users (Efron and Stein 1981), whose memory
is 20 numbers for each item.

Legend: P positions, V items, J groups of users.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from retilt import ranks
from retilt.data.draws import hashed
from retilt.evaluation import positions, statistics
from retilt.evaluation.statistics import CPU, Floats, Tally
from retilt.evaluation.student import quantile
from retilt.types import Batch, Distribution

LENGTH = 10
USER_GROUPS = 20
LIFT = "popularity_lift"


class Lists:
    """Counts of recommendations and the popularity of lists, summed over users."""

    def __init__(
        self, train_counts: Tensor, active: Tensor, replicates: int, seed: int, device: torch.device = CPU
    ) -> None:
        """``train_counts`` (V + 1,) tell popularity, ``active`` (V + 1,) bool which items can be recommended."""
        self.popularity, self.active, self.device = train_counts.clamp(min=1).double(), active, device
        self.tally = Tally(("all",), replicates, seed, device, (LIFT,))
        self.counts_JV = torch.zeros(USER_GROUPS, len(active), dtype=torch.int32)

    def add(self, batch: Batch, distribution: Distribution) -> None:
        """Count the lists of a batch's positions in. Collective."""
        here = batch.to(self.device)
        item_Pk = distribution.top_k(LENGTH, *positions.seen(here))[1].cpu()
        filled_Pk = item_Pk > 0
        example_P = batch.target_example_P
        group_P = torch.from_numpy((hashed(0, example_P.numpy()) % np.uint64(USER_GROUPS)).astype(np.int64))
        place_Pk = group_P[:, None] * self.counts_JV.shape[1] + item_Pk
        ones = torch.ones(int(filled_Pk.sum()), dtype=torch.int32)
        self.counts_JV.view(-1).index_add_(0, place_Pk[filled_Pk], ones)
        listed_P = (self.popularity[item_Pk] * filled_Pk).sum(1) / filled_Pk.sum(1).clamp(min=1)
        lift_P1 = (listed_P / self._history(batch))[:, None]
        whole_P = torch.ones(len(example_P), dtype=torch.bool)
        self.tally.add(example_P, whole_P[None], lift_P1, ~whole_P)

    def _history(self, batch: Batch) -> Tensor:
        """Mean popularity of the events before each position within the model's window."""
        user_P, place_P = batch.supervised_BT.nonzero(as_tuple=True)
        sum_BT = self.popularity[batch.item_BT].cumsum(1)
        mean_P: Tensor = sum_BT[user_P, place_P - 1] / place_P
        return mean_P

    def sum_over_ranks(self) -> Lists:
        """Of every rank's users, equal on all ranks. Collective."""
        whole = Lists(self.popularity, self.active, self.tally.replicates, self.tally.seed, self.device)
        whole.tally = self.tally.sum_over_ranks()
        whole.counts_JV = ranks.sum_(self.counts_JV.to(self.device, copy=True)).cpu()
        return whole


def coverage(counts_V: Tensor) -> float:
    """Share of the items that are on some list.

    >>> coverage(torch.tensor([0, 3, 1, 0]))
    0.5
    """
    return float((counts_V > 0).double().mean())


def gini(counts_V: Tensor) -> float:
    """How unequally places on lists are spread over the items; NaN for no list.

    >>> gini(torch.tensor([2, 2, 2])), round(gini(torch.tensor([0, 0, 9])), 3)
    (0.0, 0.667)
    """
    sorted_V = counts_V.double().sort().values
    n = len(sorted_V)
    weight_V = 2 * torch.arange(1, n + 1, dtype=torch.float64) - n - 1
    total = sorted_V.sum()
    return float((weight_V * sorted_V).sum() / (n * total)) if total > 0 else float("nan")


OF_COUNTS: Mapping[str, Callable[[Tensor], float]] = {f"coverage@{LENGTH}": coverage, f"gini@{LENGTH}": gini}


def _deleted(lists: Lists) -> dict[str, Floats]:
    """Coverage and Gini index of all lists, then without each group of users, (1 + J,)."""
    counts_JV = lists.counts_JV[:, lists.active]
    whole_V = counts_JV.sum(0)
    return {
        name: np.array([measure(whole_V), *(measure(whole_V - part_V) for part_V in counts_JV)])
        for name, measure in OF_COUNTS.items()
    }


def summary(lists: Lists) -> dict[str, Any]:
    """``{"coverage@10", "gini@10", "popularity_lift": {"value", "low", "high"}}``, over all ranks."""
    found = {name: _jackknife(values) for name, values in _deleted(lists).items()}
    return {**found, LIFT: statistics.summary(lists.tally, "all")[LIFT]}


def versus(lists: Lists, first: Lists) -> dict[str, Any]:
    """The same of the differences from ``first``; the same users are left out of both."""
    theirs = _deleted(first)
    found = {name: _jackknife(values - theirs[name]) for name, values in _deleted(lists).items()}
    return {**found, LIFT: statistics.versus(lists.tally, first.tally)["all"][LIFT]}


def _jackknife(values: Floats) -> dict[str, float | None]:
    """The value and its interval by Student's t with J − 1 degrees of freedom; None where it is undefined."""
    value, deleted_J = float(values[0]), values[1:]
    if not np.isfinite(values).all():
        return {"value": value if np.isfinite(value) else None, "low": None, "high": None}
    groups = len(deleted_J)
    error = float(np.sqrt((groups - 1) / groups * np.square(deleted_J - deleted_J.mean()).sum()))
    reach = quantile(groups - 1) * error
    return {"value": value, "low": value - reach, "high": value + reach}
