"""The process group: sums and gathers over ranks, no-ops where there is one rank. The door to torch.distributed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeGuard, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import HashStore

from retilt.types import ERRORS, RetiltError, TrainingError

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

T = TypeVar("T")


def world() -> int:
    """Number of ranks; 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """This process's rank; 0 without a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def single() -> None:
    """Make a group of this process alone where none exists (TorchRec's sharded modules need one)."""
    if not dist.is_initialized():
        dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)


def sum_(x: Tensor) -> Tensor:
    """Sum ``x`` over ranks in place and return it."""
    if world() > 1:
        dist.all_reduce(x)
    return x


def max_(x: Tensor) -> Tensor:
    """Maximum of ``x`` over ranks in place; returns it."""
    if world() > 1:
        dist.all_reduce(x, op=dist.ReduceOp.MAX)
    return x


def sizes(n: int, device: torch.device) -> list[int]:
    """Every rank's ``n``."""
    if world() == 1:
        return [n]
    mine = torch.tensor([n], dtype=torch.int64, device=device)
    found = [torch.empty_like(mine) for _ in range(world())]
    dist.all_gather(found, mine)
    return [int(each) for each in found]


def gather(x: Tensor, lengths: list[int]) -> Tensor:
    """Concatenate the ranks' tensors along the first axis; ``lengths`` are their first sizes (see ``sizes``).

    Shares are padded to the longest: gloo and NCCL gather equal shapes only.
    """
    if world() == 1:
        return x
    longest = max(lengths)
    padded = torch.zeros((longest, *x.shape[1:]), dtype=x.dtype, device=x.device)
    padded[: len(x)] = x
    found = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(found, padded)
    return torch.cat([part[:n] for part, n in zip(found, lengths, strict=True)])


def is_spread(x: Tensor) -> TypeGuard[DTensor]:
    """Whether each rank holds a part of ``x`` only, as of a parameter under FSDP."""
    from torch.distributed.tensor import DTensor  # torch's optimizers load it too; a job without one need not wait

    return isinstance(x, DTensor)


def part(x: Tensor) -> Tensor:
    """What this rank holds of ``x``: the live part of a spread tensor, else ``x`` itself."""
    return x.to_local() if is_spread(x) else x


def whole(x: Tensor) -> Tensor:
    """All of a spread tensor, gathered, else ``x`` itself. Collective where ``x`` is spread."""
    return x.full_tensor() if is_spread(x) else x


def spread_like(x: Tensor, other: Tensor) -> Tensor:
    """``x``, which every rank has whole, in the parts in which ``other`` is spread, if it is; no communication."""
    from torch.distributed.tensor import distribute_tensor

    if not is_spread(other):
        return x
    return distribute_tensor(x.to(other.device), other.device_mesh, other.placements, src_data_rank=None)


def broadcast_object(value: T) -> T:
    """Rank 0's value on every rank: JSON-like, or sums on the CPU."""
    if world() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def gather_object(value: T) -> list[T]:
    """Every rank's JSON-like value, on every rank."""
    if world() == 1:
        return [value]
    found: list[T] = [value] * world()
    dist.all_gather_object(found, value)
    return found


def barrier() -> None:
    """Wait for every rank."""
    if world() > 1:
        dist.barrier()


def together(action: Callable[[], T]) -> T:
    """``action``'s value where it succeeds on every rank; else the first rank's error, on every rank alike.

    Without this, one rank's bad shard would leave the others waiting in a collective; so ``action`` itself must hold
    none between a step that may fail on one rank alone and its end.
    """
    try:
        value, problem = action(), None
    except RetiltError as error:
        value, problem = None, error
    found = [each for each in gather_object((type(problem).__name__, str(problem)) if problem else None) if each]
    if found:
        name, message = found[0]
        raised = ERRORS.get(name, TrainingError)(message)
        raised.on_all_ranks = True
        raise raised
    return cast(T, value)
