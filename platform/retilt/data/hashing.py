"""A hash of user and item ids that is the same in every process, on every machine and in every version: vectorised."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

U64 = npt.NDArray[np.uint64]
_BASE = 0x9E3779B97F4A7C15 | 1
_TEXTS = 1 << 16
"""Texts that are hashed at once: each of their bytes takes some thirty on the way."""


def mix(x: U64) -> U64:
    """The finaliser of splitmix64 (Steele, Lea and Flood 2014): a bijection of 64-bit integers."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def hash_ids(ids: Any) -> U64:
    """64-bit hashes of an Arrow array of int64 or string without nulls, shape (N,)."""
    array = ids.combine_chunks() if isinstance(ids, pa.ChunkedArray) else ids
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks)
    if pa.types.is_integer(array.type):
        return mix(array.to_numpy(zero_copy_only=False).astype(np.uint64))
    text = array.cast(pa.large_string())
    parts = [_hash_strings(text.slice(first, _TEXTS)) for first in range(0, len(text), _TEXTS)]
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.uint64)


def _hash_strings(array: Any) -> U64:
    # A polynomial in the bytes; sums of a string's terms are differences of one running sum, exact modulo 2**64.
    _, offsets, data = array.buffers()
    bounds = np.frombuffer(offsets, dtype=np.int64)[array.offset : array.offset + len(array) + 1]
    first = int(bounds[0])
    raw = np.frombuffer(data if data is not None else b"", dtype=np.uint8)[first : int(bounds[-1])]
    bounds = bounds - first
    lengths = np.diff(bounds)
    position = np.arange(len(raw), dtype=np.int64) - np.repeat(bounds[:-1], lengths)
    longest = int(lengths.max())
    powers = np.cumprod(np.full(longest + 1, _BASE, dtype=np.uint64))
    running = np.zeros(len(raw) + 1, dtype=np.uint64)
    np.cumsum((raw.astype(np.uint64) + np.uint64(1)) * powers[position], out=running[1:])
    return mix((running[bounds[1:]] - running[bounds[:-1]]) ^ lengths.astype(np.uint64))
