"""One shard of a data set: events of its users in any order → sorted, limited, split, counted rows, one per user."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from retilt import artifact, storage
from retilt.data import split
from retilt.data.hashing import hash_ids
from retilt.data.schema import EVENT_BYTES, LANES_FEW, LANES_MANY, MANY_USERS, ROW_GROUP_BYTES, shard_schema
from retilt.data.sorting import stable_order
from retilt.data.statistics import Rewards

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Limits:
    """What is kept of a user's events, and where they are cut."""

    k: int
    min_user_events: int = 1
    min_sequence_events: int = split.SHORTEST
    max_events_per_user: int | None = None
    drop_duplicates: bool = False


@dataclass(frozen=True)
class Shard:
    """The rows of one shard and what was counted on the way; U users, E events, sorted by (hash of the user, user)."""

    users: Any
    """Arrow array (U,) of user ids."""
    length: Ints
    """(U,) events per user."""
    item: npt.NDArray[np.int32]
    """(E,) vocabulary index."""
    reward: npt.NDArray[np.float32]
    """(E,)."""
    time: Ints
    """(E,) microseconds."""
    order: Ints
    """(E,) position in the input."""
    counts: dict[str, int]
    """What was dropped and why, and the number of targets."""
    cuts: tuple[Ints, Ints]
    """(U,), (U,): training and validation cut of every user."""
    users_in: int
    """Users before anything was dropped."""
    passed: npt.NDArray[np.int32]
    """Sorted items of which an event passed the minimums of users and items."""

    def training(self, protocol: str) -> npt.NDArray[np.bool_]:
        """(E,) whether each event is a training event under ``select`` or ``refit``."""
        return split.before(self.cuts[0 if protocol == "select" else 1], self.length)

    def rewards(self, protocol: str) -> Rewards:
        """Statistics of the training events' rewards."""
        return Rewards.of(self.reward[self.training(protocol)])

    def occurring(self) -> Occurring:
        """The items and rewards that occur."""
        return Occurring(self.item_counts(), self.passed, {each: self.rewards(each) for each in ("select", "refit")})

    def item_counts(self) -> Any:
        """Table (index, select, refit, kept) of the items that occur."""
        found = pa.array(self.item).dictionary_encode()
        code, index = found.indices.to_numpy(), found.dictionary.to_numpy()
        counted = {"select": code[self.training("select")], "refit": code[self.training("refit")], "kept": code}
        columns = {name: np.bincount(codes, minlength=len(index)) for name, codes in counted.items()}
        return pa.table({"index": index, **columns})


def build(events: Any, limits: Limits) -> Shard:
    """Rows of one shard from a table (user, item, reward, time, order) where item 0 marks an item that was dropped.

    Users with fewer than ``min_user_events`` events go first, then dropped items, duplicates (an event that a later row
    of the input repeats in user, item *and* time: delivery at least once, not repeated consumption), all but the most
    recent ``max_events_per_user``, and users with fewer than ``min_sequence_events`` left.
    """
    user, dictionary = _codes(events["user"])
    item, reward, time, order = (_numpy(events[name]) for name in ("item", "reward", "time", "order"))
    raw = np.bincount(user, minlength=len(dictionary))
    rows = stable_order([order, time, user])
    user, item = user[rows], item[rows]
    counts = {"users_few_events": int((raw < limits.min_user_events).sum())}

    def keep(mask: npt.NDArray[np.bool_], reason: str) -> None:
        nonlocal rows, user, item
        counts[reason] = int(len(mask) - mask.sum())
        if counts[reason]:
            rows, user, item = rows[mask], user[mask], item[mask]

    keep((raw >= limits.min_user_events)[user], "events_few_events")
    keep(item > 0, "events_rare_items")
    passed = np.sort(pa.array(item).unique().to_numpy())
    repeated = _repeated(user, item, time[rows]) if limits.drop_duplicates else np.zeros(len(rows), dtype=bool)
    keep(~repeated, "events_duplicate")
    keep(_most_recent(user, limits.max_events_per_user), "events_too_many")
    length = np.bincount(user, minlength=len(dictionary)).astype(np.int64)
    short = length < limits.min_sequence_events
    counts["users_too_short"] = int((short & (raw >= limits.min_user_events)).sum())
    keep(~short[user], "events_too_short")
    length = length[~short]
    train, validation = split.bounds_array(length, limits.k)
    counts["validation_targets"] = int((validation - train).sum())
    counts["test_targets"] = int((length - validation).sum())
    return Shard(
        users=dictionary.filter(pa.array(~short)),
        length=length,
        item=item,
        reward=reward[rows],
        time=time[rows],
        order=order[rows],
        counts=counts,
        cuts=(train, validation),
        users_in=len(raw),
        passed=passed,
    )


def _numpy(column: Any) -> Any:
    return column.to_numpy(zero_copy_only=False) if isinstance(column, pa.Array) else column.to_numpy()


def _codes(column: Any) -> tuple[Ints, Any]:
    """Each row's user as a number in the order of (hash, id), and the ids in that order."""
    encoded = column.dictionary_encode()
    # Arrow gives all chunks one dictionary; joined before they are encoded, long ids could be more than an array holds.
    chunks = encoded.chunks if isinstance(encoded, pa.ChunkedArray) else [encoded]
    ids = chunks[-1].dictionary
    table = pa.table({"hash": hash_ids(ids), "id": ids})
    place = pc.sort_indices(table, sort_keys=[("hash", "ascending"), ("id", "ascending")])
    rank = np.empty(len(ids), dtype=np.int64)
    rank[place.to_numpy()] = np.arange(len(ids))
    return rank[np.concatenate([chunk.indices.to_numpy() for chunk in chunks])], ids.take(place)


