"""jobs/pretrain.py and jobs/posttrain.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from retilt.algorithms.bc import BC
from retilt.config.named import AnyAlgorithm, AnyModel, section
from retilt.config.sections import Checkpoint, Numerics, Storage
from retilt.settings import Settings, free, later
from retilt.types import InputError

REPLICATED_ITEMS = 100_000
"""Largest catalogue for which ``table=auto`` keeps the whole table on every worker."""
EXACT_ITEMS, EXACT_ITEMS_CUDA = 100_000, 2_000_000
"""Largest catalogues for which ``softmax=auto`` is exact."""

Placement = Literal["replicated", "row_wise"]
TableOptimizer = Literal["adam", "row_wise_adagrad"]
Parallel = Literal["ddp", "fsdp"]
Precision = Literal["float32", "bf16"]


def place_table(table: Literal["auto", "replicated", "row_wise"], items: int) -> Placement:
    """Where a table of ``items`` rows lives: as told, and under ``auto`` by its size alone."""
    if table != "auto":
        return table
    return "replicated" if items <= REPLICATED_ITEMS else "row_wise"


class TrainConfig(Settings):
    """jobs/pretrain.py and jobs/posttrain.py: a data set (and an initial policy) → a policy."""

    dataset: str = Field(min_length=1)
    """URI of a data set that jobs/prepare.py wrote."""
    output: str = free(..., min_length=1)
    """URI of the run's folder; the same command with the same folder continues the run."""
    initial: str | None = Field(None, min_length=1)
    """URI of the policy that post-training starts from: a run folder, its `policy/` best or last, or a checkpoint."""
    reward_model: str | None = later(None, min_length=1)
    """URI of the run or checkpoint of `jobs/train_reward.py` that dpo and ppo learn from; it scores each epoch."""
    judge: str | None = later(None, min_length=1)
    """URI of a second reward model, trained on other users, which scores each epoch and is never learned from."""
    stop_on_alarm: bool = free(False)
    """Whether the run ends after an epoch with an alarm (`hacking` or `collapse`: docs/algorithms.md)."""
    model: AnyModel | None = None
    """The backbone; null under `posttrain`, which takes the initial policy's."""
    algorithm: AnyAlgorithm = BC()
    """The objective."""
    protocol: Literal["select", "refit"] = "select"
    """`select` trains on the events before validation and measures on validation; `refit` on all events before test."""
    epochs: int = free(30, ge=1)
    """Passes over the data; more epochs continue a finished run."""
    batch_users: int = Field(128, ge=1)
    """Mean number of users in a global batch, whatever the number of workers; at least the data set's lanes."""
    learning_rate: float = Field(1e-3, gt=0, allow_inf_nan=False)
    """Adam's learning rate of the backbone (and of a replicated table under Adam)."""
    table_learning_rate: float = Field(0.05, gt=0, allow_inf_nan=False)
    """Row-wise Adagrad's learning rate of the item table."""
    table: Literal["auto", "replicated", "row_wise"] = "auto"
    """The item table: whole on every worker, or its rows spread over them; auto goes by the size of the catalogue."""
    table_optimizer: Literal["auto", "adam", "row_wise_adagrad"] = "auto"
    """auto: Adam for a replicated table, row-wise Adagrad for a row-wise one."""
    softmax: Literal["auto", "exact", "sampled"] = "auto"
    """Normalisation over the catalogue; auto: exact up to 100,000 items (on CUDA two million), sampled above."""
    proposal: Literal["uniform", "popularity", "in_batch"] = "popularity"
    """What a sampled softmax draws negatives from: active items alike, training events, or the batch's targets."""
    negatives: Literal["shared", "per_position"] = "shared"
    """Whether all positions of a step share one set of negatives, or each draws its own."""
    negative_count: int = Field(4096, ge=1, le=1 << 20)
    """Negatives that are drawn (without effect on `in_batch`)."""
    logq: bool = True
    """Whether negatives are weighted by 1 / (number of draws x probability), as the exact softmax's sum demands."""
    dropout: float = Field(0.2, ge=0, lt=1)
    """Dropout of embeddings and blocks while training."""
    seed: int = Field(0, ge=0)
    """Seed of initial values, order and dropout."""
    min_reward: float | None = Field(None, allow_inf_nan=False)
    """Targets of at least this reward form the `high_reward` group, which then chooses the best epoch."""
    selection_metric: Literal["ndcg@10", "ndcg@50", "hr@10", "hr@50", "mrr"] = "ndcg@10"
    """Validation metric by which the best epoch is chosen."""
    optimizer_state: Literal["keep", "reset"] = "keep"
    """Whether post-training continues the initial policy's optimizer state."""
    parallel: Parallel = free("ddp")
    """The backbone: whole on every worker (`ddp`), or each of its parameters spread over them (`fsdp`)."""
    precision: Precision = "float32"
    """Of the backbone's matrix products while training; all else is float32, and float64 in evaluation."""
    activation_checkpointing: bool = free(False)
    """Layers of the backbone run again in the backward pass instead of keeping what they need for it."""
    workers: int | list[int] = free(1)
    """Training processes, or [fewest, most] to use what the cluster has; the result depends on it by rounding only."""
    threads: int | None = free(None, ge=1)
    """Threads of each worker; null divides the cores of a node by its workers."""
    device: Literal["auto", "cpu", "cuda"] = free("auto")
    """auto: CUDA where there is one."""
    memory_per_worker: float | None = free(None, gt=0, allow_inf_nan=False)
    """GB that a worker may take (on CUDA: of its GPU) before a run is refused; null: its share of what is free."""
    log_every: int = free(20, ge=1)
    """Steps between two lines of progress."""
    hang_seconds: int = free(300, ge=5)
    """Seconds without an answer after which a worker counts as hung; more than the 120 s for which a store is tried."""
    stop_seconds: int = free(60, ge=1)
    """Grace period between SIGTERM and SIGKILL, in which a last checkpoint is written (Kubernetes, ray job stop)."""
    checkpoint: Checkpoint = free(Checkpoint())
    numerics: Numerics = free(Numerics())
    storage: Storage = free(Storage())

    @model_validator(mode="before")
    @classmethod
    def _pretraining_needs_a_model(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and values.get("initial") is None and values.get("model") is None:
            return {**values, "model": {"name": "hstu"}}
        return values

    @field_validator("algorithm", mode="before")
    @classmethod
    def _algorithm_by_name(cls, value: Any) -> Any:
        return section(value, "bc")

    @field_validator("model", mode="before")
    @classmethod
    def _model_by_name(cls, value: Any) -> Any:
        return section(value, "hstu")

    @field_validator("workers", mode="before")
    @classmethod
    def _a_number_or_a_range(cls, value: Any) -> Any:
        whole = [each for each in (value if isinstance(value, list) else [value]) if type(each) is int and each >= 1]
        if isinstance(value, list) and (len(value) != 2 or len(whole) != 2 or value[0] > value[1]):
            raise InputError(f"{value}: a range is [fewest, most], two numbers of at least 1, the smaller first")
        if not isinstance(value, list) and not whole:
            raise InputError(f"{value!r} must be a whole number of at least 1, or a range [fewest, most]")
        return value

    @model_validator(mode="after")
    def _the_batch_is_shared(self) -> TrainConfig:
        if self.proposal == "in_batch" and self.negatives == "per_position":
            raise InputError(
                "proposal = 'in_batch' does not go with negatives = 'per_position': the batch's targets are the same "
                "for all positions; use negatives=shared, or another proposal"
            )
        return self

    @model_validator(mode="after")
    def _a_judge_compares_with_the_start(self) -> TrainConfig:
        if self.judge is not None and self.initial is None:
            raise InputError("judge needs initial, the policy whose score and true metric it compares with")
        if self.judge is not None and self.protocol != "select":
            raise InputError("judge needs protocol=select: under refit no event is held out on which it could look")
        if self.stop_on_alarm and not self.judged:
            raise InputError("stop_on_alarm needs reward_model or judge, with initial and protocol=select")
        return self

    @property
    def judged(self) -> bool:
        """Whether reward models score the policy after each epoch: see training/judge.py."""
        scored = self.reward_model is not None or self.judge is not None
        return scored and self.initial is not None and self.protocol == "select"

    @model_validator(mode="after")
    def _a_given_table_goes_with_the_rest(self) -> TrainConfig:
        if self.table != "auto":
            self.optimizer_for(self.placement_for(items=0))
        return self

    @property
    def worker_range(self) -> tuple[int, int]:
        """Fewest and most workers."""
        return (self.workers, self.workers) if isinstance(self.workers, int) else (self.workers[0], self.workers[1])

    def softmax_for(self, items: int, cuda: bool) -> Literal["exact", "sampled"]:
        """Exact or sampled: as told, and under ``auto`` by the size of the catalogue and the kind of device."""
        if self.softmax != "auto":
            return self.softmax
        return "exact" if items <= (EXACT_ITEMS_CUDA if cuda else EXACT_ITEMS) else "sampled"

    def placement_for(self, items: int) -> Placement:
        """Where a table of ``items`` rows lives. Never depends on the workers, because the optimizer differs.

        Raises InputError for a replicated one under FSDP.
        """
        placement = place_table(self.table, items)
        if self.parallel == "fsdp" and placement == "replicated":
            raise InputError(
                "parallel = 'fsdp' does not go with a replicated table, which every step needs whole: use "
                f"table=row_wise (auto takes it above {REPLICATED_ITEMS:,} items only), or parallel=ddp"
            )
        return placement

    def optimizer_for(self, placement: Placement) -> TableOptimizer:
        """The table's optimizer in that placement. Raises InputError for Adam on a row-wise table."""
        if self.table_optimizer == "auto":
            return "adam" if placement == "replicated" else "row_wise_adagrad"
        if placement == "row_wise" and self.table_optimizer == "adam":
            raise InputError(
                "table_optimizer = 'adam' does not go with a row-wise table: its update is fused into the backward "
                "pass, on CPU without Adam: use table_optimizer=row_wise_adagrad or table=replicated"
            )
        return self.table_optimizer
