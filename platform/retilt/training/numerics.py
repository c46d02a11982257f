"""When arithmetic or memory goes wrong unseen: losses that jump, replicas that differ.

Every answer here is the same on all ranks, because what follows from it (a return to the last checkpoint) must be done
by all of them or by none.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from retilt import ranks
from retilt.data.dataset import Dataset
from retilt.models.policy import CataloguePolicy

WINDOW = 64
"""Losses that the next one is compared with; no loss is a spike before there are as many."""
SMALLEST_DEVIATION = 0.02
"""Of the median: losses that hardly vary must not make a spike of an ordinary batch."""


class Jump(Exception):
    """The run should go back to its last checkpoint: raised on all ranks alike."""

    def __init__(self, reason: str, spike: bool) -> None:
        super().__init__(reason)
        self.spike = spike
        """A loss that jumped, rather than replicas that differ."""


def is_spike(loss: float, recent: Sequence[float], deviations: float | None) -> bool:
    """Whether ``loss`` lies more than ``deviations`` above the median of the ``recent`` ones (None: never).

    A deviation is 1.4826 times the median absolute deviation, the standard deviation of a normal distribution.
    """
    if deviations is None or len(recent) < WINDOW:
        return False
    median = statistics.median(recent)
    deviation = 1.4826 * statistics.median(abs(each - median) for each in recent)
    return loss > median + deviations * max(deviation, SMALLEST_DEVIATION * abs(median))


@dataclass(frozen=True)
class Replicas:
    """The tensors of which every rank holds its own copy: dense parameters, their optimizer, a replicated table.

    Under FSDP there are no copies of parameters, and so nothing that a flipped bit in one would differ from.
    """

    tensors: dict[str, Tensor]

    @classmethod
    def of(cls, policy: CataloguePolicy, dense: torch.optim.Optimizer) -> Replicas:
        """Live tensors, by name."""
        parameters = policy.network.dense()
        found = {name: parameter.data for name, parameter in parameters.items()}
        for name, parameter in parameters.items():
            state: dict[str, Any] = dense.state[parameter]
            found |= {f"{name}.{key}": value for key, value in state.items()}
        if not policy.table.sharded:
            found |= {f"table.{key}": value for key, value in policy.table.state().items()}
        return cls({name: tensor for name, tensor in found.items() if not ranks.is_spread(tensor)})

    def differing(self) -> str | None:
        """Names the first tensor whose copies differ and the ranks of each kind; None if all agree. Collective."""
        if ranks.world() == 1:
            return None
        # A sum of the words, wrapping around, changes with any one bit.
        sums = torch.stack(
            [value.reshape(-1).view(torch.int32).sum(dtype=torch.int64) for value in self.tensors.values()]
        )
        found_WT = ranks.gather(sums[None], [1] * ranks.world()).cpu()
        for place, name in enumerate(self.tensors):
            kinds = [int(each) for each in found_WT[:, place]]
            if len(set(kinds)) > 1:
                groups = [[rank for rank, each in enumerate(kinds) if each == kind] for kind in dict.fromkeys(kinds)]
                parted = " and ".join(f"worker(s) {', '.join(map(str, group))}" for group in groups)
                return f"{name} is not the same on {parted}"
        return None


def shards_of(dataset: Dataset, example_B: Tensor) -> list[str]:
    """The shards that hold these users (global row numbers), by path."""
    rows = torch.tensor([int(shard["rows"]) for shard in dataset.manifest["shards"]])
    found = torch.bucketize(example_B.cpu(), rows.cumsum(0), right=True).tolist()
    return [str(dataset.manifest["shards"][shard]["path"]) for shard in sorted(set(found))]
