"""Batches of one rank, read in the background: training in the plan's order, evaluation, and trained positions."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from retilt.data.collate import (
    Exclusion,
    Ints,
    Part,
    Rows,
    Targets,
    evaluation_batch,
    ragged,
    trained,
    training_batch,
)
from retilt.data.dataset import Dataset
from retilt.data.plan import Cursor, Plan, check_world, dealt, lanes_of
from retilt.types import Batch, InputError, Positions

PREFETCH_BATCHES = 4
PREFETCH_WINDOWS = 1
WHOLE = 1 << 40
"""A window that no sequence fills."""
LENGTHS, FEWEST = 4, 16
"""Evaluation cuts a small row group into this many batches, of at least so many users, to have less padding."""

T = TypeVar("T")


class _End:
    """After the last item."""


@dataclass(frozen=True)
class _Failure:
    error: BaseException


def prefetch(items: Generator[T, None, None], ahead: int) -> Generator[T, None, None]:
    """``items``, made in a background thread, at most ``ahead`` of them before they are asked for.

    An error of ``items`` is raised here, in its place; closing this generator stops the thread and closes ``items``.
    """
    made: queue.SimpleQueue[T | _End | _Failure] = queue.SimpleQueue()
    room, stopped = threading.Semaphore(ahead), threading.Event()

    def work() -> None:
        try:
            while True:
                room.acquire()
                if stopped.is_set():
                    break
                made.put(next(items))
        except StopIteration:
            made.put(_End())
        except BaseException as error:
            made.put(_Failure(error))
        finally:
            items.close()

    thread = threading.Thread(target=work, name="retilt-data", daemon=True)
    thread.start()
    try:
        while not isinstance(item := made.get(), _End):
            if isinstance(item, _Failure):
                raise item.error
            room.release()
            yield item
    finally:
        stopped.set()
        room.release()
        thread.join()


def train_batches(
    dataset: Dataset, plan: Plan, cursor: Cursor, protocol: str, max_length: int, rank: int, world: int
) -> Generator[Batch, None, None]:
    """This rank's shares of the global batches from ``cursor`` to the end of its epoch.

    Every rank gets the same number of batches; a share may be empty (B = 0).

    Raises:
        InputError: more ranks than lanes; while reading, a damaged or absent shard.
    """
    check_world(plan.lanes, world)
    shares = _shares(dataset, plan, cursor, protocol, max_length, lanes_of(plan.lanes, rank, world))
    return prefetch(_training(prefetch(shares, PREFETCH_WINDOWS)), PREFETCH_BATCHES)


@dataclass(frozen=True)
class _Share:
    """What one rank holds of a window: its users, and which of them make up each batch still to come."""

    rows: Rows
    batches: list[Ints]


def _training(shares: Generator[_Share, None, None]) -> Generator[Batch, None, None]:
    try:
        for share in shares:
            for user_B in share.batches:
                yield training_batch(share.rows, user_B)
    finally:
        shares.close()


def _shares(
    dataset: Dataset, plan: Plan, cursor: Cursor, protocol: str, max_length: int, lanes: range
) -> Generator[_Share, None, None]:
    for window in plan.windows(cursor.epoch):
        if window.first + window.slices <= cursor.batch:
            continue
        parts, slices, base = [], [], 0
        for lane in lanes:
            rows = _trained_lane(dataset, window.groups[lane], protocol, max_length)
            cuts = plan.cut(window, lane, np.maximum(rows.length - 1, 0))
            slices.append([user_U + base for user_U in cuts])
            parts.append(rows)
            base += len(rows.length)
        batches = [np.concatenate([cuts[s] for cuts in slices]) for s in plan.order(window)]
        yield _Share(Rows.concatenate(parts), batches[max(0, cursor.batch - window.first) :])


def _trained_lane(dataset: Dataset, groups: tuple[int, ...], protocol: str, max_length: int) -> Rows:
    # Each row group is cut before the next is read: one bot's million events do not stay in memory.
    parts = [trained(_read(dataset, g), dataset.k, protocol, max_length) for g in groups]
    return Rows.concatenate(parts)


def _read(dataset: Dataset, g: int) -> Rows:
    group = dataset.row_groups[g]
    return Rows.of(dataset.read(group.shard, group.number), group.first)


def evaluation_batches(
    dataset: Dataset,
    part: Part,
    max_length: int,
    exclude_history: Exclusion,
    batch_users: int,
    rank: int,
    world: int,
) -> Generator[Batch, None, None]:
    """This rank's share of a part's users, each once, with ``seen_item``, ``seen_length_P`` and ``untied_P``.

    Each batch holds at most ``batch_users`` users of one row group, so it does not depend on the number of ranks; every
    rank gets the same number of batches, the last ones empty where it has fewer.

    Raises:
        InputError: more ranks than lanes, a window shorter than a user's targets; while reading, a damaged shard.
    """
    if max_length < dataset.k:
        raise InputError(
            f"model.max_length = {max_length}, but the split holds out {dataset.k} events of a user; use at least that"
        )
    rows_G = [group.rows for group in dataset.row_groups]
    counts = [
        sum(_evaluation_slices(rows_G[g], batch_users) for g in dealt(rows_G, dataset.lanes, r, world))
        for r in range(world)
    ]
    groups = dealt(rows_G, dataset.lanes, rank, world)

    def make() -> Generator[Batch, None, None]:
        for g in groups:
            rows = _read(dataset, g)
            targets = Targets.of(rows.length, dataset.k, part, max_length)
            order = np.argsort(targets.end - targets.window, kind="stable")
            for user_B in np.array_split(order, _evaluation_slices(len(order), batch_users)):
                having = user_B[targets.end[user_B] > targets.first[user_B]]
                yield evaluation_batch(rows, targets, having, exclude_history)
        nothing = Rows.concatenate([])
        for _ in range(max(counts) - counts[rank]):
            targets = Targets.of(nothing.length, dataset.k, part, max_length)
            yield evaluation_batch(nothing, targets, nothing.example, exclude_history)

    return prefetch(make(), PREFETCH_BATCHES)


def _evaluation_slices(rows: int, batch_users: int) -> int:
    return max(-(-rows // batch_users), min(LENGTHS, -(-rows // FEWEST)))


def trained_positions(dataset: Dataset, protocol: str, max_length: int, rank: int, world: int) -> Iterator[Positions]:
    """This rank's trained positions, a row group at a time; all ranks together give every one of an epoch once."""
    for g in dealt([group.rows for group in dataset.row_groups], dataset.lanes, rank, world):
        rows = trained(_read(dataset, g), dataset.k, protocol, max_length)
        positions = np.maximum(rows.length - 1, 0)
        event_P = ragged(rows.start + 1, positions)
        yield Positions(
            torch.from_numpy(rows.item[event_P].astype(np.int64)),
            torch.from_numpy(rows.reward[event_P]),
            torch.from_numpy(np.repeat(rows.example, positions)),
        )


def training_events(dataset: Dataset, protocol: str, rank: int, world: int) -> Iterator[Positions]:
    """All training events of this rank's users, first ones and those before a window too, a row group at a time."""
    for g in dealt([group.rows for group in dataset.row_groups], dataset.lanes, rank, world):
        rows = trained(_read(dataset, g), dataset.k, protocol, WHOLE)
        yield Positions(
            torch.from_numpy(rows.item.astype(np.int64)),
            torch.from_numpy(rows.reward),
            torch.from_numpy(np.repeat(rows.example, rows.length)),
        )


def user_lengths(dataset: Dataset, rank: int, world: int) -> Iterator[tuple[Ints, Ints]]:
    """Global row numbers and numbers of events of this rank's users, (U,) each, a row group at a time."""
    for g in dealt([group.rows for group in dataset.row_groups], dataset.lanes, rank, world):
        rows = _read(dataset, g)
        yield rows.example, rows.length
