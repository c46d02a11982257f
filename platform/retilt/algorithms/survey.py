"""A pass over the users' positions that is needed before a weight can be worked out: sums, added up over ranks."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from retilt import ranks


@dataclass
class Survey:
    """Sums over contexts (trajectories, or positions) of a value and a length, and the largest value."""

    sums: Tensor = field(default_factory=lambda: torch.zeros(6, dtype=torch.float64))
    """n, Σv, Σv², Σl, Σl², Σvl."""
    largest: Tensor = field(default_factory=lambda: torch.tensor(-math.inf, dtype=torch.float64))

    def add(self, value: Tensor, length: Tensor) -> None:
        """Count contexts in, two tensors of one shape."""
        if not len(value):
            return
        v, x = value.double(), length.double()
        self.sums += torch.stack([column.sum() for column in (torch.ones_like(v), v, v * v, x, x * x, v * x)])
        self.largest = torch.maximum(self.largest, v.max())

    def sum_over_ranks(self) -> Survey:
        """A new survey of every rank's contexts, equal on all ranks. Collective; this one stays as it is."""
        return Survey(ranks.sum_(self.sums.clone()), ranks.max_(self.largest.clone()))

    @property
    def moments(self) -> tuple[float, float]:
        """Mean and SD of the value; 0 and 0 without contexts."""
        n, total, squares = self.sums[:3].tolist()
        mean = total / max(n, 1)
        return mean, math.sqrt(max(squares / max(n, 1) - mean * mean, 0.0))

    def report(self) -> dict[str, Any]:
        """What docs/algorithms.md defines under ``returns``; a correlation with a constant is None."""
        n, v, vv, x, xx, vx = self.sums.tolist()
        spread = (n * vv - v * v) * (n * xx - x * x)
        correlation = (n * vx - v * x) / math.sqrt(spread) if spread > 0 else None
        mean, sd = self.moments
        return {"trajectories": int(n), "mean": mean, "sd": sd, "correlation_length": correlation}
