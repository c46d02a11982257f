"""Statistics over seeds: users averaged over seeds, then resampled; beside it a t-interval over seeds.

Training is repeated with S seeds and each policy's ``Tally`` kept. With x_us the sum of a metric over user u's targets
under seed s, and w_bu how often replicate b counts the user (w_0u = 1 is the data itself), a tally holds Σ_u w_bu x_us.
All tallies of one bootstrap seed share w, so that

    (1/S) Σ_s Σ_u w_bu x_us  =  Σ_u w_bu · (1/S) Σ_s x_us:

the mean of the seeds' tallies *is* the tally of users averaged over seeds, and no user needs to be kept. Counts of
targets and users are equal for all seeds, as all are evaluated on the same targets; ratios of sums stay what they are.

The bootstrap covers the choice of users for these trained policies, the t-interval the randomness of training for these
users. Neither covers both, so that a claim needs both to exclude 0 (``standing``).

Legend: S seeds, R replicates; a policy's tallies are ``{seed: Tally}``. Policies are compared on the seeds they share.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from retilt.evaluation import student
from retilt.evaluation.statistics import (
    COUNTS,
    FEWEST_USERS,
    LEVEL,
    Floats,
    Tally,
    replicated,
    summary,
    verdict,
    versus,
)

Tallies = Mapping[int, Tally]

SUBJECT = "exp_rsft"
OPPONENTS = ("bc_continued", "top_rated", "rsft", "tilt_item")
"""The four primary comparisons of ``exp_rsft``, stated before anything was run."""
REFERENCES = ("bc", "bc_continued", "rsft")
"""What every arm is compared with: the start, the start trained on, and what Table 6 takes as its base."""

_SAME = [COUNTS.index("n"), COUNTS.index("users")]


def average(tallies: Iterable[Tally]) -> Tally:
    """The tally of users averaged over seeds (proof above): same groups, same draws, same targets."""
    first, *others = seeds = list(tallies)
    for each in others:
        assert (each.groups, each.names) == (first.groups, first.names)
        assert (each.replicates, each.seed) == (first.replicates, first.seed)
        assert torch.equal(each.sums[:, :, _SAME], first.sums[:, :, _SAME]), "the seeds have different targets"
    mean = Tally(first.groups, first.replicates, first.seed, names=first.names)
    mean.sums = torch.stack([each.sums for each in seeds]).mean(0)
    mean.sums[:, :, _SAME] = first.sums[:, :, _SAME]  # S equal integers, whose mean need not round to themselves
    return mean


def measured(mine: Tallies) -> dict[str, Any]:
    """Groups → ``n``, ``users``, ``share_never_trained`` and each metric with both intervals and each seed's value."""
    pooled, found = average(mine.values()), {}
    for group in pooled.groups:
        found[group] = summary(pooled, group)
        means = [tally.means(group) for tally in mine.values()]
        for name in pooled.names:
            values = [value for each in means if (value := each[name]) is not None]
            low, high = student.interval(values)
            found[group][name] |= {"seeds": values, "t_low": low, "t_high": high}
    return found


def compared(mine: Tallies, theirs: Tallies) -> dict[str, dict[str, dict[str, Any]]]:
    """Paired differences: groups → metrics → a comparison.

    A comparison has ``value`` (mine − theirs), ``low`` and ``high`` (users), ``t_low`` and ``t_high`` (seeds; None for
    one), ``seeds`` (how many), ``p``, and the ``ratio`` with ``ratio_low`` and ``ratio_high``.
    """
    common = [seed for seed in mine if seed in theirs]
    assert common, "policies can be compared only on seeds that both were trained with"
    ours, others = average(mine[seed] for seed in common), average(theirs[seed] for seed in common)
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for group, metrics in versus(ours, others).items():
        users = ours.count("users", group)
        first, second = replicated(ours, group), replicated(others, group)
        means = [(mine[seed].means(group), theirs[seed].means(group)) for seed in common]
        found[group] = {}
        for name, paired in metrics.items():
            pairs = [(a[name], b[name]) for a, b in means]
            steps = [a - b for a, b in pairs if a is not None and b is not None]
            low, high = student.interval(steps)
            p = bootstrap_p(first[name][1:] - second[name][1:], users)
            found[group][name] = {**paired, "t_low": low, "t_high": high, "seeds": len(common), "p": p}
    return found


