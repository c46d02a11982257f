"""The vocabulary: which items there are, numbered from 1, and where each id finds its number.

Counting is partitioned by a hash of the id, so that no process but the driver, which numbers the items, ever sees all
of them; and the driver holds them in Arrow. The way back, from id to number, is partitioned in the same way: a
``Lookup`` is three arrays, ordered by hash, that all processes of a node map from shared memory. A dictionary would be
a hundred bytes and more an item in every one of them, a join would send every event through the network once more.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from retilt import storage
from retilt.data.hashing import U64, hash_ids
from retilt.data.schema import vocabulary_schema

PART_ROWS = 1 << 20
MERGED_TABLES = 16
"""Tables of counts that are merged at once: few enough that their ids fit beside the result."""


def count_items(item: Any) -> Any:
    """Table (item, count) of a column of ids."""
    counted = _whole(item).value_counts()
    return pa.table({"item": counted.field(0), "count": counted.field(1)})


def merge_counts(tables: Sequence[Any]) -> Any:
    """Tables (item, count) → one, with each item once."""
    merged = tables[0]
    for first in range(1, len(tables), MERGED_TABLES):
        grouped = pa.concat_tables([merged, *tables[first : first + MERGED_TABLES]]).group_by("item", use_threads=False)
        merged = grouped.aggregate([("count", "sum")]).rename_columns({"count_sum": "count"})
    return merged


def partitioned(counts: Any, parts: int) -> list[Any]:
    """A table (item, count) → ``parts`` tables by the hash of the item."""
    part = _part(hash_ids(counts["item"]), parts)
    edges = np.cumsum(np.bincount(part, minlength=parts))
    grouped = counts.take(pa.array(np.argsort(part, kind="stable")))
    return [grouped.slice(start, end - start) for start, end in itertools.pairwise([0, *edges.tolist()])]


def _part(hashes: U64, parts: int) -> npt.NDArray[np.uint16]:
    """Which of ``parts`` equal ranges of 64-bit numbers each hash lies in."""
    return ((hashes >> np.uint64(32)) * np.uint64(parts) >> np.uint64(32)).astype(np.uint16)


@dataclass(frozen=True)
class Numbered:
    """The items of a data set; an item's number is its row + 1."""

    item: Any
    """Arrow chunked array (V,) of ids; text is large_string here, because all of it may be more than 2 GB."""
    number: npt.NDArray[np.int32]
    """(rows of the counts,): number of each counted item, 0 where it has too few events."""


def number(counted: Any, min_item_events: int, earlier: Any | None) -> Numbered:
    """Number the items of a table (item, count): those of ``earlier`` as there, then new ones in the order of the ids.

    ``earlier`` is an Arrow chunked array of the ids of another vocabulary, in its order, or None.
    """
    ids = _wide(counted["item"])
    common = np.asarray(counted["count"]) >= min_item_events
    numbers = np.zeros(len(ids), dtype=np.int32)
    old = pa.chunked_array([], type=ids.type) if earlier is None else _wide(earlier)
    known = pc.index_in(ids, value_set=old).combine_chunks()
    numbers[common] = known.fill_null(-1).to_numpy()[common] + 1
    unknown = np.flatnonzero(common & (numbers == 0))
    new = ids.take(pa.array(unknown))
    order = pc.sort_indices(new)
    numbers[unknown[order.to_numpy()]] = len(old) + 1 + np.arange(len(new))
    return Numbered(pa.chunked_array([*old.chunks, *new.take(order).chunks], type=ids.type), numbers)


def _wide(ids: Any) -> Any:
    return ids if pa.types.is_integer(ids.type) else ids.cast(pa.large_string())


@dataclass(frozen=True)
class Lookup:
    """Number of each id of a part of the vocabulary, found by its hash and then compared."""

    hash: U64
    """(n,) ascending."""
    item: Any
    """Arrow array (n,) of ids, in the order of the hashes."""
    number: npt.NDArray[np.int32]
    """(n,)."""
    collisions: int
    """Most items with one hash."""

    @classmethod
    def of(cls, item: Any, number: npt.NDArray[np.int32]) -> Lookup:
        """A lookup of the distinct ids ``item`` whose ``number`` is not 0."""
        rows = np.flatnonzero(number)
        hashes = hash_ids(item)[rows]
        order = np.argsort(hashes)
        ordered, rows = hashes[order], rows[order]
        runs = np.diff(np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1], [True]))))
        return cls(ordered, _whole(item).take(pa.array(rows)), number[rows], int(runs.max(initial=1)))

    def find(self, ids: Any, hashes: U64) -> npt.NDArray[np.int32]:
        """Number of every id of an Arrow array (N,) with the given hashes; 0 where it is not here."""
        found = np.zeros(len(hashes), dtype=np.int32)
        if len(self.hash) == 0:
            return found
        place = np.searchsorted(self.hash, hashes)
        for step in range(self.collisions):
            row = np.minimum(place + step, len(self.hash) - 1)
            same = np.asarray(pc.equal(self.item.take(pa.array(row)), ids))
            found[same] = self.number[row[same]]
        return found


