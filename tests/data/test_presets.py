"""The number of events of each user, and the presets that a configuration may name."""

from __future__ import annotations

from typing import get_args

import pytest

from retilt.config import SimulateConfig
from retilt.data.presets import PRESETS, Activity
from retilt.types import InputError


def test_every_preset_can_be_asked_for():
    assert list(get_args(SimulateConfig.model_fields["preset"].annotation)) == list(PRESETS)
    for preset in PRESETS.values():
        assert preset.pace.tied + preset.pace.paused <= 1
        assert preset.users * preset.activity.fewest <= preset.events <= preset.users * preset.most(preset.world.items)


@pytest.mark.parametrize(("users", "events"), [(100, 2000), (100, 2001), (100, 5000), (100, 99_999), (100, 100_000)])
def test_lengths_add_up(users, events):
    length = Activity(20, 0.76, 0.01).lengths(users, events, 1000, seed=1)
    assert (length.sum(), length.min() >= 20, length.max() <= 1000) == (events, True, True)


@pytest.mark.parametrize(
    ("items", "events", "said"),
    [
        (1000, 1999, "give between 2,000 and 60,000 events"),
        (1000, 60_001, "give between 2,000 and 60,000 events"),
        (30, 2000, "with so few items that do not repeat, at most 18; give more items, or preset=watch_time"),
    ],
)
def test_sizes_that_do_not_go_together(items, events, said):
    preset = PRESETS["ratings"]
    with pytest.raises(InputError, match=said):
        preset.activity.lengths(100, events, preset.most(items), seed=0)
