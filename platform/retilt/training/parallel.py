"""How a process computes: device, threads, and how the ranks share the dense network: DDP or FSDP2.

Both average gradients over ranks, which the loss's ``world / count`` undoes. DDP keeps the network whole on every rank.
FSDP2 keeps a part of each parameter, its gradient and its optimizer state there, and gathers the whole of a layer while
it runs: for a backbone that does not fit, beside a table that is sharded anyway.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from retilt import ranks
from retilt.config import Parallel
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


def wrapper(parallel: Parallel = "ddp") -> Callable[[nn.Module], nn.Module]:
    """What shares a network out among the ranks; nothing where there is one."""
    if ranks.world() == 1:
        return lambda network: network
    # What it would otherwise copy from the first rank before each pass are a head's constants.
    return partial(DistributedDataParallel, broadcast_buffers=False) if parallel == "ddp" else _fully_shard


def _fully_shard(network: nn.Module) -> nn.Module:
    """FSDP2 in place: one group of parameters a layer of the backbone, one for what is beside them, those of a head.

    All are given up after the forward pass, the outermost group too (which FSDP2 would keep): outside of the two passes
    the parameters that the module shows are then always the parts, whether a backward pass follows or the step is left
    out.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(next(network.parameters()).device.type, (ranks.world(),))
    backbone = network.get_submodule("backbone")
    beside = [part for name, head in network.named_children() if name == "head" for part in head.children()]
    for group in (*backbone.get_submodule("layers").children(), backbone, *beside):
        fully_shard(group, mesh=mesh, reshard_after_forward=True)
    return network


def recompute_layers(backbone: nn.Module) -> None:
    """Activation checkpointing, in place: a layer keeps its inputs only and runs again in the backward pass.

    The same bits come out: dropout is a hash, no generator's state.
    """
    for layer in backbone.get_submodule("layers").children():
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)
