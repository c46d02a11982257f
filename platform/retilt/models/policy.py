"""The policy: one lookup, one call of the network, one distribution over the catalogue per supervised position.

In training mode everything is float32 (the backbone's matrix products bfloat16 where asked for), and the softmax exact
or sampled. In evaluation mode it is exact, dropout is off and the arithmetic is float64: the ranks then depend neither
on how users were batched nor on how many workers share the rows.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import normalize, pad

from retilt import ranks
from retilt.models import counter
from retilt.models.backbone import Model
from retilt.models.catalog import ReplicatedTable, ShardedTable
from retilt.models.guard import Guard
from retilt.models.sampled import SampledSoftmax, Sampler
from retilt.models.softmax import CatalogueSoftmax, Rows
from retilt.types import Batch


class Network(nn.Module):
    """What DDP wraps: the backbone and, where the table is replicated, the table."""

    def __init__(self, backbone: nn.Module, table: ReplicatedTable | None, bf16: bool = False) -> None:
        """``bf16``: the backbone runs under autocast; its parameters, and what it is given and gives, stay float32."""
        super().__init__()
        self.backbone, self.table, self.bf16 = backbone, table, bf16

    def forward(
        self, item_M: Tensor, found_MD: Tensor | None, time_BT: Tensor, valid_BT: Tensor, key_BT: Tensor | None
    ) -> tuple[Tensor, ...]:
        """Hidden states (B, T, D), embeddings of the further items, and a replicated table's rows.

        The first B · T of ``item_M`` are the inputs; ``found_MD`` are their embeddings from a sharded table.
        """
        further: list[Tensor] = []
        if found_MD is None:
            assert self.table is not None
            found_MD, further = self.table(item_M), [self.table.rows]
        x_BTD, others_MD = found_MD[: valid_BT.numel()], found_MD[valid_BT.numel() :]
        with torch.autocast(x_BTD.device.type, torch.bfloat16, enabled=self.bf16):
            hidden_BTD = self.backbone(x_BTD.view(*valid_BT.shape, x_BTD.shape[1]), time_BT, valid_BT, key_BT)
        return hidden_BTD, others_MD, *further


class CataloguePolicy:
    """A backbone over an item table, with a cosine softmax head tied to the table (types.Policy)."""

    def __init__(
        self,
        settings: Model,
        network: Network,
        table: ReplicatedTable | ShardedTable,
        active: Tensor,
        seed: int = 0,
        wrap: Callable[[nn.Module], nn.Module] = lambda network: network,
        sampler: Sampler | None = None,
    ) -> None:
        """``active`` (V + 1,) bool marks items of the catalogue; ``wrap`` is DDP or FSDP where there are several ranks.

        With a ``sampler`` training uses the sampled softmax; evaluation is always exact.
        """
        self.settings, self.network, self.table, self.sampler = settings, network, table, sampler
        bias_R = torch.zeros(table.last - table.first, device=active.device)
        bias_R[~active[table.first : table.last]] = -torch.inf
        if table.first == 0:
            bias_R[0] = -torch.inf
        self.rows = Rows(table.first, table.last, bias_R, table.sharded)
        self.wrapped = wrap(network)
        self.guard = Guard(network)
        with torch.device("meta"):
            self._plain = settings.build(0.0)  # for evaluation: neither parameters nor FSDP's hooks
        self.seed, self.step = seed, 0
        self._wide: dict[str, Tensor] | None = None

    def train(self, step: int) -> CataloguePolicy:
        """Training mode; ``step`` seeds dropout and negatives."""
        self._wide, self.step = None, step
        return self

    def eval(self) -> CataloguePolicy:
        """Evaluation mode: no dropout, float64 copies of the backbone's parameters as they are now.

        Collective under FSDP.
        """
        state = self.network.backbone.state_dict()
        self._wide = {name: ranks.whole(value).double() for name, value in state.items()}
        return self

    def __call__(self, batch: Batch) -> CatalogueSoftmax | SampledSoftmax:
        """π(· | history, request time) at the batch's supervised positions. Collective where rows are sharded."""
        return self._trained(batch) if self._wide is None else self.exact(batch)

    def _trained(self, batch: Batch) -> CatalogueSoftmax | SampledSoftmax:
        """One lookup, one call of the wrapped network."""
        item_BT, target_P = batch.item_BT[:, :-1], batch.target_item_P
        drawn = None if self.sampler is None else self.sampler.draw(batch, self.seed, self.step)
        item_M = item_BT.reshape(-1)
        if drawn is not None:
            item_M = torch.cat([item_M, target_P, drawn.item_K])
        found_MD, rows = None, []
        if isinstance(self.table, ShardedTable):
            found_MD, *rows = self.guard.watch(*self.table.lookup(item_M, own=drawn is None), collective=True)
        key_BT = counter.keys(batch.example_B, item_BT.shape[1], self.seed, self.step)
        hidden_BTD, others_MD, *further = self.wrapped(item_M, found_MD, batch.time_BT, item_BT != 0, key_BT)
        if found_MD is None:
            rows = further if drawn is None else []  # a sampled step gives them no gradient to look at
            hidden_BTD, others_MD, *rows = self.guard.watch(hidden_BTD, others_MD, *rows, collective=False)
        hidden_PD = self._positions(hidden_BTD, batch)
        if drawn is None:
            return self._softmax(hidden_PD, rows[0])
        return SampledSoftmax(hidden_PD, target_P, others_MD[: len(target_P)], others_MD[len(target_P) :], drawn)

    @torch.no_grad()
    def gap(self, batch: Batch, draws: int) -> Tensor:
        """|E π̂(a) − π(a)| of the targets, (P,), the mean of the sampled softmax taken over ``draws``. Collective."""
        assert self.sampler is not None
        exact, target_P = self.exact(batch), batch.target_item_P
        hidden_PD = exact.hidden_PD[:, : self.table.width]
        mean_P = torch.zeros_like(hidden_PD[:, 0])
        for number in range(draws):
            drawn = self.sampler.draw(batch, ~self.seed - number, self.step)  # seeds that no step trains with
            found_MD = self._embeddings(torch.cat([target_P, drawn.item_K]))
            of_targets, of_negatives = found_MD[: len(target_P)], found_MD[len(target_P) :]
            sampled = SampledSoftmax(hidden_PD, target_P, of_targets, of_negatives, drawn)
            mean_P += sampled.log_prob(target_P).exp() / draws
        return (mean_P - exact.log_prob(target_P).exp()).abs()

    def _embeddings(self, item_M: Tensor) -> Tensor:
        """Without gradients. Collective where rows are sharded."""
        return self.table.lookup(item_M, own=False)[0] if isinstance(self.table, ShardedTable) else self.table(item_M)

    @torch.no_grad()
    def exact(self, batch: Batch) -> CatalogueSoftmax:
        """The exact distribution without dropout and gradients, in float64 where the policy is in evaluation mode."""
        item_BT = batch.item_BT[:, :-1]
        valid_BT = item_BT != 0
        x_BTD = self._embeddings(item_BT.reshape(-1)).view(*item_BT.shape, self.table.width)
        if self._wide is None:
            hidden_BTD = self.network.backbone(x_BTD, batch.time_BT, valid_BT, None)
        else:
            inputs = (x_BTD.double(), batch.time_BT, valid_BT, None)
            hidden_BTD = functional_call(self._plain, self._wide, inputs)
        return self._softmax(self._positions(hidden_BTD, batch), self.table.rows)

    def _positions(self, hidden_BTD: Tensor, batch: Batch) -> Tensor:
        """Normalised hidden states of the supervised positions, divided by the temperature."""
        index_P = batch.supervised_BT[:, 1:].reshape(-1).nonzero().squeeze(1)
        hidden_PD = hidden_BTD.reshape(-1, hidden_BTD.shape[2]).index_select(0, index_P)
        return normalize(hidden_PD, dim=1, eps=1e-6) / self.settings.temperature

    def _softmax(self, hidden_PD: Tensor, rows_RD: Tensor) -> CatalogueSoftmax:
        """Rows are stored with zero columns at the end where their width asks for it."""
        return CatalogueSoftmax(pad(hidden_PD, (0, rows_RD.shape[1] - hidden_PD.shape[1])), rows_RD, self.rows)
