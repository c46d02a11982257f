"""The item table through one door: replicated on every rank, or sharded by rows with TorchRec (imported here only).

Row 0 is padding, items are rows 1 … V. Both placements keep the same values from the same seed, take the same steps
(tests/models/test_catalog.py) and are saved by ranges of rows, so that any number of workers loads either.

FBGEMM wants rows of a multiple of four numbers: narrower widths are stored with zero columns at the end, which get no
gradient. Row-wise Adagrad divides by the stored width, in both placements.
"""

from __future__ import annotations

import math
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


@torch.no_grad()
def fill_initial_rows(rows_RS: Tensor, first: int, width: int, seed: int) -> None:
    """Fill rows first, first + 1, … of a table (R, stored width) in place: truncated normal, SD .02, row 0 zero."""
    last = first + len(rows_RS)
    rows_RS.zero_()
    values = torch.empty(BLOCK, width)
    for block in range(first // BLOCK, -(-last // BLOCK)):
        generator = torch.Generator().manual_seed((seed * 1_000_003 + block) & 0x7FFFFFFFFFFFFFFF)
        nn.init.trunc_normal_(values, std=0.02, a=-0.04, b=0.04, generator=generator)
        start, stop = max(first, block * BLOCK), min(last, (block + 1) * BLOCK)
        rows_RS[start - first : stop - first, :width] = values[start - block * BLOCK : stop - block * BLOCK]
    if first == 0 and last > 0:
        rows_RS[0] = 0.0


class ReplicatedTable(nn.Module):
    """The whole table on every rank, a parameter of the network that DDP wraps; dense Adam or row-wise Adagrad."""

    sharded = False

    def __init__(self, items: int, width: int, seed: int, optimizer: TableOptimizer, learning_rate: float) -> None:
        super().__init__()
        self.items, self.width = items, width
        self.first, self.last = 0, items + 1
        self.weight = nn.Parameter(torch.empty(items + 1, stored_width(width)))
        fill_initial_rows(self.weight, 0, width, seed)
        self._optimizer = _dense_optimizer(self.weight, optimizer, learning_rate)

    def forward(self, item_M: Tensor) -> Tensor:
        """Embeddings of items (M, D)."""
        return embedding(item_M, self.weight)[:, : self.width]

    @property
    def rows(self) -> Tensor:
        """The live rows first … last (V + 1, stored width)."""
        return self.weight

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

    One EmbeddingCollection with one feature. A lookup asks the ranks for distinct items. Where the softmax needs the
    rows that this rank owns as well, it gets the table itself: between TorchRec's input and output stage the rows asked
    for are read and, in the backward pass, all rows updated by ``_WholeShard``. The gradient is then all that exists of
    a shard's size beside the table. (FBGEMM's own update of a million rows on CPU takes two shards more, and a second.)
    """

    sharded = True

    def __init__(self, items: int, width: int, seed: int, learning_rate: float, device: torch.device) -> None:
        ranks.single()
        self.items, self.width = items, width
        self._learning_rate, self._device = learning_rate, device
        self._parallel = _sharded_collection(items + 1, stored_width(width), learning_rate, device)
        self._collection = self._parallel.module.items
        self._weight = dict(self._parallel.named_parameters())["items.embeddings.item.weight"].data
        block = -(-(items + 1) // ranks.world())
        self.first = min(ranks.rank() * block, items + 1)
        self.last = self.first + len(self._weight)
        fill_initial_rows(self._weight, self.first, width, seed)
        self._root = torch.zeros((), device=device, requires_grad=True)
        self._state = {"weight": self._weight, "sum": self._accumulator()}

    @property
    def rows(self) -> Tensor:
        """The live rows that this rank owns (R, stored width), outside any graph."""
        weight: Tensor = self._state["weight"]
        return weight

    def lookup(self, item_M: Tensor, *, own: bool) -> tuple[Tensor, ...]:
        """Embeddings of items (M, D) and, if asked for, the rows this rank owns (R, stored width). Collective."""
        from torchrec import KeyedJaggedTensor

        distinct_U, place_M = torch.unique(item_M, return_inverse=True)
        features = KeyedJaggedTensor(["item"], distinct_U, lengths=torch.tensor([len(distinct_U)], device=self._device))
        context = self._collection.create_context()
        asked = self._collection.input_dist(context, features).wait().wait()
        rows: list[Tensor] = []
        if own:
            context.sharding_contexts[0].lengths_after_input_dist = asked[0].lengths().view(-1, asked[0].stride())
            answers, *rows = _WholeShard.apply(self._root, asked[0].values(), self)  # type: ignore[no-untyped-call]
        else:
            (answers,) = self._collection.compute(context, asked)
        distinct_US = self._collection.output_dist(context, [answers]).wait()["item"].values()
        return embedding(place_M, distinct_US)[:, : self.width], *rows

    @torch.no_grad()
    def update(self, grad_RS: Tensor) -> None:
        """One step of row-wise Adagrad on every row of this rank, as FBGEMM takes it; block by block."""
        sum_R = self._state["sum"]
        for start in range(0, len(grad_RS), BLOCK):
            some = slice(start, start + BLOCK)
            sum_R[some].add_(grad_RS[some].square().mean(1))
            self._weight[some].addcdiv_(
                grad_RS[some], sum_R[some, None].sqrt().add_(EPSILON), value=-self._learning_rate
            )

    def state(self) -> dict[str, Tensor]:
        """Live tensors of the rows this rank owns: ``weight`` and ``sum`` (row-wise Adagrad's accumulator)."""
        return dict(self._state)

    def _accumulator(self) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TorchRec builds its state through a deprecated ShardedTensor constructor
            state = self._parallel.fused_optimizer.state_dict()["state"]["items.embeddings.item.weight"]
        accumulator: Tensor = state["item.momentum1"].local_shards()[0].tensor
        return accumulator

    def step(self) -> None:
        """Nothing: the backward pass has updated the rows."""

    def clear(self) -> None:
        """Nothing: no gradient is kept."""


def require_rows(rows: int, workers: int) -> None:
    """Raise InputError where a table has too few rows: TorchRec's equal blocks could leave the last workers none."""
    if rows < workers**2:
        raise InputError(
            f"workers = {workers}, but a table of {rows - 1:,} items cannot be sharded over more than "
            f"{math.isqrt(rows)}; use at most that many, or table=replicated"
        )


def plan_table(rows: int, width: int, workers: int, device: str, memory: float | None = None) -> Any:
    """TorchRec's ShardingPlan of a table (rows, stored width), or None; needs no process group and allocates nothing.

    The planner decides which worker holds which block of rows, and whether these and their optimizer's state fit into
    ``memory``, the bytes that each worker has left for them (None: any); if not, there is no plan. The kind of sharding
    and the kernel are given to it: each worker's softmax works through whole rows of its own (row-wise), and only the
    fused kernel, which updates in the backward pass, works for an EmbeddingCollection on CPU as on CUDA.

    Raises:
        InputError: too many workers for so few rows.
    """
    from torchrec.distributed.embedding import EmbeddingCollectionSharder
    from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints
    from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
    from torchrec.distributed.planner.types import KernelConfig, PlannerError, TopologyFactory, TrainerConfig

    require_rows(rows, workers)
    room = 1 << 60 if memory is None else max(0, int(memory))
    topology = TopologyFactory.create_topology(
        TrainerConfig(world_size=workers, local_world_size=workers, hbm_cap_bytes=room, ddr_cap_bytes=room),
        kernel_config=KernelConfig(compute_device=device),
    )
    sharder: Any = EmbeddingCollectionSharder()
    planner = EmbeddingShardingPlanner(
        topology=topology,
        batch_size=1,
        constraints={"item": ParameterConstraints(sharding_types=["row_wise"], compute_kernels=["fused"])},
        storage_reservation=FixedPercentageStorageReservation(0.0),
    )
    try:
        return planner.plan(_unsharded(rows, width, 0.0), [sharder])
    except PlannerError:
        return None


def planned_rows(plan: Any) -> list[int]:
    """Rows of each worker in a plan of ``plan_table``."""
    return [int(shard.shard_sizes[0]) for shard in plan.plan["items"]["item"].sharding_spec.shards]


def _unsharded(rows: int, width: int, learning_rate: float) -> _Holder:
    """An EmbeddingCollection without memory, and the optimizer that its sharded form will run."""
    from torchrec import EmbeddingCollection, EmbeddingConfig
    from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
    from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

    config = EmbeddingConfig(name="item", num_embeddings=rows, embedding_dim=width, feature_names=["item"])
    holder = _Holder(EmbeddingCollection(tables=[config], device=torch.device("meta")))
    apply_optimizer_in_backward(RowWiseAdagrad, holder.items.parameters(), {"lr": learning_rate, "eps": EPSILON})
    return holder


def _sharded_collection(rows: int, width: int, learning_rate: float, device: torch.device) -> Any:
    """DistributedModelParallel around one row-wise sharded, fused EmbeddingCollection."""
    from torchrec.distributed import DistributedModelParallel, ShardingEnv
    from torchrec.distributed.embedding import EmbeddingCollectionSharder

    group = dist.group.WORLD
    assert group is not None
    sharder: Any = EmbeddingCollectionSharder()
    return DistributedModelParallel(
        _unsharded(rows, width, learning_rate),
        env=ShardingEnv.from_process_group(group),
        device=device,
        plan=plan_table(rows, width, ranks.world(), device.type),
        sharders=[sharder],
        init_data_parallel=False,
    )


class _WholeShard(torch.autograd.Function):
    """Some rows of a rank's table and all of them; backward, the gradients of both meet in one update.

    TorchRec's way back divides the gradients of the rows asked for by the number of ranks, so those of all rows are
    divided too. ``root`` is a leaf without meaning: without one there would be no backward pass.
    """

    @staticmethod
    def forward(ctx: Any, root: Tensor, asked_M: Tensor, table: ShardedTable) -> tuple[Tensor, Tensor]:
        ctx.asked_M, ctx.table = asked_M, table
        return table.rows[asked_M], table.rows.detach()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, ...]:
        grad_MS, grad_RS = grads
        if ranks.world() > 1:
            grad_RS.div_(ranks.world())
        ctx.table.update(grad_RS.index_add_(0, ctx.asked_M, grad_MS))
        return None, None, None


class _Holder(nn.Module):
    """DistributedModelParallel shards modules *inside* the one it wraps, not that one itself."""

    def __init__(self, items: nn.Module) -> None:
        super().__init__()
        self.items = items

    def forward(self, features: Any) -> Mapping[str, Any]:
        return self.items(features)  # type: ignore[no-any-return]
