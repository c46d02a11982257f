"""Writes data sets in the format of prepare from sequences in memory, for tests of what reads them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from retilt import artifact, storage
from retilt.data import vocabulary
from retilt.data.schema import FORMAT, KIND, shard_schema, vocabulary_schema
from retilt.data.split import bounds
from retilt.data.statistics import Rewards

Event = tuple[int, float, int]
"""Item, reward, time (µs)."""

MODEL = {"name": "hstu", "max_length": 20, "width": 10, "blocks": 1, "heads": 2, "head_width": 4}
"""A model for such data."""


def sequences(users: int, items: int, seed: int = 0, shortest: int = 3, longest: int = 40) -> list[list[Event]]:
    """Random sequences sorted by time, with some equal times and repeated items; every item occurs."""
    rng = np.random.default_rng(seed)
    found = []
    for user in range(users):
        n = int(rng.integers(shortest, longest + 1))
        item = rng.integers(1, items + 1, n)
        item[0] = user % items + 1
        time = np.cumsum(rng.integers(0, 3, n)) * 1_000_000
        found.append(list(zip(item.tolist(), rng.integers(1, 6, n).astype(float).tolist(), time.tolist(), strict=True)))
    return found


def write(
    uri: str,
    users: Sequence[Sequence[Event]],
    items: int,
    *,
    k: int = 2,
    lanes: int = 2,
    shards: Sequence[Sequence[int]],
) -> str:
    """Write a data set whose ``shards`` list the number of users of each of their row groups; returns ``uri``."""
    entries, files, first = [], [], 0
    for number, groups in enumerate(shards):
        path = f"shards/part-{number:05d}.parquet"
        rows = list(users[first : first + sum(groups)])
        write_shard(storage.join(uri, path), rows, groups, first)
        events = sum(map(len, rows))
        entries.append({"path": path, "rows": len(rows), "events": events, "row_groups": list(groups)})
        files.append(artifact.file_entry(uri, path))
        first += len(rows)
    assert first == len(users)
    parts = _write_vocabulary(uri, users, items, k)
    files += [artifact.file_entry(uri, part["path"]) for part in parts]
    rewards = np.array([event[1] for user in users for event in user], dtype=np.float32)
    body: dict[str, Any] = {
        "name": "small",
        "fingerprint": artifact.fingerprint([[file["path"], file["sha256"]] for file in files]),
        "users": len(users),
        "items": items,
        "events": sum(map(len, users)),
        "lanes": lanes,
        "split": {"name": "last_k", "k": k},
        "reward": {"min": float(rewards.min()), "max": float(rewards.max())},
        "shards": entries,
        "vocabulary": parts,
        "vocabulary_sha256": vocabulary.identity([pa.array([f"item-{i}" for i in range(1, items + 1)])]),
        "statistics": {"select": _statistics(users, k, 0), "refit": _statistics(users, k, 1)},
    }
    artifact.write_manifest(uri, KIND, FORMAT, body, files)
    return uri


def _statistics(users: Sequence[Sequence[Event]], k: int, cut: int) -> dict[str, Any]:
    ends = [(each.train, each.validation)[cut] for each in (bounds(len(events), k) for events in users)]
    rewards = [event[1] for events, end in zip(users, ends, strict=True) for event in events[:end]]
    return Rewards.of(np.array(rewards, dtype=np.float32)).summary()


def write_shard(uri: str, rows: Sequence[Sequence[Event]], groups: Sequence[int], first: int = 0) -> None:
    """Write one shard of users ``first``, ``first`` + 1, …"""
    schema = shard_schema(pa.int64())
    with (
        storage.open_output(uri) as file,
        pq.ParquetWriter(file, schema, compression="zstd", write_page_checksum=True) as writer,
    ):
        start = 0
        for size in groups:
            part = rows[start : start + size]
            columns = {
                "user": [1000 + first + start + i for i in range(size)],
                "item": [[event[0] for event in user] for user in part],
                "reward": [[event[1] for event in user] for user in part],
                "time": [[event[2] for event in user] for user in part],
                "order": [list(range(len(user))) for user in part],
            }
            writer.write_table(pa.table(columns, schema=schema), row_group_size=size)
            start += size


def _write_vocabulary(uri: str, users: Sequence[Sequence[Event]], items: int, k: int) -> list[dict[str, Any]]:
    select, refit = np.zeros(items + 1, dtype=np.int64), np.zeros(items + 1, dtype=np.int64)
    for user in users:
        cuts = bounds(len(user), k)
        for counts, cut in ((select, cuts.train), (refit, cuts.validation)):
            np.add.at(counts, [event[0] for event in user[:cut]], 1)
    parts, half = [], items // 2
    for number, (first, last) in enumerate(((1, half), (half + 1, items))):
        index = np.arange(first, last + 1)
        table = pa.table(
            {
                "index": index,
                "item": [f"item-{i}" for i in index],
                "count_select": select[index],
                "count_refit": refit[index],
                "active": index != items,
            }
        ).cast(vocabulary_schema(pa.string()))
        path = f"vocabulary/part-{number:05d}.parquet"
        with storage.open_output(storage.join(uri, path)) as file:
            pq.write_table(table, file, write_page_checksum=True)
        parts.append({"path": path, "first": first, "rows": len(index)})
    return parts
