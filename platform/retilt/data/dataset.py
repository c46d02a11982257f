"""A prepared data set: what its manifest says, its vocabulary, and its row groups one at a time."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from retilt import artifact, storage
from retilt.data import vocabulary
from retilt.data.schema import FORMAT, KIND, shard_schema
from retilt.types import InputError

SEQUENCES = ("item", "reward", "time")
"""The list columns that batches are made of."""
_NEEDED = (
    "name",
    "fingerprint",
    "users",
    "items",
    "events",
    "lanes",
    "split",
    "reward",
    "shards",
    "vocabulary",
    "vocabulary_sha256",
    "statistics",
)


@dataclass(frozen=True)
class RowGroup:
    """A row group's place: shard and number within it, its users, and the global row number of its first user."""

    shard: int
    number: int
    rows: int
    first: int


@dataclass(frozen=True)
class Dataset:
    """A data set's folder and manifest; use ``Dataset.open``."""

    uri: str
    manifest: Mapping[str, Any]

    @classmethod
    def open(cls, uri: str) -> Dataset:
        """Read the manifest of the data set in the folder ``uri``.

        Raises:
            InputError: no data set there, another kind or format, or a manifest that contradicts itself.
        """
        manifest = artifact.read_manifest(uri, KIND, [FORMAT])
        place = storage.join(uri, artifact.MANIFEST)
        dataset = cls(uri, manifest)
        try:
            problem = dataset._contradiction()
        except (KeyError, TypeError, ValueError) as error:
            problem = f"a value is missing or has the wrong type ({type(error).__name__}: {error})"
        if problem:
            raise InputError(f"{place}: {problem}; prepare the data set again")
        return dataset

    def _contradiction(self) -> str | None:
        if missing := [name for name in _NEEDED if name not in self.manifest]:
            return f"'{missing[0]}' is missing"
        shards, parts = self.manifest["shards"], self.manifest["vocabulary"]
        listed = {file["path"] for file in self.manifest["files"]}
        if unlisted := [part["path"] for part in (*shards, *parts) if part["path"] not in listed]:
            return f"{unlisted[0]} is not among 'files'"
        groups = self.row_groups
        if self.users != sum(group.rows for group in groups) or any(group.rows < 1 for group in groups):
            return f"'users' is {self.users:,}, but the row groups hold {[group.rows for group in groups]}"
        if self.items < 1 or self.items != sum(int(part["rows"]) for part in parts):
            return f"'items' is {self.items:,}, but the vocabulary's parts hold another number"
        if not 1 <= self.lanes <= len(groups) or self.k < 1:
            return f"{self.lanes} lanes for {len(groups)} row groups, k = {self.k}; needs lanes ≤ row groups, k ≥ 1"
        return None

    @property
    def name(self) -> str:
        """What reports call it."""
        return str(self.manifest["name"])

    @property
    def fingerprint(self) -> str:
        """Identity of the data: its files and split."""
        return str(self.manifest["fingerprint"])

    @property
    def vocabulary_sha256(self) -> str:
        """Identity of the vocabulary: the items' ids in their order."""
        return str(self.manifest["vocabulary_sha256"])

    @property
    def users(self) -> int:
        """Number of users, rows of all shards."""
        return int(self.manifest["users"])

    @property
    def items(self) -> int:
        """V, the number of items."""
        return int(self.manifest["items"])

    @property
    def events(self) -> int:
        """Number of events of all users."""
        return int(self.manifest["events"])

    @property
    def lanes(self) -> int:
        """L: most workers that can share the data set."""
        return int(self.manifest["lanes"])

    @property
    def k(self) -> int:
        """Most events of a user that are held out for each of validation and test."""
        return int(self.manifest["split"]["k"])

    @cached_property
    def row_groups(self) -> tuple[RowGroup, ...]:
        """Row groups in the manifest's order."""
        groups, first = [], 0
        for shard, entry in enumerate(self.manifest["shards"]):
            for number, rows in enumerate(entry["row_groups"]):
                groups.append(RowGroup(shard, number, int(rows), first))
                first += int(rows)
        return tuple(groups)

    def statistics(self, protocol: str) -> dict[str, Any]:
        """Statistics of the training events under ``select`` or ``refit``, as in the manifest."""
        return dict(self.manifest["statistics"][protocol])

    def lineage(self, protocol: str, name: str) -> dict[str, Any]:
        """The entry that a policy called ``name`` adds to its lineage by training here (evaluation/lineage.py)."""
        entry = {"name": name, "data": self.fingerprint, "split": dict(self.manifest["split"]), "protocol": protocol}
        derived = {"origin": origin(self.manifest)} if "derived_from" in self.manifest else {}
        return {**entry, "source": self.manifest.get("source_fingerprint"), **derived}

    def require_files(self) -> None:
        """Check that every file is there with its size; InputError names the first that is not."""
        artifact.require_files(self.uri, self.manifest)

    def verify(self, paths: Collection[str] | None = None) -> None:
        """Check sizes and sha256 of all files, or of ``paths``; InputError names what is absent or damaged."""
        artifact.verify(self.uri, self.manifest, paths)

    def verify_share(self, rank: int, world: int) -> None:
        """Check this rank's share of the files, every ``world``-th: all ranks together check them all."""
        self.verify([file["path"] for file in self.manifest["files"]][rank::world])

    def vocabulary(self) -> Any:
        """Arrow table (V rows): ``index``, ``item``, ``count_select``, ``count_refit``, ``active``.

        Raises:
            InputError: a part is absent or damaged, or the indices are not 1 … V.
        """
        return pa.concat_tables(self._vocabulary_parts())

    def _vocabulary_parts(self, *columns: str) -> Iterator[Any]:
        """Part after part, all columns or these and ``index``."""
        first, chosen = 1, ["index", *columns] if columns else None
        for part in self.manifest["vocabulary"]:
            table = storage.retried(partial(_read_table, storage.join(self.uri, part["path"]), chosen))
            if not np.array_equal(table["index"].to_numpy(), np.arange(first, first + int(part["rows"]))):
                raise InputError(f"{storage.join(self.uri, 'vocabulary')}: the indices are not 1 … {self.items}")
            first += len(table)
            yield table

    def item_ids(self) -> Iterator[Any]:
        """Arrow arrays of the items' ids, a part of the vocabulary at a time, in the order of the indices."""
        for table in self._vocabulary_parts("item"):
            yield from table["item"].chunks

    @property
    def item_type(self) -> Any:
        """Arrow type of the items' ids: int64 or string."""
        place = storage.join(self.uri, self.manifest["vocabulary"][0]["path"])
        return storage.retried(partial(_read_schema, place)).field("item").type

    def extends(self, sha256: str, items: int) -> bool:
        """Whether the first ``items`` ids of this vocabulary are, in their order, all of the one with that identity.

        True for its own identity. Reads as much of the vocabulary as that is, a part at a time.
        """
        if items >= self.items:
            return items == self.items and sha256 == self.vocabulary_sha256
        return vocabulary.identity(_first(self.item_ids(), items)) == sha256

    @cached_property
    def _counts(self) -> dict[str, Tensor]:
        kinds = {"count_select": torch.int64, "count_refit": torch.int64, "active": torch.bool}
        counts = {name: torch.zeros(self.items + 1, dtype=kind) for name, kind in kinds.items()}
        first = 1
        for table in self._vocabulary_parts(*counts):
            for name, values in counts.items():
                values.numpy()[first : first + len(table)] = table[name].to_numpy()
            first += len(table)
        return counts

    def train_counts(self, protocol: str) -> Tensor:
        """Training events of each item under ``select`` or ``refit``: int64 (V + 1,), 0 for padding."""
        return self._counts[f"count_{protocol}"]

    def active(self) -> Tensor:
        """Which items may be recommended: bool (V + 1,), False for padding."""
        return self._counts["active"]

    def read(self, shard: int, row_group: int, whole: bool = False) -> Any:
        """Arrow table of one row group's lists ``item``, ``reward``, ``time``, each column in one chunk.

        ``whole``: of every column of the shard.

        Raises:
            InputError: the shard is absent, damaged (page checksums are verified), not as the manifest says, or holds
                an item outside the vocabulary or a reward outside the declared range; names shard and row group.
            StorageError: the store could not be reached.
        """
        entry = self.manifest["shards"][shard]
        place = storage.join(self.uri, entry["path"])
        table = storage.retried(partial(_read_row_group, place, row_group, entry["row_groups"], whole))
        self._check(f"{place}, row group {row_group}", table)
        return table

    def _check(self, place: str, table: Any) -> None:
        columns = [table[name].chunk(0) for name in SEQUENCES]
        lengths = [pc.list_value_length(column) for column in columns]
        values = [column.flatten() for column in columns]
        if any(each.null_count for each in (*columns, *values)) or not all(each.equals(lengths[0]) for each in lengths):
            raise InputError(f"{place}: a user's lists hold nulls or differ in length; prepare the data set again")
        extremes = pc.min_max(values[0]).as_py()
        low, high = extremes["min"], extremes["max"]
        if low is None:
            raise InputError(f"{place}: no events; prepare the data set again")
        if low < 1 or high > self.items:
            wrong = low if low < 1 else high
            raise InputError(
                f"{place}: item {wrong} is outside the vocabulary (1 … {self.items}); prepare the data set again"
            )
        rewards, declared = pc.min_max(values[1]).as_py(), self.manifest["reward"]
        if rewards["min"] < declared["min"] or rewards["max"] > declared["max"]:
            wrong = rewards["min"] if rewards["min"] < declared["min"] else rewards["max"]
            raise InputError(
                f"{place}: reward {wrong:g} is outside the declared range ({declared['min']:g} … {declared['max']:g} "
                f"by {artifact.MANIFEST}); prepare the data set again"
            )


