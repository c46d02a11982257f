"""One column of an event log → the type the data set stores; wrong types and impossible dates are refused here."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from retilt.types import MICROSECONDS, InputError

EARLIEST = int(datetime(1990, 1, 1, tzinfo=UTC).timestamp())
LATEST = int(datetime(2100, 1, 1, tzinfo=UTC).timestamp())
PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


def _whole(array: Any) -> Any:
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array


def identifiers(column: Any, role: str, name: str, uri: str) -> Any:
    """Ids as int64 or string; UUIDs stored as 16 bytes become their usual text."""
    array = _whole(column)
    kind = array.type
    if isinstance(kind, pa.BaseExtensionType):
        array = array.storage
    if pa.types.is_integer(array.type):
        try:
            return array.cast(pa.int64())
        except pa.ArrowInvalid as problem:
            raise InputError(f"{uri}: column '{name}' (columns.{role}) has an id of 2**63 or more") from problem
    if pa.types.is_string(array.type) or pa.types.is_large_string(array.type) or pa.types.is_string_view(array.type):
        return array.cast(pa.string())
    if pa.types.is_fixed_size_binary(array.type) and array.type.byte_width == 16:
        return _uuid_text(array)
    raise InputError(f"{uri}: column '{name}' (columns.{role}) holds {kind}; ids are integers or strings")


def _uuid_text(array: Any) -> Any:
    raw = np.frombuffer(b"".join(value or bytes(16) for value in array.to_pylist()), dtype=np.uint8).reshape(-1, 16)
    digits = np.frombuffer(b"0123456789abcdef", dtype=np.uint8)
    text = np.full((len(raw), 36), ord("-"), dtype=np.uint8)
    places = [i for i in range(36) if i not in (8, 13, 18, 23)]
    text[:, places[0::2]], text[:, places[1::2]] = digits[raw >> 4], digits[raw & 15]
    offsets = pa.py_buffer(np.arange(0, 36 * len(raw) + 1, 36, dtype=np.int32))
    valid = array.is_valid()
    whole = pa.StringArray.from_buffers(len(raw), offsets, pa.py_buffer(text.tobytes()))
    return pc.if_else(valid, whole, pa.scalar(None, pa.string()))


def numbers(column: Any, name: str, uri: str) -> Any:
    """Rewards as float32; what float32 cannot hold becomes infinite, which is no reward."""
    array = _whole(column)
    kind = array.type
    known = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_boolean, pa.types.is_null)
    if not any(test(kind) for test in known):
        raise InputError(f"{uri}: column '{name}' (columns.reward) holds {kind}; a reward is a number")
    wide = array.cast(pa.uint8()) if pa.types.is_boolean(kind) else array
    return wide.cast(pa.float64(), safe=False).cast(pa.float32(), safe=False)


def microseconds(column: Any, name: str, unit: str, uri: str, row: int) -> Any:
    """Times as int64 microseconds since 1970 UTC; a timestamp without a zone is taken as UTC.

    Raises:
        InputError: wrong type; a time outside 1990–2100, with the unit that would fit.
    """
    array = _whole(column)
    kind = array.type
    if pa.types.is_date(kind):
        array = array.cast(pa.timestamp("us"))
    if pa.types.is_timestamp(array.type):
        unit = array.type.unit
        array = array.cast(pa.int64())
    elif pa.types.is_null(kind):
        return array.cast(pa.int64())
    elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise InputError(f"{uri}: column '{name}' (columns.time) holds {kind}; a time is a number or a timestamp")
    values = array.fill_null(EARLIEST * PER_SECOND[unit]).to_numpy(zero_copy_only=False)
    if pa.types.is_floating(array.type):
        array = pc.if_else(pc.is_nan(array), pa.scalar(None, array.type), array)
        values = np.where(np.isnan(values), EARLIEST * PER_SECOND[unit], values)
    outside = (values < EARLIEST * PER_SECOND[unit]) | (values >= LATEST * PER_SECOND[unit])
    if outside.any():
        at = int(np.flatnonzero(outside)[0])
        _refuse(values[at], unit, name, kind, f"{uri}, row {row + at + 1}")
    return pa.array(_scaled(values, PER_SECOND[unit]), mask=np.asarray(array.is_null()))


def _scaled(values: Any, per_second: int) -> Any:
    if np.issubdtype(values.dtype, np.floating):
        return np.round(values * (MICROSECONDS / per_second)).astype(np.int64)
    whole = values.astype(np.int64)
    return whole * (MICROSECONDS // per_second) if per_second <= MICROSECONDS else whole // (per_second // MICROSECONDS)


def _refuse(value: Any, unit: str, name: str, kind: Any, place: str) -> None:
    fitting = [other for other, factor in PER_SECOND.items() if EARLIEST * factor <= value < LATEST * factor]
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        written = f"; its numbers look like '{fitting[0]}', not '{unit}'" if fitting else ""
        raise InputError(f"{place}: {name} lies outside 1990–2100{written}")
    likely = f"; it looks like columns.time_unit={fitting[0]}" if fitting else ""
    raise InputError(f"{place}: {name} = {value} is outside 1990–2100 as columns.time_unit={unit}{likely}")
