"""The policy: one lookup, one call of the network, one distribution over the catalogue per supervised position.

In training mode everything is float32 (the backbone's matrix products bfloat16 where asked for), and the softmax exact
or sampled. In evaluation mode it is exact, dropout is off and the arithmetic is float64: the ranks then depend neither
on how users were batched nor on how many workers share the rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import normalize, pad

from retilt import ranks
from retilt.models import counter
from retilt.models.backbone import Model
from retilt.models.catalog import ReplicatedTable, ShardedTable
from retilt.models.guard import Guard
from retilt.models.heads import Asked, Head, RewardHead
from retilt.models.sampled import SampledSoftmax, Sampler
from retilt.models.softmax import CatalogueSoftmax, Rows
from retilt.models.trying import Slots, Tried
from retilt.types import Batch

TRYING, DRAWING = 0x27220A95, 0x165667B1
"""Set a place's keys for the dropout of tried items, and for the policy's own draws, apart from its dropout's."""


class Inputs(NamedTuple):
    """What a network reads beside embeddings."""

    item_BT: Tensor
    """int64; padding is 0."""
    time_BT: Tensor
    """int64, (B, T + 1): of the inputs and of the last target."""
    key_BT: Tensor | None
    """Seeds of dropout, (B, T + 1), a place after a full window included; None: no dropout."""
    asked: Asked
    """What a head is asked; its items are the first of the further ones."""


class Read(NamedTuple):
    """What a network says."""

    hidden_BTD: Tensor
    further_MD: Tensor
    """Embeddings of the further items."""
    rows_RD: Tensor | None
    """A replicated table's rows."""
    head: Tensor | None
    """A head's answer: (P,) about states, (P, K) about items."""


class Network(nn.Module):
    """What DDP wraps: the backbone, a head beside it and, where the table is replicated, the table."""

    def __init__(
        self, backbone: nn.Module, table: ReplicatedTable | None, bf16: bool = False, head: Head | None = None
    ) -> None:
        """``bf16``: the backbone runs under autocast; its parameters, and what it is given and gives, stay float32."""
        super().__init__()
        self.backbone, self.table, self.bf16, self.head = backbone, table, bf16, head

    def dense(self) -> dict[str, nn.Parameter]:
        """The parameters beside the table, which one Adam updates: the backbone's by their names there, the head's."""
        found = dict(self.backbone.named_parameters())
        if self.head is not None:
            found |= {f"head.{name}": parameter for name, parameter in self.head.named_parameters()}
        return found

    def forward(self, item_M: Tensor, found_MD: Tensor | None, inputs: Inputs) -> Read:
        """The first B · T of ``item_M`` are the inputs; ``found_MD`` are their embeddings from a sharded table."""
        rows_RD = None
        if found_MD is None:
            assert self.table is not None
            found_MD, rows_RD = self.table(item_M), self.table.rows
        hidden_BTD, head = self.read(found_MD, inputs, self.bf16)
        return Read(hidden_BTD, found_MD[inputs.item_BT.numel() :], rows_RD, head)

    def read(self, found_MD: Tensor, inputs: Inputs, bf16: bool = False) -> tuple[Tensor, Tensor | None]:
        """Hidden states (B, T, D) and the head's answer, from embeddings of the inputs and of further items."""
        item_BT, asked, head = inputs.item_BT, inputs.asked, self.head
        x_BTD = found_MD[: item_BT.numel()].view(*item_BT.shape, found_MD.shape[1])
        key_BT = None if inputs.key_BT is None else inputs.key_BT[:, :-1]
        if not isinstance(head, RewardHead):
            with torch.autocast(x_BTD.device.type, torch.bfloat16, enabled=bf16):
                hidden_BTD = self.backbone(x_BTD, inputs.time_BT, item_BT != 0, key_BT)
            return hidden_BTD, None if head is None else head(hidden_BTD[asked.user_P, asked.place_P - 1])
        x_BTD, slots = head.told(x_BTD, asked.reward_BT), Slots(asked.user_P, len(item_BT))
        tried = _tried(found_MD[item_BT.numel() :], inputs, slots)
        with torch.autocast(x_BTD.device.type, torch.bfloat16, enabled=bf16):
            hidden_BTD, state_BCD = self.backbone(x_BTD, inputs.time_BT, item_BT != 0, key_BT, tried)
        state_PKD = slots.collect(state_BCD.unflatten(1, (slots.shape[1], tried.items)))
        return hidden_BTD, head(state_PKD, asked)


