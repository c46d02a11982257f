"""A data set's folder while it is written: claimed, filled shard by shard, made whole by its manifest, or given up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from pydantic import BaseModel

from retilt import artifact, storage
from retilt.data import events, schema, sources, survey, vocabulary
from retilt.data.extension import Earlier
from retilt.data.shards import Occurring, Written
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
    "users_too_short": "users with fewer than min_sequence_events events left dropped",
}


class Totals:
    """Sums over shards, which are added in their order; of each item three counts and a flag."""

    def __init__(self, items: int) -> None:
        self.kept: list[Written] = []
        self.users_in = 0
        self.counts: Counter[str] = Counter()
        self.items = {name: np.zeros(items, dtype=np.int64) for name in ("select", "refit", "kept")}
        self.passed = np.zeros(items, dtype=bool)
        self.rewards: dict[str, Rewards] = {}

    @property
    def users(self) -> int:
        """Users that were kept."""
        return sum(sum(each.row_groups) for each in self.kept)

    def add(self, written: Written, occurring: Occurring) -> None:
        """Add one shard."""
        self.users_in += written.users_in
        self.counts.update(written.counts)
        self.count(occurring)
        if written.entry is not None:
            self.kept.append(written)

    def count(self, occurring: Occurring) -> None:
        """Add the items and rewards of a shard, or of a part of one."""
        row = occurring.counts["index"].to_numpy() - 1
        for name, total in self.items.items():
            total[row] += occurring.counts[name].to_numpy()
        self.passed[occurring.passed - 1] = True
        for protocol, rewards in occurring.rewards.items():
            self.rewards[protocol] = self.rewards[protocol] + rewards if protocol in self.rewards else rewards

    def body(self) -> dict[str, Any]:
        """What a manifest says of the shards."""
        return {
            "users": self.users,
            "events": sum(each.events for each in self.kept),
            "lanes": schema.lanes(self.users, sum(len(each.row_groups) for each in self.kept)),
            "reward": {
                "min": min(each.reward[0] for each in self.kept),
                "max": max(each.reward[1] for each in self.kept),
            },
            "shards": [each.listing for each in self.kept],
            "statistics": {protocol: rewards.summary() for protocol, rewards in self.rewards.items()},
        }


class Folder:
    """The folder of one data set: ``check_place``, ``begin``, its files, ``publish``; or ``abandon``."""

    def __init__(self, uri: str, config: BaseModel, identity: str) -> None:
        """``config`` says in its ``source`` what the data set is made from; ``identity`` is that of the whole."""
        self.uri = uri
        self._config = config
        self._identity = identity

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
        if not self.is_whole():
            self.abandon()
            storage.write_json(storage.join(self.uri, MARKER), {"kind": "preparing", "config": plain(self._config)})

    def is_whole(self) -> bool:
        """Whether the data set is finished."""
        return storage.exists(storage.join(self.uri, artifact.MANIFEST))

    def abandon(self) -> None:
        """Delete what an unfinished data set has written."""
        if self.is_whole():
            return
        for part in _OURS:
            storage.delete(storage.join(self.uri, part.rstrip("/")))
        if storage.is_local(self.uri) and storage.exists(self.uri) and not storage.list_files(self.uri):
            storage.delete(self.uri)

    def publish(self, body: Mapping[str, Any], files: list[artifact.FileEntry]) -> dict[str, Any]:
        """Write the manifest, which makes the folder a data set, and return it; it gets fingerprint and settings."""
        hashes = [[file["path"], file["sha256"]] for file in files]
        identity = {
            "fingerprint": artifact.fingerprint([schema.FORMAT, body["split"], hashes]),
            "config": plain(self._config),
            "config_sha256": self._identity,
        }
        artifact.write_manifest(self.uri, schema.KIND, schema.FORMAT, {**body, **identity}, files)
        storage.delete(storage.join(self.uri, MARKER))
        return artifact.read_manifest(self.uri, schema.KIND, [schema.FORMAT])


class Writer(Folder):
    """The folder of a data set that is prepared from an event log; ``finish`` publishes it."""

    def __init__(self, uri: str, config: BaseModel, earlier: Earlier | None = None) -> None:
        identity = identity_hash(config)
        if earlier is not None:
            identity = artifact.fingerprint([identity, earlier.dataset.vocabulary_sha256])
        super().__init__(uri, config, identity)
        self.staging = storage.join(uri, "source")
        """Where a fetched source is put for the workers; gone when the data set is finished."""
        self.earlier = earlier

    def finished(self, source: str) -> dict[str, Any] | None:
        """The manifest if the data set is finished; InputError if it was made from a source that has changed since."""
        if not self.is_whole():
            return None
        storage.delete(self.staging)
        manifest = artifact.read_manifest(self.uri, schema.KIND, [schema.FORMAT])
        if manifest["source_fingerprint"] != source:
            raise InputError(f"{self.uri}: its source has changed since; give another dataset=, or delete it")
        return manifest

    def finish(self, plan: survey.Plan, item: Any, totals: Totals, counted: Mapping[str, int]) -> dict[str, Any]:
        """Write the vocabulary, whose ids in their order are ``item``, and, last, the manifest; returns it.

        ``counted``: how many ``rows`` and ``items`` the source has, and how many rows were bad for which reason.

        Raises:
            InputError: no user is left; a known data set is not complete.
        """
        config = plain(self._config)
        source = config["source"]
        if source in sources.KNOWN:
            sources.check(source, counted["rows"], totals.users_in, counted["items"])
        if not totals.kept:
            raise InputError(
                f"{source}: none of {totals.users_in:,} users has the {config['min_sequence_events']} "
                "events left that min_sequence_events asks for (a split needs 3: training, validation, test)"
            )
        if source in sources.KNOWN and config["on_duplicates"] == "keep":
            minimums = {config[f"min_{of}_events"] for of in ("user", "item", "sequence")}
            sources.check_filtered(source, minimums, totals.users, int(totals.passed.sum()))
        parts = vocabulary.write(self.uri, item, totals.items)
        files = [each.entry for each in totals.kept if each.entry is not None]
        files += [artifact.file_entry(self.uri, part["path"]) for part in parts]
        body = self._body(plan, item, totals, parts)
        body["counts"] = totals.counts | {f"source_{name}": counted[name] for name in ("rows", "items")}
        body["counts"] |= {"source_users": totals.users_in} | {reason: counted[reason] for reason in events.REASONS}
        if self.earlier is not None:
            body |= {"extends": self.earlier.entry, "changes": self.earlier.changes(totals.items["kept"])}
        storage.delete(self.staging)
        return self.publish(body, files)

    def _body(self, plan: survey.Plan, item: Any, totals: Totals, parts: list[dict[str, Any]]) -> dict[str, Any]:
        config = plain(self._config)
        split = {"name": config["split"], "k": 1 if config["split"] == "last" else config["k"]}
        known = config["source"] in sources.KNOWN
        columns = {"user": plan.layout.user, "item": plan.layout.item, "rewards": ["reward"]}
        return {
            "name": config["name"] or (config["source"] if known else storage.name(self.uri)),
            "source_fingerprint": plan.fingerprint,
            **totals.body(),
            "items": len(item),
            "split": split,
            "columns": columns | {"target": None, "event": [], "side": []},
            "vocabulary": parts,
            "vocabulary_sha256": vocabulary.identity(item.chunks),
        }
