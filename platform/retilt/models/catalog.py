"""The item table through one door: replicated on every rank, or sharded by rows with TorchRec (imported here only).

Row 0 is padding, items are rows 1 … V. Both placements keep the same values from the same seed, take the same steps
(tests/models/test_catalog.py) and are saved by ranges of rows, so that any number of workers loads either.

FBGEMM wants rows of a multiple of four numbers: narrower widths are stored with zero columns at the end, which get no
gradient. Row-wise Adagrad divides by the stored width, in both placements.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, Literal, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import embedding

from retilt import ranks
from retilt.models.optimizer import allocated_adam
from retilt.types import InputError

BLOCK = 4096
"""Rows that are initialised from one seed, (seed, block): the values do not depend on the number of workers."""
EPSILON = 1e-8

TableOptimizer = Literal["adam", "row_wise_adagrad"]


class ItemTable(Protocol):
    """Embeddings of the catalogue. ``first`` … ``last`` (exclusive) are the rows that this rank's softmax covers."""

    items: int
    width: int
    first: int
    last: int
    sharded: bool

    def state(self) -> dict[str, Tensor]:
        """Live tensors of rows first … last: ``weight`` (R, stored width) and the optimizer's; copyable in place."""
        ...

    def step(self) -> None:
        """Take the optimizer step where the backward pass has not taken it already."""
        ...

    def clear(self) -> None:
        """Forget the gradients."""
        ...


