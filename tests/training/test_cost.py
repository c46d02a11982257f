"""The model of a step's time: values by hand, and how it grows."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from tests.training.test_planning import MILLION

from retilt.training.cost import Machine, measured, step_seconds

MACHINE = Machine(flops=1e12, memory=1e10, network=1e9)


def test_the_exact_softmax_is_four_products_and_all_rows_are_updated():
    """A thousand positions, a million rows of 64 numbers; 1.3 times four products; six times 256 MB."""
    found = step_seconds(MILLION, MACHINE)
    assert found["compute"] == pytest.approx(1.3 * 4 * 2 * 1_000 * 1_000_000 * 64 / 1e12, rel=0.01)
    assert found["update"] == pytest.approx(6 * 256e6 / 1e10, rel=0.01)
    assert found["communication"] == 0


def test_a_sampled_step_costs_the_same_for_any_number_of_items():
    few, many = (step_seconds(replace(MILLION, negatives=512, items=items), MACHINE) for items in (10**5, 10**8))
    assert few == many


def test_with_more_workers_each_has_fewer_rows_and_sends_more():
    one, two, eight = (step_seconds(replace(MILLION, workers=workers), MACHINE) for workers in (1, 2, 8))
    assert two["update"] == pytest.approx(one["update"] / 2, rel=0.01)
    assert eight["compute"] == pytest.approx(one["compute"] / 8, rel=0.01)
    # Half of all rows looked up is on the other worker: 500 histories, their numbers and embeddings and back; hidden
    # states of 1,000 positions and twice their gradients; twice the backbone.
    sent = 500 * (8 + 2 * 256) + 3 * 1_000 * 256 + 2 * 4 * 100_000
    assert two["communication"] == pytest.approx(sent / 2 / 1e9)


def test_a_reward_model_works_out_twice_as_many_states_and_looks_up_targets():
    """The softmax is the same; 1,000 further positions of one operation a parameter and pass; 500 targets on two."""
    tried = replace(MILLION, logged_tried=True)
    one, two = (step_seconds(sizes, MACHINE) for sizes in (MILLION, tried))
    operations = 1_000 * (6 * 100_000 + 7 * 50 * 64 * 2)
    touched = 6 * 4 * MILLION.model.kept_per_position * 1_000
    assert two["compute"] - one["compute"] == pytest.approx(operations / 1e12 + touched / 1e10)
    one, two = (step_seconds(replace(sizes, workers=2), MACHINE) for sizes in (MILLION, tried))
    assert two["communication"] - one["communication"] == pytest.approx(500 * (8 + 2 * 256) / 2 / 1e9)


def test_a_replicated_table_sends_its_gradient():
    whole = replace(MILLION, placement="replicated", optimizer="adam", workers=2)
    assert step_seconds(whole, MACHINE)["communication"] == pytest.approx((2 * 256e6 + 800_000) / 2 / 1e9)


def test_this_machine_is_measured_and_left_as_it_was():
    threads = torch.get_num_threads()
    found = measured(torch.device("cpu"), 64)
    assert all(0 < value < math.inf for value in vars(found).values())
    assert torch.get_num_threads() == threads
