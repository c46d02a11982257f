"""The policy: one lookup, one call of the network, one distribution over the catalogue per supervised position.

In training mode everything is float32. In evaluation mode dropout is off and the arithmetic is float64: the ranks it
gives then do not depend on how users were batched or on how many workers share the rows.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import normalize

from retilt.models import dropout
from retilt.models.catalog import ReplicatedTable, ShardedTable
from retilt.models.guard import Guard
from retilt.models.hstu import HSTU
from retilt.models.softmax import CatalogueSoftmax, Rows
from retilt.types import Batch


class Network(nn.Module):
    """What DDP wraps: the backbone and, where the table is replicated, the table."""

    def __init__(self, backbone: nn.Module, table: ReplicatedTable | None) -> None:
        super().__init__()
        self.backbone, self.table = backbone, table

    def forward(
        self, item_BT: Tensor, time_BT: Tensor, key_BT: Tensor | None, found: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor]:
        """Hidden states (B, T, D) and catalogue rows (R, D); ``found`` is a sharded table's lookup of the inputs."""
        if found is None:
            assert self.table is not None
            found = self.table(item_BT)
        x_BTD, rows_RD = found
        return self.backbone(x_BTD, time_BT, item_BT != 0, key_BT), rows_RD


class CataloguePolicy:
    """A backbone over an item table, with a cosine softmax head tied to the table (types.Policy)."""

    def __init__(
        self,
        settings: HSTU,
        network: Network,
        table: ReplicatedTable | ShardedTable,
        active: Tensor,
        seed: int = 0,
        wrap: Callable[[nn.Module], nn.Module] = lambda network: network,
    ) -> None:
        """``active`` (V + 1,) bool marks items of the catalogue; ``wrap`` is DDP where there are several ranks."""
        self.settings, self.network, self.table = settings, network, table
        self.inactive_R = ~active[table.first : table.last]
        if table.first == 0:
            self.inactive_R[0] = True
        self.wrapped = wrap(network)
        self.guard = Guard(network)
        self.seed, self.step = seed, 0
        self._wide: dict[str, Tensor] | None = None

    def train(self, step: int) -> CataloguePolicy:
        """Training mode; ``step`` seeds dropout."""
        self._wide, self.step = None, step
        return self

    def eval(self) -> CataloguePolicy:
        """Evaluation mode: no dropout, float64 copies of the parameters as they are now."""
        self._wide = {name: value.double() for name, value in self.network.state_dict().items()}
        return self

    def __call__(self, batch: Batch) -> CatalogueSoftmax:
        """π(· | history, request time) at the batch's supervised positions. Collective where rows are sharded."""
        item_BT = batch.item_BT[:, :-1]
        found = self.table.lookup(item_BT) if isinstance(self.table, ShardedTable) else None
        if self._wide is None:
            found = None if found is None else self.guard.watch(*found, collective=True)
            key_BT = dropout.keys(batch.example_B, item_BT.shape[1], self.seed, self.step)
            hidden_BTD, rows_RD = self.wrapped(item_BT, batch.time_BT, key_BT, found)
            if found is None:
                hidden_BTD, rows_RD = self.guard.watch(hidden_BTD, rows_RD, collective=False)
        else:
            hidden_BTD, rows_RD = self._evaluate(self._wide, item_BT, batch.time_BT, found)
        index_P = batch.supervised_BT[:, 1:].reshape(-1).nonzero().squeeze(1)
        hidden_PD = hidden_BTD.reshape(-1, hidden_BTD.shape[2]).index_select(0, index_P)
        hidden_PD = normalize(hidden_PD, dim=1, eps=1e-6) / self.settings.temperature
        rows = Rows(normalize(rows_RD, dim=1, eps=1e-6), self.table.first, self.inactive_R, self.table.sharded)
        return CatalogueSoftmax(hidden_PD, rows)

    @torch.no_grad()
    def _evaluate(
        self, wide: dict[str, Tensor], item_BT: Tensor, time_BT: Tensor, found: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor]:
        looked_up = None if found is None else (found[0].double(), found[1].double())
        hidden_BTD, rows_RD = functional_call(self.network, wide, (item_BT, time_BT, None, looked_up))
        return hidden_BTD, rows_RD