def origin(manifest: Mapping[str, Any]) -> str:
    """Fingerprint of the data set whose users and cuts a manifest's are: its own, or that which it was derived from."""
    return str(manifest.get("derived_from", {}).get("origin", manifest["fingerprint"]))


def _first(parts: Iterable[Any], rows: int) -> Iterator[Any]:
    """The first ``rows`` values of arrays."""
    for part in parts:
        yield part.slice(0, rows)
        rows -= min(rows, len(part))
        if rows == 0:
            return


def _read_schema(place: str) -> Any:
    with storage.reading(place), storage.open_input(place) as file:
        return pq.read_schema(file)


def _read_table(place: str, columns: list[str] | None) -> Any:
    with storage.reading(place), storage.open_input(place) as file:
        return pq.read_table(file, columns=columns, page_checksum_verification=True, use_threads=False)


def _read_row_group(place: str, row_group: int, expected: list[int], whole: bool) -> Any:
    with storage.reading(place), storage.open_input(place) as file:
        parquet = pq.ParquetFile(file, page_checksum_verification=True)
        _check_schema(place, parquet.schema_arrow)
        metadata = parquet.metadata
        rows = [metadata.row_group(g).num_rows for g in range(metadata.num_row_groups)]
        if rows != expected:
            raise InputError(f"{place}: row groups of {rows} users, but {artifact.MANIFEST} says {expected}")
        columns = None if whole else list(SEQUENCES)
        return parquet.read_row_group(row_group, columns=columns, use_threads=False).combine_chunks()


def _check_schema(place: str, found: Any) -> None:
    expected = shard_schema(pa.int64())
    for name in SEQUENCES:
        kind = expected.field(name).type.value_type
        index = found.get_field_index(name)
        if index < 0 or not pa.types.is_list(found.field(index).type) or found.field(index).type.value_type != kind:
            raise InputError(f"{place}: a shard needs a column '{name}' of lists of {kind}; prepare the data set again")
