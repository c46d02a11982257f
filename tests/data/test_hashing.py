"""Hashes are the same everywhere and spread ids evenly."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retilt.data.hashing import hash_ids, mix


def test_the_finaliser_is_splitmix64():
    # First outputs of splitmix64 seeded with 0, as in its reference implementation.
    assert mix(np.array([0], dtype=np.uint64))[0] == 0xE220A8397B1DCDAF


def test_hashes_never_change():
    # Shards written by one version must be found by the next.
    assert hash_ids(pa.array([1, -1, 2**62])).tolist() == [
        0x910A2DEC89025CC1,
        0xE4D971771B652C20,
        0x00AA50EA8E0FA9EB,
    ]
    assert hash_ids(pa.array(["", "a", "ab", "é"])).tolist() == [
        16294208416658607535,
        2106293278287090,
        7792414923492912647,
        10036416898752057579,
    ]


@given(st.lists(st.text(max_size=40), min_size=1, max_size=50))
def test_a_string_hashes_alone_as_among_others(texts):
    whole = hash_ids(pa.chunked_array([texts[:3], texts[3:]], type=pa.string()))
    assert whole.tolist() == [int(hash_ids(pa.array([text]))[0]) for text in texts]
    assert hash_ids(pa.array(["x", *texts]).slice(1)).tolist() == whole.tolist()
    assert len(set(whole.tolist())) == len(set(texts))


@pytest.mark.parametrize("ids", [pa.array(range(100_000)), pa.array([f"user-{i}" for i in range(100_000)])])
def test_shards_get_equal_shares(ids):
    hashes = hash_ids(ids)
    assert len(np.unique(hashes)) == 100_000
    share = np.bincount((hashes % np.uint64(10)).astype(int), minlength=10)
    # Binomial: mean 10,000, standard deviation 95.
    assert np.abs(share - 10_000).max() < 5 * 95
