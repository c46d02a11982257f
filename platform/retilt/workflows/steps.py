"""The nouns of a plan: a step, what there is to do, and what can come of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from retilt.config import EvaluateConfig, TrainConfig
from retilt.data.derive import Derivation

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Training:
    """A run; its outcome is ``Trained``."""

    config: TrainConfig
    start: str | None
    """URI of the folder where judged runs from one policy keep what was measured of it (training/judge.py)."""


@dataclass(frozen=True)
class Evaluating:
    """Policies on held-out events; its outcome is ``Measured``."""

    config: EvaluateConfig
    wanted: tuple[str, ...]
    """Names of those that are asked about: a tilt needs its policy, but not what is true of it."""
    high_only: bool
    """Only targets of the headline group are ranked, for a choice by their NDCG@10, and no tallies are kept."""
    epochs: int
    """That the run of the policy has."""
    identity: str
    """Of what is measured of what: with other reward models, or after other epochs, it is not done yet."""


@dataclass(frozen=True)
class Deriving:
    """A data set with other training rewards, or fewer users; its outcome is ``Derived``."""

    config: Derivation
    output: str


@dataclass(frozen=True)
class Predicting:
    """A data set with training rewards that a reward model makes; its outcome is ``Derived``."""

    dataset: str
    """URI of the original."""
    reward_model: str
    """URI of its run."""
    policy: str | None
    """URI of the run whose draws are what r is measured from; None: predicted rewards in place of advantages."""
    output: str
    settings: Mapping[str, Any]
    """``protocol``, ``seed``, ``table`` and ``device`` of ``training.predicted.work``."""


@dataclass(frozen=True)
class Auditing:
    """Reward models on the rewards of the test part, beside baselines; its outcome is None."""

    dataset: str
    reward_models: Mapping[str, str]
    """Name → URI of the run."""
    output: str
    settings: Mapping[str, Any]
    """``table``, ``device``, ``batch_users``, ``replicates`` and ``seed`` of ``training.audit.work``."""


@dataclass(frozen=True)
class Trained:
    """What is known of a finished run."""

    epochs: tuple[Record, ...]
    """An epoch's means, metrics under ``validation/`` and seconds."""
    weights: Mapping[str, Any]
    """What is known of the objective's weights (``ess_ratio``)."""


@dataclass(frozen=True)
class Measured:
    """NDCG@10 on the headline group of each policy that was evaluated, by name."""

    values: Mapping[str, float]


@dataclass(frozen=True)
class Derived:
    """Statistics of the training rewards of a data set that was made, as its manifest has them."""

    rewards: Mapping[str, Any]


@dataclass(frozen=True)
class Failed:
    """Why a step has no outcome, nor what needs it."""

    reason: str


Outcome = Trained | Measured | Derived | Failed | None
Done = Mapping[str, Outcome]
"""Outcomes by the step's key."""


@dataclass(frozen=True)
class Step:
    """One thing to do."""

    key: str
    """Its place below the output, of a run with the number of epochs behind an ``@``: a run may go on later."""
    what: Training | Evaluating | Deriving | Predicting | Auditing
    needs: tuple[str, ...] = ()
    """Keys of the steps before it."""
    cost: float = 1.0
    """About how long it takes, in epochs of behaviour cloning."""

    @property
    def place(self) -> str:
        """The folder that it writes to, below the output."""
        return self.key.partition("@")[0]

    @property
    def training(self) -> TrainConfig:
        """The configuration of a run."""
        assert isinstance(self.what, Training)
        return self.what.config


def best_epoch(outcome: Outcome, metric: str, within: int | None = None) -> tuple[int, float] | None:
    """The epoch with the highest validation ``metric`` (the first of equal ones) and its value; None if not known."""
    if not isinstance(outcome, Trained):
        return None
    values = [float(each[f"validation/{metric}"]) for each in outcome.epochs[:within]]
    best = max(range(len(values)), key=values.__getitem__)
    return best + 1, values[best]


def turn(step: Step, done: Done) -> Failed | bool:
    """Whether a step's turn has come: all before it are done; or that it cannot come, and why."""
    for key in step.needs:
        if key not in done:
            return False
        if isinstance(found := done[key], Failed):
            return found
    return True
