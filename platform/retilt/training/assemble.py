"""A policy from its settings, on every rank alike: network, item table, optimizer of the dense parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from retilt import ranks
from retilt.algorithms.ppo import PPO
from retilt.algorithms.reward_model import RewardModel
from retilt.config import AnyAlgorithm, Parallel, Precision, TrainConfig
from retilt.data.collate import Rows, training_batch
from retilt.data.dataset import Dataset
from retilt.evaluation.baselines import item_rewards
from retilt.models.backbone import Model
from retilt.models.catalog import ReplicatedTable, ShardedTable, TableOptimizer
from retilt.models.heads import STANDARD, Head, Kind, RewardHead, Unit, ValueHead
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
    head: Kind | None = None
    unit: Unit = STANDARD
    """Of the rewards, for a head that starts anew."""


def head_of(algorithm: AnyAlgorithm) -> Kind | None:
    """The head that an objective trains beside the policy."""
    if isinstance(algorithm, RewardModel):
        return algorithm.variant
    return "value" if isinstance(algorithm, PPO) and algorithm.baseline == "value" else None


def assemble(
    blueprint: Blueprint, active: Tensor, device: torch.device, sampler: Sampler | None = None
) -> tuple[CataloguePolicy, torch.optim.Adam]:
    """A freshly initialised policy and the optimizer of its dense parameters (the table has its own).

    ``active`` (V + 1,) bool marks the catalogue's items; with a ``sampler`` training uses the sampled softmax.
    Collective where the table is sharded.
    """
    policy = build(blueprint, active, device, parallel.wrapper(blueprint.parallel), sampler)
    # Only now: FSDP has put its parts in the place of the parameters.
    dense = allocated_adam(list(policy.network.dense().values()), blueprint.learning_rate)
    if ranks.world() > 1 and blueprint.parallel == "ddp":
        _settle(policy, dense)
    return policy, dense


def build(
    blueprint: Blueprint,
    active: Tensor,
    device: torch.device,
    wrap: Callable[[nn.Module], nn.Module] = lambda network: network,
    sampler: Sampler | None = None,
) -> CataloguePolicy:
    """``assemble`` without an optimizer of the dense parameters. Collective where the table is sharded."""
    torch.manual_seed(blueprint.seed)
    backbone = blueprint.model.build(blueprint.dropout)
    if blueprint.activation_checkpointing:
        parallel.recompute_layers(backbone)
    items, width, seed = blueprint.items, blueprint.model.width, blueprint.seed
    head: Head | None = None
    if blueprint.head == "value":
        head = ValueHead(width, blueprint.unit)
    elif blueprint.head is not None:
        head = RewardHead(width, blueprint.unit, items if blueprint.head == "strong" else None)
    table: ReplicatedTable | ShardedTable
    if blueprint.placement == "replicated":
        rate = blueprint.learning_rate if blueprint.table_optimizer == "adam" else blueprint.table_learning_rate
        table = ReplicatedTable(items, width, seed, blueprint.table_optimizer, rate)
    else:
        table = ShardedTable(items, width, seed, blueprint.table_learning_rate, device)
    whole = table if isinstance(table, ReplicatedTable) else None
    network = Network(backbone, whole, blueprint.precision == "bf16", head).to(device)
    return CataloguePolicy(blueprint.model, network, table, active.to(device), seed, wrap, sampler)


def assemble_for(
    config: TrainConfig, dataset: Dataset, device: torch.device
) -> tuple[CataloguePolicy, torch.optim.Adam]:
    """The policy that a complete training configuration describes. Collective."""
    assert config.model is not None
    placement, sampler = config.placement_for(dataset.items), None
    rewards = dataset.statistics(config.protocol)
    blueprint = Blueprint(
        config.model, dataset.items, placement, config.optimizer_for(placement),
        config.learning_rate, config.table_learning_rate, config.dropout, config.seed,
        config.parallel, config.precision, config.activation_checkpointing,
        head_of(config.algorithm), Unit(rewards["reward_mean"], rewards["reward_sd"]),
    )  # fmt: skip
    if config.softmax == "sampled":
        counts = dataset.train_counts(config.protocol)
        sampler = Sampler.of(
            config.proposal, config.negatives, config.negative_count, config.logq, dataset.active(), counts
        ).to(device)
    policy, dense = assemble(blueprint, dataset.active(), device, sampler)
    if isinstance(config.algorithm, RewardModel) and config.algorithm.variant == "strong":
        chosen = config.algorithm.chosen
        assert isinstance(policy.network.head, RewardHead)
        of_items = item_rewards(dataset, config.protocol, device, chosen)
        policy.network.head.set_item_bias(*(each.to(device) for each in of_items))
    return policy, dense


def _settle(policy: CataloguePolicy, dense: torch.optim.Adam) -> None:
    """A backward pass over nothing. Collective; changes no parameter.

    After its first backward pass DDP deals the gradients to buckets anew, and three or more ranks then add them up in
    another order. Done here, that order is the same in a resumed run's first step as in an uninterrupted run's.
    """
    batch = training_batch(Rows.concatenate([]), np.zeros(0, dtype=np.int64)).to(
        next(iter(policy.network.parameters())).device
    )
    found = policy.train(0)(batch)
    total = found.log_prob(batch.target_item_P).sum()
    (total if found.head_P is None else total + found.head_P.sum()).backward()  # type: ignore[no-untyped-call]
    dense.zero_grad(set_to_none=True)
    policy.table.clear()
