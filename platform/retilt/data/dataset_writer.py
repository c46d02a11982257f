"""A data set's folder while it is written: claimed, filled shard by shard, made whole by its manifest, or given up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import BaseModel

from retilt import artifact, storage
from retilt.data import events, schema, shards, sources, vocabulary
from retilt.data.statistics import Rewards
from retilt.settings import identity_hash, plain
from retilt.types import InputError

MARKER = "preparing.json"
_OURS = ("shards/", "vocabulary/", "source/", MARKER)
REASONS = {
    "users_few_events": "users with fewer than min_user_events events dropped",
    "events_rare_items": "events of items with fewer than min_item_events events dropped",
    "events_duplicate": "duplicate events dropped",
    "events_too_many": "events beyond max_events_per_user dropped",
    "users_too_short": "users too short for the split dropped",
}


@dataclass(frozen=True)
class Written:
    """What one shard's task tells the driver; ``entry`` is None where no user was kept."""

    shard: int
    entry: artifact.FileEntry | None
    row_groups: list[int]
    events: int
    events_in: int
    users_in: int
    reward: tuple[float, float]
    counts: dict[str, int]
    rewards: dict[str, Rewards]
    items: Any

    @property
    def listing(self) -> dict[str, Any]:
        """The shard in the manifest's ``shards``."""
        assert self.entry is not None
        rows = sum(self.row_groups)
        return {"path": self.entry["path"], "rows": rows, "events": self.events, "row_groups": self.row_groups}


def write_shard(uri: str, shard: int, number: int, table: Any, limits: shards.Limits) -> Written:
    """Build shard ``shard`` of ``number`` from its events and write it below ``uri``."""
    built = shards.build(table, limits)
    users_in = built.users_in
    reward = (float(built.reward.min(initial=np.inf)), float(built.reward.max(initial=-np.inf)))
    rewards = {protocol: built.rewards(protocol) for protocol in ("select", "refit")}
    entry, groups = None, []
    if len(built.users):
        path = f"shards/part-{shard:05d}.parquet"
        groups = shards.write(built, storage.join(uri, path), number)
        entry = artifact.file_entry(uri, path)
    return Written(
        shard, entry, groups, len(built.item), len(table), users_in, reward, built.counts, rewards, built.item_counts()
    )


