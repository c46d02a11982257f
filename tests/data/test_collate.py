"""Batches against a slow, obvious construction user by user, and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.data.small_dataset import sequences

from retilt.data.collate import Rows, Targets, evaluation_batch, trained, training_batch
from retilt.data.split import bounds

SECOND = 1_000_000


def rows_of(users, first=0):
    length = np.array([len(user) for user in users], dtype=np.int64)
    events = [event for user in users for event in user]
    return Rows(
        np.array([event[0] for event in events], dtype=np.int32),
        np.array([event[1] for event in events], dtype=np.float32),
        np.array([event[2] for event in events], dtype=np.int64),
        np.cumsum(length) - length,
        length,
        first + np.arange(len(users)),
    )


def evaluate(users, k, part, max_length, exclude, chosen):
    rows = rows_of(users, first=100)
    targets = Targets.of(rows.length, k, part, max_length)
    return evaluation_batch(rows, targets, np.array(chosen, dtype=np.int64), exclude)


def seen_of(batch):
    return [sorted(part.tolist()) for part in batch.seen_item.split(batch.seen_length_P.tolist())]


def check_sequences(batch, expected):
    """``expected``: per user its events and the place of its first target."""
    assert batch.length_B.tolist() == [len(events) for events, _ in expected]
    longest = max([2, *batch.length_B.tolist()])
    assert batch.item_BT.shape == (len(expected), longest)
    for b, (events, first) in enumerate(expected):
        n, fill = len(events), longest - len(events)
        assert batch.item_BT[b].tolist() == [event[0] for event in events] + [0] * fill
        assert batch.reward_BT[b].tolist() == [event[1] for event in events] + [0.0] * fill
        assert batch.time_BT[b].tolist() == [event[2] for event in events] + [events[-1][2]] * fill
        assert batch.supervised_BT[b].tolist() == [first <= t < n for t in range(longest)]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 999), st.sampled_from(["select", "refit"]), st.integers(1, 30), st.integers(1, 5))
def test_a_training_batch_is_the_last_window_of_training_events(seed, protocol, max_length, k):
    users = sequences(12, 9, seed)
    rows = trained(rows_of(users, first=100), k, protocol, max_length)
    chosen = np.random.default_rng(seed).permutation(12)[:7]
    batch = training_batch(rows, chosen)
    expected = []
    for user in chosen:
        cuts = bounds(len(users[user]), k)
        events = users[user][: cuts.train if protocol == "select" else cuts.validation]
        expected.append((events[-(max_length + 1) :], 1))
    check_sequences(batch, expected)
    assert batch.example_B.tolist() == (100 + chosen).tolist()
    assert (batch.seen_item, batch.seen_length_P, batch.untied_P) == (None, None, None)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 999),
    st.sampled_from(["validation", "test"]),
    st.sampled_from(["all", "window", "none"]),
    st.integers(1, 5),
    st.integers(0, 20),
)
def test_an_evaluation_batch_is_the_window_before_the_last_target(seed, part, exclude, k, further):
    users = sequences(12, 9, seed)
    max_length = k + further
    chosen = np.random.default_rng(seed).permutation(12)[:7]
    batch = evaluate(users, k, part, max_length, exclude, chosen)
    expected, seen, untied = [], [], []
    for user in chosen:
        events = users[user]
        cuts = bounds(len(events), k)
        first, end = (cuts.train, cuts.validation) if part == "validation" else (cuts.validation, len(events))
        window = max(0, end - (max_length + 1))
        expected.append((events[window:end], first - window))
        for target in range(first, end):
            begin = {"all": 0, "window": window, "none": target}[exclude]
            seen.append(sorted({event[0] for event in events[begin:target]} - {events[target][0]}))
            untied.append(sum(event[2] == events[target][2] for event in events) == 1)
    check_sequences(batch, expected)
    assert seen_of(batch) == seen
    assert batch.untied_P.tolist() == untied
    assert batch.example_B.tolist() == (100 + chosen).tolist()


def test_what_a_target_has_seen_by_hand():
    #          item: 3  1  3  2 | 1  4      the last two are test targets
    events = [(3, 5.0, 0), (1, 4.0, SECOND), (3, 3.0, SECOND), (2, 2.0, 2 * SECOND)]
    events += [(1, 1.0, 3 * SECOND), (4, 5.0, 3 * SECOND)]
    batch = evaluate([events], 2, "test", 3, "all", [0])
    # Three inputs before the last target: 3, 2, 1.
    assert batch.item_BT.tolist() == [[3, 2, 1, 4]]
    assert batch.supervised_BT.tolist() == [[False, False, True, True]]
    # Item 1 is a target that was seen before: it is never excluded from its own ranking.
    assert seen_of(batch) == [[2, 3], [1, 2, 3]]
    assert batch.untied_P.tolist() == [False, False]
    window = evaluate([events], 2, "test", 3, "window", [0])
    assert seen_of(window) == [[2, 3], [1, 2, 3]]
    narrow = evaluate([events], 2, "test", 2, "window", [0])
    assert seen_of(narrow) == [[2], [1, 2]]
    assert seen_of(evaluate([events], 2, "test", 2, "none", [0])) == [[], []]


def test_a_validation_target_is_tied_with_a_test_event_of_its_time():
    events = [(1, 1.0, 0), (2, 1.0, SECOND), (3, 1.0, SECOND)]
    batch = evaluate([events], 1, "validation", 5, "all", [0])
    assert batch.item_BT.tolist() == [[1, 2]]
    assert batch.untied_P.tolist() == [False]


def test_neighbours_in_memory_are_not_neighbours_of_the_user():
    one = [(1, 1.0, 0), (2, 1.0, SECOND), (3, 1.0, 5 * SECOND)]
    two = [(1, 1.0, 5 * SECOND), (2, 1.0, 6 * SECOND), (3, 1.0, 7 * SECOND)]
    assert evaluate([one, two], 1, "test", 5, "all", [0, 1]).untied_P.tolist() == [True, True]


@pytest.mark.parametrize("exclude", ["all", "window", "none"])
def test_an_empty_share_has_the_types_and_the_inputs_of_any_other(exclude):
    some = evaluate(sequences(4, 9), 2, "test", 5, exclude, [0, 1])
    empty = evaluate([], 2, "test", 5, exclude, [])
    for name, value in vars(empty).items():
        assert (value.dtype, value.ndim) == (getattr(some, name).dtype, getattr(some, name).ndim), name
    assert empty.item_BT.shape == (0, 2)
    assert len(empty.seen_item) == len(empty.untied_P) == len(empty.target_item_P) == 0


def test_a_batch_has_the_types_that_its_docstring_states():
    batch = evaluate(sequences(4, 9), 2, "test", 5, "all", [0, 1])
    kinds = {name: value.dtype for name, value in vars(batch).items()}
    floats, marks = {"reward_BT"}, {"supervised_BT", "untied_P"}
    assert kinds == {
        name: torch.float32 if name in floats else torch.bool if name in marks else torch.int64 for name in kinds
    }
