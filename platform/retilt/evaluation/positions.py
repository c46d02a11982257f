"""Which held-out positions are looked at more closely, and evaluation batches cut to them.

What a position is chosen and seeded by is a hash of (seed, user, number of the target among the user's): the same on
any number of workers, for every policy and for every length of a model's window.

Legend: B users, P supervised positions of a batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from retilt import ranks
from retilt.data.collate import Part, ragged
from retilt.data.dataset import Dataset
from retilt.data.draws import hashed
from retilt.data.split import bounds_array
from retilt.data.stream import user_lengths
from retilt.ranks import together
from retilt.types import Batch

EVERY = (1 << 63) - 1
"""The threshold that chooses every position."""

Ints = npt.NDArray[np.int64]


def keys(batch: Batch, seed: int) -> Tensor:
    """A hash of each supervised position, (P,), int64 from 0 to 2⁶³ − 1."""
    targets_B = batch.supervised_BT.sum(1).cpu().numpy()
    number_P = ragged(np.zeros_like(targets_B), targets_B)
    return torch.from_numpy(_keys(np.repeat(batch.example_B.cpu().numpy(), targets_B), number_P, seed))


def _keys(example_P: Ints, number_P: Ints, seed: int) -> Ints:
    return (hashed(seed, example_P, number_P) >> np.uint64(1)).astype(np.int64)


def threshold(dataset: Dataset, part: Part, most: int, seed: int) -> int:
    """The largest key of a chosen position where the ``most`` smallest are chosen; ``EVERY`` where there are fewer.

    Collective. Reads the lengths of all users where there are more, and keeps ``most`` keys.
    """
    events = {protocol: int(dataset.statistics(protocol)["events"]) for protocol in ("select", "refit")}
    held_out = events["refit"] - events["select"] if part == "validation" else dataset.events - events["refit"]
    if held_out <= most:
        return EVERY
    mine = together(lambda: _smallest(_held_out(dataset, part, seed), most))
    smallest = _smallest((np.array(each, dtype=np.int64) for each in ranks.gather_object(mine.tolist())), most)
    return int(smallest[-1])


def _held_out(dataset: Dataset, part: Part, seed: int) -> Iterator[Ints]:
    """Keys of this rank's held-out positions, a row group at a time."""
    for example_U, length_U in user_lengths(dataset, ranks.rank(), ranks.world()):
        train_U, validation_U = bounds_array(length_U, dataset.k)
        targets_U = validation_U - train_U if part == "validation" else length_U - validation_U
        yield _keys(np.repeat(example_U, targets_U), ragged(np.zeros_like(targets_U), targets_U), seed)


def _smallest(parts: Iterator[Ints], most: int) -> Ints:
    found = np.zeros(0, dtype=np.int64)
    for part in parts:
        found = np.sort(np.concatenate([found, part]))[:most]
    return found


def chosen(batch: Batch, kept_P: Tensor) -> Batch:
    """An evaluation batch with some of its positions (``kept_P``, bool) and the users who have one; maybe empty."""
    supervised_BT = batch.supervised_BT.clone()
    supervised_BT[batch.supervised_BT] = kept_P
    user_B = supervised_BT.any(1)
    of_users = {
        name: value[user_B] for name, value in vars(batch).items() if name.endswith(("_B", "_BT")) and value is not None
    }
    of_positions = {}
    if batch.seen_item is not None and batch.seen_length_P is not None:
        of_positions["seen_item"] = batch.seen_item[kept_P.repeat_interleave(batch.seen_length_P)]
        of_positions["seen_length_P"] = batch.seen_length_P[kept_P]
    if batch.untied_P is not None:
        of_positions["untied_P"] = batch.untied_P[kept_P]
    return replace(batch, **of_users | {"supervised_BT": supervised_BT[user_B]} | of_positions)


def seen(batch: Batch) -> tuple[Tensor, Tensor]:
    """``seen_item`` and ``seen_length_P`` of a batch; none where nothing is excluded."""
    if batch.seen_item is None or batch.seen_length_P is None:
        item_P = batch.target_item_P
        return item_P.new_zeros(0), torch.zeros_like(item_P)
    return batch.seen_item, batch.seen_length_P
