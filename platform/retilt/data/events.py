"""An event log → blocks of clean events: Parquet by row group, CSV as a stream, every check vectorised.

A block is a table (user, item, reward, time, order) of ``schema.event_schema``; ``order`` is file · 2⁴⁰ + row, so the
input's order is kept whatever reads it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from retilt import storage
from retilt.data import vocabulary
from retilt.data.columns import identifiers, microseconds, numbers
from retilt.data.schema import Columns, event_schema
from retilt.types import InputError, nearest

TASK_ROWS = 1 << 20
"""Rows that one task reads (a CSV file is one task), and most rows of a block."""
FILE_SHIFT = 40
MERGE_BLOCKS = 64
_EDGE = 1 << 16


@dataclass(frozen=True)
class Task:
    """A piece of the input: row groups of a Parquet file, or a whole CSV file (``groups`` is empty)."""

    uri: str
    file: int
    groups: tuple[int, ...]
    first: int
    """Row of the file with which the piece begins."""


@dataclass(frozen=True)
class Layout:
    """How every block is read: the columns and what the ids are (``int64`` or ``string``, as in the first file)."""

    columns: Columns
    user: str
    item: str
    time: str
    """Arrow type of the time column of CSV files; empty for Parquet, which states its own."""
    drop_bad_rows: bool


@dataclass(frozen=True)
class Plan:
    """The input, before anything of it is read."""

    tasks: tuple[Task, ...]
    layout: Layout
    files: int
    rows: int | None
    """Rows, where the files say so (Parquet)."""
    fingerprint: str
    """Hash of the names, sizes and both ends of all files."""


def plan(uris: Sequence[str], columns: Columns, drop_bad_rows: bool) -> Plan:
    """Look at every file's footer or header.

    Raises:
        InputError: a file is empty or unreadable, a column is missing, a file is no Parquet or CSV.
    """
    with ThreadPoolExecutor(16) as pool:
        looked = list(pool.map(lambda each: _look(each[1], each[0], columns), enumerate(uris)))
    tasks = tuple(task for file in looked for task in file.tasks)
    if not tasks:
        raise InputError(f"{uris[0] if len(uris) == 1 else f'all {len(uris)} files of the source'}: no rows")
    first = next(file for file in looked if file.tasks)
    time = next((file.time for file in looked if file.time), "")
    layout = Layout(columns, first.user, first.item, time, drop_bad_rows)
    rows = [file.rows for file in looked]
    total = None if None in rows else sum(row for row in rows if row is not None)
    digest = sha256("".join(file.digest for file in looked).encode()).hexdigest()
    return Plan(tasks, layout, len(uris), total, digest)


@dataclass(frozen=True)
class _Look:
    tasks: list[Task]
    rows: int | None
    user: str
    item: str
    time: str
    digest: str


def _look(uri: str, file: int, columns: Columns) -> _Look:
    size = storage.size(uri)
    if size == 0:
        raise InputError(f"{uri}: the file is empty")
    with storage.reading(uri), storage.open_input(uri) as handle:
        head = handle.read(min(size, _EDGE))
        handle.seek(max(0, size - _EDGE))
        tail = handle.read()
    digest = sha256(head + tail + f"{storage.name(uri)}:{size}".encode()).hexdigest()
    if head[:4] == b"PAR1":
        return _look_parquet(uri, file, columns, digest)
    if uri.lower().endswith((".parquet", ".pq")):
        raise InputError(f"{uri}: not a Parquet file (it does not begin with PAR1)")
    return _look_csv(uri, file, columns, digest)


def _look_parquet(uri: str, file: int, columns: Columns, digest: str) -> _Look:
    with storage.reading(uri), storage.open_input(uri) as handle:
        parquet = pq.ParquetFile(handle)
        found, metadata = parquet.schema_arrow, parquet.metadata
    _require(uri, found.names, columns)
    sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    tasks: list[Task] = []
    first, pending, rows = 0, [], 0
    for group, size in enumerate(sizes):
        pending.append(group)
        rows += size
        if rows >= TASK_ROWS or group + 1 == len(sizes):
            if rows:
                tasks.append(Task(uri, file, tuple(pending), first))
            first, pending, rows = first + rows, [], 0
    empty = {name: pa.array([], found.field(name).type) for name in _names(columns)}
    kinds = [str(identifiers(empty[name], role, name, uri).type) for role, name in _ids(columns)]
    return _Look(tasks, sum(sizes), kinds[0], kinds[1], "", digest)


def _look_csv(uri: str, file: int, columns: Columns, digest: str) -> _Look:
    with storage.reading(uri), _csv(uri, {}, []) as reader:
        _require(uri, reader.schema.names, columns)
        found = {name: reader.schema.field(name).type for name in dict.fromkeys(_names(columns))}
        empty = sum(len(batch) for batch in _first(reader)) == 0
    kinds = ["int64" if pa.types.is_integer(found[name]) else "string" for _, name in _ids(columns)]
    time = found[columns.time]
    if pa.types.is_null(time):
        time = pa.int64()
    tasks = [] if empty else [Task(uri, file, (), 0)]
    return _Look(tasks, 0 if empty else None, kinds[0], kinds[1], str(time), digest)


def _first(reader: Any) -> Iterator[Any]:
    for batch in reader:
        if len(batch):
            yield batch
            return


def _names(columns: Columns) -> list[str]:
    return [columns.user, columns.item, columns.reward, columns.time]


def _ids(columns: Columns) -> list[tuple[str, str]]:
    return [("user", columns.user), ("item", columns.item)]


def _require(uri: str, found: Sequence[str], columns: Columns) -> None:
    for role, name in zip(("user", "item", "reward", "time"), _names(columns), strict=True):
        if name not in found:
            there = ", ".join(found[:20])
            raise InputError(f"{uri}: no column '{name}' (columns.{role}); the file has {there}{nearest(name, found)}")


def _csv(uri: str, types: dict[str, Any], include: list[str]) -> Any:
    handle = storage.open_input(uri)
    compression = "gzip" if uri.lower().endswith(".gz") else None
    header = bytes(pa.input_stream(handle, compression=compression).read(_EDGE)).split(b"\n", 1)[0]
    delimiter = max([",", "\t", ";", "|"], key=lambda mark: header.count(mark.encode()))
    handle = storage.open_input(uri)
    return pacsv.open_csv(
        pa.input_stream(handle, compression=compression),
        read_options=pacsv.ReadOptions(use_threads=False, block_size=16 << 20),
        parse_options=pacsv.ParseOptions(delimiter=delimiter),
        convert_options=pacsv.ConvertOptions(column_types=types, include_columns=include, strings_can_be_null=True),
    )


def read(task: Task, layout: Layout) -> Iterator[tuple[int, Any]]:
    """Raw blocks of a task with the row of the file that each begins with."""
    names = list(dict.fromkeys(_names(layout.columns)))
    row = task.first
    with storage.reading(task.uri):
        for batch in _batches(task, layout, names):
            if len(batch):
                yield row, batch
            row += len(batch)


def _batches(task: Task, layout: Layout, names: list[str]) -> Iterator[Any]:
    if not task.groups:
        columns = layout.columns
        types = {columns.user: _type(layout.user), columns.item: _type(layout.item), columns.reward: pa.float64()}
        with _csv(task.uri, types | {columns.time: _type(layout.time)}, names) as reader:
            yield from reader
        return
    with storage.open_input(task.uri) as handle:
        parquet = pq.ParquetFile(handle, page_checksum_verification=True)
        yield from parquet.iter_batches(TASK_ROWS, row_groups=list(task.groups), columns=names, use_threads=False)


def _type(name: str) -> Any:
    if name.startswith("timestamp"):
        unit = name[len("timestamp[") :].split(",")[0].rstrip("]")
        return pa.timestamp(unit, tz="UTC" if "tz=" in name else None)
    kinds = {"int64": pa.int64(), "double": pa.float64(), "date32[day]": pa.date32()}
    return kinds.get(name, pa.string())


def clean(task: Task, layout: Layout, row: int, block: Any) -> tuple[Any, dict[str, int]]:
    """One raw block → (events, how many rows were dropped for which reason).

    Raises:
        InputError: wrong type, a time outside 1990–2100, or a bad row where those are not to be dropped.
    """
    columns = layout.columns
    ids = [identifiers(block[name], role, name, task.uri) for role, name in _ids(columns)]
    for array, kind, (role, name) in zip(ids, (layout.user, layout.item), _ids(columns), strict=True):
        if str(array.type) != kind:
            raise InputError(
                f"{task.uri}: column '{name}' (columns.{role}) holds {array.type}, in the files before it {kind}; "
                "make it the same type in all files"
            )
    reward = numbers(block[columns.reward], columns.reward, task.uri)
    time = microseconds(block[columns.time], columns.time, columns.time_unit, task.uri, row)
    null = np.zeros(len(block), dtype=bool)
    for array in (*ids, reward, time):
        if array.null_count:
            null |= np.asarray(array.is_null())
    finite = np.isfinite(reward.fill_null(0).to_numpy(zero_copy_only=False))
    kept = finite & ~null
    if not layout.drop_bad_rows and not kept.all():
        at = int(np.flatnonzero(~kept)[0])
        names = dict(zip(_names(columns), (*ids, reward, time), strict=True))
        wrong = next((name for name, array in names.items() if not array[at].is_valid), columns.reward)
        value = block[columns.reward][at].as_py() if not null[at] else "null"
        raise InputError(f"{task.uri}, row {row + at + 1}: {wrong} is {value}; on_bad_rows=drop leaves such rows out")
    order = pa.array((task.file << FILE_SHIFT) + row + np.arange(len(block), dtype=np.int64))
    schema = event_schema(_type(layout.user), _type(layout.item))
    events = pa.Table.from_arrays([*ids, reward, time, order], schema=schema)
    dropped = {"rows_null": int(null.sum()), "rows_not_finite": int((~finite & ~null).sum())}
    return (events if kept.all() else events.filter(pa.array(kept))), dropped


@dataclass(frozen=True)
class Scanned:
    """What there is in one task."""

    counts: Any
    """Table (item, count) of the clean events."""
    rows: int
    dropped: dict[str, int]


def scan(task: Task, layout: Layout) -> Scanned:
    """Check every value of a task and count its items, in the memory of one block."""
    rows, dropped = 0, {"rows_null": 0, "rows_not_finite": 0}
    counts = []
    for first, block in read(task, layout):
        clean_events, bad = clean(task, layout, first, block)
        rows += len(block)
        dropped = {reason: count + bad[reason] for reason, count in dropped.items()}
        counts.append(vocabulary.count_items(clean_events["item"]))
        if len(counts) == MERGE_BLOCKS:
            counts = [vocabulary.merge_counts(counts)]
    return Scanned(vocabulary.merge_counts(counts), rows, dropped)
