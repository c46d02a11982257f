"""HSTU, the base model of the paper, as Meta's public experiments define it (Zhai et al., 2024; research path).

Shapes: B users, T positions (inputs), N maximum length, D width, H heads.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import layer_norm, silu

from retilt.models.attention import TIME_BUCKETS, pointwise_attention, time_buckets
from retilt.models.backbone import Model
from retilt.models.dropout import dropout


class HSTU(Model):
    """Sizes of an HSTU; the defaults are Meta's small MovieLens-1M setting."""

    name: Literal["hstu"] = "hstu"
    head_width: int = Field(50, ge=1, le=512)
    """Width of a head (d_qk = d_v)."""

    @property
    def kept_per_position(self) -> int:
        inner = self.heads * self.head_width
        return self.width + self.blocks * (2 * self.width + 12 * inner) + self.max_length

    def build(self, rate: float) -> HSTUBackbone:
        return HSTUBackbone(self, rate)


class HSTULayer(nn.Module):
    """Pre-norm residual layer: pointwise attention gated by u; no feed-forward block."""

    def __init__(self, settings: HSTU, rate: float, place: int) -> None:
        super().__init__()
        self.heads, self.head_width = settings.heads, settings.head_width
        self.maximum, self.rate, self.place = settings.max_length, rate, place
        inner = settings.heads * settings.head_width
        self.uvqk = nn.Parameter(torch.empty(settings.width, 4 * inner).normal_(std=0.02))
        self.output = nn.Linear(inner, settings.width)
        nn.init.xavier_uniform_(self.output.weight)
        nn.init.zeros_(self.output.bias)
        self.w_position = nn.Parameter(torch.empty(2 * settings.max_length - 1).normal_(std=0.02))
        self.w_time = nn.Parameter(torch.empty(TIME_BUCKETS).normal_(std=0.02))

    def forward(self, x_BTD: Tensor, bucket_BTT: Tensor, key_BT: Tensor | None) -> Tensor:
        """The next residual stream, shape (B, T, D)."""
        users, length, width = x_BTD.shape
        normed = layer_norm(x_BTD, (width,), eps=1e-6)
        u, *vqk = silu(normed @ self.uvqk).chunk(4, dim=2)
        v, q, k = (part.view(users, length, self.heads, self.head_width).transpose(1, 2) for part in vqk)
        o_BHTD = pointwise_attention(q, k, v, self.w_position, self.w_time, bucket_BTT, self.maximum)
        o = o_BHTD.transpose(1, 2).reshape(users, length, self.heads * self.head_width)
        gated = u * layer_norm(o, (o.shape[2],), eps=1e-6)
        out: Tensor = x_BTD + self.output(dropout(gated, self.rate, key_BT, self.place))
        return out


class HSTUBackbone(nn.Module):
    """Item embeddings of a history → one hidden state per position; L2 normalisation is the policy's."""

    def __init__(self, settings: HSTU, rate: float) -> None:
        super().__init__()
        self.width, self.rate = settings.width, rate
        self.position = nn.Parameter(torch.empty(settings.max_length, settings.width))
        nn.init.xavier_normal_(self.position)
        self.layers = nn.ModuleList(HSTULayer(settings, rate, place + 1) for place in range(settings.blocks))

    def forward(self, x_BTD: Tensor, time_BT: Tensor, valid_BT: Tensor, key_BT: Tensor | None) -> Tensor:
        """Hidden states, shape (B, T, D); arguments as ``Model.build`` says."""
        length = x_BTD.shape[1]
        x = x_BTD * math.sqrt(self.width) + self.position[:length]
        x = dropout(x, self.rate, key_BT, 0) * valid_BT[:, :, None]
        bucket_BTT = time_buckets(time_BT[:, 1:], time_BT[:, :-1])
        for layer in self.layers:
            x = layer(x, bucket_BTT, key_BT)
        return x
