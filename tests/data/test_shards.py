"""Rows of a shard: order, limits, what is dropped, row groups."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retilt.data import shards
from retilt.data.schema import LANES_FEW, LANES_MANY
from retilt.data.shards import Limits, build, row_groups, write


def events(rows, user=None):
    """A table of events from tuples (user, item, reward, time), in the order of the input."""
    users, items, rewards, times = zip(*rows, strict=True)
    return pa.table(
        {
            "user": pa.array(users, user),
            "item": pa.array(items, pa.int32()),
            "reward": pa.array(rewards, pa.float32()),
            "time": pa.array(times, pa.int64()),
            "order": pa.array(range(len(rows)), pa.int64()),
        }
    )


def sequences(shard):
    """Items of each user."""
    parts = np.split(shard.item, np.cumsum(shard.length)[:-1])
    return {user: part.tolist() for user, part in zip(shard.users.to_pylist(), parts, strict=True)}


ROWS = [("a", 1, 1.0, 30), ("b", 5, 2.0, 1), ("a", 2, 3.0, 10), ("a", 3, 4.0, 10), ("b", 6, 5.0, 2), ("b", 7, 1.0, 3)]


def test_sequences_are_sorted_by_time_then_by_the_order_of_the_input():
    shard = build(events(ROWS), Limits(k=1))
    assert sequences(shard) == {"a": [2, 3, 1], "b": [5, 6, 7]}
    assert shard.order.tolist() in ([2, 3, 0, 1, 4, 5], [1, 4, 5, 2, 3, 0])
    assert (shard.counts["validation_targets"], shard.counts["test_targets"], shard.users_in) == (2, 2, 2)


@given(st.permutations(range(6)))
def test_the_order_of_arrival_changes_nothing(order):
    table = events(ROWS)
    a, b = build(table, Limits(k=1)), build(table.take(pa.array(order)), Limits(k=1))
    assert a.users.equals(b.users)
    for name in ("length", "item", "reward", "time", "order"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


def test_training_events_at_both_cuts():
    shard = build(events([("a", i, float(i), i) for i in range(1, 6)]), Limits(k=1))
    assert shard.training("select").tolist() == [True, True, True, False, False]
    assert shard.training("refit").tolist() == [True, True, True, True, False]
    assert (shard.rewards("select").maximum, shard.rewards("refit").maximum) == (3.0, 4.0)
    counts = shard.item_counts().to_pydict()
    assert counts["select"] == [1, 1, 1, 0, 0]
    assert counts["refit"] == [1, 1, 1, 1, 0]
    assert counts["kept"] == [1, 1, 1, 1, 1]


def test_users_and_items_are_counted_once_before_anything_is_dropped():
    # User a has 4 events, one of a rare item (0): four are enough, and three are left.
    rows = [
        ("a", 1, 1.0, 1),
        ("a", 0, 1.0, 2),
        ("a", 1, 1.0, 3),
        ("a", 1, 1.0, 4),
        *[("b", 1, 1.0, t) for t in range(3)],
    ]
    shard = build(events(rows), Limits(k=1, min_user_events=4))
    assert sequences(shard) == {"a": [1, 1, 1]}
    assert shard.counts["users_few_events"] == 1
    assert shard.counts["events_few_events"] == 3
    assert shard.counts["events_rare_items"] == 1


def test_users_too_short_for_the_split_are_dropped_and_counted():
    shard = build(events([*ROWS, ("c", 1, 1.0, 1), ("c", 2, 1.0, 2)]), Limits(k=10))
    assert set(sequences(shard)) == {"a", "b"}
    assert (shard.counts["users_too_short"], shard.counts["events_too_short"], shard.users_in) == (1, 2, 3)
    nobody = build(events([("c", 1, 1.0, 1)]), Limits(k=1))
    assert len(nobody.users) == len(nobody.item) == 0
    assert len(nobody.item_counts()) == 0


def test_items_pass_the_minimums_before_short_sequences_are_dropped():
    """User c has the 4 events that are asked for, but two of them with rare items (0)."""
    rows = [(user, item, 1.0, item) for user in "ab" for item in range(1, 5)]
    rows += [("c", item, 1.0, time) for time, item in enumerate((1, 9, 0, 0))] + [("d", 8, 1.0, 1)]
    shard = build(events(rows), Limits(k=1, min_user_events=4, min_sequence_events=4))
    assert set(sequences(shard)) == {"a", "b"}
    assert (shard.counts["users_few_events"], shard.counts["users_too_short"]) == (1, 1)
    assert shard.item_counts()["index"].to_pylist() == [1, 2, 3, 4]
    assert shard.passed.tolist() == [1, 2, 3, 4, 9]


def test_the_most_recent_events_are_kept():
    rows = [(user, t, 1.0, t) for user in "ab" for t in range(1, 8)]
    shard = build(events(rows), Limits(k=1, max_events_per_user=3))
    assert sequences(shard) == {"a": [5, 6, 7], "b": [5, 6, 7]}
    assert shard.counts["events_too_many"] == 8


def test_duplicates_share_user_item_and_time_and_the_last_of_the_input_stays():
    rows = [("a", 1, 1.0, 1), ("a", 1, 2.0, 1), ("a", 1, 3.0, 2), ("a", 2, 4.0, 1), ("b", 1, 5.0, 1)]
    rows += [("b", 1, 5.0, 2), ("b", 1, 5.0, 3)]
    kept = build(events(rows), Limits(k=1, drop_duplicates=True))
    assert kept.counts["events_duplicate"] == 1
    assert sorted(kept.reward.tolist()) == [2.0, 3.0, 4.0, 5.0, 5.0, 5.0]
    assert len(build(events(rows), Limits(k=1)).item) == 7


@given(st.lists(st.integers(3, 2000), min_size=0, max_size=300), st.integers(1, 9))
def test_row_groups_cover_all_rows_in_order_and_serve_all_lanes(lengths, number):
    groups = row_groups(np.array(lengths, dtype=np.int64), number)
    assert [row for first, last in groups for row in range(first, last)] == list(range(len(lengths)))
    assert all(last > first for first, last in groups)
    assert len(groups) * number >= min(len(lengths) * number, LANES_FEW)


def test_row_groups_are_cut_by_bytes_and_by_lanes(monkeypatch):
    monkeypatch.setattr(shards, "ROW_GROUP_BYTES", 24 * 1000)
    length = np.array([10] * 100 + [5000] + [10] * 100)
    groups = row_groups(length, 1)
    assert (100, 101) in groups
    assert all(length[first:last].sum() <= 1000 for first, last in groups if (first, last) != (100, 101))


def test_row_groups_are_enough_for_all_lanes_and_even():
    assert len(row_groups(np.full(60_000, 3), 1)) == LANES_MANY
    assert len(row_groups(np.full(12_000, 3), 5)) == 13  # ⌈64 / 5⌉
    events_of = [int(np.full(1000, 3)[first:last].sum()) for first, last in row_groups(np.full(1000, 3), 1)]
    assert max(events_of) - min(events_of) <= 6


@pytest.mark.parametrize("kind", [pa.int64(), pa.string()])
def test_a_shard_is_written_with_checksums_and_one_row_a_user(tmp_path, kind):
    rows = [(i if kind == pa.int64() else f"u{i}", i * t + 1, t / 2, t) for i in range(40) for t in range(1, 5)]
    shard = build(events(rows, kind), Limits(k=1))
    groups = write(shard, str(tmp_path / "s.parquet"), 1)
    assert len(groups) == LANES_FEW
    file = pq.ParquetFile(tmp_path / "s.parquet", page_checksum_verification=True)
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == groups
    table = file.read()
    assert table["user"].to_pylist() == shard.users.to_pylist()
    assert table["item"].combine_chunks().flatten().to_numpy().tolist() == shard.item.tolist()
    assert table["time"].to_pylist()[7] == [1, 2, 3, 4]
    assert table.schema.field("reward").type.value_type == pa.float32()


def test_a_flipped_byte_is_detected_when_read(tmp_path):
    place = tmp_path / "s.parquet"
    write(build(events([("a", i, 1.0, i) for i in range(1, 5000)]), Limits(k=1)), str(place), 1)
    data = bytearray(place.read_bytes())
    data[len(data) // 3] ^= 1
    place.write_bytes(data)
    with pytest.raises((OSError, pa.ArrowException)):
        pq.ParquetFile(place, page_checksum_verification=True).read()
