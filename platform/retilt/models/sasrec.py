"""SASRec: causal softmax attention and a feed-forward block over the history (Kang and McAuley, 2018, section III).

One layer, pre-norm as the paper's equation g'(x) = x + Dropout(g(LayerNorm(x))) has it::

    y = x + Dropout(Attention(LayerNorm(x)))
    z = y + Dropout(act(LayerNorm(y) W1 + b1) W2 + b2)

with learned positions below the first layer. The authors' code differs from their paper (it normalises queries only and
adds the attention to those); plain pre-norm, which is here, was found better (pmixer/SASRec.pytorch, issue 47). From
that code come the LayerNorm after the last layer and the factor sqrt(D) on embeddings; from Meta's SASRec several heads
with an output projection, xavier-normal weights and, in place of a binary loss with one negative, the softmax that all
backbones share. Times are not used.

Left out: dropout of the attention weights, which the code has and the equation has not. To be equal on any number of
workers its mask would have to be a hash too (``models/dropout.py``), so a tensor of users x heads x positions x
positions, which fused attention exists to avoid. Nor is there dropout inside the feed-forward block.

Shapes: B users, T positions (inputs), N maximum length, D width, H heads.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import gelu, relu, scaled_dot_product_attention

from retilt.models import trying
from retilt.models.backbone import Model
from retilt.models.dropout import dropout
from retilt.models.trying import Tried
from retilt.types import InputError

EPSILON = 1e-8
"""Of the LayerNorms, as in the authors' code."""


class SASRec(Model):
    """Sizes of a SASRec; the defaults are Meta's MovieLens-1M setting."""

    name: Literal["sasrec"] = "sasrec"
    feedforward_width: int = Field(50, ge=1, le=16384)
    """Width inside a layer's feed-forward block."""
    activation: Literal["relu", "gelu"] = "relu"
    """Activation inside the feed-forward block."""

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> SASRec:
        if self.width % self.heads:
            raise InputError(f"width = {self.width} cannot be divided among heads = {self.heads}; make it a multiple")
        return self

    @property
    def kept_per_position(self) -> int:
        inner = self.feedforward_width * (1 if self.activation == "relu" else 2)
        return 2 * self.width + self.blocks * (10 * self.width + inner + self.heads + 4)

    def build(self, rate: float) -> SASRecBackbone:
        return SASRecBackbone(self, rate)


class SASRecLayer(nn.Module):
    """Causal self-attention, then a feed-forward block, each pre-norm and residual."""

    def __init__(self, settings: SASRec, rate: float, place: int) -> None:
        """``place`` and ``place`` + 1 are the layer's places of dropout."""
        super().__init__()
        width = settings.width
        self.heads, self.rate, self.place = settings.heads, rate, place
        self.activation = relu if settings.activation == "relu" else gelu
        self.attention_norm = nn.LayerNorm(width, eps=EPSILON)
        self.qkv = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)
        self.feedforward_norm = nn.LayerNorm(width, eps=EPSILON)
        self.inner = nn.Linear(width, settings.feedforward_width)
        self.outer = nn.Linear(settings.feedforward_width, width)
        for linear in (self.qkv, self.output, self.inner, self.outer):
            nn.init.xavier_normal_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, x_BTD: Tensor, key_BT: Tensor | None, tried: Tried | None) -> tuple[Tensor, Tried | None]:
        """The next residual stream, shape (B, T, D), and that of the tried items."""
        # Padding is on the right: a causal mask alone keeps it from every position that is none.
        q, k, v = self._parts(x_BTD)
        out = self._fed(x_BTD, scaled_dot_product_attention(q, k, v, is_causal=True), key_BT)
        if tried is None:
            return out, None
        o_BHCD = trying.softmax(self._parts(tried.x_BCD), (k, v), tried.place_BS)
        return out, tried._replace(x_BCD=self._fed(tried.x_BCD, o_BHCD, tried.key_BC))

    def _parts(self, x_BTD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v, (B, H, T, D)."""
        users, length, width = x_BTD.shape
        q, k, v = (
            part.view(users, length, self.heads, width // self.heads).transpose(1, 2)
            for part in self.qkv(self.attention_norm(x_BTD)).chunk(3, dim=2)
        )
        return q, k, v

    def _fed(self, x_BTD: Tensor, o_BHTD: Tensor, key_BT: Tensor | None) -> Tensor:
        attended = self.output(o_BHTD.transpose(1, 2).reshape(x_BTD.shape))
        x = x_BTD + dropout(attended, self.rate, key_BT, self.place)
        inner = self.activation(self.inner(self.feedforward_norm(x)))
        out: Tensor = x + dropout(self.outer(inner), self.rate, key_BT, self.place + 1)
        return out


class SASRecBackbone(nn.Module):
    """Item embeddings of a history → one hidden state per position; L2 normalisation is the policy's."""

    def __init__(self, settings: SASRec, rate: float) -> None:
        super().__init__()
        self.width, self.rate = settings.width, rate
        self.position = nn.Parameter(torch.empty(settings.max_length, settings.width))
        nn.init.xavier_normal_(self.position)
        self.layers = nn.ModuleList(SASRecLayer(settings, rate, 1 + 2 * i) for i in range(settings.blocks))
        self.norm = nn.LayerNorm(settings.width, eps=EPSILON)

    def forward(
        self, x_BTD: Tensor, time_BT: Tensor, valid_BT: Tensor, key_BT: Tensor | None, tried: Tried | None = None
    ) -> Any:
        """Hidden states, shape (B, T, D), and those of the tried items; as ``Model.build`` says, times unused."""
        scale = math.sqrt(self.width)
        x = x_BTD * scale + self.position[: x_BTD.shape[1]]
        x = dropout(x, self.rate, key_BT, 0) * valid_BT[:, :, None]
        if tried is not None:
            position = tried.by_item(self.position[tried.place_BS.clamp(max=len(self.position) - 1)])
            start = dropout(tried.x_BCD * scale + position, self.rate, tried.key_BC, 0)
            tried = tried._replace(x_BCD=start)
        for layer in self.layers:
            x, tried = layer(x, key_BT, tried)
        return self.norm(x) if tried is None else (self.norm(x), self.norm(tried.x_BCD))
