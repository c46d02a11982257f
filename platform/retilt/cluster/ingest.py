"""Event log → data set, on Ray Data: two passes over the input, with the shuffle by user between reading and writing.

The first pass counts items and checks every value; the second maps items to the vocabulary, sends each user's events to
the user's shard and writes the shards. What is written depends on the input and the configuration only: never on the
cluster, the number of blocks or the order in which tasks end.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from retilt import storage
from retilt.cluster import session
from retilt.cluster.display import say
from retilt.config import PrepareConfig
from retilt.data import dataset_writer, events, shards, sources, vocabulary
from retilt.data.hashing import hash_ids
from retilt.data.schema import Columns
from retilt.types import InputError, RetiltError

SHARD_EVENTS = 1 << 21
"""Events that a shard aims at: the most that one task holds, a few hundred MB with its copies."""
BLOCKS = 1 << 30
"""Most blocks of the shuffle; a block may hold several shards."""
_MERGE_ROWS = 1 << 22


def run(config: PrepareConfig, dry_run: bool = False) -> dict[str, Any]:
    """Prepare a data set, or only say what would be done; returns the manifest (``dry_run``: the plan).

    The data set appears whole or not at all; one that is finished already is left as it is.

    Raises:
        InputError: bad input, named with file and row; or ``dataset`` holds something else.
    """
    known = config.source in sources.KNOWN
    columns = sources.COLUMNS if known else config.columns
    _check_places(config)
    absolute = {"dataset": storage.absolute(config.dataset)}
    if not known:
        absolute["source"] = storage.absolute(config.source)
    config = config.model_copy(update=absolute)
    writer = dataset_writer.Writer(config.dataset, config)
    writer.check_place()
    if dry_run:
        return _dry_run(config, columns, known)
    with _whole_or_nothing(writer):
        writer.begin()
        uri = sources.locate(config.source, writer.staging) if known else config.source
        plan = events.plan(storage.expand(uri), columns, config.on_bad_rows == "drop")
        if (finished := writer.finished(plan.fingerprint)) is not None:
            say(f"{config.dataset}: already prepared from this source with this configuration")
            _say_result(finished, config)
            return finished
        with session.connect(config.threads, dashboard=False):
            _check_places(config)
            return _prepare(config, plan, writer)


@contextlib.contextmanager
def _whole_or_nothing(writer: dataset_writer.Writer) -> Iterator[None]:
    """Delete what was written when the block fails, and raise what a task raised without Ray's wrapping."""
    try:
        yield
    except RetiltError:
        writer.abandon()
        raise
    except ray.exceptions.RayError as problem:
        inner = session.unwrapped(problem)
        if not isinstance(inner, RetiltError):
            raise
        writer.abandon()
        raise inner from None


def _check_places(config: PrepareConfig) -> None:
    places = {"dataset": config.dataset}
    if config.source not in sources.KNOWN:
        places["source"] = config.source
    for key, uri in places.items():
        session.require_shared(uri, key, config.storage.shared_filesystem)


def _dry_run(config: PrepareConfig, columns: Columns, known: bool) -> dict[str, Any]:
    if known:
        say(f"source: {config.source}, a known data set; fetched when the job runs")
        return {"source": config.source}
    plan = events.plan(storage.expand(config.source), columns, config.on_bad_rows == "drop")
    rows = f"{plan.rows:,} rows" if plan.rows is not None else "rows counted when read"
    ids = {"user": plan.layout.user, "item": plan.layout.item}
    say(f"source: {plan.files} file(s), {len(plan.tasks)} tasks, {rows}; users are {ids['user']}, items {ids['item']}")
    return {"files": plan.files, "tasks": len(plan.tasks), "rows": plan.rows, **ids}