def find(ids: Any, lookups: Sequence[Lookup]) -> npt.NDArray[np.int32]:
    """Number of every id of an Arrow array (N,); 0 where no part of the vocabulary has it.

    ``lookups`` are of the parts that ``partitioned`` makes, in their order.
    """
    encoded = _whole(ids).dictionary_encode()
    distinct = encoded.dictionary
    hashes = hash_ids(distinct)
    # In the order of the hashes each part is gone through once from its beginning to its end.
    order = np.argsort(hashes)
    edges = np.searchsorted(_part(hashes[order], len(lookups)), np.arange(1, len(lookups)))
    found = np.zeros(len(distinct), dtype=np.int32)
    for lookup, rows in zip(lookups, np.split(order, edges), strict=True):
        found[rows] = lookup.find(distinct.take(pa.array(rows)), hashes[rows])
    numbers: npt.NDArray[np.int32] = found[encoded.indices.to_numpy()]
    return numbers


def _whole(ids: Any) -> Any:
    return ids.combine_chunks() if isinstance(ids, pa.ChunkedArray) else ids


def identity(parts: Iterable[Any]) -> str:
    """sha256 over ids in their order, given as Arrow arrays: the ``vocabulary_sha256`` of data sets and policies."""
    digest = sha256()
    for place, part in enumerate(parts):
        whole = pa.types.is_integer(part.type)
        if place == 0:
            digest.update(b"int64" if whole else b"string")
        for start in range(0, len(part), PART_ROWS):
            rows = part.slice(start, PART_ROWS)
            if whole:
                digest.update(rows.to_numpy(zero_copy_only=False).astype("<i8").tobytes())
            else:
                digest.update(_framed(rows))
    return digest.hexdigest()


def _framed(text: Any) -> Any:
    """The bytes of all texts, each after its length as four bytes."""
    raw = text.cast(pa.large_binary())
    length = pc.binary_length(raw).to_numpy(zero_copy_only=False).astype("<i4")
    frame = pa.Array.from_buffers(pa.binary(4), len(text), [None, pa.py_buffer(length)]).cast(pa.large_binary())
    joined = pc.binary_join_element_wise(frame, raw, pa.scalar(b"", pa.large_binary()))
    _, offsets, data = joined.buffers()
    ends = np.frombuffer(offsets, np.int64)[joined.offset : joined.offset + len(joined) + 1]
    return memoryview(data)[ends[0] : ends[-1]]


def write(uri: str, item: Any, counts: dict[str, npt.NDArray[np.int64]]) -> list[dict[str, Any]]:
    """Write ``vocabulary/part-NNNNN.parquet``; ``counts`` (V,): select, refit, kept. Returns the parts."""
    parts = []
    schema = vocabulary_schema(pa.int64() if pa.types.is_integer(item.type) else pa.string())
    for part, first in enumerate(range(0, len(item), PART_ROWS)):
        rows = slice(first, min(first + PART_ROWS, len(item)))
        table = pa.table(
            {
                "index": pa.array(np.arange(rows.start + 1, rows.stop + 1, dtype=np.int32)),
                "item": item.slice(first, rows.stop - first).cast(schema.field("item").type),
                "count_select": pa.array(counts["select"][rows]),
                "count_refit": pa.array(counts["refit"][rows]),
                "active": pa.array(counts["kept"][rows] > 0),
            },
            schema=schema,
        )
        path = f"vocabulary/part-{part:05d}.parquet"
        with storage.open_output(storage.join(uri, path)) as file:
            pq.write_table(table, file, compression="zstd", write_page_checksum=True)
        parts.append({"path": path, "first": rows.start + 1, "rows": rows.stop - rows.start})
    return parts
