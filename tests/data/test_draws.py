"""Random numbers have the distribution they claim and do not change."""

from __future__ import annotations

import numpy as np
import pytest

from retilt.data.draws import Draws, hashed, normal


def test_normal_numbers_are_normal():
    """Moments of a million, within four standard errors."""
    for drawn in (Draws(5).normal(1_000_000), normal(hashed(5, np.arange(1_000_000)))):
        for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
            assert (drawn**power).mean() == pytest.approx(moment, abs=4 * variance**0.5 / 1000)


def test_uniform_numbers_fill_their_interval():
    drawn = np.sort(Draws(1, 2).uniform(100_000))
    assert drawn[0] >= 0
    assert drawn[-1] < 1
    # Kolmogorov's statistic; 1.95 / sqrt(n) is exceeded once in a thousand times.
    assert np.abs(drawn - np.arange(100_000) / 100_000).max() < 1.95 / 100_000**0.5


def test_extreme_words_give_finite_numbers():
    assert normal(np.array([0, 2**64 - 1, 2**32 - 1, 2**63], dtype=np.uint64)).tolist() == pytest.approx(
        [6.764, 0, 6.764, 1.177], abs=1e-3
    )


def test_a_hash_depends_on_each_id_and_on_their_order():
    ids = np.arange(1000)
    words = [hashed(0, ids, 5000), hashed(0, 5000, ids), hashed(1, ids), hashed(0, ids), hashed(5000, ids, 0)]
    assert len(np.unique(words)) == 5000
    assert hashed(3, 4) != hashed(4, 3)
    assert np.array_equal(hashed(0, ids[:, None], np.arange(3))[7], hashed(0, 7, np.arange(3)))


def test_numbers_never_change():
    """A log can be simulated again by a later version, and in parts on other machines."""
    assert Draws(0, 1).words(2).tolist() == WORDS
    assert hashed(3, 1, 2).tolist() == HASH


WORDS = [11203925021116910928, 9292188272879797859]
HASH = [4556897039243451683]