def _prepare(config: PrepareConfig, plan: events.Plan, writer: dataset_writer.Writer) -> dict[str, Any]:
    _quiet()
    say(f"reading {plan.files} file(s) of {config.source}: counting items and checking every value")
    counted, scanned = _scan(plan)
    events_in = int(np.asarray(counted["count"]).sum())
    say(f"  {scanned['rows']:,} rows, {len(counted):,} items")
    for reason in ("rows_null", "rows_not_finite"):
        if scanned[reason]:
            say(f"  {scanned[reason]:,} bad rows dropped ({reason[5:].replace('_', ' ')})")
    if events_in == 0:
        raise InputError(f"{config.source}: no row is left after dropping bad ones")
    common = counted.filter(pc.field("count") >= config.min_item_events)
    if len(common) == 0:
        raise InputError(f"{config.source}: no item has min_item_events = {config.min_item_events} events")
    number = max(1, -(-events_in // SHARD_EVENTS))
    say(f"shuffling by user into {number} shard(s)")
    limits = shards.Limits(
        1 if config.split == "last" else config.k,
        config.min_user_events,
        config.max_events_per_user,
        config.on_duplicates == "drop",
    )
    lookup = vocabulary.Lookup.of(common["item"])
    written = _shuffle_and_write(plan, ray.put(lookup), limits, number, config.dataset)
    manifest = writer.finish(plan, lookup.item, written, scanned | {"items": len(counted), "events": events_in})
    _say_result(manifest, config)
    return manifest


def _quiet() -> None:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    for name in ("ray.data", "ray.data._internal.execution.streaming_executor"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _tasks(plan: events.Plan) -> Any:
    return ray.data.from_items([{"task": task} for task in plan.tasks], override_num_blocks=len(plan.tasks))


def _scan(plan: events.Plan) -> tuple[Any, dict[str, int]]:
    """Table (item, count) of all clean events, and row counts. The driver holds as much as the vocabulary, no more."""
    layout = plan.layout

    def scan(batch: dict[str, Any]) -> dict[str, Any]:
        # Errors travel as values: raised, Ray Data would log a traceback before the one sentence.
        try:
            return {"found": np.array([events.scan(batch["task"][0], layout)], dtype=object)}
        except RetiltError as problem:
            return {"found": np.array([problem], dtype=object)}

    total = {"rows": 0, "rows_null": 0, "rows_not_finite": 0}
    pending: list[Any] = []
    for row in _tasks(plan).map_batches(scan, batch_size=1, batch_format="numpy").iter_rows():
        found: events.Scanned | RetiltError = row["found"]
        if isinstance(found, RetiltError):
            raise found
        for reason, count in {"rows": found.rows, **found.dropped}.items():
            total[reason] += count
        pending.append(found.counts)
        if sum(map(len, pending)) > max(_MERGE_ROWS, 2 * len(pending[0])):
            pending = [vocabulary.merge_counts(pending)]
    return vocabulary.merge_counts(pending), total


def _shuffle_and_write(
    plan: events.Plan, lookup: Any, limits: shards.Limits, number: int, uri: str
) -> list[dataset_writer.Written]:
    """The second pass; returns what was written, in the order of the shards."""
    layout = plan.layout

    def load(batch: dict[str, Any]) -> Iterator[Any]:
        task = batch["task"][0]
        index = ray.get(lookup)
        for first, block in events.read(task, layout):
            clean, _ = events.clean(task, layout, first, block)
            shard = (hash_ids(clean["user"]) % np.uint64(number)).astype(np.int32)
            mapped = clean.set_column(1, "item", pa.array(index.index(clean["item"])))
            yield mapped.append_column("shard", pa.array(shard))

    def write(block: Any) -> dict[str, Any]:
        found = []
        for shard in sorted(pc.unique(block["shard"]).to_pylist()) if number > 1 else [0] * (len(block) > 0):
            part = block.filter(pc.field("shard") == shard) if number > 1 else block
            found.append(dataset_writer.write_shard(uri, shard, number, part.drop_columns(["shard"]), limits))
        result = np.empty(len(found), dtype=object)
        result[:] = found
        return {"written": result}

    blocks = _tasks(plan).map_batches(load, batch_size=1, batch_format="numpy")
    # A keyed repartition never splits a key's rows over blocks; a block may hold several shards. For one shard there is
    # nothing to shuffle, and plain merging saves the shuffle's own worker processes.
    blocks = blocks.repartition(min(number, BLOCKS), keys=["shard"]) if number > 1 else blocks.repartition(1)
    written: list[dataset_writer.Written] = []
    for row in blocks.map_batches(write, batch_size=None, batch_format="pyarrow").iter_rows():
        written.append(row["written"])
        if number > 1 and (len(written) % max(1, number // 20) == 0 or len(written) == number):
            say(f"  {len(written)} of {number} shards written")
    assert len({each.shard for each in written}) == len(written), "a shard's rows came in more than one block"
    return sorted(written, key=lambda each: each.shard)


def _say_result(manifest: dict[str, Any], config: PrepareConfig) -> None:
    counts = manifest["counts"]
    for reason, text in dataset_writer.REASONS.items():
        if counts.get(reason):
            say(f"  {counts[reason]:,} {text}")
    split = manifest["split"]
    name = split["name"] + (f", k = {split['k']}" if split["name"] == "last_k" else "")
    say(
        f"{config.dataset}: {manifest['users']:,} users, {manifest['items']:,} items, {manifest['events']:,} events; "
        f"split {name}: {counts['validation_targets']:,} validation and {counts['test_targets']:,} test targets"
    )
    say(f"next: python jobs/pretrain.py dataset={config.dataset} output=…")