def _tried(further_MD: Tensor, inputs: Inputs, slots: Slots) -> Tried:
    """What a reward head is asked about, as the backbone takes it."""
    item_PK, place_BS = inputs.asked.item_PK, slots.spread(inputs.asked.place_P)
    tried_PKD = further_MD[: item_PK.numel()].view(*item_PK.shape, further_MD.shape[1])
    tried = Tried(slots.spread(tried_PKD).flatten(1, 2), place_BS, None)
    if inputs.key_BT is None:
        return tried
    # The place's own keys, hashed further: the trunk drops other units of its position.
    return tried._replace(key_BC=tried.by_item(counter.mix(inputs.key_BT.gather(1, place_BS) ^ TRYING)))


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
        self.seed, self.step, self.dropout = seed, 0, True
        self._wide: dict[str, Tensor] | None = None

    def train(self, step: int, dropout: bool = True) -> CataloguePolicy:
        """Training mode; ``step`` seeds dropout, negatives and ``keys``."""
        self._wide, self.step, self.dropout = None, step, dropout
        return self

    def eval(self) -> CataloguePolicy:
        """Evaluation mode: no dropout, no head, float64 copies of the backbone's parameters as they are now.

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
        target_P = batch.target_item_P
        drawn = None if self.sampler is None else self.sampler.draw(batch, self.seed, self.step)
        inputs = self._inputs(batch, target_P[:, None])
        if self.dropout:
            key_BT = counter.keys(batch.example_B, batch.item_BT.shape[1], self.seed, self.step)
            inputs = inputs._replace(key_BT=key_BT)
        item_M = inputs.item_BT.reshape(-1)
        if drawn is not None:
            item_M = torch.cat([item_M, target_P, drawn.item_K])
        elif isinstance(self.network.head, RewardHead):
            item_M = torch.cat([item_M, target_P])
        found_MD, rows_RD = None, None
        if isinstance(self.table, ShardedTable):
            found_MD, *own = self.guard.watch(*self.table.lookup(item_M, own=drawn is None), collective=True)
            rows_RD = own[0] if own else None
        read: Read = self.wrapped(item_M, found_MD, inputs)
        if found_MD is None:
            # A sampled step gives the rows no gradient to look at.
            read = self._watched(read if drawn is None else read._replace(rows_RD=None))
            rows_RD = read.rows_RD
        hidden_PD, head_P = self._positions(read.hidden_BTD, batch), _of_targets(read.head)
        if drawn is None:
            assert rows_RD is not None
            return self._softmax(hidden_PD, rows_RD, head_P)
        of_targets, of_negatives = read.further_MD[: len(target_P)], read.further_MD[len(target_P) :]
        return SampledSoftmax(hidden_PD, target_P, of_targets, of_negatives, drawn, head_P)

    def _inputs(self, batch: Batch, item_PK: Tensor) -> Inputs:
        """Of a batch, with its head asked about ``item_PK``; without dropout's keys."""
        item_BT, reward_BT = batch.item_BT[:, :-1], batch.reward_BT[:, :-1]
        user_P, place_P = batch.supervised_BT.nonzero(as_tuple=True)
        return Inputs(item_BT, batch.time_BT, None, Asked(user_P, place_P, item_PK, item_BT, reward_BT))

    def _watched(self, read: Read) -> Read:
        """The same with the gradients of everything that is there looked at on their way back."""
        there = {name: each for name, each in read._asdict().items() if each is not None}
        return read._replace(**dict(zip(there, self.guard.watch(*there.values(), collective=False), strict=True)))

    def keys(self, batch: Batch) -> Tensor:
        """An int32 key of each supervised position, (P,): of the seed, the step and the example, as dropout's are."""
        key_BT = counter.keys(batch.example_B, batch.item_BT.shape[1], self.seed, self.step)
        return counter.mix(key_BT[batch.supervised_BT] ^ DRAWING)

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
        if self._wide is None:
            hidden_BTD, head = self._read(batch, batch.target_item_P[:, None])
            return self._softmax(self._positions(hidden_BTD, batch), self.table.rows, _of_targets(head))
        item_BT = batch.item_BT[:, :-1]
        x_BTD = self._embeddings(item_BT.reshape(-1)).view(*item_BT.shape, self.table.width).double()
        hidden_BTD = functional_call(self._plain, self._wide, (x_BTD, batch.time_BT, item_BT != 0, None))
        return self._softmax(self._positions(hidden_BTD, batch), self.table.rows)

    @torch.no_grad()
    def score(self, batch: Batch, item_PK: Tensor) -> Tensor:
        """A reward head's r̂ of items at the supervised positions, (P, K), float32, in the data's unit. Collective.

        One pass over the histories, and one position more for each item; without dropout.
        """
        assert isinstance(self.network.head, RewardHead)
        found_PK = self._read(batch, item_PK)[1]
        assert found_PK is not None
        return found_PK

    def _read(self, batch: Batch, item_PK: Tensor) -> tuple[Tensor, Tensor | None]:
        """Hidden states and the head's answer, without dropout. Collective where rows are sharded."""
        inputs = self._inputs(batch, item_PK)
        item_M = inputs.item_BT.reshape(-1)
        if isinstance(self.network.head, RewardHead):
            item_M = torch.cat([item_M, item_PK.reshape(-1)])
        return self.network.read(self._embeddings(item_M), inputs)

    def _positions(self, hidden_BTD: Tensor, batch: Batch) -> Tensor:
        """Normalised hidden states of the supervised positions, divided by the temperature."""
        index_P = batch.supervised_BT[:, 1:].reshape(-1).nonzero().squeeze(1)
        hidden_PD = hidden_BTD.reshape(-1, hidden_BTD.shape[2]).index_select(0, index_P)
        return normalize(hidden_PD, dim=1, eps=1e-6) / self.settings.temperature

    def _softmax(self, hidden_PD: Tensor, rows_RD: Tensor, head_P: Tensor | None = None) -> CatalogueSoftmax:
        """Rows are stored with zero columns at the end where their width asks for it."""
        hidden_PD = pad(hidden_PD, (0, rows_RD.shape[1] - hidden_PD.shape[1]))
        return CatalogueSoftmax(hidden_PD, rows_RD, self.rows, head_P)


def _of_targets(head: Tensor | None) -> Tensor | None:
    """A head's answer about states, or about one item of each position, (P,)."""
    return head if head is None or head.ndim == 1 else head.squeeze(1)
