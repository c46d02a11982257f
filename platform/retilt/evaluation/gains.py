"""What a report says beside the metrics of ranks: who gains, what is recommended, what reward models think of it.

For each policy (``further`` and, but for the first, its part ``versus_first``):

    avg_reward          "n" positions, "users", and for each reward model, "entropy" and "kl": value, low, high
    groups              name of a group (groups.py) and "low_reward" → as the report's own groups
    lists               coverage@10, gini@10, popularity_lift: value, low, high
    pairwise_accuracy   "users", value, low, high

Absent parts were not asked for, or cannot be had of that policy. What is undefined is None.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from retilt.evaluation import groups, lists
from retilt.evaluation.lists import Lists
from retilt.evaluation.pairs import ACCURACY
from retilt.evaluation.statistics import Tally, summary, versus

LOW = "low_reward"
IN_WORDS = {
    "activity_low": "Users with few events",
    "activity_middle": "Users with some more events",
    "activity_high": "Users with many events",
    "popularity_low": "Items of the tail",
    "popularity_middle": "Items between tail and head",
    "popularity_high": "Items of the head",
    "tied": "Tied times",
    "untied": "Untied times",
    LOW: "Low rewards",
}


@dataclass(frozen=True)
class Further:
    """What was measured of a policy beside its ranks, over all ranks; None where it was not."""

    avg_reward: Tally | None = None
    lists: Lists | None = None
    pairs: Tally | None = None

    def sum_over_ranks(self) -> Further:
        """Collective."""
        tallies = [None if each is None else each.sum_over_ranks() for each in (self.avg_reward, self.pairs)]
        return Further(tallies[0], None if self.lists is None else self.lists.sum_over_ranks(), tallies[1])


def own_groups(tally: Tally) -> list[str]:
    """The groups of a tally that the report's main part shows."""
    return [group for group in tally.groups if group != LOW and not group.startswith(groups.WITHIN)]


def _gaining(tally: Tally) -> dict[str, str]:
    """The other groups: name in the report → in the tally."""
    return {group.removeprefix(groups.WITHIN): group for group in tally.groups if group not in own_groups(tally)}


def found(tally: Tally, further: Further) -> dict[str, Any]:
    """A policy's ``further``."""
    report: dict[str, Any] = {}
    if further.avg_reward is not None:
        report["avg_reward"] = _plain(further.avg_reward)
    if names := _gaining(tally):
        report["groups"] = {name: summary(tally, group) for name, group in names.items()}
    if further.lists is not None:
        report["lists"] = lists.summary(further.lists)
    if further.pairs is not None:
        each = _plain(further.pairs)
        report["pairwise_accuracy"] = {"users": each["users"], **each[ACCURACY]}
    return report


def compared(tally: Tally, further: Further, first_tally: Tally, first: Further) -> dict[str, Any]:
    """The paired differences of ``found`` from the first policy."""
    report: dict[str, Any] = {}
    if further.avg_reward is not None and first.avg_reward is not None:
        report["avg_reward"] = versus(further.avg_reward, first.avg_reward)["all"]
    if names := _gaining(tally):
        every = versus(tally, first_tally)
        report["groups"] = {name: every[group] for name, group in names.items()}
    if further.lists is not None and first.lists is not None:
        report["lists"] = lists.versus(further.lists, first.lists)
    if further.pairs is not None and first.pairs is not None:
        report["pairwise_accuracy"] = versus(further.pairs, first.pairs)["all"][ACCURACY]
    return report


def _plain(tally: Tally) -> Mapping[str, Any]:
    """A summary without what only ranks have."""
    each = summary(tally, "all")
    del each["share_never_trained"]
    return each
