"""The configuration of every job: one class a job, every key with its default, meaning and allowed range.

A field made with ``free`` is no part of the run's identity: with another value the same command continues the same run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError, field_validator, model_validator

from retilt.algorithms.bc import BC
from retilt.algorithms.exp_rsft import ExpRSFT
from retilt.algorithms.rsft import RSFT
from retilt.algorithms.top_rated import TopRated
from retilt.data.schema import Columns
from retilt.data.world import Noise
from retilt.models.backbone import Model
from retilt.models.hstu import HSTU
from retilt.models.sasrec import SASRec
from retilt.settings import Settings, build, config_hash, dump_yaml, free, identity_hash, keys, load_yaml, plain
from retilt.types import InputError

__all__ = [
    "AnyAlgorithm",
    "AnyModel",
    "EvaluateConfig",
    "PrepareConfig",
    "SimulateConfig",
    "TrainConfig",
    "build",
    "config_hash",
    "dump_yaml",
    "identity_hash",
    "keys",
    "load_yaml",
    "model_of",
    "plain",
]

AnyAlgorithm = Annotated[BC | RSFT | ExpRSFT | TopRated, Field(discriminator="name")]
AnyModel = Annotated[HSTU | SASRec, Field(discriminator="name")]
_MODELS: TypeAdapter[Model] = TypeAdapter(AnyModel)

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


def model_of(state: Mapping[str, Any], place: str) -> Model:
    """The settings of the model in a policy's ``state``. Raises InputError where this version has no such model."""
    try:
        return _MODELS.validate_python(state["model"])
    except ValidationError as problem:
        raise InputError(f"{place}: this version knows no such model as {state['model']}") from problem


def _section(value: Any, default: str) -> Any:
    """``algorithm=x`` means ``algorithm.name=x``; a section without a name keeps the default one."""
    if isinstance(value, str):
        return {"name": value}
    if isinstance(value, Mapping) and "name" not in value:
        return {"name": default, **value}
    return value


class Storage(Settings):
    """What the stores behind the URIs are like."""

    shared_filesystem: bool = free(False)
    """The local paths given are on a file system that every node of the cluster mounts (NFS)."""


class Checkpoint(Settings):
    """How the run can be continued; beside these, a checkpoint is written at the end of every epoch and on SIGTERM."""

    keep: int = free(2, ge=1)
    """Newest checkpoints that are kept."""
    keep_best: int = free(1, ge=1)
    """Checkpoints kept beside them under `protocol=select`: those of the best epochs by `selection_metric`."""
    every_seconds: float | None = free(120.0, gt=0, allow_inf_nan=False)
    """Seconds of training between two checkpoints, beside a validation all that a killed run repeats; null: none."""
    every_steps: int | None = free(None, ge=1)
    """Steps between two checkpoints; null: none by steps. One that is still being written is not overtaken."""


class Numerics(Settings):
    """What is done when arithmetic or memory goes wrong; none of it changes a run in which nothing does."""

    max_skipped: int = free(5, ge=1)
    """Steps in a row that may be skipped because a loss or a gradient is not finite; with one more the run ends."""
    spike: float | None = free(20.0, gt=0, allow_inf_nan=False)
    """Deviations above the recent median at which a loss sends the run back to its last checkpoint; null: never."""
    compare_every: int = free(100, ge=1)
    """Steps between two comparisons of the workers' copies of the parameters and their optimizer's state."""


class PrepareConfig(Settings):
    """jobs/prepare.py: an event log → a data set."""

    source: str = Field(min_length=1)
    """Event log: a Parquet or CSV file, a folder, a glob or a URI; or a known data set: `ml-100k`, `ml-1m`,
    `ml-20m`, `amazon-books`."""
    dataset: str = free(..., min_length=1)
    """URI of the folder that the data set is written to."""
    name: str | None = None
    """Name of the data set in reports; by default the last part of `dataset`."""
    columns: Columns = Columns()
    vocabulary: str | None = free(None, min_length=1)
    """URI of an earlier data set, whose items keep their indices; they are part of the identity, the place is not."""
    split: Literal["last", "last_k"] = "last_k"
    """`last`: a user's last event is test, the one before it validation; `last_k`: the same with `k` events each."""
    k: int = Field(10, ge=1)
    """Events per part under `last_k`; a user with fewer gives half of them to test, half of the rest to validation."""
    min_user_events: int = Field(1, ge=1)
    """Users with fewer events are dropped (counted once, before anything else is dropped)."""
    min_item_events: int = Field(1, ge=1)
    """Items with fewer events are dropped (counted once, before anything else is dropped)."""
    min_sequence_events: int = Field(3, ge=3)
    """Users with fewer events left, after all that is dropped, are dropped; a split needs 3."""
    max_events_per_user: int | None = Field(None, ge=3)
    """Keep this many of a user's most recent events; null keeps all."""
    on_duplicates: Literal["keep", "drop"] = "keep"
    """`drop`: of events with the same user, item and time only the last in input order stays."""
    on_bad_rows: Literal["fail", "drop"] = "fail"
    """What happens to a row with a null, or with a reward that is not finite."""
    threads: int | None = free(None, ge=1)
    """CPU cores to use where this job starts Ray itself; null means all."""
    storage: Storage = free(Storage())


class SimulateConfig(Settings):
    """jobs/simulate.py: a simulated world → an event log."""

    output: str = free(..., min_length=1)
    """URI of the folder that the log is written to; its `events/` is a `source` for jobs/prepare.py."""
    preset: Literal["ratings", "books", "watch_time", "theory"] = "ratings"
    """What the log resembles: `ratings` MovieLens, `books` Amazon Books; see data.md."""
    users: int | None = Field(None, ge=1)
    """Users; null takes the preset's number."""
    items: int | None = Field(None, ge=2, lt=1 << 31)
    """Items of the catalogue; null takes the preset's number."""
    events: int | None = Field(None, ge=1)
    """Events of all users together, exactly; null takes the preset's number."""
    seed: int = Field(0, ge=0, lt=1 << 32)
    """Seed of the world, its users and their choices."""
    noise: Noise | None = None
    """Noise: new with each event, fixed by state and item, larger for rare items, one a session; null: preset's."""
    truth: bool = False
    """Also write `true_reward`, the reward's mean, and `log_propensity`, the log-probability of the choice."""
    threads: int | None = free(None, ge=1)
    """CPU cores to use where this job starts Ray itself; null means all."""
    storage: Storage = free(Storage())


class TrainConfig(Settings):
    """jobs/pretrain.py and jobs/posttrain.py: a data set (and an initial policy) → a policy."""

    dataset: str = Field(min_length=1)
    """URI of a data set that jobs/prepare.py wrote."""
    output: str = free(..., min_length=1)
    """URI of the run's folder; the same command with the same folder continues the run."""
    initial: str | None = Field(None, min_length=1)
    """URI of the policy that post-training starts from: a run folder, its `policy/` best or last, or a checkpoint."""
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
        return _section(value, "bc")

    @field_validator("model", mode="before")
    @classmethod
    def _model_by_name(cls, value: Any) -> Any:
        return _section(value, "hstu")

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
