"""Frozen models beside the one that is trained: the policy it started from, and a reward model."""

from __future__ import annotations

import torch

from retilt.config import Placement, TrainConfig, model_of
from retilt.data.dataset import Dataset
from retilt.models.policy import CataloguePolicy
from retilt.models.reward import FrozenRewardModel
from retilt.ranks import together
from retilt.training import checkpoint
from retilt.training.assemble import Blueprint, build
from retilt.types import Companions


def load_policy(
    uri: str, dataset: Dataset, device: torch.device, placement: Placement, seed: int = 0
) -> CataloguePolicy:
    """A policy that stays as it is, without its head: exact, float32, no dropout, no optimizer. Collective.

    Args:
        uri: a checkpoint (``checkpoint.find``).
        dataset: whose items it is to know; those that are new to it have the initial values of ``seed``.
        device, placement: where it computes and how its table is held. (A sharded one brings its optimizer's state, a
            number for each row.)
        seed: that of the run which starts from it, so that both begin with the same rows for new items.

    Raises:
        InputError: the files are absent, damaged, or of other sizes.
    """
    return _frozen(uri, dataset, device, placement, seed)


def load_reward_model(uri: str, dataset: Dataset, device: torch.device, placement: Placement) -> FrozenRewardModel:
    """The reward model of a finished run of jobs/train_reward.py; arguments as ``load_policy`` has them. Collective.

    Raises:
        InputError: no reward model, or its files are absent, damaged, or of other sizes.
    """
    return FrozenRewardModel(_frozen(uri, dataset, device, placement, 0))


def _frozen(uri: str, dataset: Dataset, device: torch.device, placement: Placement, seed: int) -> CataloguePolicy:
    state = checkpoint.read_state(uri)
    algorithm = state["config"]["algorithm"]
    head = algorithm["variant"] if algorithm["name"] == "reward_model" else None
    # Row-wise Adagrad has the smallest state of all; nothing is updated.
    blueprint = Blueprint(
        model_of(state, uri), dataset.items, placement, "row_wise_adagrad", 1e-3, 1e-3, 0.0, seed, head=head
    )
    policy = build(blueprint, dataset.active(), device)
    together(lambda: checkpoint.load(uri, policy, None))
    policy.network.requires_grad_(False)
    return policy.train(0, dropout=False)


def companions(config: TrainConfig, dataset: Dataset, device: torch.device) -> Companions:
    """What an online objective of a complete configuration learns from. Collective."""
    assert config.initial is not None
    assert config.reward_model is not None
    placement = config.placement_for(dataset.items)
    return Companions(
        load_policy(config.initial, dataset, device, placement, config.seed),
        load_reward_model(config.reward_model, dataset, device, placement),
    )
