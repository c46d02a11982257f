"""A stable sort by several integer keys, by radix: one pass for every 16 bits in which a key's values differ."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
_DIGIT = 16
"""NumPy sorts integers of up to 16 bits by radix, wider ones by comparison, which takes several times as long."""


def stable_order(keys: Sequence[npt.NDArray[np.integer]]) -> Ints:
    """Rows in the order of ``keys``, integer arrays of one shape (N,), the most important last as in ``np.lexsort``.

    >>> stable_order([np.array([3, 1, 2, 1]), np.array([7, 7, 5, 5])])
    array([3, 2, 1, 0])
    """
    order: Ints | None = None
    for key in keys:
        if order is None and bool((key[1:] >= key[:-1]).all()):
            continue
        for digit in _digits(key):
            place = np.argsort(digit if order is None else digit[order], kind="stable")
            order = place if order is None else order[place]
    return np.arange(len(keys[0])) if order is None else order


def _digits(key: npt.NDArray[np.integer]) -> Sequence[npt.NDArray[np.uint16]]:
    """A key's distance from its smallest value, in units of all distances' common divisor, 16 bits at a time.

    The divisor takes a third off times in microseconds that were logged in seconds.
    """
    if len(key) == 0:
        return []
    whole = key.astype(np.int64)
    distance = (whole - whole.min()).view(np.uint64)  # right beyond 2**63 as well: both wrap around
    unit = np.gcd.reduce(distance)
    if unit > 1:
        distance //= unit
    bits = int(distance.max()).bit_length()
    return [(distance >> np.uint64(low)).astype(np.uint16) for low in range(0, bits, _DIGIT)]
