"""Sequences of users → right-padded batches (types.Batch), vectorised over users.

Legend: U users of ``Rows``, E their events, B users of a batch, T events of the longest, P its supervised positions,
N the model's ``max_length``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from retilt.data.split import bounds_array
from retilt.types import Batch

Ints = npt.NDArray[np.int64]
Part = Literal["validation", "test"]
Exclusion = Literal["all", "window", "none"]

CUT = {"select": 0, "refit": 1}
"""Which of ``split.bounds`` ends the training events under each protocol."""


@dataclass(frozen=True)
class Rows:
    """Sequences of users, one after the other; views of what was read where nothing was cut."""

    item: npt.NDArray[np.int32]
    """(E,)."""
    reward: npt.NDArray[np.float32]
    """(E,)."""
    time: Ints
    """(E,) microseconds."""
    start: Ints
    """(U,) first event of each user."""
    length: Ints
    """(U,) events of each user."""
    example: Ints
    """(U,) global row numbers."""

    @classmethod
    def of(cls, table: Any, first: int) -> Rows:
        """The rows of ``Dataset.read``, whose first row has the global number ``first``."""
        columns = {name: table[name].chunk(0) for name in ("item", "reward", "time")}
        edges = columns["item"].offsets.to_numpy().astype(np.int64)
        item, reward, time = (column.flatten().to_numpy() for column in columns.values())
        return cls(item, reward, time, edges[:-1] - edges[0], np.diff(edges), first + np.arange(len(edges) - 1))

    @classmethod
    def concatenate(cls, parts: Sequence[Rows]) -> Rows:
        """All rows of ``parts``, in their order."""
        if not parts:
            nothing = np.zeros(0, dtype=np.int64)
            return cls(nothing.astype(np.int32), nothing.astype(np.float32), nothing, nothing, nothing, nothing)
        bases = np.cumsum([0, *(len(part.item) for part in parts[:-1])])
        return cls(
            np.concatenate([part.item for part in parts]),
            np.concatenate([part.reward for part in parts]),
            np.concatenate([part.time for part in parts]),
            np.concatenate([part.start + base for part, base in zip(parts, bases, strict=True)]),
            np.concatenate([part.length for part in parts]),
            np.concatenate([part.example for part in parts]),
        )

    def windows(self, first: Ints, length: Ints) -> Rows:
        """A copy that holds of each user only ``length`` (U,) events from its event ``first`` (U,) on."""
        event = ragged(self.start + first, length)
        start = np.cumsum(length) - length
        return Rows(self.item[event], self.reward[event], self.time[event], start, length, self.example)


def ragged(first: Ints, length: Ints) -> Ints:
    """first[i], first[i] + 1, …, first[i] + length[i] − 1 for every i in turn.

    >>> ragged(np.array([5, 0]), np.array([2, 3])).tolist()
    [5, 6, 0, 1, 2]
    """
    place = np.cumsum(length) - length
    return np.repeat(first - place, length) + np.arange(int(length.sum()))


def trained(rows: Rows, k: int, protocol: str, max_length: int) -> Rows:
    """The last N + 1 training events of each user: ``windows=last``."""
    end = bounds_array(rows.length, k)[CUT[protocol]]
    length = np.minimum(end, max_length + 1)
    return rows.windows(end - length, length)


def training_batch(rows: Rows, user_B: Ints) -> Batch:
    """A batch of rows that ``trained`` gave; every event but a user's first is a target."""
    return _batch(rows, user_B, rows.start[user_B], rows.length[user_B], np.ones_like(user_B))


def _batch(rows: Rows, user_B: Ints, start_B: Ints, length_B: Ints, first_B: Ints) -> Batch:
    """Events ``start_B`` … ``start_B + length_B − 1`` of ``rows``; targets from place ``first_B`` of each on."""
    # Two columns at least: a model's inputs are all but the last column, and an empty share has inputs too.
    column_T = np.arange(max(2, int(length_B.max(initial=0))))
    valid_BT = column_T < length_B[:, None]
    event_BT = start_B[:, None] + np.minimum(column_T, length_B[:, None] - 1)
    return Batch(
        item_BT=torch.from_numpy(np.where(valid_BT, rows.item[event_BT], 0).astype(np.int64)),
        reward_BT=torch.from_numpy(np.where(valid_BT, rows.reward[event_BT], np.float32(0))),
        time_BT=torch.from_numpy(rows.time[event_BT]),
        supervised_BT=torch.from_numpy(valid_BT & (column_T >= first_B[:, None])),
        length_B=torch.from_numpy(length_B),
        example_B=torch.from_numpy(rows.example[user_B]),
    )


