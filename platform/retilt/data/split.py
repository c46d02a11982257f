"""Where a user's sequence is cut into training, validation and test events.

``last_k`` holds out the last k events for the test and the k before them for validation, less for short users; ``last``
is k = 1 (the paper, Section 5). The policy under ``select`` trains on ``events[:train]``, under ``refit`` on
``events[:validation]``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

SHORTEST = 3
"""A user needs a training, a validation and a test event."""


@dataclass(frozen=True)
class Cuts:
    """Training is ``events[:train]``, validation ``events[train:validation]``, test ``events[validation:]``."""

    train: int
    validation: int


def bounds_array(length: npt.ArrayLike, k: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """``bounds`` of many users at once: ``train`` and ``validation`` cuts, each of the shape of ``length``."""
    n: npt.NDArray[np.int64] = np.asarray(length, dtype=np.int64)
    test = np.minimum(k, n // 2)
    validation = np.minimum(k, (n - test) // 2)
    return n - test - validation, n - test


def bounds(length: int, k: int) -> Cuts:
    """Cuts of one user with ``length`` events: test = min(k, ⌊n/2⌋), validation = min(k, ⌊(n − test)/2⌋).

    >>> bounds(25, 10), bounds(7, 10), bounds(3, 1)
    (Cuts(train=8, validation=15), Cuts(train=2, validation=4), Cuts(train=1, validation=2))
    """
    train, validation = bounds_array(length, k)
    return Cuts(int(train), int(validation))


def before(cut_U: npt.NDArray[np.int64], length_U: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Whether each of the users' events, one user after the other, comes before its user's cut; shape (Σ length,)."""
    runs = np.column_stack((cut_U, length_U - cut_U)).ravel()
    return np.repeat(np.tile([True, False], len(cut_U)), runs)
