"""The two passes of ``prepare`` over its input as tasks of Ray: items are counted, then events go to shards.

Plain tasks and not Ray Data: its keyed repartition takes events from the object store and puts them back once more,
compressed and up to a gigabyte a task; it took two to four times as long (docs/experiments.md). A task's results stay
in the object store of its node until they are used; the driver holds references, and in its own memory the vocabulary.
"""

from __future__ import annotations

import contextlib
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray

from retilt.cluster.in_turn import in_turn, value
from retilt.data import events, survey, tasks, vocabulary
from retilt.data.shards import Limits, Occurring, Written
from retilt.types import RetiltError

PART_ROWS = 1 << 24
"""Rows of the input to a part of the counts: all ids of a part may be different, and one task merges them."""
PARTS = 64
"""Most parts. With more, counts of one task and part would be objects too small to be worth their overhead."""
GROUPS = 512
"""Most groups of shards, for the same reason."""


@dataclass(frozen=True)
class Counted:
    """What the first pass found."""

    rows: dict[str, int]
    """Rows read (``rows``), and dropped for each of ``events.REASONS``."""
    parts: list[Any]
    """References of the tables (item, count), by hash of the item."""
    items: Any
    """The tables as one, in shared memory."""
    ends: npt.NDArray[np.int64]
    """Where in ``items`` each part ends."""


@dataclass(frozen=True)
class Sent:
    """Where the events are between the passes' two halves."""

    shuffle: tasks.Shuffle
    events: int
    """How many were sent."""
    groups: list[list[tuple[npt.NDArray[np.int64], Any]]]
    """Of each group of shards, in the order of the input: events of each of its shards, reference of the table."""


@ray.remote
def _count(task: events.Task, layout: events.Layout, parts: int) -> list[Any]:
    try:
        found, counts = tasks.count(task, layout, parts)
    except RetiltError as problem:
        return [problem] * (1 + parts)
    return [found, *counts]


@ray.remote
def _merge(*counts: Any) -> Any:
    return vocabulary.merge_counts(counts)


@ray.remote
def _lookup(counts: Any, number: npt.NDArray[np.int32]) -> vocabulary.Lookup:
    return vocabulary.Lookup.of(counts["item"], number)


@ray.remote(num_returns="streaming")
def _send(
    task: events.Task, layout: events.Layout, shuffle: tasks.Shuffle, *lookups: vocabulary.Lookup
) -> Iterator[Any]:
    try:
        yield from tasks.send(task, layout, shuffle, lookups)
    except RetiltError as problem:
        yield problem


@ray.remote(num_returns="streaming")
def _write(
    uri: str, shuffle: tasks.Shuffle, group: int, limits: Limits, sizes: Sequence[npt.NDArray[np.int64]], *tables: Any
) -> Iterator[Any]:
    try:
        yield from tasks.write(uri, shuffle, group, limits, list(zip(sizes, tables, strict=True)))
    except RetiltError as problem:
        yield problem


def count(plan: survey.Plan) -> Counted:
    """The first pass: check every value, count the items.

    Raises:
        InputError: the first fault in the order of the input.
    """
    parts = min(PARTS, -(-sum(piece.rows for piece in plan.pieces) // PART_ROWS))
    start: Any = _count.options(num_returns=1 + parts)
    rows: Counter[str] = Counter()
    counts = []
    with contextlib.closing(in_turn(start.remote, ((task, plan.layout, parts) for task in plan.tasks()))) as started:
        for found, *counted in started:
            rows.update(value(found))
            counts.append(counted)
    merged = [_merge.remote(*part) for part in zip(*counts, strict=True)]
    tables = ray.get(merged)
    return Counted(dict(rows), merged, pa.concat_tables(tables), np.cumsum([len(table) for table in tables]))


def send(plan: survey.Plan, counted: Counted, number: npt.NDArray[np.int32], shards: int) -> Sent:
    """The second pass as far as the shuffle: every event, with its item's number, to its shard.

    ``number`` is that of each of ``counted.items``, 0 for those that are dropped.
    """
    shuffle, total = tasks.Shuffle(shards, min(shards, GROUPS)), 0
    groups: list[list[Any]] = [[] for _ in range(shuffle.groups)]
    numbers = np.split(number, counted.ends[:-1])
    lookups = [_lookup.remote(part, each) for part, each in zip(counted.parts, numbers, strict=True)]
    arguments = ((task, plan.layout, shuffle, *lookups) for task in plan.tasks(shuffle.block_rows))
    with contextlib.closing(in_turn(_send.remote, arguments)) as started:
        for references in started:
            for reference in references:
                sizes = value(reference)
                total += int(sizes.sum())
                for group, (first, last) in enumerate(itertools.pairwise(shuffle.edges)):
                    if sizes[first:last].any():
                        groups[group].append((sizes[first:last], next(references)))
    return Sent(shuffle, total, groups)


def write(sent: Sent, uri: str, limits: Limits) -> Iterator[tuple[Written, Occurring]]:
    """The rest of it: write the shards below ``uri``; what is known of each comes back in their order.

    What was sent is given up on the way, so this can be done once.
    """
    with contextlib.closing(in_turn(_write.remote, _pieces(sent, uri, limits))) as started:
        for references in started:
            for reference in references:
                yield value(reference)


def _pieces(sent: Sent, uri: str, limits: Limits) -> Iterator[tuple[Any, ...]]:
    """The arguments of each group's task, which alone then refers to what was sent to it."""
    for group, pieces in enumerate(sent.groups):
        if pieces:
            sizes, tables = zip(*pieces, strict=True)
            pieces.clear()
            yield (uri, sent.shuffle, group, limits, sizes, *tables)
