"""Items that are tried after histories: one further position for each, which no other position sees.

The position of an item sees the keys and values of the events before its place, which the history's own forward pass
has made, and itself as the last key. So a sequence that ended in the item would have given it the same state, and
trying K items costs K positions instead of K sequences. Layout: a user's places are S slots (padded to the most of any
user in the batch), each with K items.

Letters: B users, T inputs of a history, S slots of a user, K items of a place, C = S · K, P places in all (row-major),
H heads, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import silu
from torch.utils.checkpoint import checkpoint

SCORES = 1 << 19
"""Scores of a tile: 2 MiB of float32, as in attention.py."""


class Tried(NamedTuple):
    """What a backbone is given to try."""

    x_BCD: Tensor
    """Embeddings of the items; 0 in empty slots."""
    place_BS: Tensor
    """int64: how many events are before each place (its own place in the sequence of events); 0 in empty slots."""
    key_BC: Tensor | None
    """Seeds of dropout (counter.py); None: no dropout."""

    @property
    def items(self) -> int:
        """K."""
        return self.x_BCD.shape[1] // self.place_BS.shape[1]

    def by_item(self, value_BS: Tensor) -> Tensor:
        """A slot's value for each of its items, (B, S, …) → (B, C, …)."""
        return value_BS.repeat_interleave(self.items, dim=1)


class Slots:
    """Where the places of a batch are in its slots."""

    def __init__(self, user_P: Tensor, users: int) -> None:
        """``user_P`` is the ascending row of each place."""
        count_B = user_P.bincount(minlength=users)
        first_B = count_B.cumsum(0) - count_B
        self.user_P = user_P
        self.slot_P = torch.arange(len(user_P), device=user_P.device) - first_B[user_P]
        self.shape = users, max(1, int(count_B.max())) if users else 1

    def spread(self, value_P: Tensor) -> Tensor:
        """(P, …) → (B, S, …), 0 in empty slots."""
        empty = value_P.new_zeros((*self.shape, *value_P.shape[1:]))
        return empty.index_put((self.user_P, self.slot_P), value_P)

    def collect(self, value_BS: Tensor) -> Tensor:
        """(B, S, …) → (P, …)."""
        return value_BS[self.user_P, self.slot_P]


def tiled(tile: Callable[..., Tensor], parts: Sequence[Tensor], scores: int) -> Tensor:
    """``tile`` of some users after the other, joined; ``scores`` is how many a user has, and of ``parts`` each has B.

    The backward pass works a tile out again, so no more than one tile's scores exist at any time.
    """
    step = max(1, SCORES // max(1, scores))
    run: Callable[..., Any] = tile
    if torch.is_grad_enabled():
        run = partial(checkpoint, tile, use_reentrant=False, preserve_rng_state=False)
    pieces = zip(*(torch.split(part, step) for part in parts), strict=True)
    return torch.cat([run(*piece) for piece in pieces])


def before(place_BS: Tensor, length: int) -> Tensor:
    """Which of ``length`` inputs are events before each place, bool (B, S, T)."""
    return torch.arange(length, device=place_BS.device) < place_BS[:, :, None]


def pointwise(
    own: tuple[Tensor, Tensor, Tensor],
    history: tuple[Tensor, Tensor],
    w_position: Tensor,
    w_time: Tensor,
    place_BS: Tensor,
    bucket_BST: Tensor,
    maximum: int,
) -> Tensor:
    """HSTU's attention (attention.py) of tried items, (B, H, C, D); differentiable.

    Args:
        own: q, k and v of the items, (B, H, C, D).
        history: k and v of the inputs, (B, H, T, D).
        w_position: (2N − 1,), by key's place less query's; a place N, after a full window, counts as N − 1 from its
            first event.
        w_time: by bucket.
        place_BS, bucket_BST: events before each place; bucket of the time from each input to the place's request.
        maximum: N.
    """
    q, k, v = (each.to(w_position.dtype) for each in own)
    keys, values = (each.to(w_position.dtype) for each in history)
    heads, length = keys.shape[1:3]
    place_T = torch.arange(length + 1, device=q.device)
    offset = place_T[None, :-1] - place_T[:, None] + (maximum - 1)
    position = w_position[offset.clamp_(0, 2 * maximum - 2)]
    own_bias = w_position[maximum - 1] + w_time[0]

    def tile(q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, place: Tensor, bucket: Tensor) -> Tensor:
        with torch.autocast(q.device.type, enabled=False):
            per_item = len(place), heads, place.shape[1], q.shape[2] // place.shape[1], length
            found = w_time.index_select(0, bucket.reshape(-1)).view(bucket.shape)
            bias = position.index_select(0, place.reshape(-1)).view(bucket.shape) + found
            scores = (q @ keys.transpose(2, 3)).view(per_item).add_(bias[:, None, :, None])
            a = silu(scores).mul_(before(place, length)[:, None, :, None])
            itself = silu((q * k).sum(3, keepdim=True) + own_bias)
            return (a.flatten(2, 3) @ values + itself * v) / maximum

    parts = (q, k, v, keys, values, place_BS, bucket_BST)
    return tiled(tile, parts, heads * q.shape[2] * length)


def softmax(own: tuple[Tensor, Tensor, Tensor], history: tuple[Tensor, Tensor], place_BS: Tensor) -> Tensor:
    """Scaled dot-product attention of tried items, (B, H, C, D); arguments as ``pointwise`` has them. Differentiable.

    Source: Vaswani et al. 2017, equation 1, over the events before the place and the item itself.
    """
    heads, length, width = history[0].shape[1:]

    def tile(q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, place: Tensor) -> Tensor:
        per_item = len(place), heads, place.shape[1], q.shape[2] // place.shape[1], length
        q = q / width**0.5
        mask = q.new_zeros(()).masked_fill(~before(place, length), -torch.inf)
        scores = (q @ keys.transpose(2, 3)).view(per_item).add_(mask[:, None, :, None]).flatten(2, 3)
        itself = (q * k).sum(3, keepdim=True)
        # The item's own score stays apart: joining it to the others would copy them all.
        top = torch.maximum(scores.amax(3, keepdim=True), itself).detach()
        p, own = scores.sub_(top).exp_(), (itself - top).exp()
        return (p @ values + own * v) / (p.sum(3, keepdim=True) + own)

    return tiled(tile, (*own, *history, place_BS), heads * own[0].shape[2] * length)
