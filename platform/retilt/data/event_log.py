"""A simulated log's folder: claimed, filled file by file, made whole by its manifest, or given up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from retilt import artifact, storage
from retilt.data import simulate
from retilt.data.presets import Preset
from retilt.settings import identity_hash, plain
from retilt.types import InputError

KIND = "event_log"
FORMAT = 1
MARKER = "simulating.json"
EVENTS = "events"
"""The folder of the Parquet files, which is what ``prepare`` takes as its source."""


@dataclass(frozen=True)
class Written:
    """What is known of one file."""

    entry: artifact.FileEntry
    summary: simulate.Summary


def write_part(uri: str, preset: Preset, part: simulate.Part, seed: int, truth: bool) -> Written:
    """Simulate one part of the log in the folder ``uri``."""
    path = f"{EVENTS}/part-{part.number:05d}.parquet"
    summary = simulate.write(storage.join(uri, path), preset, part, seed, truth)
    return Written(artifact.file_entry(uri, path), summary)


class EventLog:
    """The folder of one log: ``finished``, ``begin``, files, ``finish``; or ``abandon``."""

    def __init__(self, uri: str, config: BaseModel) -> None:
        self.uri = uri
        self._config, self._identity = config, identity_hash(config)

    def finished(self) -> dict[str, Any] | None:
        """The manifest if the log is there already.

        Raises:
            InputError: the folder holds anything but this log or leftovers of one that was never finished.
        """
        if storage.is_file(self.uri):
            raise InputError(f"{self.uri}: output must be a folder, this is a file")
        present = [file.path for file in storage.list_files(self.uri)]
        if artifact.MANIFEST not in present:
            if present and MARKER not in present:
                raise InputError(f"{self.uri}: the folder holds other files ({present[0]}); give a new or an empty one")
            storage.require_writable(self.uri)
            return None
        manifest = artifact.read_manifest(self.uri, KIND, [FORMAT])
        if manifest.get("config_sha256") != self._identity:
            raise InputError(
                f"{self.uri}: holds a log that was simulated with other settings; give another output=, or delete it"
            )
        artifact.require_files(self.uri, manifest)
        return manifest

    def begin(self) -> None:
        """Claim the folder; what a killed run left is deleted."""
        self.abandon()
        storage.write_json(storage.join(self.uri, MARKER), {"kind": "simulating", "config": plain(self._config)})

    def finish(self, written: Sequence[Written]) -> dict[str, Any]:
        """Write the manifest, which makes the log; returns it."""
        summaries = [each.summary for each in written]
        events = sum(each.events for each in summaries)
        body = {
            "events": events,
            "users": sum(each.users for each in summaries),
            "reward": {
                "min": min(each.reward_min for each in summaries),
                "max": max(each.reward_max for each in summaries),
                "mean": sum(each.reward_sum for each in summaries) / events,
            },
            "config": plain(self._config),
            "config_sha256": self._identity,
        }
        artifact.write_manifest(self.uri, KIND, FORMAT, body, [each.entry for each in written])
        storage.delete(storage.join(self.uri, MARKER))
        return artifact.read_manifest(self.uri, KIND, [FORMAT])

    def abandon(self) -> None:
        """Delete what an unfinished log has written."""
        for part in (EVENTS, MARKER):
            storage.delete(storage.join(self.uri, part))
        if storage.is_local(self.uri) and storage.exists(self.uri) and not storage.list_files(self.uri):
            storage.delete(self.uri)
