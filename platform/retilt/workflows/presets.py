"""What is reproduced: data, sizes and budgets of each preset; docs/reproduce.md says why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Preset:
    """Settings of a reproduction that the command line does not give."""

    source: str | None
    """A known data set; None: simulated."""
    training: Mapping[str, Any]
    """What every run's configuration has beside the defaults: model, batch, table."""
    pretraining_epochs: int
    """Of behaviour cloning; validation chooses one of them."""
    epochs: tuple[int, ...]
    """Epochs of post-training after which the better trials go on; the last is the budget of every arm."""
    paper_epochs: int
    """What the paper trains for."""
    trials: int
    """Validation trials of each method."""
    reward_epochs: int
    """Of the reward models."""
    min_reward: float | None = 4.5
    """Rewards from here on make the headline group of targets; None: from the quantile HIGH of the training rewards."""
    low_reward: float | None = 2.0
    """Rewards up to here make the group that should be recommended less; None: up to the quantile LOW."""
    return_quantile: float | None = None
    """From which quantile of the users' returns on their test targets are the headline group, as in the paper's Table
    6; None: the headline is about rewards. Validation chooses by rewards in any case."""
    preparation: Mapping[str, Any] = field(default_factory=dict)
    """What preparing the data set needs beside the defaults."""
    simulation: Mapping[str, Any] | None = None
    """Settings of jobs/simulate.py, where there is no source."""


def _hstu(max_length: int, width: int, blocks: int, heads: int, head_width: int) -> dict[str, Any]:
    return {
        "name": "hstu", "max_length": max_length, "width": width, "blocks": blocks, "heads": heads,
        "head_width": head_width,
    }  # fmt: skip


PRESETS = {
    "ml-100k": Preset(
        source="ml-100k",
        training={"batch_users": 32, "table": "row_wise"},
        pretraining_epochs=20, epochs=(1, 2, 3), paper_epochs=30, trials=6, reward_epochs=5,
    ),
    "ml-1m": Preset(
        source="ml-1m",
        training={"table": "row_wise", "batch_users": 32},
        pretraining_epochs=40, epochs=(2, 5, 10), paper_epochs=30, trials=10, reward_epochs=5,
    ),
    "ml-20m": Preset(
        source="ml-20m",
        training={"table": "row_wise", "model": _hstu(200, 256, 4, 4, 64)},
        pretraining_epochs=12, epochs=(1, 3, 6), paper_epochs=12, trials=10, reward_epochs=2,
    ),
    "amazon-books": Preset(
        source="amazon-books",
        training={"table": "row_wise", "model": _hstu(50, 64, 4, 4, 16), "dropout": 0.5},
        pretraining_epochs=10, epochs=(1, 3, 6), paper_epochs=10, trials=10, reward_epochs=2,
        preparation={"min_user_events": 5, "min_item_events": 5, "min_sequence_events": 5},
    ),
    "watch_time": Preset(
        source=None,
        training={"batch_users": 32, "table": "row_wise"},
        pretraining_epochs=20, epochs=(1, 3, 6), paper_epochs=6, trials=6, reward_epochs=5,
        min_reward=None, low_reward=None, return_quantile=0.75,
        simulation={"preset": "watch_time", "users": 4_000, "items": 3_000, "events": 400_000},
    ),
}  # fmt: skip
"""By name; ``theory`` is none of them: it trains nothing on data (workflows/theory.py)."""

LOW, HIGH = 0.25, 0.75
"""Quantiles of continuous rewards up to which and from which on a target counts as badly and as highly rewarded."""
K = 10
"""Test events of a user, and validation events, in the split ``last_k``."""
