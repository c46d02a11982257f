"""Event log → data set: two passes over the input, with the shuffle by user between reading and writing.

The first pass counts items and checks every value; the second maps items to the vocabulary, sends each user's events to
the user's shard and writes the shards. What is written depends on the input and the configuration only: never on the
cluster, the number of blocks or the order in which tasks end.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from retilt import storage
from retilt.cluster import passes, session
from retilt.cluster.display import say
from retilt.config import PrepareConfig
from retilt.data import dataset_writer, events, shards, sources, survey, vocabulary
from retilt.data.extension import Earlier
from retilt.data.schema import Columns
from retilt.types import InputError, RetiltError

SHARD_EVENTS = 1 << 21
"""Events that a shard aims at: the most that one task holds, a few hundred MB with its copies."""


def run(config: PrepareConfig, dry_run: bool = False) -> dict[str, Any]:
    """Prepare a data set, or only say what would be done; returns the manifest (``dry_run``: the plan).

    The data set appears whole or not at all; one that is finished already is left as it is.

    Raises:
        InputError: bad input, named with file and row; or ``dataset`` holds something else.
    """
    known = config.source in sources.KNOWN
    columns = sources.COLUMNS if known else config.columns
    _check_places(config)
    config = config.model_copy(update={key: storage.absolute(uri) for key, uri in _places(config).items()})
    earlier = Earlier.open(config.vocabulary) if config.vocabulary else None
    writer = dataset_writer.Writer(config.dataset, config, earlier)
    writer.check_place()
    if dry_run:
        return _dry_run(config, columns, known, earlier)
    with _whole_or_nothing(writer):
        writer.begin()
        uri = sources.locate(config.source, writer.staging, say) if known else config.source
        plan = _survey(uri, columns, config, earlier)
        if (finished := writer.finished(plan.fingerprint)) is not None:
            say(f"{config.dataset}: already prepared from this source with this configuration")
            _say_result(finished, config)
            return finished
        with session.connect(config.threads, dashboard=False):
            _check_places(config)
            return _prepare(config, plan, writer)


@contextlib.contextmanager
def _whole_or_nothing(writer: dataset_writer.Writer) -> Iterator[None]:
    """Delete what was written when the block fails."""
    try:
        yield
    except RetiltError:
        writer.abandon()
        raise


def _places(config: PrepareConfig) -> dict[str, str]:
    """The URIs of a configuration, by key."""
    places = {"dataset": config.dataset, "source": config.source, "vocabulary": config.vocabulary}
    if config.source in sources.KNOWN:
        del places["source"]
    return {key: uri for key, uri in places.items() if uri is not None}


def _check_places(config: PrepareConfig) -> None:
    for key, uri in _places(config).items():
        session.require_shared(uri, key, config.storage.shared_filesystem)


def _survey(uri: str, columns: Columns, config: PrepareConfig, earlier: Earlier | None) -> survey.Plan:
    plan = survey.survey(storage.expand(uri), columns, config.on_bad_rows == "drop", config.time_floor)
    if earlier is not None:
        earlier.require_ids(plan.layout.item)
    return plan


def _dry_run(config: PrepareConfig, columns: Columns, known: bool, earlier: Earlier | None) -> dict[str, Any]:
    if earlier is not None:
        say(f"vocabulary: extends the {earlier.dataset.items:,} items of {earlier.dataset.uri}")
    if known:
        say(f"source: {config.source}, a known data set; fetched when the job runs")
        return {"source": config.source}
    plan = _survey(config.source, columns, config, earlier)
    tasks = len(plan.tasks())
    rows = f"{plan.rows:,} rows" if plan.rows is not None else "rows counted when read"
    ids = {"user": plan.layout.user, "item": plan.layout.item}
    say(f"source: {plan.files} file(s), {tasks} tasks, {rows}; users are {ids['user']}, items {ids['item']}")
    return {"files": plan.files, "tasks": tasks, "rows": plan.rows, **ids}


def _prepare(config: PrepareConfig, plan: survey.Plan, writer: dataset_writer.Writer) -> dict[str, Any]:
    earlier_items = writer.earlier.item if writer.earlier else None
    say(f"reading {plan.files} file(s) of {config.source}: counting items and checking every value")
    counted = passes.count(plan)
    say(f"  {counted.rows['rows']:,} rows, {len(counted.items):,} items")
    for reason in events.REASONS:
        if counted.rows[reason]:
            say(f"  {counted.rows[reason]:,} bad rows dropped ({reason[5:].replace('_', ' ')})")
    events_in = int(np.asarray(counted.items["count"]).sum())
    if events_in == 0:
        raise InputError(f"{config.source}: no row is left after dropping bad ones")
    numbered = vocabulary.number(counted.items, config.min_item_events, earlier_items)
    if not numbered.number.any():
        raise InputError(f"{config.source}: no item has min_item_events = {config.min_item_events} events")
    number = max(1, -(-events_in // SHARD_EVENTS))
    say(f"shuffling by user into {number} shard(s)")
    sent = passes.send(plan, counted, numbered.number, number)
    if sent.events != events_in:
        raise InputError(f"{config.source}: the source changed while it was read; run again when it is at rest")
    totals = dataset_writer.Totals(len(numbered.item))
    for done, (written, occurring) in enumerate(passes.write(sent, config.dataset, _limits(config)), start=1):
        totals.add(written, occurring)
        if number > 1 and (done % max(1, number // 20) == 0 or done == number):
            say(f"  {done} of {number} shards written")
    manifest = writer.finish(plan, numbered.item, totals, counted.rows | {"items": len(counted.items)})
    _say_result(manifest, config)
    return manifest


def _limits(config: PrepareConfig) -> shards.Limits:
    return shards.Limits(
        1 if config.split == "last" else config.k,
        config.min_user_events,
        config.min_sequence_events,
        config.max_events_per_user,
        config.on_duplicates == "drop",
    )


def _say_result(manifest: dict[str, Any], config: PrepareConfig) -> None:
    counts = manifest["counts"]
    for reason, text in dataset_writer.REASONS.items():
        if counts.get(reason):
            say(f"  {counts[reason]:,} {text}")
    if changes := manifest.get("changes"):
        say(
            f"  vocabulary: of {manifest['extends']['items']:,} items {changes['kept']:,} kept, {changes['retired']:,} "
            f"retired, {changes['returned']:,} returned; {changes['new']:,} new"
        )
    split = manifest["split"]
    name = split["name"] + (f", k = {split['k']}" if split["name"] == "last_k" else "")
    say(
        f"{config.dataset}: {manifest['users']:,} users, {manifest['items']:,} items, {manifest['events']:,} events; "
        f"split {name}: {counts['validation_targets']:,} validation and {counts['test_targets']:,} test targets"
    )
    say(f"next: python jobs/pretrain.py dataset={config.dataset} output=…")
