"""Dropout whose mask depends on (seed, step, place, example, position, channel) and on nothing else.

torch's generator gives a mask by the order of draws, so the same example gets another mask on another number of
workers; it is also slower on CPU (docs/experiments.md). Here each unit's random number is
a hash of what the unit *is*: any number of workers, and a resumed run, drop the same units. Hash: two rounds of
multiply and xor-shift on 32 bits ("lowbias32" constants, Wellons 2018).
"""

from __future__ import annotations

import torch
from torch import Tensor


def _signed(constant: int) -> int:
    return constant - (1 << 32) if constant >= 1 << 31 else constant


def _mix(x: Tensor) -> Tensor:
    """Scramble int32 values in place, a bijection. torch's right shift is arithmetic, hence the masks."""
    x.bitwise_xor_((x >> 16).bitwise_and_(0xFFFF)).mul_(_signed(0x7FEB352D))
    x.bitwise_xor_((x >> 15).bitwise_and_(0x1FFFF)).mul_(_signed(0x846CA68B))
    return x.bitwise_xor_((x >> 16).bitwise_and_(0xFFFF))


def keys(example_B: Tensor, length: int, seed: int, step: int) -> Tensor:
    """One int32 key per example and position, shape (B, T); ``dropout`` derives its masks from it."""
    start = (seed * 0x9E3779B1 + step * 0x85EBCA77) & 0xFFFFFFFF
    example = _mix((example_B & 0x7FFFFFFF).to(torch.int32) ^ _signed(start))
    position = torch.arange(length, device=example_B.device, dtype=torch.int32).mul_(_signed(0xC2B2AE3D))
    return _mix(example[:, None] ^ position)


def dropout(x_BTD: Tensor, rate: float, key_BT: Tensor | None, place: int) -> Tensor:
    """Zero each unit with probability ``rate`` and scale the others by 1 / (1 - rate); no-op without a key.

    ``place`` tells apart the places of a network that drop units of the same example and position.
    """
    if key_BT is None or rate == 0:
        return x_BTD
    channel = torch.arange(x_BTD.shape[2], device=x_BTD.device, dtype=torch.int32).add_(place << 16)
    bits = _mix(key_BT[:, :, None] ^ _mix(channel.mul_(_signed(0x27D4EB2F))))
    kept = bits >= int(rate * (1 << 32)) - (1 << 31)
    return x_BTD * kept.to(x_BTD.dtype).mul_(1 / (1 - rate))