def stored_width(width: int) -> int:
    """Numbers stored per row."""
    return -(-width // 4) * 4


def initial_rows(first: int, last: int, width: int, seed: int) -> Tensor:
    """Rows first … last (exclusive) as all placements start with them: truncated normal, SD .02, (R, stored)."""
    rows = torch.zeros(last - first, stored_width(width))
    for block in range(first // BLOCK, -(-last // BLOCK)):
        generator = torch.Generator().manual_seed((seed * 1_000_003 + block) & 0x7FFFFFFFFFFFFFFF)
        values = torch.empty(BLOCK, width)
        nn.init.trunc_normal_(values, std=0.02, a=-0.04, b=0.04, generator=generator)
        start, stop = max(first, block * BLOCK), min(last, (block + 1) * BLOCK)
        rows[start - first : stop - first, :width] = values[start - block * BLOCK : stop - block * BLOCK]
    if first == 0 and last > 0:
        rows[0] = 0.0
    return rows


class ReplicatedTable(nn.Module):
    """The whole table on every rank, a parameter of the network that DDP wraps; dense Adam or row-wise Adagrad."""

    sharded = False

    def __init__(self, items: int, width: int, seed: int, optimizer: TableOptimizer, learning_rate: float) -> None:
        super().__init__()
        self.items, self.width = items, width
        self.first, self.last = 0, items + 1
        self.weight = nn.Parameter(initial_rows(0, items + 1, width, seed))
        self._optimizer = _dense_optimizer(self.weight, optimizer, learning_rate)

    def forward(self, item_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings of the histories (B, T, D) and the rows of the catalogue (V + 1, D)."""
        rows = self.weight[:, : self.width]
        return embedding(item_BT, rows), rows

    def state(self) -> dict[str, Tensor]:
        """Live tensors: weight, and ``exp_avg``, ``exp_avg_sq``, ``step`` (Adam) or ``sum`` (row-wise Adagrad)."""
        state = self._optimizer.state[self.weight]
        return {
            "weight": self.weight.data,
            **{name: _flat(value) for name, value in state.items() if torch.is_tensor(value)},
        }

    def step(self) -> None:
        """One dense step."""
        self._optimizer.step()

    def clear(self) -> None:
        """Forget the gradients."""
        self._optimizer.zero_grad(set_to_none=True)


def _dense_optimizer(weight: nn.Parameter, name: TableOptimizer, learning_rate: float) -> torch.optim.Optimizer:
    """The optimizer with its state allocated now, so that a checkpoint can be copied into it."""
    if name == "adam":
        return allocated_adam([weight], learning_rate)
    from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

    optimizer: torch.optim.Optimizer = RowWiseAdagrad([weight], lr=learning_rate, eps=EPSILON)
    return optimizer


def _flat(value: Tensor) -> Tensor:
    """Row-wise Adagrad's (R, 1) accumulator as (R,), the form in which FBGEMM keeps it; a view."""
    return value.view(-1) if value.ndim == 2 and value.shape[1] == 1 else value


class ShardedTable:
    """Rows spread over the ranks in equal blocks by TorchRec; row-wise Adagrad runs inside the backward pass.

    One EmbeddingCollection, two features: ``history`` (looked up across ranks) and ``candidates``, for which each rank
    asks for exactly the rows it owns. The lookup is differentiable and both gradients meet in one fused update.
    """

    sharded = True

    def __init__(self, items: int, width: int, seed: int, learning_rate: float, device: torch.device) -> None:
        ranks.single()
        self.items, self.width = items, width
        self._module = _sharded_collection(items + 1, stored_width(width), learning_rate, device)
        self._weight = dict(self._module.named_parameters())["items.embeddings.item.weight"].data
        block = -(-(items + 1) // ranks.world())
        self.first = min(ranks.rank() * block, items + 1)
        self.last = self.first + len(self._weight)
        self._weight.copy_(initial_rows(self.first, self.last, width, seed))
        self._own = torch.arange(self.first, self.last, device=device)

    def lookup(self, item_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings of this rank's histories (B, T, D) and the rows it owns (R, D). Collective."""
        from torchrec import KeyedJaggedTensor

        users, length = item_BT.shape
        features = KeyedJaggedTensor(
            keys=["history", "candidates"],
            values=torch.cat([item_BT.reshape(-1), self._own]),
            lengths=torch.tensor([users * length, len(self._own)], device=item_BT.device),
        )
        found = self._module(features)
        history = found["history"].values()[:, : self.width].view(users, length, self.width)
        return history, found["candidates"].values()[:, : self.width]

    def state(self) -> dict[str, Tensor]:
        """Live tensors of the rows this rank owns: ``weight`` and ``sum`` (row-wise Adagrad's accumulator)."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TorchRec builds its state through a deprecated ShardedTensor constructor
            state = self._module.fused_optimizer.state_dict()["state"]["items.embeddings.item.weight"]
        return {"weight": self._weight, "sum": state["item.momentum1"].local_shards()[0].tensor}

    def step(self) -> None:
        """Nothing: the backward pass has updated the rows."""

    def clear(self) -> None:
        """Nothing: no gradient is kept."""


def _sharded_collection(rows: int, width: int, learning_rate: float, device: torch.device) -> Any:
    """DistributedModelParallel around one row-wise sharded, fused EmbeddingCollection."""
    from torchrec import EmbeddingCollection, EmbeddingConfig
    from torchrec.distributed import DistributedModelParallel, ShardingEnv
    from torchrec.distributed.embedding import EmbeddingCollectionSharder
    from torchrec.distributed.sharding_plan import construct_module_sharding_plan, row_wise
    from torchrec.distributed.types import ShardingPlan
    from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
    from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

    if rows < ranks.world() ** 2:
        raise InputError(
            f"a table of {rows - 1} items cannot be sharded over {ranks.world()} workers; use fewer workers"
        )
    config = EmbeddingConfig(
        name="item", num_embeddings=rows, embedding_dim=width, feature_names=["history", "candidates"]
    )
    holder = _Holder(EmbeddingCollection(tables=[config], device=torch.device("meta")))
    apply_optimizer_in_backward(RowWiseAdagrad, holder.items.parameters(), {"lr": learning_rate, "eps": EPSILON})
    sharder: Any = EmbeddingCollectionSharder()
    plan = construct_module_sharding_plan(
        holder.items,
        per_param_sharding={"item": row_wise(compute_kernel="fused")},
        sharder=sharder,
        local_size=ranks.world(),
        world_size=ranks.world(),
        device_type=device.type,
    )
    group = dist.group.WORLD
    assert group is not None
    return DistributedModelParallel(
        holder,
        env=ShardingEnv.from_process_group(group),
        device=device,
        plan=ShardingPlan(plan={"items": plan}),
        sharders=[sharder],
        init_data_parallel=False,
    )


class _Holder(nn.Module):
    """DistributedModelParallel shards modules *inside* the one it wraps, not that one itself."""

    def __init__(self, items: nn.Module) -> None:
        super().__init__()
        self.items = items

    def forward(self, features: Any) -> Mapping[str, Any]:
        return self.items(features)  # type: ignore[no-any-return]
