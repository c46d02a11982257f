"""What a reward becomes before it is exponentiated, and what a user's own events make of it.

    raw           x = r
    standardised  x = (r − mean) / SD of the training rewards; the same as raw with λ · SD (Observation 3.1)
    rank          x = mid-rank of r among the training rewards, between 0 and 1: bounded whatever the rewards are
    user_centred  x = r − the mean over the user's trained positions: a shift b(s), so the optimum of equation 7 stays,
                  but equation 11 weights a context by exp(b(s)/λ), and that changes

Source of the equations and of Observation 3.1: arXiv 2603.10279; the transforms are this project's choices.
P: positions of a batch or a row group; U: their users; L: rewards of which the rank is known.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from retilt.types import Positions, Statistics

Transform = Literal["raw", "standardised", "rank", "user_centred"]


def transformed(positions: Positions, kind: Transform, statistics: Statistics) -> Tensor:
    """x of the module's table, shape (P,), float64."""
    reward_P = positions.reward_P.double()
    if kind == "standardised":
        return (reward_P - statistics.reward_mean) / statistics.reward_sd
    if kind == "rank":
        return _interpolated(reward_P, statistics.reward_ranks)
    if kind == "user_centred":
        user_P = positions.user_P
        return reward_P - user_means(reward_P, user_P)[user_P]
    return reward_P


def largest(kind: Transform, statistics: Statistics) -> float:
    """The largest x of a training event, float; that of ``user_centred`` is not known without a pass over the users."""
    assert kind != "user_centred"
    if kind == "standardised":
        return (statistics.reward_max - statistics.reward_mean) / statistics.reward_sd
    if kind == "rank":
        return statistics.reward_ranks[-1][1]
    return statistics.reward_max


def reward_ranks(statistics: Mapping[str, Any]) -> list[list[float]]:
    """Pairs (reward, mid-rank) of a manifest's ``statistics`` at one cut: its levels, else its distinct quantiles.

    The mid-rank is the share of the training events with a smaller reward plus half of those with the same one.
    """
    if levels := statistics.get("levels"):
        value_L, count_L = np.array(sorted(levels), dtype=np.float64).T
        rank_L = (np.cumsum(count_L) - count_L / 2) / count_L.sum()
    else:
        quantiles = np.array(statistics["quantiles"], dtype=np.float64)
        value_L, first_L, count_L = np.unique(quantiles, return_index=True, return_counts=True)
        rank_L = (first_L + (count_L - 1) / 2) / (len(quantiles) - 1)
    return [[float(value), float(rank)] for value, rank in zip(value_L, rank_L, strict=True)]


def _interpolated(reward_P: Tensor, ranks: list[list[float]]) -> Tensor:
    """Exact at the known rewards, linear between them, constant beyond; ``reward_P`` is float64."""
    value_L, rank_L = torch.tensor(ranks, dtype=torch.float64, device=reward_P.device).T.contiguous()
    above_P = torch.searchsorted(value_L, reward_P).clamp(1, len(ranks) - 1)
    below_P = above_P - 1
    share_P = (reward_P - value_L[below_P]) / (value_L[above_P] - value_L[below_P])
    return torch.lerp(rank_L[below_P], rank_L[above_P], share_P.clamp(0, 1))


def user_sums(value_P: Tensor, user_P: Tensor) -> Tensor:
    """Sum over each user's positions, shape (U,); ``user_P`` as of ``Positions``."""
    return value_P.new_zeros(_users(user_P)).index_add(0, user_P, value_P)


def user_means(value_P: Tensor, user_P: Tensor) -> Tensor:
    """Mean over each user's positions, shape (U,)."""
    return user_sums(value_P, user_P) / user_P.bincount()


def log_mean_of_others(log_P: Tensor, user_P: Tensor) -> Tensor:
    """ln of the mean of exp(log_P) over the user's *other* positions, shape (P,); a user's only position keeps its own.

    The difference Σ − own would be lost in rounding where one position has nearly all of a user's sum, so a user's
    largest is set apart: without it the sum is taken anew, and with it in the sum the difference is at least as large.
    """
    users, place_P = _users(user_P), torch.arange(len(user_P), device=user_P.device)
    top_U = _maxima(log_P, user_P, users)
    place_U = place_P.new_full((users,), len(user_P)).scatter_reduce(
        0, user_P, torch.where(log_P == top_U[user_P], place_P, len(user_P)), "amin"
    )
    is_top_P = place_U[user_P] == place_P
    rest_P = log_P.masked_fill(is_top_P, -torch.inf)
    second_U = _maxima(rest_P, user_P, users)
    # A user's only position has no rest; 0 keeps −inf − (−inf) from being NaN, and the answer is replaced below.
    shift_U = second_U.nan_to_num(neginf=0.0)
    rest_U = user_sums((rest_P - shift_U[user_P]).exp(), user_P)
    without_top_U = shift_U + rest_U.log()
    smaller_P = (rest_U * (shift_U - top_U).exp())[user_P] - (rest_P - top_U[user_P]).exp()
    with_top_P = top_U[user_P] + smaller_P.clamp(min=0.0).log1p()
    others_P = user_P.bincount()[user_P] - 1
    mean_P = torch.where(is_top_P, without_top_U[user_P], with_top_P) - others_P.clamp(min=1).double().log()
    return torch.where(others_P == 0, log_P, mean_P)


def _users(user_P: Tensor) -> int:
    return int(user_P[-1]) + 1 if len(user_P) else 0


def _maxima(value_P: Tensor, user_P: Tensor, users: int) -> Tensor:
    return value_P.new_full((users,), -torch.inf).scatter_reduce(0, user_P, value_P, "amax")
