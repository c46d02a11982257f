"""What an algorithm needs to know of the data before its first step: a pass over the trained positions, or two."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from retilt import ranks
from retilt.algorithms.exp_rsft import ExpRSFT
from retilt.algorithms.survey import Survey
from retilt.algorithms.top_rated import TopRated
from retilt.algorithms.transforms import reward_ranks
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
    statistics = ranks.together(lambda: rewards_of(algorithm, dataset, protocol))
    report: dict[str, Any] = {}
    if isinstance(algorithm, ExpRSFT) and algorithm.by_user:
        whole = ranks.together(lambda: _survey(algorithm, statistics, dataset, protocol, max_length)).sum_over_ranks()
        statistics = ranks.together(lambda: _surveyed(algorithm, whole, statistics))
        report = {"returns": whole.report()} if algorithm.level == "trajectory" else {}
    tally = ranks.together(lambda: _tally(algorithm, statistics, dataset, protocol, max_length)).sum_over_ranks()
    ranks.together(lambda: algorithm.check_weights(tally))
    statistics = replace(statistics, positions=tally.positions, mean_weight=tally.mean_weight)
    return statistics, tally.report() | report


# One rank's share each; no collectives, because it may meet a bad shard that the others do not.
def _survey(algorithm: ExpRSFT, statistics: Statistics, dataset: Dataset, protocol: str, max_length: int) -> Survey:
    survey = Survey()
    for positions in trained_positions(dataset, protocol, max_length, ranks.rank(), ranks.world()):
        survey.add(*algorithm.survey(positions, statistics))
    return survey


def _surveyed(algorithm: ExpRSFT, whole: Survey, statistics: Statistics) -> Statistics:
    found = algorithm.surveyed(whole, statistics)
    algorithm.check(found)
    return found


def _tally(
    algorithm: AnyAlgorithm, statistics: Statistics, dataset: Dataset, protocol: str, max_length: int
) -> WeightTally:
    tally, counts = WeightTally.of(dataset.statistics(protocol)), dataset.train_counts(protocol)
    for positions in trained_positions(dataset, protocol, max_length, ranks.rank(), ranks.world()):
        item_P, user_P = positions.item_P, positions.user_P
        # Negatives are drawn by these counts: such a target would never be one.
        if len(missing := item_P[counts[item_P] == 0]):
            raise InputError(
                f"{dataset.uri}: item {int(missing[0])} is a training target, but the vocabulary counts no training "
                "event of it; prepare the data set again"
            )
        weight_P, activity_P = algorithm.weight(positions, statistics), user_P.bincount()[user_P]
        tally.add(positions.reward_P, weight_P, counts[item_P], activity_P)
    return tally


def rewards_of(algorithm: AnyAlgorithm, dataset: Dataset, protocol: str) -> Statistics:
    """What the manifest alone says of the training events; needs no worker.

    Raises:
        InputError: the algorithm's ``check`` refuses the rewards.
    """
    fitted = dataset.statistics(protocol)
    threshold = algorithm.threshold(fitted) if isinstance(algorithm, TopRated) else 0.0
    ranked = isinstance(algorithm, ExpRSFT) and algorithm.rewards == "rank"
    statistics = Statistics(
        positions=int(fitted["events"]),
        reward_min=float(fitted["reward_min"]),
        reward_max=float(fitted["reward_max"]),
        reward_mean=float(fitted["reward_mean"]),
        reward_sd=float(fitted["reward_sd"]),
        threshold=threshold,
        reward_ranks=reward_ranks(fitted) if ranked else [],
    )
    algorithm.check(statistics)
    return statistics