class Writer:
    """The folder of one data set: ``check_place``, ``begin``, shards, ``finish``; or ``abandon``."""

    def __init__(self, uri: str, config: BaseModel) -> None:
        self.uri = uri
        self.staging = storage.join(uri, "source")
        """Where a fetched source is put for the workers; gone when the data set is finished."""
        self._config = config
        self._identity = identity_hash(config)

    def check_place(self) -> None:
        """Refuse a folder that holds anything but this data set or leftovers of one that was never finished."""
        if storage.is_file(self.uri):
            raise InputError(f"{self.uri}: dataset must be a folder, this is a file")
        present = [file.path for file in storage.list_files(self.uri)]
        if artifact.MANIFEST in present:
            found = artifact.read_manifest(self.uri, schema.KIND, [schema.FORMAT])
            if found.get("config_sha256") != self._identity:
                raise InputError(
                    f"{self.uri}: holds a data set prepared from {found['config'].get('source')} with other settings; "
                    "give another dataset=, or delete it"
                )
        elif present and MARKER not in present:
            raise InputError(f"{self.uri}: the folder holds other files ({present[0]}); give a new or an empty one")

    def begin(self) -> None:
        """Claim the folder; what a crashed run left is deleted."""
        if not storage.exists(storage.join(self.uri, artifact.MANIFEST)):
            self.abandon()
            storage.write_json(storage.join(self.uri, MARKER), {"kind": "preparing", "config": plain(self._config)})

    def finished(self, source: str) -> dict[str, Any] | None:
        """The manifest if the data set is finished; InputError if it was made from a source that has changed since."""
        if not storage.exists(storage.join(self.uri, artifact.MANIFEST)):
            return None
        storage.delete(self.staging)
        manifest = artifact.read_manifest(self.uri, schema.KIND, [schema.FORMAT])
        if manifest["source_fingerprint"] != source:
            raise InputError(f"{self.uri}: its source has changed since; give another dataset=, or delete it")
        return manifest

    def abandon(self) -> None:
        """Delete what an unfinished data set has written."""
        if storage.exists(storage.join(self.uri, artifact.MANIFEST)):
            return
        for part in _OURS:
            storage.delete(storage.join(self.uri, part.rstrip("/")))
        if storage.is_local(self.uri) and storage.exists(self.uri) and not storage.list_files(self.uri):
            storage.delete(self.uri)

    def finish(
        self, plan: events.Plan, item: Any, written: Sequence[Written], scanned: Mapping[str, int]
    ) -> dict[str, Any]:
        """Write the vocabulary and, last, the manifest; returns it.

        Raises:
            InputError: no user is left; the source changed while it was read; a known data set is not complete.
        """
        if sum(each.events_in for each in written) != scanned["events"]:
            raise InputError(f"{self._source()}: the source changed while it was read; run again when it is at rest")
        users_in = sum(each.users_in for each in written)
        if self._source() in sources.KNOWN:
            sources.check(self._source(), scanned["rows"], users_in, scanned["items"])
        kept = [each for each in written if each.entry is not None]
        if not kept:
            raise InputError(
                f"{self._source()}: none of {users_in:,} users has the 3 events left that a split needs "
                "(training, validation, test)"
            )
        parts = vocabulary.write(self.uri, item, _item_counts(written, len(item)))
        files = [each.entry for each in kept if each.entry is not None]
        files += [artifact.file_entry(self.uri, part["path"]) for part in parts]
        body = self._body(plan, item, kept, parts, files)
        body["counts"] = _counts(written) | {f"source_{name}": scanned[name] for name in ("rows", "items")}
        body["counts"] |= {"source_users": users_in} | {n: scanned[n] for n in ("rows_null", "rows_not_finite")}
        storage.delete(self.staging)
        artifact.write_manifest(self.uri, schema.KIND, schema.FORMAT, body, files)
        storage.delete(storage.join(self.uri, MARKER))
        return artifact.read_manifest(self.uri, schema.KIND, [schema.FORMAT])

    def _source(self) -> str:
        return str(plain(self._config)["source"])

    def _body(
        self, plan: events.Plan, item: Any, kept: Sequence[Written], parts: list[dict[str, Any]], files: list[Any]
    ) -> dict[str, Any]:
        config = plain(self._config)
        split = {"name": config["split"], "k": 1 if config["split"] == "last" else config["k"]}
        users = sum(sum(each.row_groups) for each in kept)
        statistics = {}
        for protocol in ("select", "refit"):
            rewards = kept[0].rewards[protocol]
            for each in kept[1:]:
                rewards = rewards + each.rewards[protocol]
            statistics[protocol] = rewards.summary()
        known = config["source"] in sources.KNOWN
        hashes = [[file["path"], file["sha256"]] for file in files]
        return {
            "name": config["name"] or (config["source"] if known else storage.name(self.uri)),
            "fingerprint": artifact.fingerprint([schema.FORMAT, split, hashes]),
            "source_fingerprint": plan.fingerprint,
            "users": users,
            "items": len(item),
            "events": sum(each.events for each in kept),
            "lanes": schema.lanes(users, sum(len(each.row_groups) for each in kept)),
            "split": split,
            "reward": {"min": min(each.reward[0] for each in kept), "max": max(each.reward[1] for each in kept)},
            "columns": {
                "user": plan.layout.user,
                "item": plan.layout.item,
                "rewards": ["reward"],
                "target": None,
                "event": [],
                "side": [],
            },
            "config": config,
            "config_sha256": self._identity,
            "shards": [each.listing for each in kept],
            "vocabulary": parts,
            "vocabulary_sha256": vocabulary.identity(item),
            "statistics": statistics,
        }


def _item_counts(written: Sequence[Written], items: int) -> dict[str, Any]:
    counts = {name: np.zeros(items, dtype=np.int64) for name in ("select", "refit", "kept")}
    for each in written:
        row = each.items["index"].to_numpy() - 1
        for name, total in counts.items():
            total[row] += each.items[name].to_numpy()
    return counts


def _counts(written: Sequence[Written]) -> dict[str, int]:
    total: dict[str, int] = {}
    for each in written:
        for name, count in each.counts.items():
            total[name] = total.get(name, 0) + count
    return total
