"""Adam as Meta's public HSTU experiments set it; its state is there at once, so a checkpoint can be copied in."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

BETAS = (0.9, 0.98)


def allocated_adam(parameters: Sequence[nn.Parameter], learning_rate: float) -> torch.optim.Adam:
    """Fused Adam over ``parameters``; each has ``step``, ``exp_avg`` and ``exp_avg_sq`` from the start."""
    adam = torch.optim.Adam(parameters, lr=learning_rate, betas=BETAS, fused=True)
    for parameter in parameters:
        adam.state[parameter] = {
            "step": torch.zeros((), device=parameter.device),
            "exp_avg": torch.zeros_like(parameter.data),
            "exp_avg_sq": torch.zeros_like(parameter.data),
        }
    return adam
