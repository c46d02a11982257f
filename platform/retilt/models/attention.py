"""HSTU's pointwise attention with relative position and time bias, worked through in tiles that stay in the cache.

For one user and one head (Zhai et al., 2024, eq. 2; no softmax, no 1/sqrt(d) factor, N the constant maximum length)::

    a_ij = SiLU(q_i · k_j + w_position[j - i] + w_time[bucket_ij]) / N   for j <= i, else 0
    o_i  = Σ_j a_ij v_j

Written as plain tensor operations this moves about ten tensors of B × T × T through memory in each direction. Here a
tile is a few users times a block of queries; keys after the block are never touched (the upper triangle costs
nothing), and the backward pass recomputes the tile instead of reading it back. tests/models/test_attention.py holds
it to the plain form. Letters: B users, T positions, H heads, D width of a head, I queries of a block, J keys up to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import silu
from torch.utils.weak import WeakTensorKeyDictionary

from retilt.types import MICROSECONDS

TIME_BUCKETS = 129
QUERIES = 64
"""Queries of a tile."""
SCORES = 1 << 19
"""Scores of a tile at the most: 2 MiB of float32, about one core's second-level cache."""


def time_buckets(request_BT: Tensor, event_BT: Tensor) -> Tensor:
    """Bucket of the time between each request and each event, int32, shape (B, T, T).

    ``clamp(floor(ln(max(1, |t_i - t_j|)) / 0.301), 0, 128)`` in seconds; ``request_BT[b, i]`` is the time of the event
    that position i predicts. Computed a user at a time so that no 64-bit tensor of this size exists.
    """
    users, length = event_BT.shape
    bucket_BTT = torch.empty((users, length, length), dtype=torch.int32, device=event_BT.device)
    step = max(1, SCORES // max(1, length * length))
    for first in range(0, users, step):
        part = slice(first, first + step)
        gap = (request_BT[part, :, None] - event_BT[part, None, :]).to(torch.float32)
        gap.abs_().div_(MICROSECONDS).clamp_(min=1.0).log_().div_(0.301).clamp_(max=TIME_BUCKETS - 1)
        bucket_BTT[part] = gap.to(torch.int32)
    return bucket_BTT


_BUCKETS = WeakTensorKeyDictionary()
"""By the times that they are of, as long as those live."""


def batch_buckets(time_BT: Tensor) -> Tensor:
    """``time_buckets`` of a batch's times (B, T + 1), those of its inputs and of the last target.

    Worked out once for a batch: an online objective and an evaluation read it with several networks.
    """
    if (found := _BUCKETS.get(time_BT)) is None:  # type: ignore[no-untyped-call]
        found = _BUCKETS[time_BT] = time_buckets(time_BT[:, 1:], time_BT[:, :-1])
    return found  # type: ignore[no-any-return]


def _tiles(users: int, heads: int, length: int) -> Iterator[tuple[slice, slice, slice]]:
    """(users, queries, keys) of each tile: query blocks against all keys up to the block's end."""
    for start in range(0, length, QUERIES):
        stop = min(start + QUERIES, length)
        step = max(1, SCORES // (heads * (stop - start) * stop))
        for first in range(0, users, step):
            yield slice(first, min(first + step, users)), slice(start, stop), slice(0, stop)


def _bias(position_IJ: Tensor, w_time: Tensor, bucket_bIJ: Tensor) -> Tensor:
    """w_position[j - i] + w_time[bucket], shape (users, I, J)."""
    found = w_time.index_select(0, bucket_bIJ.reshape(-1)).view(bucket_bIJ.shape)
    return found.add_(position_IJ)


def _scores(q_bHID: Tensor, k_bHJD: Tensor, bias_bIJ: Tensor) -> Tensor:
    users, heads, queries, width = q_bHID.shape
    keys = k_bHJD.shape[2]
    bias = bias_bIJ if heads == 1 else bias_bIJ[:, None].expand(-1, heads, -1, -1).reshape(users * heads, queries, keys)
    q, k = q_bHID.reshape(-1, queries, width), k_bHJD.reshape(-1, keys, width)
    return torch.baddbmm(bias, q, k.transpose(1, 2))


class _PointwiseAttention(torch.autograd.Function):
    """Inputs q, k, v (B, H, T, D), w_position (2N - 1), w_time (129), bucket (B, T, T); output (B, H, T, D)."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, w_position: Tensor, w_time: Tensor, bucket_BTT: Tensor, maximum: int
    ) -> Tensor:
        users, heads, length, width = v.shape
        out = torch.empty_like(v)
        offset = _offsets(length, maximum, q.device)
        for some, rows, keys in _tiles(users, heads, length):
            bias = _bias(w_position[offset[rows, keys]], w_time, bucket_BTT[some, rows, keys])
            a = silu(_scores(q[some, :, rows], k[some, :, keys], bias), inplace=True)
            a[:, :, rows].tril_()
            out[some, :, rows] = torch.bmm(a, v[some, :, keys].reshape(-1, keys.stop, width)).view(
                -1, heads, rows.stop - rows.start, width
            )
        ctx.save_for_backward(q, k, v, w_position, w_time, bucket_BTT)
        ctx.maximum = maximum
        return out.div_(maximum)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, w_position, w_time, bucket_BTT = ctx.saved_tensors
        grad_out = grads[0] / ctx.maximum
        users, heads, length, width = v.shape
        dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
        dposition, dtime = torch.zeros_like(w_position), torch.zeros_like(w_time)
        offset = _offsets(length, ctx.maximum, q.device)
        for some, rows, keys in _tiles(users, heads, length):
            queries, width_q = rows.stop - rows.start, q.shape[3]
            bucket = bucket_BTT[some, rows, keys]
            bias = _bias(w_position[offset[rows, keys]], w_time, bucket)
            q_t, k_t = q[some, :, rows].reshape(-1, queries, width_q), k[some, :, keys].reshape(-1, keys.stop, width_q)
            v_t = v[some, :, keys].reshape(-1, keys.stop, width)
            do = grad_out[some, :, rows].reshape(-1, queries, width)
            s = _scores(q[some, :, rows], k[some, :, keys], bias)
            gate = torch.sigmoid(s)
            a = s * gate
            a[:, :, rows].tril_()
            shape = (-1, heads, keys.stop, width)
            dv[some, :, keys] += torch.bmm(a.transpose(1, 2), do).view(shape)
            # SiLU'(s) = gate + SiLU(s)(1 - gate); a is masked, but so is the result below.
            slope = torch.addcmul(gate, a, gate.neg().add_(1))
            ds = torch.bmm(do, v_t.transpose(1, 2)).mul_(slope)
            ds[:, :, rows].tril_()
            dq[some, :, rows] = torch.bmm(ds, k_t).view(-1, heads, queries, width_q)
            dk[some, :, keys] += torch.bmm(ds.transpose(1, 2), q_t).view(-1, heads, keys.stop, width_q)
            shared = ds if heads == 1 else ds.view(-1, heads, queries, keys.stop).sum(1)
            dtime += torch.bincount(bucket.reshape(-1), weights=shared.reshape(-1), minlength=TIME_BUCKETS).to(s.dtype)
            dposition.index_add_(0, offset[rows, keys].reshape(-1), shared.sum(0).reshape(-1))
        return dq, dk, dv, dposition, dtime, None, None


def _offsets(length: int, maximum: int, device: torch.device) -> Tensor:
    """Index into w_position of each (query, key), int64, shape (T, T): j - i + N - 1."""
    at = torch.arange(length, device=device)
    return at[None, :] - at[:, None] + (maximum - 1)


def pointwise_attention(
    q_BHTD: Tensor, k_BHTD: Tensor, v_BHTD: Tensor, w_position: Tensor, w_time: Tensor, bucket_BTT: Tensor, maximum: int
) -> Tensor:
    """HSTU attention of every user and head, shape (B, H, T, D); ``maximum`` is N (T <= N). Differentiable.

    In the precision of ``w_position``, whatever autocast has made of q, k and v: nothing normalises these sums.
    """
    q, k, v = (each.to(w_position.dtype) for each in (q_BHTD, k_BHTD, v_BHTD))
    with torch.autocast(q.device.type, enabled=False):
        return _PointwiseAttention.apply(q, k, v, w_position, w_time, bucket_BTT, maximum)  # type: ignore[no-any-return, no-untyped-call]
