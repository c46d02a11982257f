"""HSTU, the base model of the paper, as Meta's public experiments define it (Zhai et al., 2024; research path).

Shapes: B users, T positions (inputs), N maximum length, D width, H heads.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import layer_norm, silu

from retilt.models import trying
from retilt.models.attention import TIME_BUCKETS, batch_buckets, pointwise_attention
from retilt.models.backbone import Model
from retilt.models.dropout import dropout
from retilt.models.trying import Tried


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

    def forward(
        self, x_BTD: Tensor, bucket_BTT: Tensor, key_BT: Tensor | None, tried: Tried | None, bucket_BST: Tensor | None
    ) -> tuple[Tensor, Tried | None]:
        """The next residual stream, (B, T, D), and that of the tried items; buckets as ``time_buckets`` gives them."""
        u, v, q, k = self._parts(x_BTD)
        o_BHTD = pointwise_attention(q, k, v, self.w_position, self.w_time, bucket_BTT, self.maximum)
        out = self._gated(x_BTD, u, o_BHTD, key_BT)
        if tried is None:
            return out, None
        assert bucket_BST is not None
        u, *vqk = self._parts(tried.x_BCD)
        own = vqk[1], vqk[2], vqk[0]
        o_BHCD = trying.pointwise(own, (k, v), self.w_position, self.w_time, tried.place_BS, bucket_BST, self.maximum)
        return out, tried._replace(x_BCD=self._gated(tried.x_BCD, u, o_BHCD, tried.key_BC))

    def _parts(self, x_BTD: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """u (B, T, H · D) and v, q, k (B, H, T, D)."""
        users, length, width = x_BTD.shape
        u, *vqk = silu(layer_norm(x_BTD, (width,), eps=1e-6) @ self.uvqk).chunk(4, dim=2)
        v, q, k = (part.view(users, length, self.heads, self.head_width).transpose(1, 2) for part in vqk)
        return u, v, q, k

    def _gated(self, x_BTD: Tensor, u: Tensor, o_BHTD: Tensor, key_BT: Tensor | None) -> Tensor:
        o = o_BHTD.transpose(1, 2).reshape(u.shape)
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

    def forward(
        self, x_BTD: Tensor, time_BT: Tensor, valid_BT: Tensor, key_BT: Tensor | None, tried: Tried | None = None
    ) -> Any:
        """Hidden states, shape (B, T, D), and those of the tried items; arguments as ``Model.build`` says."""
        length, scale, bucket_BST = x_BTD.shape[1], math.sqrt(self.width), None
        x = x_BTD * scale + self.position[:length]
        x = dropout(x, self.rate, key_BT, 0) * valid_BT[:, :, None]
        bucket_BTT = batch_buckets(time_BT)
        if tried is not None:
            asked_BS = (tried.place_BS - 1).clamp_(min=0)  # the position before a place has the place's request time
            bucket_BST = bucket_BTT.gather(1, asked_BS[:, :, None].expand(-1, -1, length))
            position = tried.by_item(self.position[tried.place_BS.clamp(max=len(self.position) - 1)])
            start = dropout(tried.x_BCD * scale + position, self.rate, tried.key_BC, 0)
            tried = tried._replace(x_BCD=start)
        for layer in self.layers:
            x, tried = layer(x, bucket_BTT, key_BT, tried, bucket_BST)
        return x if tried is None else (x, tried.x_BCD)
