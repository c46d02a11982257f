"""jobs/evaluate.py."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from retilt.config.sections import Storage
from retilt.settings import Settings, free, later
from retilt.types import InputError


class Tilt(Settings):
    """A policy tilted without training: π · exp(reward / λ) / Z, for each λ; a control beside trained policies."""

    policy: str = Field(min_length=1)
    """The policy π that is tilted: one of `policies` by its name, or a URI."""
    reward_model: str | None = Field(None, min_length=1)
    """Reward of an item in its context: one of `reward_models` by its name, or a URI; null: the item's mean reward."""
    temperature: float | list[float]
    """λ > 0, in the unit of the reward; a list tilts by each, in one pass, as NAME/λ."""
    strength: float = Field(10.0, ge=0, allow_inf_nan=False)
    """Events of mean reward that shrink an item's mean reward (without effect under a reward model)."""

    @field_validator("temperature")
    @classmethod
    def _positive_and_distinct(cls, value: float | list[float]) -> float | list[float]:
        every = value if isinstance(value, list) else [value]
        if not every or len(set(every)) < len(every) or not all(0 < each < math.inf for each in every):
            raise InputError(f"{value} must be a number greater than 0, or a list of different ones")
        return value

    def temperatures(self, name: str) -> dict[str, float]:
        """Every λ by the name that the policy tilted by it has in the report, where the tilt is called ``name``."""
        if isinstance(self.temperature, list):
            return {f"{name}/{each:g}": each for each in self.temperature}
        return {name: self.temperature}


class EvaluateConfig(Settings):
    """jobs/evaluate.py: policies and held-out data → metrics with intervals."""

    dataset: str = Field(min_length=1)
    """URI of a data set that jobs/prepare.py wrote."""
    policies: dict[str, str] = Field(min_length=1)
    """Policies to compare, name → URI; also a list of URIs or one URI. The others are compared with the first."""
    output: str = free(..., min_length=1)
    """URI of the folder that metrics.json, report.md and metrics.png are written to."""
    part: Literal["test", "validation"] = "test"
    """Held-out part whose events are the targets."""
    min_reward: float | None = Field(None, allow_inf_nan=False)
    """Targets of at least this reward form the group `high_reward`; null leaves that group out."""
    low_reward: float | None = Field(None, allow_inf_nan=False)
    """Targets of at most this reward: how often they are still recommended, and (with `min_reward`) pairs of a high
    and a low target of the same user; null leaves both out."""
    return_quantile: float | None = Field(None, gt=0, lt=1)
    """Targets of users of a high return (mean reward of the targets) form the group `high_return`, which conclusions
    are then about: high from this quantile on of the users' means over their last k events before the part; null leaves
    that group out."""
    groups: bool = False
    """Who gains: groups of targets by activity, popularity and tied times; coverage, Gini and popularity of lists."""
    reward_models: dict[str, str] = Field({})
    """Reward models that score what each policy recommends (Avg Reward), name → URI: best two, of different users."""
    reference: str | None = later(None, min_length=1)
    """URI of a policy from which each policy's exact KL is measured, such as the one that they were trained from."""
    tilts: dict[str, Tilt] = Field({})
    """Policies tilted without training, by name, which are evaluated beside the others."""
    exclude_history: Literal["all", "window", "none"] = "all"
    """Items kept out of the ranking: all earlier ones of the user, those in the model's window, or none."""
    replicates: int = Field(1000, ge=100)
    """Bootstrap replicates (users are resampled) behind each 95% interval."""
    seed: int = Field(0, ge=0)
    """Seed of the bootstrap."""
    batch_users: int = free(128, ge=1)
    """Mean number of users in a global batch."""
    table: Literal["auto", "replicated", "row_wise"] = free("auto")
    """Where the item table lives; the ranks do not depend on it."""
    workers: int = free(1, ge=1)
    """Processes that share the users."""
    threads: int | None = free(None, ge=1)
    """Threads of each worker; null divides the cores of a node by its workers."""
    device: Literal["auto", "cpu", "cuda"] = free("auto")
    """auto: CUDA where there is one."""
    storage: Storage = free(Storage())

    @model_validator(mode="after")
    def _names_and_bounds_go_together(self) -> EvaluateConfig:
        tilted = [each for name, tilt in self.tilts.items() for each in tilt.temperatures(name)]
        if twice := sorted({each for each in tilted if tilted.count(each) > 1 or each in self.policies}):
            raise InputError(f"tilts: the name '{twice[0]}' is given twice; give each tilt and policy its own")
        if reserved := sorted({"n", "users", "entropy", "kl"} & set(self.reward_models)):
            raise InputError(f"reward_models: '{reserved[0]}' is the name of another measure; choose another")
        if self.min_reward is not None and self.low_reward is not None and self.low_reward >= self.min_reward:
            raise InputError(
                f"low_reward = {self.low_reward:g} must be less than min_reward = {self.min_reward:g}: they name the "
                "targets that should be recommended less and more often"
            )
        return self

    @field_validator("policies", mode="before")
    @classmethod
    def _policies_by_name(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = [value]
        if isinstance(value, list) and all(isinstance(uri, str) for uri in value):
            return dict(zip(_names(value), value, strict=True))
        return value


def _names(uris: list[str]) -> list[str]:
    """A name for each policy: the end of its URI without the fixed folder names, long enough to be unique."""
    if len(set(uris)) < len(uris):
        raise InputError("the same policy is listed twice: list each once, or give names (policies='{a: URI, b: URI}')")
    whole = [uri.rstrip("/").split("/") for uri in uris]
    short = [
        [each for each in parts if each not in ("policy", "best", "last", "checkpoints")] or parts for parts in whole
    ]
    for candidates in (short, whole):
        for length in range(1, max(map(len, candidates), default=0) + 1):
            names = ["/".join(parts[-length:]) for parts in candidates]
            if len(set(names)) == len(names):
                return names
    return uris
