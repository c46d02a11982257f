"""A policy from its settings, on every rank alike: network, item table, optimizer of the dense parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from retilt import ranks
from retilt.config import Parallel, Precision, TrainConfig
from retilt.data.collate import Rows, training_batch
from retilt.data.dataset import Dataset
from retilt.models.backbone import Model
from retilt.models.catalog import ReplicatedTable, ShardedTable, TableOptimizer
from retilt.models.optimizer import allocated_adam
from retilt.models.policy import CataloguePolicy, Network
from retilt.models.sampled import Sampler
from retilt.training import parallel


@dataclass(frozen=True)
class Blueprint:
    """What a policy is built from; the same on every rank."""

    model: Model
    items: int
    placement: Literal["replicated", "row_wise"]
    table_optimizer: TableOptimizer
    learning_rate: float
    table_learning_rate: float
    dropout: float
    seed: int
    parallel: Parallel = "ddp"
    precision: Precision = "float32"
    activation_checkpointing: bool = False


def assemble(
    blueprint: Blueprint, active: Tensor, device: torch.device, sampler: Sampler | None = None
) -> tuple[CataloguePolicy, torch.optim.Adam]:
    """A freshly initialised policy and the optimizer of its dense parameters (the table has its own).

    ``active`` (V + 1,) bool marks the catalogue's items; with a ``sampler`` training uses the sampled softmax.
    Collective where the table is sharded.
    """
    torch.manual_seed(blueprint.seed)
    backbone = blueprint.model.build(blueprint.dropout)
    if blueprint.activation_checkpointing:
        parallel.recompute_layers(backbone)
    bf16 = blueprint.precision == "bf16"
    items, width, seed = blueprint.items, blueprint.model.width, blueprint.seed
    table: ReplicatedTable | ShardedTable
    if blueprint.placement == "replicated":
        rate = blueprint.learning_rate if blueprint.table_optimizer == "adam" else blueprint.table_learning_rate
        table = ReplicatedTable(items, width, seed, blueprint.table_optimizer, rate)
        network = Network(backbone, table, bf16).to(device)
    else:
        table = ShardedTable(items, width, seed, blueprint.table_learning_rate, device)
        network = Network(backbone, None, bf16).to(device)
    wrap = parallel.wrapper(blueprint.parallel)
    policy = CataloguePolicy(blueprint.model, network, table, active.to(device), seed, wrap, sampler)
    # Only now: FSDP has put its parts in the place of the parameters.
    dense = allocated_adam(list(network.backbone.parameters()), blueprint.learning_rate)
    if ranks.world() > 1 and blueprint.parallel == "ddp":
        _settle(policy, dense)
    return policy, dense


def assemble_for(
    config: TrainConfig, dataset: Dataset, device: torch.device
) -> tuple[CataloguePolicy, torch.optim.Adam]:
    """The policy that a complete training configuration describes. Collective where the table is sharded."""
    assert config.model is not None
    placement, sampler = config.placement_for(dataset.items), None
    blueprint = Blueprint(
        config.model, dataset.items, placement, config.optimizer_for(placement),
        config.learning_rate, config.table_learning_rate, config.dropout, config.seed,
        config.parallel, config.precision, config.activation_checkpointing,
    )  # fmt: skip
    if config.softmax == "sampled":
        counts = dataset.train_counts(config.protocol)
        sampler = Sampler.of(
            config.proposal, config.negatives, config.negative_count, config.logq, dataset.active(), counts
        ).to(device)
    return assemble(blueprint, dataset.active(), device, sampler)


def _settle(policy: CataloguePolicy, dense: torch.optim.Adam) -> None:
    """A backward pass over nothing. Collective; changes no parameter.

    After its first backward pass DDP deals the gradients to buckets anew, and three or more ranks then add them up in
    another order. Done here, that order is the same in a resumed run's first step as in an uninterrupted run's.
    """
    batch = training_batch(Rows.concatenate([]), np.zeros(0, dtype=np.int64)).to(
        next(iter(policy.network.parameters())).device
    )
    policy.train(0)(batch).log_prob(batch.target_item_P).sum().backward()  # type: ignore[no-untyped-call]
    dense.zero_grad(set_to_none=True)
    policy.table.clear()
