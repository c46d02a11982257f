"""What the input is, before any row of it is read: every file's footer or header → pieces, types, fingerprint."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from retilt import storage
from retilt.data.columns import identifiers
from retilt.data.events import Layout, Piece, Task, column_names, id_columns, open_csv
from retilt.data.schema import Columns
from retilt.types import MICROSECONDS, InputError, nearest

TASK_ROWS = 1 << 20
"""Rows that one task aims at: a large file has many tasks, and small files share one."""
_OPENING_ROWS = 1 << 14
"""Rows that could be read while a file is opened; without them, one task would open a million files of one row."""
_CSV_ROW_BYTES = 32
"""What a row of a CSV file is taken to need, to guess how many there are."""
_EDGE = 1 << 16


@dataclass(frozen=True)
class Plan:
    """The input, before anything of it is read."""

    pieces: tuple[Piece, ...]
    """In the order of the input."""
    layout: Layout
    files: int
    rows: int | None
    """Rows, where the files say so (Parquet)."""
    fingerprint: str
    """Hash of the names, sizes and both ends of all files."""

    def tasks(self, rows: int | None = None) -> list[Task]:
        """The pieces, in their order, in tasks of about ``rows`` (TASK_ROWS), less where the files are small."""
        wanted = TASK_ROWS if rows is None else rows
        tasks: list[Task] = []
        pending: list[Piece] = []
        together = 0
        for piece in self.pieces:
            pending.append(piece)
            together += _OPENING_ROWS + piece.rows
            if together >= wanted:
                tasks.append(tuple(pending))
                pending, together = [], 0
        return [*tasks, tuple(pending)] if pending else tasks


def survey(uris: Sequence[str], columns: Columns, drop_bad_rows: bool, time_floor: float | None = None) -> Plan:
    """Look at every file's footer or header. ``time_floor`` is in minutes.

    Raises:
        InputError: a file is empty or unreadable, a column is missing, a file is no Parquet or CSV.
    """
    with ThreadPoolExecutor(16) as pool:
        looked = list(pool.map(lambda each: _look(each[1], each[0], columns), enumerate(uris)))
    pieces = tuple(piece for file in looked for piece in file.pieces)
    if not pieces:
        raise InputError(f"{uris[0] if len(uris) == 1 else f'all {len(uris)} files of the source'}: no rows")
    first = next(file for file in looked if file.pieces)
    time = next((file.time for file in looked if file.time), "")
    floor = round(time_floor * 60 * MICROSECONDS) if time_floor else 1
    layout = Layout(columns, first.user, first.item, time, drop_bad_rows, floor)
    rows = [file.rows for file in looked]
    total = None if None in rows else sum(row for row in rows if row is not None)
    digest = sha256("".join(file.digest for file in looked).encode()).hexdigest()
    return Plan(pieces, layout, len(uris), total, digest)


@dataclass(frozen=True)
class _Look:
    pieces: list[Piece]
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
            # A small file has been read already; thousands of them are not asked for once more.
            return _look_parquet(uri, file, columns, digest, handle if size > _EDGE else pa.BufferReader(head))
    if uri.lower().endswith((".parquet", ".pq")):
        raise InputError(f"{uri}: not a Parquet file (it does not begin with PAR1)")
    return _look_csv(uri, file, size, columns, digest)


def _look_parquet(uri: str, file: int, columns: Columns, digest: str, source: Any) -> _Look:
    parquet = pq.ParquetFile(source)
    found, metadata = parquet.schema_arrow, parquet.metadata
    _require(uri, found.names, columns)
    sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    empty = {name: pa.array([], found.field(name).type) for name in column_names(columns)}
    kinds = [str(identifiers(empty[name], role, name, uri).type) for role, name in id_columns(columns)]
    return _Look(list(_pieces(uri, file, sizes)), sum(sizes), kinds[0], kinds[1], "", digest)


def _pieces(uri: str, file: int, sizes: Iterable[int]) -> Iterator[Piece]:
    """Row groups of a Parquet file, about TASK_ROWS rows together."""
    first, groups, rows = 0, [], 0
    for group, size in enumerate(sizes):
        groups.append(group)
        rows += size
        if rows >= TASK_ROWS:
            yield Piece(uri, file, tuple(groups), first, rows)
            first, groups, rows = first + rows, [], 0
    if rows:
        yield Piece(uri, file, tuple(groups), first, rows)


def _look_csv(uri: str, file: int, size: int, columns: Columns, digest: str) -> _Look:
    with storage.reading(uri), open_csv(uri, {}, []) as reader:
        _require(uri, reader.schema.names, columns)
        found = {name: reader.schema.field(name).type for name in dict.fromkeys(column_names(columns))}
        empty = not any(len(batch) for batch in reader)
    kinds = ["int64" if pa.types.is_integer(found[name]) else "string" for _, name in id_columns(columns)]
    time = found[columns.time]
    if pa.types.is_null(time):
        time = pa.int64()
    pieces = [] if empty else [Piece(uri, file, (), 0, 1 + size // _CSV_ROW_BYTES)]
    return _Look(pieces, 0 if empty else None, kinds[0], kinds[1], str(time), digest)


def _require(uri: str, found: Sequence[str], columns: Columns) -> None:
    for role, name in zip(("user", "item", "reward", "time"), column_names(columns), strict=True):
        if name not in found:
            there = ", ".join(found[:20])
            raise InputError(f"{uri}: no column '{name}' (columns.{role}); the file has {there}{nearest(name, found)}")
