"""What an algorithm needs to know of the data before its first step: one pass over the trained positions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from retilt import ranks
from retilt.algorithms.top_rated import TopRated
from retilt.algorithms.weights import WeightTally
from retilt.config import AnyAlgorithm
from retilt.data.dataset import Dataset
from retilt.data.stream import trained_positions
from retilt.types import InputError, Statistics


def fit_statistics(
    algorithm: AnyAlgorithm, dataset: Dataset, protocol: str, max_length: int
) -> tuple[Statistics, dict[str, Any]]:
    """The statistics of training events and a report on the weights, equal on all ranks. Collective.

    Raises:
        InputError: the algorithm's ``check`` or ``check_weights`` refuses the rewards.
    """
    statistics, tally = ranks.together(lambda: _read(algorithm, dataset, protocol, max_length))
    whole = tally.sum_over_ranks()
    ranks.together(lambda: algorithm.check_weights(whole))
    return replace(statistics, positions=whole.positions, mean_weight=whole.mean_weight), whole.report()


def _read(algorithm: AnyAlgorithm, dataset: Dataset, protocol: str, max_length: int) -> tuple[Statistics, WeightTally]:
    """This rank's share; no collective, because it may meet a bad shard that the others do not."""
    statistics = rewards_of(algorithm, dataset, protocol)
    tally, counts = WeightTally.of(dataset.statistics(protocol)), dataset.train_counts(protocol)
    for item_P, reward_P, activity_P in trained_positions(dataset, protocol, max_length, ranks.rank(), ranks.world()):
        # Negatives are drawn by these counts: such a target would never be one.
        if len(missing := item_P[counts[item_P] == 0]):
            raise InputError(
                f"{dataset.uri}: item {int(missing[0])} is a training target, but the vocabulary counts no training "
                "event of it; prepare the data set again"
            )
        tally.add(reward_P, algorithm.weight(reward_P, statistics), counts[item_P], activity_P)
    return statistics, tally


def rewards_of(algorithm: AnyAlgorithm, dataset: Dataset, protocol: str) -> Statistics:
    """What the manifest alone says of the training events; needs no worker.

    Raises:
        InputError: the algorithm's ``check`` refuses the rewards.
    """
    fitted = dataset.statistics(protocol)
    threshold = algorithm.threshold(fitted) if isinstance(algorithm, TopRated) else 0.0
    statistics = Statistics(
        positions=int(fitted["events"]),
        reward_min=float(fitted["reward_min"]),
        reward_max=float(fitted["reward_max"]),
        reward_mean=float(fitted["reward_mean"]),
        threshold=threshold,
    )
    algorithm.check(statistics)
    return statistics
