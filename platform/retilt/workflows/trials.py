"""The trials of a λ search and its rungs: which run for how long, and which of them go on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from retilt import storage
from retilt.algorithms.exp_rsft import ExpRSFT
from retilt.cluster.trial import Task
from retilt.config import EvaluateConfig, TrainConfig, build, plain
from retilt.config.tune import TuneConfig

Method = Literal["bc", "exp_rsft", "top_rated", "rsft"]
COMPARED: tuple[Method, ...] = ("bc", "top_rated")
"""λ → ∞ and λ → 0, always in the grid."""
QUANTILE = 0.9
"""From which quantile of continuous rewards an event counts as top-rated; of discrete ones the largest alone does."""
ETA = 3
"""A rung has a third of the trials of the one before, each three times as long (Jamieson & Talwalkar 2016)."""


@dataclass(frozen=True)
class Trial:
    """A post-training run from the initial policy."""

    method: Method
    temperature: float | None
    """λ of exp_rsft."""
    learning_rate: float

    @property
    def name(self) -> str:
        """Its folder below ``trials``."""
        own = self.method if self.temperature is None else f"lambda-{self.temperature:.6g}"
        return f"{own}-rate-{self.learning_rate:.6g}"


def grid(temperatures: Sequence[float], rates: Sequence[float]) -> list[Trial]:
    """Every λ, BC continued, top-rated, and RSFT, which is drawn beside them and never chosen; each with each rate."""
    lambdas: list[tuple[Method, float | None]] = [("exp_rsft", each) for each in temperatures]
    methods: list[tuple[Method, float | None]] = [("bc", None), *lambdas, ("top_rated", None), ("rsft", None)]
    return [Trial(method, temperature, rate) for method, temperature in methods for rate in rates]


def first_epochs(search: str, lambdas: int, epochs: int) -> list[int]:
    """Epochs of the rungs before the last, on which trials are compared; ``lambdas`` counts λ × rates.

    The last of them is the one that decides: only its winner goes on to ``epochs``. Where a third of the λ would be one
    alone, there is nothing to decide after a first rung, so that it is left out.

    >>> first_epochs("halving", 8, 10), first_epochs("halving", 3, 10), first_epochs("grid", 8, 10)
    ([1, 3], [3], [10])
    """
    if search == "grid":
        return [epochs]
    found = [max(1, round(epochs / ETA))]
    if lambdas > ETA:
        found.insert(0, max(1, round(epochs / ETA**2)))
    return sorted(set(found))


def survivors(trials: Sequence[Trial], score: Callable[[Trial], float]) -> list[Trial]:
    """Of the first rung's trials the better third of the λ, and the better one each of BC and top-rated, in order.

    ``score``: the value of a trial, −∞ of one that failed. Of equal ones the larger λ goes on, then what comes first.
    """
    alive = [each for each in trials if score(each) > float("-inf")]

    def better(some: Sequence[Trial], number: int) -> list[Trial]:
        return sorted(some, key=lambda each: (-score(each), -(each.temperature or 0.0)))[:number]

    lambdas = [each for each in alive if each.method == "exp_rsft"]
    kept = better(lambdas, -(-len(lambdas) // ETA))
    for method in COMPARED:
        kept += better([each for each in alive if each.method == method], 1)
    return [each for each in trials if each in kept]


@dataclass(frozen=True)
class Maker:
    """Makes the runs of a search from its configuration."""

    config: TuneConfig
    """With an absolute output."""
    rewards: Mapping[str, Any]
    """Statistics of the training rewards."""
    min_reward: float | None
    exact_from: int = 0
    """Epochs from which KL and entropy are measured: those of trials that ended sooner would not compare with others,
    and measuring takes as long as several short epochs."""

    def training(self, trial: Trial, epochs: int) -> TrainConfig:
        """A trial's run, complete; the table's learning rate keeps its ratio to the backbone's."""
        config = self.config
        values = {name: getattr(config, name) for name in TrainConfig.model_fields}
        factor = trial.learning_rate / config.learning_rate
        values |= {
            "output": storage.join(config.output, "trials", trial.name), "algorithm": self._algorithm(trial),
            "learning_rate": trial.learning_rate, "table_learning_rate": config.table_learning_rate * factor,
            "epochs": epochs, "min_reward": self.min_reward,
        }  # fmt: skip
        return build(TrainConfig, values)

    def measured(self, trial: Trial, epochs: int) -> str:
        """Folder of what was measured of a trial after so many epochs."""
        return storage.join(self.config.output, "measured", f"{trial.name}@{epochs}")

    @property
    def untrained(self) -> str:
        """Folder of what was measured of the initial policy."""
        return storage.join(self.config.output, "measured", "initial")

    def task(self, trial: Trial, epochs: int) -> Task:
        """What a trial of Ray Tune is given."""
        training = self.training(trial, epochs)
        evaluation = self._evaluation(training.output, self.measured(trial, epochs))
        return {
            "name": trial.name, "training": plain(training), "measured": self.measured(trial, epochs),
            "evaluation": evaluation, "exact": epochs >= self.exact_from,
        }  # fmt: skip

    def initial_task(self) -> Task:
        """The initial policy, measured as it is."""
        assert self.config.initial is not None
        evaluation = self._evaluation(self.config.initial, self.untrained)
        return {"name": "initial", "training": None, "measured": self.untrained, "evaluation": evaluation}

    def _evaluation(self, policy: str, output: str) -> dict[str, Any]:
        config = self.config
        workers = config.worker_range[0]
        found = build(EvaluateConfig, {
            "dataset": config.dataset, "policies": {"policy": policy}, "output": output, "part": "validation",
            "min_reward": self.min_reward, "reference": config.initial, "replicates": config.replicates,
            "table": config.table, "workers": workers, "threads": config.threads, "device": config.device,
            "storage": config.storage,
        })  # fmt: skip
        return plain(found)

    def _algorithm(self, trial: Trial) -> dict[str, Any]:
        if trial.method == "exp_rsft":
            assert isinstance(self.config.algorithm, ExpRSFT)
            return {**plain(self.config.algorithm), "temperature": trial.temperature}
        if trial.method == "top_rated":
            return {"name": "top_rated", **({} if self.rewards.get("levels") else {"quantile": QUANTILE})}
        if trial.method == "rsft":
            # No reward may lie below the baseline, or its events would be left out.
            return {"name": "rsft", "baseline": min(0.0, _least(self.rewards))}
        return {"name": "bc"}


def _least(rewards: Mapping[str, Any]) -> float:
    levels = rewards.get("levels")
    return min(float(each) for each, _ in levels) if levels else float(rewards["quantiles"][0])