def _repeated(*keys: npt.NDArray[np.integer]) -> npt.NDArray[np.bool_]:
    """Which events a later one of the array repeats in all ``keys``."""
    sort = stable_order(keys)
    repeated = np.zeros(len(sort), dtype=bool)
    repeated[sort[:-1]] = np.logical_and.reduce([key[sort[:-1]] == key[sort[1:]] for key in keys])
    return repeated


def _most_recent(user: Ints, most: int | None) -> npt.NDArray[np.bool_]:
    """Whether each of the sorted events is among its user's last ``most``."""
    if most is None:
        return np.ones(len(user), dtype=bool)
    end = np.cumsum(np.bincount(user))
    recent: npt.NDArray[np.bool_] = end[user] - np.arange(len(user)) <= most
    return recent


def row_groups(length: Ints, shards: int) -> list[tuple[int, int]]:
    """Row ranges of a shard's row groups: about equal in events, at most 64 MB, and enough of them for all lanes."""
    users = len(length)
    if users == 0:
        return []
    # Users are hashed to shards, so this shard's users tell how many there are; four fifths allow for chance.
    many = users * shards >= MANY_USERS * 4 // 5
    wanted = -(-(LANES_MANY if many else LANES_FEW) // shards)
    size = length * EVENT_BYTES
    groups = min(users, max(wanted, -(-int(size.sum()) * 4 // (ROW_GROUP_BYTES * 3))))
    ends = np.searchsorted(np.cumsum(size), size.sum() * np.arange(1, groups) / groups) + 1
    edges = [0]
    for i, end in enumerate(ends, start=1):
        edges.append(min(max(int(end), edges[-1] + 1), users - (groups - i)))
    edges.append(users)
    return [part for a, b in itertools.pairwise(edges) for part in _fitting(size, a, b)]


def _fitting(size: Ints, first: int, last: int) -> Iterator[tuple[int, int]]:
    while last - first > 1 and int(size[first:last].sum()) > ROW_GROUP_BYTES:
        fitting = int(np.searchsorted(np.cumsum(size[first:last]), ROW_GROUP_BYTES, side="right"))
        yield first, first + max(1, fitting)
        first += max(1, fitting)
    yield first, last


def parquet_writer(file: Any, schema: Any) -> Any:
    """A writer of a shard's row groups into an open file."""
    return pq.ParquetWriter(
        file, schema, compression="zstd", write_page_checksum=True, use_dictionary=["item", "reward"]
    )


def write(shard: Shard, uri: str, shards: int) -> list[int]:
    """Write a shard's Parquet file and return the number of rows of each row group."""
    schema = shard_schema(shard.users.type)
    ends = np.concatenate(([0], np.cumsum(shard.length)))
    groups = row_groups(shard.length, shards)
    with storage.open_output(uri) as file, parquet_writer(file, schema) as writer:
        for first, last in groups:
            events = slice(int(ends[first]), int(ends[last]))
            offsets = pa.array((ends[first : last + 1] - ends[first]).astype(np.int32))
            lists = {
                name: pa.ListArray.from_arrays(offsets, pa.array(values[events]), type=schema.field(name).type)
                for name, values in (
                    ("item", shard.item),
                    ("reward", shard.reward),
                    ("time", shard.time),
                    ("order", shard.order),
                )
            }
            rows = pa.table({"user": shard.users.slice(first, last - first), **lists}, schema=schema)
            writer.write_table(rows, row_group_size=last - first)
    return [last - first for first, last in groups]


@dataclass(frozen=True)
class Written:
    """What one shard's task tells the driver; ``entry`` is None where no user was kept."""

    shard: int
    entry: artifact.FileEntry | None
    row_groups: list[int]
    events: int
    users_in: int
    reward: tuple[float, float]
    counts: dict[str, int]

    @property
    def listing(self) -> dict[str, Any]:
        """The shard in the manifest's ``shards``."""
        assert self.entry is not None
        rows = sum(self.row_groups)
        return {"path": self.entry["path"], "rows": rows, "events": self.events, "row_groups": self.row_groups}


@dataclass(frozen=True)
class Occurring:
    """The items and rewards of one shard."""

    counts: Any
    """Table (index, select, refit, kept) of items."""
    passed: npt.NDArray[np.int32]
    """Items of which an event passed the minimums."""
    rewards: dict[str, Rewards]
    """Of training events under ``select`` and ``refit``."""


def write_shard(uri: str, shard: int, number: int, events: Any, limits: Limits) -> tuple[Written, Occurring]:
    """Build shard ``shard`` of ``number`` from its events and write it below the data set's ``uri``."""
    built = build(events, limits)
    reward = (float(built.reward.min(initial=np.inf)), float(built.reward.max(initial=-np.inf)))
    entry, groups = None, []
    if len(built.users):
        path = f"shards/part-{shard:05d}.parquet"
        groups = write(built, storage.join(uri, path), number)
        entry = artifact.file_entry(uri, path)
    written = Written(shard, entry, groups, len(built.item), built.users_in, reward, built.counts)
    return written, built.occurring()