def bootstrap_p(difference_R: Floats, users: int) -> float | None:
    """Two-sided p of "no difference": twice the smaller share of replicates on one side of 0, itself included.

    The data count as one more replicate on that side (Davison & Hinkley 1997, section 4.2), so p is at least
    2/(R + 1), never 0. None where ``users`` are too few for an interval.
    """
    drawn = difference_R[np.isfinite(difference_R)]
    if users < FEWEST_USERS or not len(drawn):
        return None
    fewest = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    return min(1.0, 2 * (1 + fewest) / (1 + len(drawn)))


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down (1979): p adjusted for as many comparisons as there are, in the given order.

    The smallest p counts m times, the next m − 1 times, and so on; none is adjusted below a smaller one.

    >>> holm([0.01, 0.04, 0.02, 0.3])
    [0.04, 0.08, 0.06, 0.3]
    """
    adjusted, most = [0.0] * len(p), 0.0
    for rank, i in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        most = max(most, min(1.0, (len(p) - rank) * p[i]))
        adjusted[i] = most
    return adjusted


def primary(arms: Mapping[str, Tallies], group: str, metric: str = "ndcg@10") -> list[dict[str, Any]]:
    """The primary comparisons that were run, each with ``against`` and ``p_holm`` beside what ``compared`` says.

    One that was not run counts with p = 1: leaving an opponent out must not make the others easier to beat. With fewer
    than 159 replicates no adjusted p can fall below .05, as none is below 2/(R + 1).
    """
    found = {}
    for other in OPPONENTS:
        if SUBJECT in arms and other in arms and arms[SUBJECT].keys() & arms[other].keys():
            found[other] = compared(arms[SUBJECT], arms[other])[group][metric]
    unadjusted = [found[other]["p"] if other in found else None for other in OPPONENTS]
    adjusted = dict(zip(OPPONENTS, holm([1.0 if p is None else p for p in unadjusted]), strict=True))
    return [{"against": other, **each, "p_holm": adjusted[other]} for other, each in found.items()]


def of_arms(arms: Mapping[str, Tallies]) -> dict[str, dict[str, Any]]:
    """``measured`` of every arm, each metric with ``versus``: other arm → comparison.

    Of ranks, of reward models' scores or of anything else that a tally counts. Every arm is compared with
    ``REFERENCES``, Exp-RSFT with all others.
    """
    found = {}
    for name, mine in arms.items():
        found[name] = measured(mine)
        for other, theirs in arms.items():
            wanted = name == SUBJECT or other in REFERENCES
            if other != name and wanted and mine.keys() & theirs.keys():
                for group, metrics in compared(mine, theirs).items():
                    _enter(found[name][group], other, metrics)
    return found


def _enter(measures: dict[str, Any], other: str, metrics: Mapping[str, Mapping[str, Any]]) -> None:
    for metric, comparison in metrics.items():
        measures[metric].setdefault("versus", {})[other] = comparison


def temperatures(
    epochs: Mapping[str, Mapping[float, Tallies]], chosen: float, group: str, opponents: Mapping[str, Tallies]
) -> list[dict[str, Any]]:
    """The sweep of λ on one group of targets, ascending, as ``lambda`` of the results holds it.

    Args:
        epochs: ``best`` and ``last`` (epoch evaluated) → temperature → tallies.
        chosen: the temperature that validation chose; its difference from each other one is ``chosen_minus``.
        group: which targets.
        opponents: arms that the chosen temperature is compared with, as ``versus``: ``bc`` and ``top_rated``.
    """
    found = []
    for temperature in sorted({each for sweep in epochs.values() for each in sweep}):
        entry: dict[str, Any] = {"temperature": temperature, "chosen": temperature == chosen}
        for which, sweep in epochs.items():
            if temperature not in sweep:
                continue
            entry[which] = measured(sweep[temperature])[group]
            if temperature == chosen:
                for other, theirs in opponents.items():
                    _enter(entry[which], other, compared(sweep[chosen], theirs)[group])
            elif chosen in sweep:
                for metric, each in compared(sweep[chosen], sweep[temperature])[group].items():
                    entry[which][metric]["chosen_minus"] = each
        found.append(entry)
    return found


def standing(comparison: Mapping[str, Any]) -> str:
    """``better`` or ``worse`` where every interval at hand lies above or below 0, else ``no difference``.

    Those are the interval over users, the one over seeds if there are two or more, and Holm's p at 5% for a primary
    comparison. ``too few users`` where there is no interval. With one seed this speaks of two trained policies, not of
    two methods, and whoever reports it must say so.
    """
    found = verdict(comparison)
    if found not in ("better", "worse"):
        return found
    low, high = comparison.get("t_low"), comparison.get("t_high")
    seeds_agree = low is None or high is None or (low > 0 if found == "better" else high < 0)
    adjusted: float = comparison.get("p_holm", 0.0)
    return found if seeds_agree and adjusted <= 1 - LEVEL + 1e-12 else "no difference"
