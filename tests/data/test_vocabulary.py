"""Numbering, lookup and identity of the items."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retilt.data import vocabulary
from retilt.data.vocabulary import Lookup, identity, merge_counts


def test_counts_of_blocks_are_summed_in_the_order_of_the_ids():
    tables = [
        pa.table({"item": items, "count": counts}) for items, counts in ((["b", "a"], [1, 2]), (["c", "b"], [3, 4]))
    ]
    assert merge_counts(tables).to_pydict() == {"item": ["a", "b", "c"], "count": [2, 5, 3]}


@pytest.mark.parametrize("known", [pa.array([-5, 3, 10, 2**40]), pa.array(["", "a", "b", "é"])])
def test_known_items_have_their_number_and_others_none(known):
    lookup = Lookup.of(known)
    assert lookup.index(known).tolist() == [1, 2, 3, 4]
    unknown = pa.array([7, 8]) if pa.types.is_integer(known.type) else pa.array(["x", "y"])
    ids = pa.chunked_array([known.take(pa.array([3, 3])), unknown, known.slice(0, 1)])
    assert lookup.index(ids).tolist() == [4, 4, 0, 0, 1]


def test_items_with_one_hash_are_told_apart(monkeypatch):
    monkeypatch.setattr(
        vocabulary, "hash_ids", lambda ids: np.array([len(text) for text in ids.to_pylist()], np.uint64)
    )
    lookup = Lookup.of(pa.array(["a", "aa", "b", "bb", "c"]))
    assert lookup.collisions == 3
    assert lookup.index(pa.array(["c", "aa", "d", "bb", "a", "b", "ccc"])).tolist() == [5, 2, 0, 4, 1, 3, 0]


def test_the_identity_is_of_the_ids_and_their_order():
    assert identity(pa.array([1, 2])) == identity(pa.array([0, 1, 2]).slice(1))
    others = [pa.array([2, 1]), pa.array([1, 2, 3]), pa.array(["1", "2"]), pa.array(["12", ""])]
    assert len({identity(each) for each in (pa.array([1, 2]), *others)}) == 5


def test_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(vocabulary, "PART_ROWS", 2)
    counts = {"select": np.array([1, 0, 2]), "refit": np.array([2, 0, 2]), "kept": np.array([3, 0, 2])}
    parts = vocabulary.write(str(tmp_path), pa.array(["a", "b", "c"]), counts)
    assert [(part["first"], part["rows"]) for part in parts] == [(1, 2), (3, 1)]
    table = pa.concat_tables([pq.read_table(tmp_path / part["path"]) for part in parts])
    assert table.to_pydict() == {
        "index": [1, 2, 3],
        "item": ["a", "b", "c"],
        "count_select": [1, 0, 2],
        "count_refit": [2, 0, 2],
        "active": [True, False, True],
    }
