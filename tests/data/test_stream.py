"""Streams of batches from files: the same for any number of ranks, resumable, without leftover threads."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
import torch
from tests.data.small_dataset import sequences, write

from retilt.data.dataset import Dataset
from retilt.data.plan import Cursor, Plan
from retilt.data.split import bounds
from retilt.data.stream import evaluation_batches, prefetch, train_batches, trained_positions
from retilt.types import InputError

ITEMS, LANES, K, N = 12, 3, 2, 10
START = Cursor(0, 0)
USERS = sequences(80, ITEMS, seed=3)
SHARDS = [[10, 15], [20], [5, 12, 18]]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    place = str(tmp_path_factory.mktemp("data") / "small")
    return Dataset.open(write(place, USERS, ITEMS, k=K, lanes=LANES, shards=SHARDS))


def train(dataset, rank=0, world=1, cursor=START, protocol="refit", batch_users=8, seed=0):
    plan = Plan.of(dataset, batch_users, seed)
    return list(train_batches(dataset, plan, cursor, protocol, N, rank, world))


def evaluation(dataset, rank=0, world=1, part="test", batch_users=8):
    return list(evaluation_batches(dataset, part, N, "all", batch_users, rank, world))


def users_of(batches):
    return [batch.example_B.tolist() for batch in batches]


def equal(one, two):
    return all(torch.equal(value, getattr(two, name)) for name, value in vars(one).items() if value is not None)


def data_threads():
    return [thread for thread in threading.enumerate() if thread.name == "retilt-data"]


@pytest.mark.parametrize("protocol", ["select", "refit"])
def test_an_epoch_has_every_training_event_but_first_ones_once(dataset, protocol):
    found = {}
    for batch in train(dataset, protocol=protocol):
        for b, user in enumerate(batch.example_B.tolist()):
            assert user not in found
            found[user] = batch.item_BT[b, : batch.length_B[b]].tolist()
    cuts = [bounds(len(user), K) for user in USERS]
    ends = [cut.train if protocol == "select" else cut.validation for cut in cuts]
    expected = {u: [event[0] for event in USERS[u][:end]][-N - 1 :] for u, end in enumerate(ends) if end > 1}
    assert found == expected


@pytest.mark.parametrize("world", [2, 3])
def test_global_batches_do_not_depend_on_the_number_of_ranks(dataset, world):
    whole = users_of(train(dataset, cursor=Cursor(4, 0)))
    shares = [users_of(train(dataset, rank, world, cursor=Cursor(4, 0))) for rank in range(world)]
    for together, *parts in zip(whole, *shares, strict=True):
        assert sorted(user for part in parts for user in part) == sorted(together)


@pytest.mark.parametrize("world", [1, 2])
def test_a_cursor_resumes_with_the_same_batches(dataset, world):
    whole = train(dataset, world - 1, world, Cursor(1, 0))
    for start in range(len(whole) + 1):
        tail = train(dataset, world - 1, world, Cursor(1, start))
        assert len(tail) == len(whole) - start
        assert all(equal(one, two) for one, two in zip(tail, whole[start:], strict=True))


def test_resuming_works_across_windows(tmp_path):
    users = sequences(320, ITEMS, seed=5, longest=8)
    place = write(str(tmp_path / "many"), users, ITEMS, lanes=1, shards=[[20] * 16])
    many = Dataset.open(place)
    plan = Plan.of(many, 1, 0)
    assert len(plan.windows(0)) == 10
    whole = train(many, batch_users=1)
    assert len(whole) == plan.batches(0) == 320
    for start in (31, 40, 41, 200, 319):
        tail = train(many, cursor=Cursor(0, start), batch_users=1)
        assert users_of(tail) == users_of(whole[start:])


def test_a_share_may_be_empty(tmp_path):
    users = sequences(3, ITEMS, seed=1)
    small = Dataset.open(write(str(tmp_path / "three"), users, ITEMS, lanes=3, shards=[[1, 1, 1]]))
    plan = Plan((1, 1, 1), 3, 3, 0)
    shares = [list(train_batches(small, plan, Cursor(0, 0), "refit", N, rank, 3)) for rank in range(3)]
    assert sum(len(batch.length_B) for share in shares for batch in share) <= 3
    found = [list(evaluation_batches(small, "test", N, "all", 1, rank, 2)) for rank in range(2)]
    assert [users_of(batches) for batches in found] == [[[0], [2]], [[1], []]]
    assert found[1][1].item_BT.shape == (0, 2)


@pytest.mark.parametrize("part", ["validation", "test"])
@pytest.mark.parametrize("world", [2, 3])
def test_evaluation_batches_do_not_depend_on_the_number_of_ranks(dataset, part, world):
    whole = {tuple(batch.example_B.tolist()): batch for batch in evaluation(dataset, part=part)}
    shares = [evaluation(dataset, rank, world, part) for rank in range(world)]
    assert len({len(share) for share in shares}) == 1
    found = [batch for share in shares for batch in share if len(batch.length_B)]
    assert len(found) == len(whole)
    assert all(equal(batch, whole[tuple(batch.example_B.tolist())]) for batch in found)


def test_evaluation_has_every_user_once(dataset):
    found = evaluation(dataset)
    assert sorted(user for users in users_of(found) for user in users) == list(range(80))
    assert max(map(len, users_of(found))) <= 8


def test_a_window_too_short_for_the_targets_is_refused(dataset):
    with pytest.raises(InputError, match=r"model.max_length = 1, but the split holds out 2 events"):
        evaluation_batches(dataset, "test", 1, "all", 8, 0, 1)


def by_user(parts):
    """(item, reward) of each user's positions in their order; a user whose positions are apart is an error."""
    found = {}
    for part in parts:
        users = part.example_P.unique_consecutive().tolist()
        assert part.user_P.unique_consecutive().tolist() == list(range(len(users)))
        assert not set(users) & found.keys()
        found |= {user: [] for user in users}
        for user, item, reward in zip(
            part.example_P.tolist(), part.item_P.tolist(), part.reward_P.tolist(), strict=True
        ):
            found[user].append((item, reward))
    return found


