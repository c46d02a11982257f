"""An event log → blocks of clean events: Parquet by row group, CSV as a stream, every check vectorised.

A block is a table (user, item, reward, time, order) of ``schema.event_schema``; ``order`` is file · 2⁴⁰ + row, so the
input's order is kept whatever reads it. Which pieces there are to read is found out in ``survey``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from retilt import storage
from retilt.data.columns import identifiers, microseconds, numbers
from retilt.data.schema import Columns, event_schema
from retilt.types import InputError

BLOCK_ROWS = 1 << 20
"""Rows that a block aims at; small files share blocks."""
FILE_SHIFT = 40
REASONS = ("rows_null", "rows_not_finite")
"""Why rows are dropped, as counted in the manifest."""
_HEADER = 1 << 16
_STREAM_BYTES = 8 << 20
"""Bytes asked for at once of a column that is read: a row group may be larger than memory."""


@dataclass(frozen=True)
class Piece:
    """A part of the input that is read in one go: row groups of a Parquet file, or a CSV file (``groups`` is empty)."""

    uri: str
    file: int
    groups: tuple[int, ...]
    first: int
    """Row of the file with which the piece begins."""
    rows: int
    """How many rows there are; of a CSV file a guess."""


Task = tuple[Piece, ...]
"""Pieces in the order of the input that one task reads."""


@dataclass(frozen=True)
class Layout:
    """How every block is read: the columns and what the ids are (``int64`` or ``string``, as in the first file)."""

    columns: Columns
    user: str
    item: str
    time: str
    """Arrow type of the time column of CSV files; empty for Parquet, which states its own."""
    drop_bad_rows: bool
    time_floor: int = 1
    """Microseconds to whose multiples times are rounded down."""


@dataclass(frozen=True)
class Block:
    """Clean events and what was read to get them."""

    events: Any
    """Arrow table of ``schema.event_schema``, in the order of the input."""
    rows: int
    """Rows that were read."""
    dropped: dict[str, int]
    """Rows that were left out, by reason."""


def column_names(columns: Columns) -> list[str]:
    """The four columns of the log: user, item, reward, time."""
    return [columns.user, columns.item, columns.reward, columns.time]


def id_columns(columns: Columns) -> list[tuple[str, str]]:
    """(role, column) of the two columns of ids."""
    return [("user", columns.user), ("item", columns.item)]


def open_csv(uri: str, types: dict[str, Any], include: list[str]) -> Any:
    """A reader of a CSV file's record batches; its delimiter is the mark that the header has most of."""
    handle = storage.open_input(uri)
    compression = "gzip" if uri.lower().endswith(".gz") else None
    header = bytes(pa.input_stream(handle, compression=compression).read(_HEADER)).split(b"\n", 1)[0]
    delimiter = max([",", "\t", ";", "|"], key=lambda mark: header.count(mark.encode()))
    handle = storage.open_input(uri)
    return pacsv.open_csv(
        pa.input_stream(handle, compression=compression),
        read_options=pacsv.ReadOptions(use_threads=False, block_size=16 << 20),
        parse_options=pacsv.ParseOptions(delimiter=delimiter),
        convert_options=pacsv.ConvertOptions(column_types=types, include_columns=include, strings_can_be_null=True),
    )


def blocks(task: Task, layout: Layout, wanted: int = BLOCK_ROWS) -> Iterator[Block]:
    """The clean events of a task, in the order of the input, in blocks of about ``wanted`` rows.

    Raises:
        InputError: a file cannot be read; wrong type, a time outside 1990–2100, or a bad row where those are not to be
            dropped.
    """
    pending: list[Block] = []
    rows = 0
    for piece in task:
        for first, batch in _read(piece, layout, wanted):
            pending.append(_clean(piece, layout, first, batch))
            rows += len(batch)
            if rows >= wanted:
                yield _joined(pending)
                pending, rows = [], 0
    if pending:
        yield _joined(pending)


