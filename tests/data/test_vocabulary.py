"""Numbering, lookup and identity of the items."""

from __future__ import annotations

from hashlib import sha256

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retilt.data import vocabulary
from retilt.data.hashing import hash_ids
from retilt.data.vocabulary import Lookup, identity, merge_counts, number, partitioned


def test_counts_of_blocks_are_summed():
    blocks = [(["b", "a"], [1, 2]), (["c", "b"], [3, 4])]
    for more in (0, 50):  # many tables are merged some at a time
        tables = [pa.table({"item": items, "count": counts}) for items, counts in blocks + [(["z"], [1])] * more]
        merged = merge_counts(tables)
        found = dict(zip(merged["item"].to_pylist(), merged["count"].to_pylist(), strict=True))
        assert found == {"a": 2, "b": 5, "c": 3} | ({"z": more} if more else {})
        assert len(merged) == len(found)


INTEGERS = pa.array([-5, 3, 10, 2**40])
TEXTS = pa.array(["", "a", "b", "é"])


@pytest.mark.parametrize("ids", [INTEGERS, TEXTS, pa.array(range(1000)), pa.array([f"i{n:03d}" for n in range(1000)])])
@pytest.mark.parametrize("parts", [1, 3, 64])
def test_an_id_s_number_is_found_in_whichever_part_it_is(ids, parts):
    counts = partitioned(pa.table({"item": ids, "count": np.arange(len(ids))}), parts)
    counted = pa.concat_tables(counts)
    numbered = number(counted, 2, None)
    assert numbered.item.to_pylist() == ids.to_pylist()[2:]
    ends = np.cumsum([len(each) for each in counts])[:-1]
    split = np.split(numbered.number, ends)
    lookups = [Lookup.of(each["item"], numbers) for each, numbers in zip(counts, split, strict=True)]
    assert vocabulary.find(ids, lookups).tolist() == [0, 0, *range(1, len(ids) - 1)]
    unknown = pa.array([7_000_000, -8]) if pa.types.is_integer(ids.type) else pa.array(["x", "yy"])
    mixed = pa.chunked_array([ids.take(pa.array([3, 3])), unknown, ids.slice(2, 1)])
    assert vocabulary.find(mixed, lookups).tolist() == [2, 2, 0, 0, 1]


def test_items_with_one_hash_are_told_apart():
    lookup = Lookup(np.array([1, 1, 1, 2, 2], np.uint64), pa.array(list("abcde")), np.arange(1, 6, dtype=np.int32), 3)
    hashes = np.array([1, 2, 1, 2, 1, 1, 3, 0], np.uint64)
    assert lookup.find(pa.array(["c", "e", "x", "d", "a", "b", "y", "z"]), hashes).tolist() == [3, 5, 0, 4, 1, 2, 0, 0]


def test_a_lookup_knows_how_many_items_share_a_hash(monkeypatch):
    monkeypatch.setattr(
        vocabulary, "hash_ids", lambda ids: np.array([len(text) for text in ids.to_pylist()], np.uint64)
    )
    ids = pa.array(["a", "aa", "b", "bb", "c", "dropped"])
    lookup = Lookup.of(ids, np.array([1, 2, 3, 4, 5, 0], dtype=np.int32))
    assert lookup.collisions == 3
    assert vocabulary.find(ids, [lookup]).tolist() == [1, 2, 3, 4, 5, 0]


def test_the_parts_do_not_depend_on_the_table():
    """A task's counts and the lookup it is given later are divided alike, because both follow the hash."""
    ids = pa.array(range(1000))
    whole = partitioned(pa.table({"item": ids, "count": np.ones(1000, dtype=int)}), 5)
    assert sorted(item for part in whole for item in part["item"].to_pylist()) == list(range(1000))
    assert all(150 < len(part) < 250 for part in whole)  # binomial: 200 ± 13
    bounds = [(int(hashes.min()), int(hashes.max())) for hashes in (hash_ids(part["item"]) for part in whole)]
    assert all(low >= 2**64 * part // 5 and high < 2**64 * (part + 1) // 5 for part, (low, high) in enumerate(bounds))


def test_new_items_are_numbered_in_the_order_of_their_ids():
    counted = pa.table({"item": ["d", "b", "c", "a"], "count": [1, 5, 2, 3]})
    numbered = number(counted, 2, None)
    assert (numbered.item.to_pylist(), numbered.number.tolist()) == (["a", "b", "c"], [0, 2, 3, 1])
    assert number(counted, 9, None).number.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("kind", [pa.int64(), pa.string()])
def test_old_items_keep_their_numbers_and_new_ones_follow(kind):
    ids = pa.array([40, 20, 30, 10, 50]).cast(kind)
    counted = pa.table({"item": ids, "count": [1, 5, 2, 3, 1]})
    earlier = pa.chunked_array([[99, 30], [50, 20]]).cast(kind)
    numbered = number(counted, 2, earlier)
    # 99 does not occur any more and 50 too rarely, but both keep their places; 40 is new and too rare.
    assert numbered.item.to_pylist() == pa.array([99, 30, 50, 20, 10]).cast(kind).to_pylist()
    assert numbered.number.tolist() == [0, 4, 2, 5, 0]


def test_the_identity_is_of_the_ids_and_their_order():
    assert identity([pa.array([1, 2])]) == identity([pa.array([0, 1, 2]).slice(1)])
    others = [pa.array([2, 1]), pa.array([1, 2, 3]), pa.array(["1", "2"]), pa.array(["12", ""])]
    assert len({identity([each]) for each in (pa.array([1, 2]), *others)}) == 5


def test_the_identity_never_changes():
    """Policies name it: sha256 over the type and the ids, integers of 8 bytes, text after its length of 4 bytes."""
    whole = b"int64" + b"".join(each.to_bytes(8, "little", signed=True) for each in (-5, 3, 10, 2**40))
    text = b"string" + b"".join(len(raw).to_bytes(4, "little") + raw for raw in (b"", b"a", b"b", "é".encode()))
    for ids, expected in ((INTEGERS, whole), (TEXTS, text), (TEXTS.cast(pa.large_string()), text)):
        for first in range(4):  # cut anywhere
            assert identity([ids.slice(0, first), ids.slice(first)]) == sha256(expected).hexdigest()


def test_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(vocabulary, "PART_ROWS", 2)
    counts = {"select": np.array([1, 0, 2]), "refit": np.array([2, 0, 2]), "kept": np.array([3, 0, 2])}
    parts = vocabulary.write(str(tmp_path), pa.chunked_array([["a"], ["b", "c"]], pa.large_string()), counts)
    assert [(part["first"], part["rows"]) for part in parts] == [(1, 2), (3, 1)]
    table = pa.concat_tables([pq.read_table(tmp_path / part["path"]) for part in parts])
    assert table.to_pydict() == {
        "index": [1, 2, 3],
        "item": ["a", "b", "c"],
        "count_select": [1, 0, 2],
        "count_refit": [2, 0, 2],
        "active": [True, False, True],
    }
