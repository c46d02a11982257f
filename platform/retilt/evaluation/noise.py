"""How noisy the logged rewards are: the SD σ of the difference between a reward and what it is for that user and item.

Two estimates, from a data set's training events:

    repeated events     pairs (user, item) with several events: σ² = Σ (r − pair's mean)² / Σ (events of the pair − 1)
    residual            elsewhere: σ² = Σ (r − μ − b_a − b_u)² / (n − 1 − Σ_a n_a/(n_a + 25) − Σ_u n_u/(n_u + 10))

The first is the pooled variance within pairs, unbiased whatever the pairs' means are. It sees what differs from one
event to the next, a change of taste included, and not what is wrong in the same way each time (the *frozen* noise of
docs/theory.md); and it speaks of items that people come back to.

The second takes the user + item model of baselines.py for the truth and so OVERSTATES the noise: all that the model
misses, the interaction of user and item, counts as noise. Its divisor is n less the model's effective parameters, a
shrunk mean of n_a events being the share n_a / (n_a + 25) of one: exact where effects are as large as this shrinkage
assumes (then E Σ (r − b)² of a group's mean is σ² (1 − that share)), users and items apart; an approximation together.

Memory: O(users) + O(items) and one row group's events. P: events of a row group; G: its pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from retilt import ranks
from retilt.algorithms.theory import noise_radius, safe_temperature, safe_temperature_tanh
from retilt.data.dataset import Dataset
from retilt.data.stream import training_events
from retilt.evaluation.baselines import ITEM_SHRINKAGE, USER_SHRINKAGE, Baselines
from retilt.ranks import together
from retilt.types import InputError, Positions

Method = Literal["repeated events", "residual around user and item means"]

ENOUGH = 100
"""Degrees of freedom from which repeated events are used: the SD's own standard error is then 7% (1 / √(2 · 100))."""
FAILURE, TOLERANCE = 0.05, 0.1
"""δ, and τ as a share of the reward's range, of the theory's floor."""


@dataclass(frozen=True)
class Noise:
    """An estimate of the noise of the logged rewards."""

    method: Method
    """What it was estimated from."""
    sd: float
    """σ, in the unit of the reward."""
    events: int
    """Training events it was estimated from: those of pairs with several, or all."""


def estimate(dataset: Dataset, protocol: str, device: torch.device) -> Noise:
    """The noise of the training events of ``protocol``: from repeated events where there are ``ENOUGH``. Collective.

    One pass over the training events, or four.

    Args:
        device: where ranks are summed.
    """
    squares, freedom, events = _summed(partial(_repeated, dataset.items), dataset, protocol, device)
    if freedom >= ENOUGH:
        return Noise("repeated events", (squares / freedom) ** 0.5, int(events))
    baselines = Baselines.fit(dataset, protocol, device)
    squares, of_users, events = _summed(_Residual(baselines), dataset, protocol, device)
    count_V = dataset.train_counts(protocol).double()
    parameters = 1 + of_users + float((count_V / (count_V + ITEM_SHRINKAGE)).sum())
    # With a handful of events there may be less than one left to divide by.
    return Noise("residual around user and item means", (squares / max(1.0, events - parameters)) ** 0.5, int(events))


def floor(
    noise: Noise, items: int, reward_range: float, failure: float = FAILURE, tolerance: float | None = None
) -> dict[str, Any]:
    """What section 4 of arXiv 2603.10279 asks of λ for this noise, as JSON; guarantees about the worst world, loose.

    Args:
        items: |A|, the catalogue's.
        reward_range: R_max, the largest reward minus the smallest.
        failure: δ, in (0, 1): ε bounds the noise of all items of a state with probability 1 − δ.
        tolerance: τ > 0, the loss against the logging policy that is accepted, in the reward's unit; None takes
            ``TOLERANCE`` of the range.

    Returns:
        ``method``, ``sd``, ``events`` of the noise; ``radius`` ε (Theorem 4.3); ``failure``, ``tolerance``,
        ``reward_range``; ``floor``, the λ of eq. 15; ``floor_tanh``, that of theory.py's sharper bound, 0 for any λ.

    Raises:
        InputError: the range is 0.
    """
    if not reward_range > 0:
        raise InputError(
            "every training event has the same reward, so every λ trains like BC and there is nothing to search; "
            "use algorithm=bc, or data with a reward that varies"
        )
    accepted = TOLERANCE * reward_range if tolerance is None else tolerance
    radius = noise_radius(noise.sd, items, failure)
    return {
        "method": noise.method,
        "sd": noise.sd,
        "events": noise.events,
        "radius": radius,
        "failure": failure,
        "tolerance": accepted,
        "reward_range": reward_range,
        "floor": safe_temperature(radius, accepted, reward_range),
        "floor_tanh": safe_temperature_tanh(radius, accepted, reward_range),
    }


def _summed(count: Callable[[Positions], Tensor], dataset: Dataset, protocol: str, device: torch.device) -> list[float]:
    """What ``count`` gives of each row group, (3,) float64, summed over all of all ranks. Collective."""

    def read() -> Tensor:
        found = torch.zeros(3, dtype=torch.float64)
        for events in training_events(dataset, protocol, ranks.rank(), ranks.world()):
            found += count(events)
        return found

    whole: list[float] = ranks.sum_(together(read).to(device)).tolist()
    return whole


def _repeated(items: int, events: Positions) -> Tensor:
    """Σ (r − pair's mean)², degrees of freedom and events of the pairs with several events in a row group.

    A user's events are all in one row group, so no pair is counted in parts.
    """
    # One number a pair: rows of two would be compared one by one, in twelve times the time.
    pair_P = events.user_P * (items + 1) + events.item_P
    _, pair_P, count_G = torch.unique(pair_P, return_inverse=True, return_counts=True)
    reward_P = events.reward_P.double()
    mean_G = torch.zeros(len(count_G), dtype=torch.float64).index_add_(0, pair_P, reward_P) / count_G
    squares = (reward_P - mean_G[pair_P]).square().sum()
    several_G = count_G[count_G > 1]
    return torch.stack([squares, (several_G - 1).sum().double(), several_G.sum().double()])


@dataclass(frozen=True)
class _Residual:
    """Counts what the user + item model leaves."""

    baselines: Baselines

    def __call__(self, events: Positions) -> Tensor:
        """Σ (r − prediction)², the users' effective parameters and events of a row group."""
        predicted_P = self.baselines.predict(events.item_P, events.example_P)["user_item_bias"]
        squares = (events.reward_P.double() - predicted_P).square().sum()
        count_U = events.user_P.bincount().double()
        count = torch.tensor(float(len(predicted_P)), dtype=torch.float64)
        return torch.stack([squares, (count_U / (count_U + USER_SHRINKAGE)).sum(), count])
