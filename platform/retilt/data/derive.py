"""A control as a data set: the same users, items, vocabulary, order and held-out events, but other training rewards.

Only the rewards of training events change (``changes``), or which users there are at all; statistics are worked out
anew for both cuts. A policy trained on a derived data set is evaluated on the original one, as if it had been trained
there (``Dataset.lineage``, evaluation/lineage.py). One row group is in memory at a time.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field

from retilt import artifact, storage
from retilt.data import changes, schema, vocabulary
from retilt.data.collate import Rows
from retilt.data.dataset import Dataset, origin
from retilt.data.dataset_writer import Folder, Totals
from retilt.data.shards import Shard, Written, parquet_writer
from retilt.data.split import bounds_array
from retilt.settings import Settings, free, identity_hash, plain
from retilt.types import InputError

_ANEW = ("kind", "format", "files", "counts", "changes")
"""Of the original's manifest, what is another's: written anew, or about how the original was made."""


class Derivation(Settings):
    """What a derived data set's manifest says under ``config``."""

    source: str = free(..., min_length=1)
    """URI of the original data set; its fingerprint is part of the identity, the place is not."""
    change: changes.Change
    """What is done to the training events."""
    seed: int = Field(0, ge=0)
    """Of what is drawn."""
    protocol: changes.Protocol = "select"
    """Which events are training events: `select` those before the validation cut, `refit` those before the test cut."""


def derive(
    source: str,
    output: str,
    change: changes.Change,
    seed: int = 0,
    protocol: changes.Protocol = "select",
    replacements: Iterable[npt.ArrayLike] | None = None,
) -> dict[str, Any]:
    """Write the data set that ``change`` makes of the one in ``source``; returns its manifest.

    Whole or not at all; one that is finished already is left as it is, and ``replacements`` are not asked for.

    Args:
        source: URI of a data set.
        output: URI of a folder, new or empty.
        change: one of ``changes.Change``.
        seed: of what the change draws.
        protocol: whose training events change: train with it, or held-out rewards would be changed ones.
        replacements: with ``Replaced``, and only then: see ``changes.from_elsewhere``.

    Raises:
        InputError: ``output`` holds something else; a damaged shard; replacements that do not fit; a new reward that is
            not finite; no user is left.
    """
    assert (replacements is not None) == isinstance(change, changes.Replaced), "replacements belong to Replaced"
    dataset = Dataset.open(source)
    config = Derivation(source=storage.absolute(source), change=change, seed=seed, protocol=protocol)
    identity = artifact.fingerprint([identity_hash(config), dataset.fingerprint])
    folder = Folder(storage.absolute(output), config, identity)
    folder.check_place()
    if folder.is_whole():
        return artifact.read_manifest(folder.uri, schema.KIND, [schema.FORMAT])
    try:
        folder.begin()
        if replacements is None:
            rewards = change.rewards(dataset, protocol, seed)
        else:
            rewards = changes.from_elsewhere(iter(replacements))
        return _Derived(dataset, config, rewards).write(folder)
    except BaseException:
        folder.abandon()
        raise


@dataclass(frozen=True)
class _Derived:
    """A data set that is being derived, its parts from the smallest to the whole."""

    dataset: Dataset
    config: Derivation
    rewards: changes.Rewards

    def table(self, number: int) -> Any:
        """Row group ``number`` of all, changed; of all its columns, without the users that do not stay."""
        found = self.dataset.row_groups[number]
        table = self.dataset.read(found.shard, found.number, whole=True)
        group = changes.Group.of(self.dataset, number, table, self.config.protocol)
        reward_E = group.rows.reward.copy()
        reward_E[group.training_E] = self.rewards(group)
        if not np.isfinite(reward_E).all():
            raise InputError(f"{self.dataset.uri}, {group.place}: a new reward is not a finite float32")
        place = table.schema.get_field_index("reward")
        field = table.schema.field(place)
        offsets = np.concatenate(([0], np.cumsum(group.rows.length))).astype(np.int32)
        column = pa.ListArray.from_arrays(pa.array(offsets), pa.array(reward_E), type=field.type)
        stays_U = self.config.change.users(self.config.seed, group.rows.example)
        return table.set_column(place, field, column).filter(pa.array(stays_U)).combine_chunks()

    def shard(self, number: int, uri: str, totals: Totals) -> Written | None:
        """Write one shard's file below ``uri``, unless no user stays, and count what is in it."""
        entry = self.dataset.manifest["shards"][number]
        groups = (self.table(g) for g, each in enumerate(self.dataset.row_groups) if each.shard == number)
        tables = (table for table in groups if len(table))
        if (first := next(tables, None)) is None:
            return None
        place, written = storage.join(uri, entry["path"]), []
        with storage.open_output(place) as file, parquet_writer(file, first.schema) as writer:
            for table in itertools.chain([first], tables):
                writer.write_table(table, row_group_size=len(table))
                part = _shard(table, self.dataset.k)
                totals.count(part.occurring())
                written.append((len(table), len(part.item), part.reward.min(), part.reward.max()))
        rows, events, low, high = zip(*written, strict=True)
        reward = (float(min(low)), float(max(high)))
        file_entry = artifact.file_entry(uri, entry["path"])
        return Written(number, file_entry, list(rows), sum(events), sum(rows), reward, {})

    def write(self, folder: Folder) -> dict[str, Any]:
        """Write the whole; returns the manifest."""
        totals = Totals(self.dataset.items)
        for number in range(len(self.dataset.manifest["shards"])):
            if (written := self.shard(number, folder.uri, totals)) is not None:
                totals.kept.append(written)
        if not totals.kept:
            raise InputError(f"{self.dataset.uri}: none of {self.dataset.users:,} users is left; take a larger share")
        # The catalogue stays what it is, also where none is left of an item's events.
        active_V = self.dataset.active()[1:].numpy().astype(np.int64)
        parts = vocabulary.write(folder.uri, self.dataset.vocabulary()["item"], totals.items | {"kept": active_V})
        files = [each.entry for each in totals.kept if each.entry is not None]
        files += [artifact.file_entry(folder.uri, part["path"]) for part in parts]
        return folder.publish(self.body(totals, parts), files)

    def body(self, totals: Totals, parts: list[dict[str, Any]]) -> dict[str, Any]:
        """The manifest but for what ``Folder.publish`` adds."""
        dataset, derivation = self.dataset, plain(self.config)
        return {
            **{name: value for name, value in dataset.manifest.items() if name not in _ANEW},
            **totals.body(),
            "lanes": min(dataset.lanes, sum(len(each.row_groups) for each in totals.kept)),
            "name": f"{dataset.name}, {self.config.change.name}",
            "vocabulary": parts,
            "derived_from": {
                "name": dataset.name,
                "fingerprint": dataset.fingerprint,
                "origin": origin(dataset.manifest),
                **{key: derivation[key] for key in ("change", "seed", "protocol")},
            },
        }


def _shard(table: Any, k: int) -> Shard:
    """A row group as the shard that it would be on its own."""
    rows = Rows.of(table, 0)
    return Shard(
        users=table["user"],
        length=rows.length,
        item=rows.item,
        reward=rows.reward,
        time=rows.time,
        order=table["order"].chunk(0).flatten().to_numpy(),
        counts={},
        cuts=bounds_array(rows.length, k),
        users_in=len(table),
        passed=np.unique(rows.item),
    )