@pytest.mark.parametrize("world", [1, 3])
def test_trained_positions_are_those_of_an_epoch(dataset, world):
    expected = by_user(batch.positions for batch in train(dataset))
    parts = [part for rank in range(world) for part in trained_positions(dataset, "refit", N, rank, world)]
    assert by_user(parts) == expected
    assert sum(map(len, expected.values())) == sum(len(part.item_P) for part in parts)


def test_more_ranks_than_lanes_are_refused_before_anything_is_read(dataset):
    with pytest.raises(InputError, match="workers = 4, but the data set has 3 lanes"):
        train_batches(dataset, Plan.of(dataset, 8, 0), Cursor(0, 0), "refit", N, 0, 4)
    with pytest.raises(InputError, match="workers = 4, but the data set has 3 lanes"):
        evaluation_batches(dataset, "test", N, "all", 8, 0, 4)


def test_a_rank_reads_only_its_lanes(tmp_path):
    users = sequences(40, ITEMS, seed=2)
    place = write(str(tmp_path / "apart"), users, ITEMS, lanes=2, shards=[[10]] * 4)
    apart = Dataset.open(place)
    (window,) = Plan.of(apart, 8, 0).windows(0)
    for g in window.groups[1]:
        Path(place, "shards", f"part-{g:05d}.parquet").unlink()
    assert len(train(apart, 0, 2)) == window.slices
    with pytest.raises(InputError, match="no such file"):
        train(apart, 1, 2)
    assert not data_threads()


def test_closing_early_stops_the_threads(dataset):
    for stream in (
        train_batches(dataset, Plan.of(dataset, 3, 0), Cursor(0, 0), "refit", N, 0, 1),
        evaluation_batches(dataset, "test", N, "all", 3, 0, 1),
    ):
        next(stream)
        assert data_threads()
        stream.close()
        assert not data_threads()


def test_prefetch_makes_no_more_than_it_may():
    made, asked = [], threading.Event()

    def items():
        for i in range(10):
            made.append(i)
            if len(made) == 4:
                asked.set()
            yield i

    stream = prefetch(items(), 3)
    assert next(stream) == 0
    assert asked.wait(10)
    time.sleep(0.05)
    # One is with the consumer, three are waiting, the fifth was not begun.
    assert made == [0, 1, 2, 3]
    assert list(stream) == list(range(1, 10))
    assert not data_threads()


def test_an_error_of_the_source_is_raised_after_what_came_before_it():
    closed = []

    def items():
        try:
            yield 1
            raise InputError("shard 7 is damaged")
        finally:
            closed.append(True)

    stream = prefetch(items(), 4)
    assert next(stream) == 1
    with pytest.raises(InputError, match="shard 7 is damaged"):
        next(stream)
    assert closed
    assert not data_threads()


def test_a_data_set_in_another_store_streams_alike(dataset):
    place = write("memory://stream-test/small", USERS, ITEMS, k=K, lanes=LANES, shards=SHARDS)
    assert all(equal(one, two) for one, two in zip(train(Dataset.open(place)), train(dataset), strict=True))
