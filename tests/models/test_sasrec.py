"""SASRec against torch's own encoder layers (nn.MultiheadAttention inside), a user at a time without padding."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from retilt.models import counter
from retilt.models.sasrec import EPSILON, SASRec, SASRecBackbone, SASRecLayer
from retilt.types import MICROSECONDS

SETTINGS = SASRec(max_length=7, width=6, blocks=2, heads=2, feedforward_width=5)
LENGTHS = (7, 3, 1, 5)


def randomised(settings: SASRec, rate: float = 0.5) -> SASRecBackbone:
    """A backbone in float64 whose biases and norms are no longer 0 and 1."""
    torch.manual_seed(0)
    backbone = settings.build(rate).double()
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return backbone


def encoder_layer(layer: SASRecLayer, settings: SASRec) -> nn.TransformerEncoderLayer:
    """torch's pre-norm layer with the same weights."""
    theirs = nn.TransformerEncoderLayer(
        settings.width, settings.heads, settings.feedforward_width, dropout=0.0, activation=settings.activation,
        layer_norm_eps=EPSILON, batch_first=True, norm_first=True, dtype=torch.float64,
    )  # fmt: skip
    attention = {"in_proj_weight": layer.qkv.weight, "in_proj_bias": layer.qkv.bias}
    attention |= {f"out_proj.{name}": value for name, value in layer.output.state_dict().items()}
    theirs.self_attn.load_state_dict(attention)
    pairs = {"norm1": layer.attention_norm, "norm2": layer.feedforward_norm, "linear1": layer.inner}
    for name, mine in {**pairs, "linear2": layer.outer}.items():
        theirs.get_submodule(name).load_state_dict(mine.state_dict())
    return theirs


def reference(backbone: SASRecBackbone, settings: SASRec, x_TD: Tensor) -> Tensor:
    """Hidden states of one user without padding."""
    length = len(x_TD)
    x = (x_TD * math.sqrt(settings.width) + backbone.position[:length])[None]
    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    for layer in backbone.layers:
        assert isinstance(layer, SASRecLayer)
        x = encoder_layer(layer, settings)(x, src_mask=future)
    found: Tensor = backbone.norm(x)[0]
    return found


def inputs(*lengths: int) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings (zero at padding), times (µs) and what is no padding."""
    torch.manual_seed(1)
    longest = max(lengths)
    valid = torch.arange(longest) < torch.tensor(lengths)[:, None]
    x = torch.randn(len(lengths), longest, SETTINGS.width, dtype=torch.float64) * valid[:, :, None]
    time = torch.arange(longest + 1).expand(len(lengths), -1) * MICROSECONDS
    return x, time, valid


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_equals_torchs_encoder_for_every_user_of_a_padded_batch(activation: str) -> None:
    settings = SETTINGS.model_copy(update={"activation": activation})
    backbone = randomised(settings)
    x, time, valid = inputs(*LENGTHS)
    found = backbone(x, time, valid, None)
    for user, length in enumerate(LENGTHS):
        torch.testing.assert_close(found[user, :length], reference(backbone, settings, x[user, :length]))


def test_gradients_do_not_depend_on_padding() -> None:
    """Those of a padded batch are the sum of each user's own, for the parameters and the embeddings."""
    backbone = randomised(SETTINGS)
    x, time, valid = inputs(*LENGTHS)
    x.requires_grad_()
    upstream = torch.randn_like(x)
    (backbone(x, time, valid, None) * upstream)[valid].sum().backward()
    whole = {name: parameter.grad for name, parameter in backbone.named_parameters()}
    assert x.grad is not None
    assert not x.grad[~valid].any()
    backbone.zero_grad()
    for user, length in enumerate(LENGTHS):
        alone = (slice(user, user + 1), slice(0, length))
        (backbone(x[alone], time[user : user + 1, : length + 1], valid[alone], None) * upstream[alone]).sum().backward()
    for name, parameter in backbone.named_parameters():
        torch.testing.assert_close(parameter.grad, whole[name])


def test_a_position_knows_the_past_only_and_no_time() -> None:
    backbone = randomised(SETTINGS)
    x, time, valid = inputs(6)
    before = backbone(x, time, valid, None)[0]
    later = x.clone()
    later[0, 4:] *= -2
    after = backbone(later, time + MICROSECONDS, valid, None)[0]
    assert torch.equal(after[:4], before[:4])
    assert not torch.isclose(after[4:], before[4:]).all(1).any()


def test_dropout_needs_a_key_and_does_not_depend_on_the_batch_around_a_user() -> None:
    backbone = randomised(SETTINGS)
    x, time, valid = inputs(*LENGTHS)
    key = counter.keys(torch.tensor([9, 2, 5, 7]), 7, seed=0, step=3)
    whole = backbone(x, time, valid, key)
    assert not torch.isclose(whole, backbone(x, time, valid, None)).any()
    alone = backbone(x[3:, :5], time[3:, :6], valid[3:, :5], counter.keys(torch.tensor([7]), 5, seed=0, step=3))
    torch.testing.assert_close(alone[0], whole[3, :5])


@pytest.mark.parametrize("shape", [(0, 5), (0, 0)])
def test_an_empty_share_has_gradients_of_zero(shape: tuple[int, int]) -> None:
    users, length = shape
    backbone = SETTINGS.build(0.5)
    key = counter.keys(torch.zeros(users, dtype=torch.int64), length, 0, 0)
    x, valid = torch.zeros(*shape, SETTINGS.width), torch.ones(shape, dtype=torch.bool)
    backbone(x, torch.zeros(users, length + 1), valid, key).sum().backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in backbone.parameters())


def test_initial_values_are_those_of_metas_code() -> None:
    torch.manual_seed(0)
    backbone = SASRec(width=64, blocks=1, heads=2, feedforward_width=256).build(0.0)
    (layer,) = backbone.layers
    assert isinstance(layer, SASRecLayer)
    assert layer.qkv.weight.std().item() == pytest.approx(math.sqrt(2 / (64 + 192)), rel=0.05)
    assert layer.inner.weight.std().item() == pytest.approx(math.sqrt(2 / (64 + 256)), rel=0.05)
    assert backbone.position.std().item() == pytest.approx(math.sqrt(2 / (200 + 64)), rel=0.05)
    assert not any(linear.bias.any() for linear in (layer.qkv, layer.output, layer.inner, layer.outer))
