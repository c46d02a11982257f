"""jobs/tune_lambda.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from retilt.algorithms.exp_rsft import ExpRSFT
from retilt.algorithms.temperatures import check
from retilt.config.named import AnyAlgorithm, section
from retilt.config.train import TrainConfig
from retilt.settings import free
from retilt.types import InputError

METRICS = ("ndcg@10", "ndcg@50", "hr@10", "hr@50", "mrr")


class TuneConfig(TrainConfig):
    """jobs/tune_lambda.py: a data set and a BC policy → the λ of exp_rsft, chosen on validation data.

    Beside these it takes every key of jobs/posttrain.py; each trial is such a run.
    """

    output: str = free(..., min_length=1)
    """URI of the folder of all trials and the report; the same command continues. With more λ or rates beside the
    old ones it trains what is new; only those that the command names are compared."""
    algorithm: AnyAlgorithm = ExpRSFT()
    """exp_rsft and its settings, all but the temperature."""
    temperatures: Literal["auto"] | list[float] = free("auto")
    """The λ to try, in the unit of the reward; auto places them by effective sample size (docs/lambda.md)."""
    points: int = free(8, ge=2, le=64)
    """How many λ `temperatures=auto` places, before those are merged that train alike."""
    learning_rates: list[float] | None = free(None, min_length=1)
    """Values of `learning_rate` to try with each λ, the table's in proportion; null tries `learning_rate` alone."""
    search: Literal["halving", "grid"] = "halving"
    """`halving` trains all for a ninth of the epochs, the better third for a third, the choice for all; `grid` all."""
    previous: str | None = free(None, min_length=1)
    """URI of an earlier search's folder: without drift its λ is taken, after a little drift three λ around it are
    tried, after much the search is done anew."""
    epochs: int = Field(10, ge=1)
    """Epochs of a full-length trial."""
    min_reward: float | None = Field(None, allow_inf_nan=False)
    """The choice is by targets of at least this reward; null: the upper quartile of the training rewards."""
    threads: int | None = free(1, ge=1)
    """Threads of each worker; null divides the cores of a node by its workers: one trial a node."""
    concurrency: int | None = free(None, ge=1)
    """Trials side by side at most; null takes as many as the cluster has room for."""
    replicates: int = Field(1000, ge=200)
    """Bootstrap replicates (users are resampled) behind each interval and standard error."""
    tolerance: float = free(0.1, gt=0, lt=1)
    """Loss of reward, as a share of its range, that the theory's floor of λ is drawn for."""

    @field_validator("algorithm", mode="before")
    @classmethod
    def _algorithm_by_name(cls, value: Any) -> Any:
        values = section(value, "exp_rsft")
        own = ExpRSFT().temperature  # what --print-config writes
        if isinstance(values, Mapping) and values.get("temperature", own) != own:
            raise InputError(
                f"algorithm.temperature = {values['temperature']!r} is what is searched: use temperatures="
            )
        return values

    @field_validator("algorithm")
    @classmethod
    def _only_exp_rsft(cls, value: AnyAlgorithm) -> AnyAlgorithm:
        if not isinstance(value, ExpRSFT):
            raise InputError(f"the λ of exp_rsft is searched, not of {value.name}; leave algorithm out")
        return value

    @field_validator("temperatures", mode="before")
    @classmethod
    def _auto_or_numbers(cls, value: Any) -> Any:
        if value != "auto" and not isinstance(value, list | tuple):
            raise InputError(f"temperatures = {value}: give auto, or a list of numbers such as '[0.5, 1]'")
        for each in value if isinstance(value, list | tuple) else ():
            if isinstance(each, bool) or not isinstance(each, int | float):
                raise InputError(f"{each!r} is no temperature: λ is a finite number above 0")
        return value

    @field_validator("temperatures")
    @classmethod
    def _some_temperatures(cls, value: str | list[float]) -> str | list[float]:
        if isinstance(value, list):
            check(value)
        return value

    @field_validator("learning_rates")
    @classmethod
    def _some_rates(cls, value: list[float] | None) -> list[float] | None:
        if value is not None:
            wrong = [each for each in value if not 0 < each < float("inf")]
            if wrong or len(set(value)) < len(value):
                raise InputError(f"{value}: learning rates are different numbers above 0")
        return value

    @field_validator("selection_metric", mode="before")
    @classmethod
    def _a_metric_of_validation(cls, value: Any) -> Any:
        if isinstance(value, str) and value not in METRICS and ("loss" in value or "nll" in value):
            raise InputError(
                f"{value!r} cannot choose λ: each λ weights the training loss otherwise, so that no two are "
                f"comparable; use one of {', '.join(METRICS)}"
            )
        return value

    @model_validator(mode="after")
    def _a_search_of_post_training(self) -> TuneConfig:
        if self.initial is None:
            raise InputError("missing key 'initial': URI of the policy that every trial starts from (jobs/pretrain.py)")
        if self.protocol != "select":
            raise InputError("protocol=refit holds no validation events out, by which λ is chosen; use protocol=select")
        if self.temperatures == "auto" and not self.plain_weights:
            raise InputError(
                "temperatures=auto goes by the rewards' histogram, and algorithm.rewards, level or context_weight make "
                "other weights of them; give temperatures='[…]'"
            )
        if isinstance(self.workers, list):
            raise InputError(
                f"workers = {self.workers}: trials share the cluster, so that each needs a number of its own; give one"
            )
        if self.judge is not None or self.reward_model is not None:
            raise InputError("exp_rsft needs no reward_model, and a search no judge; leave them out")
        return self

    @property
    def plain_weights(self) -> bool:
        """Whether a weight is exp(r/λ) of the logged reward alone."""
        assert isinstance(self.algorithm, ExpRSFT)
        return self.algorithm.rewards == "raw" and not self.algorithm.by_user
