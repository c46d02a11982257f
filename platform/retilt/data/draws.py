"""Random numbers that no version of NumPy changes: raw words of a Philox generator, and hashes.

NumPy fixes the words of its bit generators and not what ``Generator.normal`` makes of them. A number drawn by hash
depends on what it is for and on nothing else, so it needs no order of drawing.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from retilt.data.hashing import U64, mix

Floats = npt.NDArray[np.float64]
ROUNDS, SMALLEST = 8, 4
"""Of the Feistel network, rounds and bits of a half: with few of either it is not as even as a random permutation."""


class Draws:
    """A stream of numbers named by integers of at least 0: ``Draws(seed, purpose, part)``."""

    def __init__(self, *key: int) -> None:
        self._words = np.random.Philox(np.random.SeedSequence(key))

    def words(self, size: int) -> U64:
        """Evenly distributed 64-bit words, shape (size,)."""
        words: U64 = self._words.random_raw(size)
        return words

    def uniform(self, size: int) -> Floats:
        """Numbers in [0, 1), shape (size,)."""
        return np.asarray((self.words(size) >> np.uint64(11)) * 2.0**-53, dtype=np.float64)

    def normal(self, size: int) -> Floats:
        """Standard normal numbers, shape (size,)."""
        return normal(self.words(size))


def normal(words: U64) -> Floats:
    """A standard normal number from each 64-bit word (Box and Muller 1958, the cosine alone); within ±6.8."""
    radius = np.sqrt(-2 * np.log(((words >> np.uint64(32)) + 0.5) * 2.0**-32))
    return np.asarray(radius * np.cos((words & np.uint64(0xFFFFFFFF)) * (2 * np.pi * 2.0**-32)))


def hashed(seed: int, *ids: npt.NDArray[np.int64] | U64 | int) -> U64:
    """64-bit words that depend on ``seed`` (below 2⁶⁴) and the ids alone; arrays of ids are broadcast together."""
    word = mix(mix(np.array([seed], dtype=np.uint64)))  # twice, or seed and first id could change places
    for each in ids:
        word = mix(word ^ mix(np.atleast_1d(each).astype(np.uint64)))
    return word


def permuted(place: npt.NDArray[np.int64], n: int, seed: int) -> npt.NDArray[np.int64]:
    """Where a permutation of 0 … n − 1, which ``seed`` fixes, takes each of ``place``; nothing of size n is made.

    A Feistel network (Luby and Rackoff 1988) permutes the next power of four, and a place that it takes beyond n − 1
    goes through it again until it is back (cycle walking; Black and Rogaway 2002): from 64 on at most four times on
    average.
    """
    half = max(SMALLEST, ((n - 1).bit_length() + 1) // 2)
    found = place.astype(np.uint64)
    walking = np.ones(found.shape, dtype=bool)
    while walking.any():
        found[walking] = _network(found[walking], half, seed)
        walking = found >= n
    return found.astype(np.int64)


def _network(word: U64, half: int, seed: int) -> U64:
    bits, mask = np.uint64(half), np.uint64((1 << half) - 1)
    left, right = word >> bits, word & mask
    for number in range(ROUNDS):
        left, right = right, left ^ (hashed(seed, number, right) & mask)
    return (left << bits) | right
