"""A policy from its settings, on every rank alike: network, item table, optimizer of the dense parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from retilt import ranks
from retilt.data.collate import Rows, training_batch
from retilt.models.catalog import ReplicatedTable, ShardedTable, TableOptimizer
from retilt.models.hstu import HSTU
from retilt.models.optimizer import allocated_adam
from retilt.models.policy import CataloguePolicy, Network
from retilt.training import parallel


@dataclass(frozen=True)
class Blueprint:
    """What a policy is built from; the same on every rank."""

    model: HSTU
    items: int
    placement: Literal["replicated", "row_wise"]
    table_optimizer: TableOptimizer
    learning_rate: float
    table_learning_rate: float
    dropout: float
    seed: int


def assemble(blueprint: Blueprint, active: Tensor, device: torch.device) -> tuple[CataloguePolicy, torch.optim.Adam]:
    """A freshly initialised policy and the optimizer of its dense parameters (the table has its own).

    ``active`` (V + 1,) bool marks the catalogue's items. Collective where the table is sharded.
    """
    torch.manual_seed(blueprint.seed)
    backbone = blueprint.model.build(blueprint.dropout)
    items, width, seed = blueprint.items, blueprint.model.width, blueprint.seed
    table: ReplicatedTable | ShardedTable
    if blueprint.placement == "replicated":
        rate = blueprint.learning_rate if blueprint.table_optimizer == "adam" else blueprint.table_learning_rate
        table = ReplicatedTable(items, width, seed, blueprint.table_optimizer, rate)
        network = Network(backbone, table).to(device)
    else:
        table = ShardedTable(items, width, seed, blueprint.table_learning_rate, device)
        network = Network(backbone, None).to(device)
    dense = allocated_adam(list(network.backbone.parameters()), blueprint.learning_rate)
    policy = CataloguePolicy(blueprint.model, network, table, active.to(device), seed, parallel.wrapper())
    if ranks.world() > 1:
        _settle(policy, dense)
    return policy, dense


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
