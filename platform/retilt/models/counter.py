"""Random numbers that are a hash of what they are for, and of nothing else.

torch's generators give numbers by the order of draws, so the same example would get others on another number of
workers. Hash: two rounds of multiply and xor-shift on 32 bits ("lowbias32" constants, Wellons 2018).
"""

from __future__ import annotations

import torch
from torch import Tensor


def signed(constant: int) -> int:
    """A constant of 32 bits as int32 has it."""
    return constant - (1 << 32) if constant >= 1 << 31 else constant


def mix(x: Tensor) -> Tensor:
    """Scramble int32 values in place, a bijection. torch's right shift is arithmetic, hence the masks."""
    x.bitwise_xor_((x >> 16).bitwise_and_(0xFFFF)).mul_(signed(0x7FEB352D))
    x.bitwise_xor_((x >> 15).bitwise_and_(0x1FFFF)).mul_(signed(0x846CA68B))
    return x.bitwise_xor_((x >> 16).bitwise_and_(0xFFFF))


def keys(example_B: Tensor, length: int, seed: int, step: int) -> Tensor:
    """One int32 key per example and position, shape (B, T)."""
    start = (seed * 0x9E3779B1 + step * 0x85EBCA77) & 0xFFFFFFFF
    example = mix((example_B & 0x7FFFFFFF).to(torch.int32) ^ signed(start))
    position = torch.arange(length, device=example_B.device, dtype=torch.int32).mul_(signed(0xC2B2AE3D))
    return mix(example[:, None] ^ position)


def words(key_P: Tensor, count: int) -> Tensor:
    """``count`` numbers of 62 random bits for each int32 key, int64 (P, count)."""
    number = torch.arange(count, device=key_P.device, dtype=torch.int32)
    halves = []
    for salt in (0x165667B1, 0x5BD1E995):
        half = mix(key_P[:, None] ^ mix((number + signed(salt)).mul_(signed(0x27D4EB2F))))
        halves.append(half.long().bitwise_and_(0x7FFFFFFF))
    return (halves[0] << 31) | halves[1]
