"""Means with 95% intervals, and paired differences between policies, by a Poisson bootstrap over users.

Targets of one user depend on each other, so users are resampled, not targets. Replicate b counts user u Poisson(1)
times (Chamandy et al. 2012, "Estimating uncertainty for massive data streams": as the classic bootstrap, but without
knowing the number of users), and the draw is a hash of (seed, u, b). Hence one pass that keeps no user; the same draws
for any order of users, any number of workers and every policy, so that differences between policies are paired; and
replicates of a ratio of sums, Σ metric / Σ targets, as users differ in their number of targets.

Shape legend: P targets, U users, R replicates, G groups of targets, C columns (counts, then metrics).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from retilt import ranks
from retilt.data.hashing import mix
from retilt.evaluation.metrics import NAMES

COUNTS = ("n", "users", "never_trained")
COLUMNS = (*COUNTS, *NAMES)
CPU = torch.device("cpu")
LEVEL = 0.95
FEWEST_USERS = 6
"""Fewer users give no interval: even if all of them agreed, a sign test could not tell at 5% (2 · 2⁻⁵ > .05)."""

Floats = npt.NDArray[np.float64]
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _poisson_table() -> npt.NDArray[np.uint8]:
    """Poisson(1) by inversion for every 16-bit uniform; mean and variance are within 1e-4 of 1."""
    mass = [math.exp(-1) / math.factorial(k) for k in range(16)]
    uniform = (np.arange(1 << 16) + 0.5) / (1 << 16)
    return np.searchsorted(np.cumsum(mass), uniform, side="right").astype(np.uint8)


_POISSON = _poisson_table()


def poisson_weights(example_U: npt.NDArray[np.int64], replicates: int, seed: int) -> npt.NDArray[np.uint8]:
    """How often each replicate counts each user, shape (R, U): a pure function of seed, user and replicate.

    Counter-based: output j of splitmix64 started at a hash of (seed, user) gives replicates 4j … 4j + 3, 16 bits each.
    """
    start_U = mix(mix(np.array([seed], dtype=np.uint64)) ^ example_U.astype(np.uint64))
    counter = np.arange(-(-replicates // 4), dtype=np.uint64) * _GOLDEN
    bits = mix(start_U[:, None] + counter).astype("<u8").view("<u2")
    drawn_RU: npt.NDArray[np.uint8] = _POISSON[bits[:, :replicates]].T
    return drawn_RU


class Tally:
    """Sums over users from which every mean, interval and paired difference follows; no user is kept."""

    def __init__(
        self,
        groups: Sequence[str],
        replicates: int,
        seed: int,
        device: torch.device = CPU,
        names: Sequence[str] = NAMES,
    ) -> None:
        """Of the metrics ``names``, whose mean over targets is asked for.

        ``device`` is where ranks are summed (NCCL cannot sum on the CPU); the sums themselves stay on the CPU.
        """
        self.groups, self.replicates, self.seed, self.device = tuple(groups), replicates, seed, device
        self.names, self.columns = tuple(names), (*COUNTS, *names)
        self.sums = torch.zeros((1 + replicates, len(self.groups), len(self.columns)), dtype=torch.float64)
        """(1 + R, G, C) float64: the data's own sums, then those of each replicate."""

    def add(self, example_P: Tensor, member_GP: Tensor, metrics_PM: Tensor, never_trained_P: Tensor) -> None:
        """Count targets in; all targets of a user must come in one call.

        Args:
            example_P: int64, the user (global row number) of each target.
            member_GP: bool, which groups each target belongs to.
            metrics_PM: float64, columns as in ``names``; from ``metrics`` for those of a rank.
            never_trained_P: bool, the target's item has no training event.
        """
        if not len(example_P):
            return
        user_U, user_P = torch.unique(example_P, return_inverse=True)
        ones_P = metrics_PM.new_ones(len(example_P), 1)
        value_PC = torch.cat([ones_P, 0 * ones_P, never_trained_P[:, None].double(), metrics_PM], dim=1)
        sums_UGC = torch.zeros((len(user_U), *self.sums.shape[1:]), dtype=torch.float64)
        sums_UGC.index_add_(0, user_P, value_PC[:, None] * member_GP.T[:, :, None])
        sums_UGC[:, :, COUNTS.index("users")] = (sums_UGC[:, :, COUNTS.index("n")] > 0).double()
        drawn_RU = torch.from_numpy(poisson_weights(user_U.numpy(), self.replicates, self.seed)).double()
        weight_RU = torch.cat([drawn_RU.new_ones(1, len(user_U)), drawn_RU])
        self.sums += (weight_RU @ sums_UGC.flatten(1)).view_as(self.sums)

    def sum_over_ranks(self) -> Tally:
        """A new tally of every rank's users, equal on all ranks. Collective; this tally stays as it is."""
        whole = Tally(self.groups, self.replicates, self.seed, self.device, self.names)
        whole.sums = ranks.sum_(self.sums.to(self.device, copy=True)).cpu()
        return whole

    def count(self, name: str, group: str = "all") -> int:
        """``n`` targets, ``users`` with a target, or ``never_trained`` targets of a group."""
        return round(float(self.sums[0, self.groups.index(group), COUNTS.index(name)]))

    def means(self, group: str = "all") -> dict[str, float | None]:
        """Mean of every metric over a group's targets; None where the group is empty."""
        return {name: _number(values[0]) for name, values in replicated(self, group).items()}

    def share_never_trained(self, group: str = "all") -> float | None:
        """Share of a group's targets whose item was never trained on; they count as misses. None for no target."""
        n = self.count("n", group)
        return self.count("never_trained", group) / n if n else None