@dataclass(frozen=True)
class Targets:
    """Where each user's window and targets lie, as places in the user's whole sequence; each array (U,)."""

    window: Ints
    """First event of the window: N inputs before the last target, and that target."""
    first: Ints
    """First target; targets go on to ``end``. Equal to ``end`` where the user has none."""
    end: Ints

    @classmethod
    def of(cls, length: Ints, k: int, part: Part, max_length: int) -> Targets:
        """Targets of users with ``length`` events; needs N ≥ k, so that each is in the window and none its first."""
        assert max_length >= k, "the window must hold every target"
        train, validation = bounds_array(length, k)
        first, end = (train, validation) if part == "validation" else (validation, length)
        window = np.maximum(0, end - (max_length + 1))
        return cls(window, first, end)


def evaluation_batch(rows: Rows, targets: Targets, user_B: Ints, exclude_history: Exclusion) -> Batch:
    """A batch of whole sequences (not cut by ``trained``) with what evaluation needs to know of each target."""
    start_B, window_B = rows.start[user_B], targets.window[user_B]
    first_B, end_B = targets.first[user_B], targets.end[user_B]
    batch = _batch(rows, user_B, start_B + window_B, end_B - window_B, first_B - window_B)
    target_P = ragged(start_B + first_B, end_B - first_B)
    if exclude_history == "none":
        seen, seen_length_P = np.zeros(0, dtype=np.int64), np.zeros(len(target_P), dtype=np.int64)
    else:
        begin_B = start_B + window_B if exclude_history == "window" else start_B
        seen, seen_length_P = _seen(rows.item, begin_B, start_B + first_B, start_B + end_B)
    batch_fields = {name: value for name, value in vars(batch).items() if value is not None}
    return Batch(
        **batch_fields,
        seen_item=torch.from_numpy(seen),
        seen_length_P=torch.from_numpy(seen_length_P),
        untied_P=torch.from_numpy(_untied(rows, user_B, target_P, end_B - first_B)),
        earlier_B=torch.from_numpy(window_B),
    )


def _seen(item: npt.NDArray[np.int32], begin_B: Ints, first_B: Ints, end_B: Ints) -> tuple[Ints, Ints]:
    """Distinct items of events ``begin`` … t − 1 without item[t], for every target t = ``first`` … ``end`` − 1."""
    event_E = ragged(begin_B, end_B - begin_B)
    user_E = np.repeat(np.arange(len(begin_B)), end_B - begin_B)
    item_E = item[event_E].astype(np.int64)
    # First occurrences, in order: what a target has seen is then a prefix of its user's.
    order = np.lexsort((item_E, user_E))
    repeated = np.zeros(len(order), dtype=bool)
    repeated[order[1:]] = (item_E[order[1:]] == item_E[order[:-1]]) & (user_E[order[1:]] == user_E[order[:-1]])
    new_item = item_E[~repeated]
    before_E = np.concatenate(([0], np.cumsum(~repeated)))

    user_P = np.repeat(np.arange(len(begin_B)), end_B - first_B)
    place_B = np.cumsum(end_B - begin_B) - (end_B - begin_B)
    target_P = ragged(place_B + first_B - begin_B, end_B - first_B)
    low_P, high_P = before_E[place_B[user_P]], before_E[target_P]
    seen = new_item[ragged(low_P, high_P - low_P)]
    position = np.repeat(np.arange(len(target_P)), high_P - low_P)
    kept = seen != item_E[target_P][position]
    return seen[kept], np.bincount(position[kept], minlength=len(target_P))


def _untied(rows: Rows, user_B: Ints, target_P: Ints, targets_B: Ints) -> npt.NDArray[np.bool_]:
    """Whether no neighbour in the whole sequence (sorted by time) has the target's time."""
    start_P = np.repeat(rows.start[user_B], targets_B)
    last_P = np.repeat(rows.start[user_B] + rows.length[user_B] - 1, targets_B)
    time_P = rows.time[target_P]
    tied_P = (target_P > start_P) & (rows.time[np.maximum(target_P - 1, start_P)] == time_P)
    tied_P |= (target_P < last_P) & (rows.time[np.minimum(target_P + 1, last_P)] == time_P)
    untied_P: npt.NDArray[np.bool_] = ~tied_P
    return untied_P
