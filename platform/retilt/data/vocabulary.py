"""The vocabulary: items in the order of their ids, numbered from 1, and a lookup that processes can share."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from retilt import storage
from retilt.data.hashing import hash_ids
from retilt.data.schema import vocabulary_schema

PART_ROWS = 1 << 20


def count_items(item: Any) -> Any:
    """Table (item, count) of a column of ids."""
    counted = item.combine_chunks().value_counts()
    return pa.table({"item": counted.field(0), "count": counted.field(1)})


def merge_counts(tables: list[Any]) -> Any:
    """Tables (item, count) → one, with each item once, in the order of the ids."""
    merged = pa.concat_tables(tables).group_by("item", use_threads=False).aggregate([("count", "sum")])
    return merged.rename_columns({"count_sum": "count"}).sort_by("item")


@dataclass(frozen=True)
class Lookup:
    """Index 1 … V of each id, found by its hash and then compared: arrays only, so it is shared without a copy."""

    item: Any
    """Arrow array (V,), ids in ascending order."""
    hash: npt.NDArray[np.uint64]
    """(V,) ascending."""
    row: npt.NDArray[np.int32]
    """(V,) row of ``item`` that has that hash."""
    collisions: int
    """Most items with one hash."""

    @classmethod
    def of(cls, item: Any) -> Lookup:
        """A lookup of distinct ids in ascending order."""
        ids = item.combine_chunks() if isinstance(item, pa.ChunkedArray) else item
        hashes = hash_ids(ids)
        row = np.argsort(hashes, kind="stable").astype(np.int32)
        ordered = hashes[row]
        runs = np.diff(np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1], [True]))))
        return cls(ids, ordered, row, int(runs.max(initial=1)))

    def index(self, ids: Any) -> npt.NDArray[np.int32]:
        """Index of every id of an Arrow array (N,); 0 where it is not in the vocabulary."""
        encoded = (
            ids.combine_chunks().dictionary_encode() if isinstance(ids, pa.ChunkedArray) else ids.dictionary_encode()
        )
        distinct = encoded.dictionary
        hashes = hash_ids(distinct)
        found = np.zeros(len(distinct), dtype=np.int32)
        place = np.searchsorted(self.hash, hashes)
        for step in range(self.collisions):
            row = self.row[np.minimum(place + step, len(self.row) - 1)]
            same = np.asarray(pc.equal(self.item.take(pa.array(row)), distinct))
            found[same] = row[same] + 1
        index: npt.NDArray[np.int32] = found[encoded.indices.to_numpy()]
        return index


def identity(item: Any) -> str:
    """sha256 over the ids in order: the ``vocabulary_sha256`` of data sets and policies."""
    digest = sha256(str(item.type).encode())
    for start in range(0, len(item), PART_ROWS):
        part = item.slice(start, PART_ROWS)
        if pa.types.is_integer(part.type):
            digest.update(np.ascontiguousarray(part.to_numpy(zero_copy_only=False).astype("<i8")).tobytes())
        else:
            for text in part.to_pylist():
                raw = text.encode()
                digest.update(len(raw).to_bytes(4, "little") + raw)
    return digest.hexdigest()


def write(uri: str, item: Any, counts: dict[str, npt.NDArray[np.int64]]) -> list[dict[str, Any]]:
    """Write ``vocabulary/part-NNNNN.parquet``; ``counts`` (V,): select, refit, kept. Returns the parts."""
    parts = []
    schema = vocabulary_schema(item.type)
    for number, first in enumerate(range(0, len(item), PART_ROWS)):
        rows = slice(first, min(first + PART_ROWS, len(item)))
        table = pa.Table.from_arrays(
            [
                pa.array(np.arange(rows.start + 1, rows.stop + 1, dtype=np.int32)),
                item.slice(first, rows.stop - first),
                pa.array(counts["select"][rows]),
                pa.array(counts["refit"][rows]),
                pa.array(counts["kept"][rows] > 0),
            ],
            schema=schema,
        )
        path = f"vocabulary/part-{number:05d}.parquet"
        with storage.open_output(storage.join(uri, path)) as file:
            pq.write_table(table, file, compression="zstd", write_page_checksum=True)
        parts.append({"path": path, "first": rows.start + 1, "rows": rows.stop - rows.start})
    return parts
