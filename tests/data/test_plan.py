"""The global order: whole, equal for any number of workers, even, repeatable, resumable."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retilt.data.plan import Cursor, Plan, dealt, lanes_of
from retilt.types import InputError


@st.composite
def cases(draw):
    """A plan, and the trained positions of the users of each of its row groups."""
    lanes = draw(st.integers(1, 6))
    rows_G = tuple(draw(st.lists(st.integers(1, 40), min_size=lanes, max_size=4 * lanes)))
    plan = Plan(rows_G, lanes, draw(st.integers(lanes, 30)), draw(st.integers(0, 2**40)))
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    return plan, [rng.integers(0, draw(st.sampled_from([2, 20, 200])), rows) for rows in rows_G]


def batches(plan, positions_G, epoch, lanes, start=0):
    """The shares of the lanes ``lanes``: per batch a list of (lane, users as (row group, row))."""
    found = []
    for window in plan.windows(epoch):
        cuts = {}
        for lane in lanes:
            users = [(g, row) for g in window.groups[lane] for row in range(plan.rows_G[g])]
            positions = np.array([positions_G[g][row] for g, row in users], dtype=np.int64)
            cuts[lane] = [[users[i] for i in part] for part in plan.cut(window, lane, positions)]
        found += [[(lane, cuts[lane][s]) for lane in lanes] for s in plan.order(window)]
    return found[start:]


def flat(found):
    return [user for batch in found for _, users in batch for user in users]


@settings(max_examples=60, deadline=None)
@given(cases(), st.integers(0, 5))
def test_an_epoch_has_every_user_with_a_position_once(case, epoch):
    plan, positions_G = case
    found = batches(plan, positions_G, epoch, range(plan.lanes))
    expected = [(g, row) for g, positions in enumerate(positions_G) for row in np.flatnonzero(positions).tolist()]
    assert sorted(flat(found)) == expected
    # Counts follow from row counts alone, so ranks agree on them without talking.
    assert len(found) == plan.batches(epoch)


@settings(max_examples=60, deadline=None)
@given(cases(), st.data())
def test_the_batches_do_not_depend_on_the_number_of_workers(case, data):
    plan, positions_G = case
    world = data.draw(st.integers(1, plan.lanes))
    whole = batches(plan, positions_G, 1, range(plan.lanes))
    shares = [batches(plan, positions_G, 1, lanes_of(plan.lanes, rank, world)) for rank in range(world)]
    assert {len(share) for share in shares} == {len(whole)}
    for together, *parts in zip(whole, *shares, strict=True):
        assert sorted((lane, users) for part in parts for lane, users in part) == together


@settings(max_examples=60, deadline=None)
@given(cases())
def test_the_slices_of_a_lane_have_equal_positions(case):
    plan, positions_G = case
    for window in plan.windows(0):
        for lane in range(plan.lanes):
            positions = np.concatenate([np.zeros(0, np.int64), *(positions_G[g] for g in window.groups[lane])])
            sums = [positions[part].sum() for part in plan.cut(window, lane, positions)]
            assert len(sums) == window.slices
            assert max(abs(s - positions.sum() / window.slices) for s in sums) <= positions.max(initial=0)


@settings(max_examples=30, deadline=None)
@given(cases(), st.data())
def test_resuming_from_any_batch_gives_the_same_tail(case, data):
    plan, positions_G = case
    start = data.draw(st.integers(0, plan.batches(2) - 1))
    again = Plan(plan.rows_G, plan.lanes, plan.batch_users, plan.seed)
    whole = batches(plan, positions_G, 2, range(plan.lanes))
    assert batches(again, positions_G, 2, range(plan.lanes), start) == whole[start:]


def even_plan(seed=0):
    """64 row groups of 50 users on 8 lanes: 3,200 users, 25 batches of 128."""
    return Plan((50,) * 64, 8, 128, seed), [np.random.default_rng(g).integers(1, 200, 50) for g in range(64)]


def test_epochs_and_seeds_differ_in_order_and_in_the_composition_of_batches():
    plan, positions_G = even_plan()
    other, _ = even_plan(seed=1)
    orders = [
        [frozenset(flat([batch])) for batch in batches(p, positions_G, epoch, range(8))]
        for p, epoch in ((plan, 0), (plan, 1), (other, 0))
    ]
    for i, one in enumerate(orders):
        for two in orders[i + 1 :]:
            assert not set(one) & set(two)
            assert sorted(frozenset.union(*one)) == sorted(frozenset.union(*two))


def test_batches_have_the_mean_number_of_users_and_nearly_equal_positions():
    plan, positions_G = even_plan()
    found = batches(plan, positions_G, 0, range(8))
    assert len(found) == 3200 / 128
    sums = [sum(positions_G[g][row] for g, row in flat([batch])) for batch in found]
    # Half a user of at most 199 positions at either end of a lane's slice, in 8 lanes.
    assert max(sums) - min(sums) < 8 * 199
    assert np.std(sums) < 0.02 * np.mean(sums)


def test_users_of_a_slice_have_similar_lengths():
    plan, positions_G = even_plan()
    padded = real = 0
    for batch in batches(plan, positions_G, 0, range(8)):
        positions = [positions_G[g][row] for g, row in flat([batch])]
        padded, real = padded + len(positions) * max(positions), real + sum(positions)
    assert 1 - real / padded < 0.2


def test_a_window_holds_about_32_batches_of_whole_row_groups():
    plan = Plan((50,) * 640, 8, 16, 0)
    windows = plan.windows(3)
    # 32,000 users in 2,000 batches: 62 windows would be 1.29 rounds each, so one or two.
    assert sum(window.slices for window in windows) == 2000
    assert {len(groups) for window in windows for groups in window.groups} <= {1, 2}
    assert sorted(g for window in windows for groups in window.groups for g in groups) == list(range(640))
    assert [window.first for window in windows] == np.cumsum([0] + [w.slices for w in windows[:-1]]).tolist()


def test_the_order_is_the_same_in_every_version():
    # Golden: a checkpoint's cursor means the same batches after an upgrade of NumPy or of this package.
    plan = Plan((5, 3, 4, 6, 2), 2, 4, 7)
    (window,) = plan.windows(1)
    assert (window.groups, plan.order(window)) == (((1, 3, 4), (0, 2)), [4, 2, 0, 3, 1])
    positions = np.array([4, 9, 1, 0, 7, 3, 3, 8])
    assert [part.tolist() for part in plan.cut(window, 0, positions)] == [[2, 6, 5], [0], [4], [7], [1]]


def test_advancing_a_cursor_ends_an_epoch_after_its_last_batch():
    plan, _ = even_plan()
    assert plan.batches(0) == 25
    assert plan.advance(Cursor(0, 0)) == Cursor(0, 1)
    assert plan.advance(Cursor(0, 24)) == Cursor(1, 0)


def test_row_groups_are_dealt_to_the_lanes_of_a_rank():
    assert [dealt([1] * 10, 4, rank, 3) for rank in range(3)] == [[0, 3, 4, 7, 8], [1, 5, 9], [2, 6]]


def test_more_workers_than_lanes_are_refused():
    with pytest.raises(InputError, match="workers = 5, but the data set has 4 lanes"):
        lanes_of(4, 0, 5)


def test_batches_smaller_than_the_number_of_lanes_are_refused():
    with pytest.raises(InputError, match="batch_users = 7, but the data set has 8 lanes"):
        Plan((10,) * 8, 8, 7, 0)