def _joined(parts: list[Block]) -> Block:
    events = pa.concat_tables([part.events for part in parts]).combine_chunks()
    dropped = {reason: sum(part.dropped[reason] for part in parts) for reason in REASONS}
    return Block(events, sum(part.rows for part in parts), dropped)


def _read(piece: Piece, layout: Layout, most: int) -> Iterator[tuple[int, Any]]:
    """Raw record batches of a piece, of ``most`` rows at most, with the row of the file that each begins with."""
    names = list(dict.fromkeys(column_names(layout.columns)))
    row = piece.first
    with storage.reading(piece.uri):
        for batch in _batches(piece, layout, names, most):
            if len(batch):
                yield row, batch
            row += len(batch)


def _batches(piece: Piece, layout: Layout, names: list[str], most: int) -> Iterator[Any]:
    if not piece.groups:
        columns = layout.columns
        types = {columns.user: _type(layout.user), columns.item: _type(layout.item), columns.reward: pa.float64()}
        with open_csv(piece.uri, types | {columns.time: _type(layout.time)}, names) as reader:
            yield from reader
        return
    with storage.open_input(piece.uri) as handle:
        parquet = pq.ParquetFile(handle, page_checksum_verification=True, buffer_size=_STREAM_BYTES)
        yield from parquet.iter_batches(most, row_groups=list(piece.groups), columns=names, use_threads=False)


def _type(name: str) -> Any:
    if name.startswith("timestamp"):
        unit = name[len("timestamp[") :].split(",")[0].rstrip("]")
        return pa.timestamp(unit, tz="UTC" if "tz=" in name else None)
    kinds = {"int64": pa.int64(), "double": pa.float64(), "date32[day]": pa.date32()}
    return kinds.get(name, pa.string())


def _clean(piece: Piece, layout: Layout, row: int, batch: Any) -> Block:
    """One raw batch, which begins with the file's row ``row``, without its bad rows."""
    columns = layout.columns
    ids = [identifiers(batch[name], role, name, piece.uri) for role, name in id_columns(columns)]
    for array, kind, (role, name) in zip(ids, (layout.user, layout.item), id_columns(columns), strict=True):
        if str(array.type) != kind:
            raise InputError(
                f"{piece.uri}: column '{name}' (columns.{role}) holds {array.type}, in the files before it {kind}; "
                "make it the same type in all files"
            )
    reward = numbers(batch[columns.reward], columns.reward, piece.uri)
    time = microseconds(batch[columns.time], columns.time, columns.time_unit, piece.uri, row)
    null = np.zeros(len(batch), dtype=bool)
    for array in (*ids, reward, time):
        if array.null_count:
            null |= np.asarray(array.is_null())
    finite = np.isfinite(reward.fill_null(0).to_numpy(zero_copy_only=False))
    kept = finite & ~null
    if not layout.drop_bad_rows and not kept.all():
        at = int(np.flatnonzero(~kept)[0])
        names = dict(zip(column_names(columns), (*ids, reward, time), strict=True))
        wrong = next((name for name, array in names.items() if not array[at].is_valid), columns.reward)
        value = batch[columns.reward][at].as_py() if not null[at] else "null"
        raise InputError(f"{piece.uri}, row {row + at + 1}: {wrong} is {value}; on_bad_rows=drop leaves such rows out")
    if layout.time_floor > 1:
        exact = time.fill_null(0).to_numpy(zero_copy_only=False)
        time = pa.array(exact - exact % layout.time_floor, mask=np.asarray(time.is_null()))
    order = pa.array((piece.file << FILE_SHIFT) + row + np.arange(len(batch), dtype=np.int64))
    schema = event_schema(_type(layout.user), _type(layout.item))
    events = pa.Table.from_arrays([*ids, reward, time, order], schema=schema)
    dropped = dict(zip(REASONS, (int(null.sum()), int((~finite & ~null).sum())), strict=True))
    return Block(events if kept.all() else events.filter(pa.array(kept)), len(batch), dropped)
