"""Dropout whose mask depends on (seed, step, place, example, position, channel) and on nothing else.

Each unit's random number is a hash of what the unit *is* (counter.py): any number of workers, and a resumed run, drop
the same units. It is also faster on CPU than torch's generator (docs/experiments.md).
"""

from __future__ import annotations

import torch
from torch import Tensor

from retilt.models.counter import mix, signed


def dropout(x_BTD: Tensor, rate: float, key_BT: Tensor | None, place: int) -> Tensor:
    """Zero each unit with probability ``rate`` and scale the others by 1 / (1 - rate); no-op without ``counter.keys``.

    ``place`` tells apart the places of a network that drop units of the same example and position.
    """
    if key_BT is None or rate == 0:
        return x_BTD
    channel = torch.arange(x_BTD.shape[2], device=x_BTD.device, dtype=torch.int32).add_(place << 16)
    bits = mix(key_BT[:, :, None] ^ mix(channel.mul_(signed(0x27D4EB2F))))
    kept = bits >= int(rate * (1 << 32)) - (1 << 31)
    return x_BTD * kept.to(x_BTD.dtype).mul_(1 / (1 - rate))