def summary(tally: Tally, group: str) -> dict[str, Any]:
    """``{"n", "users", "share_never_trained", metric: {"value", "low", "high"}}``; what is undefined is None."""
    counts = {"n": tally.count("n", group), "users": tally.count("users", group)}
    found: dict[str, Any] = {**counts, "share_never_trained": tally.share_never_trained(group)}
    for name, values in replicated(tally, group).items():
        low, high = _interval(values[1:], counts["users"])
        found[name] = {"value": _number(values[0]), "low": low, "high": high}
    return found


def versus(tally: Tally, first: Tally) -> dict[str, dict[str, dict[str, float | None]]]:
    """Paired differences from ``first``: groups → metrics → value, low, high and the ratio with its interval.

    The ratio is None where the first policy's mean is 0, its interval also where any replicate's is. Both tallies must
    hold the same targets under the same seed and number of replicates.
    """
    assert (tally.groups, tally.names) == (first.groups, first.names)
    assert (tally.replicates, tally.seed) == (first.replicates, first.seed)
    assert torch.equal(tally.sums[:, :, :2], first.sums[:, :, :2]), "the policies were evaluated on different targets"
    found = {}
    for group in tally.groups:
        theirs, users = replicated(first, group), tally.count("users", group)
        found[group] = {name: _paired(mine, theirs[name], users) for name, mine in replicated(tally, group).items()}
    return found


def _paired(mine: Floats, theirs: Floats, users: int) -> dict[str, float | None]:
    low, high = _interval(mine[1:] - theirs[1:], users)
    ratio = np.divide(mine, theirs, out=np.full_like(mine, np.nan), where=theirs != 0)
    ratio_low, ratio_high = (None, None) if (theirs == 0).any() else _interval(ratio[1:], users)
    return {
        "value": _number(mine[0] - theirs[0]),
        "low": low,
        "high": high,
        "ratio": _number(ratio[0]),
        "ratio_low": ratio_low,
        "ratio_high": ratio_high,
    }


def verdict(difference: Mapping[str, float | None]) -> str:
    """``better`` or ``worse`` where the interval lies wholly above or below 0, else ``no difference``."""
    low, high = difference["low"], difference["high"]
    if low is None or high is None:
        return "too few users"
    return "better" if low > 0 else "worse" if high < 0 else "no difference"


def replicated(tally: Tally, group: str) -> dict[str, Floats]:
    """Each metric's mean in the data and in each replicate, shape (1 + R,); NaN where no target was drawn.

    The same place of two tallies of one seed counts the same users: differences and ratios of these are paired.
    """
    sums = tally.sums[:, tally.groups.index(group)].numpy()
    n = sums[:, COUNTS.index("n")]
    return {
        name: np.divide(sums[:, column], n, out=np.full_like(n, np.nan), where=n > 0)
        for column, name in enumerate(tally.columns)
        if column >= len(COUNTS)
    }


def _interval(values_R: Floats, users: int) -> tuple[float | None, float | None]:
    """Percentile interval of the replicates that drew a target; None, None where ``users`` are too few for one."""
    drawn = values_R[np.isfinite(values_R)]
    if users < FEWEST_USERS or not len(drawn):
        return None, None
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
