"""HSTU against a reference written straight from its definition, a position at a time."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from retilt.models.hstu import HSTU, HSTUBackbone, HSTULayer
from retilt.types import MICROSECONDS

SETTINGS = HSTU(max_length=7, width=6, blocks=2, heads=2, head_width=3)


def silu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def normed(x: Tensor) -> Tensor:
    return (x - x.mean()) / (x.var(unbiased=False) + 1e-6).sqrt()


def reference_layer(layer: HSTULayer, x_TD: Tensor, time: list[int]) -> Tensor:
    """One user's residual stream after a layer; ``time[i + 1]`` is the request time of position i, in seconds."""
    length = len(x_TD)
    heads, width, maximum = SETTINGS.heads, SETTINGS.head_width, SETTINGS.max_length
    u, v, q, k = silu(torch.stack([normed(x) for x in x_TD]) @ layer.uvqk).split(heads * width, dim=1)
    out = []
    for i in range(length):
        parts = []
        for h in range(heads):
            part = slice(h * width, (h + 1) * width)
            o = torch.zeros(width, dtype=x_TD.dtype)
            for j in range(i + 1):
                bucket = min(128, int(math.log(max(1, abs(time[i + 1] - time[j]))) / 0.301))
                bias = layer.w_position[j - i + maximum - 1] + layer.w_time[bucket]
                o = o + silu(q[i, part] @ k[j, part] + bias) / maximum * v[j, part]
            parts.append(o)
        out.append(x_TD[i] + layer.output(u[i] * normed(torch.cat(parts))))
    return torch.stack(out)


def reference(backbone: HSTUBackbone, x_TD: Tensor, time: list[int]) -> Tensor:
    x = x_TD * math.sqrt(SETTINGS.width) + backbone.position[: len(x_TD)]
    for layer in backbone.layers:
        assert isinstance(layer, HSTULayer)
        x = reference_layer(layer, x, time)
    return x


@pytest.fixture
def backbone() -> HSTUBackbone:
    torch.manual_seed(0)
    return SETTINGS.build(rate=0.5).double()


def inputs(*lengths: int) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings (zero at padding), times of inputs and last target (µs, last one repeated), and what is no padding."""
    torch.manual_seed(1)
    longest = max(lengths)
    valid = torch.arange(longest) < torch.tensor(lengths)[:, None]
    x = torch.randn(len(lengths), longest, SETTINGS.width, dtype=torch.float64) * valid[:, :, None]
    time = torch.randint(0, 10**6, (len(lengths), longest + 1)).sort(1).values
    time = time.gather(1, torch.minimum(torch.arange(longest + 1), torch.tensor(lengths)[:, None]))
    return x, time * MICROSECONDS, valid


def test_equals_the_definition_for_every_user_of_a_padded_batch(backbone: HSTUBackbone) -> None:
    lengths = (7, 3, 1, 5)
    x, time, valid = inputs(*lengths)
    found = backbone(x, time, valid, None)
    for user, length in enumerate(lengths):
        seconds = (time[user, : length + 1] // MICROSECONDS).tolist()
        expected = reference(backbone, x[user, :length], seconds)
        torch.testing.assert_close(found[user, :length], expected, rtol=1e-6, atol=1e-9)


def test_a_position_knows_the_past_and_the_request_time_only(backbone: HSTUBackbone) -> None:
    x, time, valid = inputs(6)
    before = backbone(x, time, valid, None)[0]
    later = x.clone()
    later[0, 4:] += 1
    assert torch.equal(backbone(later, time, valid, None)[0, :4], before[:4])
    asked = time.clone()
    asked[0, 4] += 10**8 * MICROSECONDS  # the request time of position 3, and the time of event 4
    moved = backbone(x, asked, valid, None)[0]
    assert torch.equal(moved[:3], before[:3])
    assert not torch.equal(moved[3], before[3])


def test_dropout_needs_a_key(backbone: HSTUBackbone) -> None:
    x, time, valid = inputs(6, 2)
    key = torch.arange(12, dtype=torch.int32).view(2, 6)
    assert torch.equal(backbone(x, time, valid, None), backbone(x, time, valid, None))
    assert torch.equal(backbone(x, time, valid, key), backbone(x, time, valid, key))
    assert not torch.equal(backbone(x, time, valid, key), backbone(x, time, valid, None))


def test_initial_values_are_those_of_the_published_code() -> None:
    torch.manual_seed(0)
    settings = HSTU(max_length=200, width=64, blocks=1, heads=2, head_width=32)
    backbone = settings.build(0.0)
    (layer,) = backbone.layers
    assert isinstance(layer, HSTULayer)
    assert layer.uvqk.shape == (64, 4 * 64)
    assert layer.uvqk.std().item() == pytest.approx(0.02, rel=0.05)
    assert layer.w_position.shape == (399,)
    assert layer.w_time.shape == (129,)
    assert layer.output.weight.abs().max().item() <= math.sqrt(6 / 128)
    assert not layer.output.bias.any()
    assert backbone.position.std().item() == pytest.approx(math.sqrt(2 / 264), rel=0.05)
