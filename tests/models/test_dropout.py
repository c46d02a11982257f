"""Masks depend on what a unit is, keep the right share of units, and are independent of each other."""

from __future__ import annotations

import pytest
import torch

from retilt.models import counter, dropout


def kept(rate: float, examples: int, place: int, seed: int = 1, step: int = 2) -> torch.Tensor:
    key = counter.keys(torch.arange(examples), 100, seed, step)
    return dropout.dropout(torch.ones(examples, 100, 50), rate, key, place) > 0


@pytest.mark.parametrize("rate", [0.1, 0.2, 0.5, 0.9])
def test_the_share_of_dropped_units(rate: float) -> None:
    """500,000 units: the share is within five standard errors of the rate, overall and per channel and position."""
    mask = kept(rate, 100, 0)
    deviation = (rate * (1 - rate)) ** 0.5
    assert abs(1 - mask.double().mean().item() - rate) < 5 * deviation / mask.numel() ** 0.5
    for axes in ((0, 1), (0, 2), (1, 2)):
        share = 1 - mask.double().mean(axes)
        assert (share - rate).abs().max() < 5 * deviation / (mask.numel() / len(share)) ** 0.5


def test_masks_of_other_places_steps_seeds_examples_and_positions_are_uncorrelated() -> None:
    mask = kept(0.5, 100, 0).double() - 0.5
    others = [kept(0.5, 100, 1), kept(0.5, 100, 0, step=3), kept(0.5, 100, 0, seed=2), kept(0.5, 100, 0).roll(1, 0),
              kept(0.5, 100, 0).roll(1, 1), kept(0.5, 100, 0).roll(1, 2)]  # fmt: skip
    for other in others:
        correlation = (mask * (other.double() - 0.5)).mean() * 4
        assert abs(correlation) < 5 / mask.numel() ** 0.5


def test_a_mask_does_not_depend_on_the_batch_around_it() -> None:
    x = torch.ones(4, 10, 8)
    whole = dropout.dropout(x, 0.3, counter.keys(torch.tensor([9, 2, 5, 7]), 10, 0, 0), 0)
    part = dropout.dropout(x[:2, :6], 0.3, counter.keys(torch.tensor([5, 9]), 6, 0, 0), 0)
    assert torch.equal(part, whole[[2, 0], :6])


def test_expectation_and_the_ways_to_switch_it_off() -> None:
    x = torch.ones(50, 50, 50)
    key = counter.keys(torch.arange(50), 50, 0, 0)
    assert dropout.dropout(x, 0.2, key, 0).unique().tolist() == pytest.approx([0.0, 1.25])
    assert dropout.dropout(x, 0.2, None, 0) is x
    assert dropout.dropout(x, 0.0, key, 0) is x
