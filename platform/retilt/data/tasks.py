"""What one task of ``prepare`` does: count the items of its part of the input, send its events to shards, write shards.

Each is a function of its arguments alone, so a task may be repeated anywhere. Between the tasks go Arrow tables; who
carries them, and where the tasks run, is the business of ``cluster``.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from retilt.data import events, vocabulary
from retilt.data.hashing import U64, hash_ids
from retilt.data.shards import Limits, Occurring, Written, write_shard

GROUP_ROWS = 1 << 12
"""Events that a task sends to a group at once, on average, at the least: 130 KB, which is worth an object."""


@dataclass(frozen=True)
class Shuffle:
    """Where events go: a user's hash says the shard, and neighbouring shards form a group that one task writes."""

    shards: int
    groups: int

    @property
    def edges(self) -> list[int]:
        """The first shard of each group, and the number of shards."""
        return [self.shards * group // self.groups for group in range(self.groups + 1)]

    @property
    def block_rows(self) -> int:
        """Events that a task sends at a time, so that a group gets enough of them at once."""
        return max(events.BLOCK_ROWS, GROUP_ROWS * self.groups)

    def shard(self, user: Any) -> npt.NDArray[np.uint32]:
        """Shard of each of an Arrow array of users (N,)."""
        return (_hashes(user) % np.uint64(self.shards)).astype(np.uint32)


def _hashes(user: Any) -> U64:
    if pa.types.is_integer(user.type):
        return hash_ids(user)
    encoded = user.dictionary_encode()  # text is slow to hash, and most users come more than once
    hashes: U64 = hash_ids(encoded.dictionary)[encoded.indices.to_numpy()]
    return hashes


def count(task: events.Task, layout: events.Layout, parts: int) -> tuple[dict[str, int], list[Any]]:
    """Check every value of a task's events → rows read and dropped, and ``parts`` tables (item, count)."""
    found = dict.fromkeys(("rows", *events.REASONS), 0)
    counts: list[Any] = []
    for block in events.blocks(task, layout):
        for reason, rows in {"rows": block.rows, **block.dropped}.items():
            found[reason] += rows
        counts.append(vocabulary.count_items(block.events["item"]))
        if len(counts) > vocabulary.MERGED_TABLES:
            counts = [vocabulary.merge_counts(counts)]
    return found, vocabulary.partitioned(vocabulary.merge_counts(counts), parts)


def send(
    task: events.Task, layout: events.Layout, shuffle: Shuffle, lookups: Sequence[vocabulary.Lookup]
) -> Iterator[Any]:
    """Per block of a task: events of each shard, an array (shards,), then a table for each group that gets any.

    The tables' items are numbers, and their rows by shard, within a shard in the order of the input.
    """
    for block in events.blocks(task, layout, shuffle.block_rows):
        clean = block.events
        number = vocabulary.find(clean["item"].combine_chunks(), lookups)
        shard = shuffle.shard(clean["user"].combine_chunks())
        order = pa.array(np.argsort(shard.astype(np.min_scalar_type(shuffle.shards)), kind="stable"))
        ends = np.cumsum(sizes := np.bincount(shard, minlength=shuffle.shards))
        yield sizes
        numbered = clean.set_column(1, "item", pa.array(number))
        for first, last in itertools.pairwise(np.concatenate(([0], ends))[shuffle.edges].tolist()):
            if last > first:
                yield numbered.take(order.slice(first, last - first))


def write(
    uri: str, shuffle: Shuffle, group: int, limits: Limits, sent: Sequence[tuple[npt.NDArray[np.int64], Any]]
) -> Iterator[tuple[Written, Occurring]]:
    """Write a group's shards below ``uri``; ``sent``: tables for the group, each after its events of each shard."""
    ends = [[0, *np.cumsum(sizes).tolist()] for sizes, _ in sent]
    for place, shard in enumerate(range(*shuffle.edges[group : group + 2])):
        spans = [(table, *end[place : place + 2]) for (_, table), end in zip(sent, ends, strict=True)]
        parts = [table.slice(a, b - a) for table, a, b in spans if b > a]
        if parts:
            yield write_shard(uri, shard, shuffle.shards, pa.concat_tables(parts), limits)
