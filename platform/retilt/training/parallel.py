"""How a process computes: device, threads, and the wrapping of the dense network in DDP."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from retilt import ranks
from retilt.types import InputError


def choose_device(device: str) -> torch.device:
    """The device named by the configuration; ``auto`` is CUDA where there is one."""
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("device = 'cuda', but torch sees no CUDA device here; use device=cpu or device=auto")
    return torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")


def use_threads(threads: int) -> None:
    """Threads of this process's tensor operations."""
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


def wrapper() -> Callable[[nn.Module], nn.Module]:
    """DDP where there are several ranks; gradients are then averages, which the loss's ``world / count`` undoes."""
    if ranks.world() == 1:
        return lambda network: network
    return DistributedDataParallel
