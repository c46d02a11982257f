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

from retilt import storage
from retilt.data import split
from retilt.data.hashing import hash_ids
from retilt.data.schema import EVENT_BYTES, LANES_FEW, LANES_MANY, MANY_USERS, ROW_GROUP_BYTES, shard_schema
from retilt.data.statistics import Rewards

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Limits:
    """What is kept of a user's events, and where they are cut."""

    k: int
    min_user_events: int = 1
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

    @property
    def start(self) -> Ints:
        """(U,) where each user's events begin."""
        return np.cumsum(self.length) - self.length

    def training(self, protocol: str) -> npt.NDArray[np.bool_]:
        """(E,) whether each event is a training event under ``select`` or ``refit``."""
        cut = self.cuts[0 if protocol == "select" else 1]
        return np.arange(len(self.item)) - np.repeat(self.start, self.length) < np.repeat(cut, self.length)

    def rewards(self, protocol: str) -> Rewards:
        """Statistics of the training events' rewards."""
        return Rewards.of(self.reward[self.training(protocol)])

    def item_counts(self) -> Any:
        """Table (index, select, refit, kept) of the items that occur."""
        index, inverse = np.unique(self.item, return_inverse=True)
        columns = {"kept": np.ones(len(self.item), dtype=bool)} | {p: self.training(p) for p in ("select", "refit")}
        counted = {name: np.bincount(inverse[mask], minlength=len(index)) for name, mask in columns.items()}
        return pa.table({"index": index, **counted})


def build(events: Any, limits: Limits) -> Shard:
    """Rows of one shard from a table (user, item, reward, time, order) where item 0 marks an item that was dropped.

    Users with fewer than ``min_user_events`` events go first, then dropped items, duplicates (an event that a later row
    of the input repeats in user, item *and* time: delivery at least once, not repeated consumption), all but the most
    recent ``max_events_per_user``, and users too short for the split.
    """
    codes, dictionary = _codes(events["user"])
    part: dict[str, Any] = {name: _numpy(events[name]) for name in ("item", "reward", "time", "order")} | {
        "user": codes
    }
    counts: dict[str, int] = {}

    def keep(mask: npt.NDArray[np.bool_], reason: str) -> None:
        nonlocal part
        counts[reason] = int(len(mask) - mask.sum())
        if counts[reason]:
            part = {name: values[mask] for name, values in part.items()}

    raw = np.bincount(codes, minlength=len(dictionary))
    counts["users_few_events"] = int((raw < limits.min_user_events).sum())
    keep(raw[codes] >= limits.min_user_events, "events_few_events")
    keep(part["item"] > 0, "events_rare_items")
    keep(
        _last_of_equals(part) if limits.drop_duplicates else np.ones(len(part["item"]), dtype=bool), "events_duplicate"
    )
    sort = np.lexsort((part["order"], part["time"], part["user"]))
    part = {name: values[sort] for name, values in part.items()}
    keep(_most_recent(part["user"], limits.max_events_per_user), "events_too_many")
    length = np.bincount(part["user"], minlength=len(dictionary)).astype(np.int64)
    short = length < split.SHORTEST
    counts["users_too_short"] = int((short & (raw >= limits.min_user_events)).sum())
    keep(~short[part["user"]], "events_too_short")
    length = length[~short]
    train, validation = split.bounds_array(length, limits.k)
    counts["validation_targets"] = int((validation - train).sum())
    counts["test_targets"] = int((length - validation).sum())
    return Shard(
        users=dictionary.filter(pa.array(~short)),
        length=length,
        item=part["item"].astype(np.int32),
        reward=part["reward"],
        time=part["time"],
        order=part["order"],
        counts=counts,
        cuts=(train, validation),
        users_in=len(raw),
    )


def _numpy(column: Any) -> Any:
    return column.to_numpy(zero_copy_only=False) if isinstance(column, pa.Array) else column.to_numpy()


def _codes(column: Any) -> tuple[Ints, Any]:
    """Each row's user as a number in the order of (hash, id), and the ids in that order."""
    encoded = column.combine_chunks().dictionary_encode() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(encoded, pa.ChunkedArray):
        encoded = pa.concat_arrays(encoded.unify_dictionaries().chunks)
    ids = encoded.dictionary
    table = pa.table({"hash": hash_ids(ids), "id": ids})
    place = pc.sort_indices(table, sort_keys=[("hash", "ascending"), ("id", "ascending")])
    rank = np.empty(len(ids), dtype=np.int64)
    rank[place.to_numpy()] = np.arange(len(ids))
    return rank[encoded.indices.to_numpy()], ids.take(place)


def _last_of_equals(part: dict[str, Any]) -> npt.NDArray[np.bool_]:
    """False for an event that a later row of the input repeats in user, item and time."""
    keys = [part[name] for name in ("user", "item", "time")]
    sort = np.lexsort((part["order"], *keys))
    kept = np.ones(len(sort), dtype=bool)
    a, b = sort[:-1], sort[1:]
    kept[a] = ~np.logical_and.reduce([key[a] == key[b] for key in keys])
    return kept


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


def write(shard: Shard, uri: str, shards: int) -> list[int]:
    """Write a shard's Parquet file and return the number of rows of each row group."""
    schema = shard_schema(shard.users.type)
    ends = np.concatenate(([0], np.cumsum(shard.length)))
    groups = row_groups(shard.length, shards)
    with (
        storage.open_output(uri) as file,
        pq.ParquetWriter(
            file, schema, compression="zstd", write_page_checksum=True, use_dictionary=["item", "reward"]
        ) as writer,
    ):
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
