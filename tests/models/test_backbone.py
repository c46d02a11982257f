"""What a backbone says of itself, against what it does."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from retilt.models import counter
from retilt.models.backbone import Model
from retilt.models.hstu import HSTU
from retilt.models.sasrec import SASRec
from retilt.types import MICROSECONDS


@pytest.mark.parametrize(
    "model",
    [
        HSTU(),
        HSTU(max_length=50, width=64, blocks=4, heads=4, head_width=16),
        SASRec(),
        SASRec(max_length=50, width=64, blocks=4, heads=4, feedforward_width=128, activation="gelu"),
    ],
    ids=["hstu", "hstu of Books", "sasrec", "sasrec with gelu"],
)
def test_what_autograd_keeps_for_a_position(model: Model) -> None:
    """Counted by hooks on every saved tensor, a memory once; parameters are not counted."""
    users, length = 4, model.max_length
    backbone = model.build(0.2)
    kept: dict[int, Tensor] = {}
    parameters = {parameter.data_ptr() for parameter in backbone.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in parameters:
            kept[place] = tensor  # alive, so that no other tensor takes its place
        return tensor

    time = torch.arange(length + 1).expand(users, -1) * MICROSECONDS
    x = torch.randn(users, length, model.width, requires_grad=True)
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        backbone(x, time, torch.ones(users, length, dtype=torch.bool), counter.keys(torch.arange(users), length, 0, 0))
    found = sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) / 4 / users / length
    assert found == pytest.approx(model.kept_per_position, rel=0.01)
