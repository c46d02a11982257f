"""The estimate of a worker's memory, and the refusal of a run that has no room."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tests.benchmarks.memory_estimate import compare
from tests.data.small_dataset import MODEL

from retilt.config import Placement, TrainConfig, build
from retilt.models.hstu import HSTU
from retilt.training import planning
from retilt.training.planning import Room, Sizes, Tries, fits, memory, require_room
from retilt.training.run import plan_run
from retilt.types import InputError

MILLION = Sizes(
    model=HSTU(max_length=50, width=64, blocks=2, heads=1, head_width=64),
    dense=100_000,
    items=999_999,
    placement="row_wise",
    optimizer="row_wise_adagrad",
    negatives=None,
    own_negatives=False,
    trained=1_000,
    positions=1_500,
    evaluated=100,
    slices=32,
    lanes=8,
    workers=1,
)
"""A table of 256 MB."""


def test_the_parts_of_a_sharded_table_are_shared_out():
    """Rows of 64 numbers and one of row-wise Adagrad; a file of a checkpoint has 262,144 rows, held twice."""
    one, four = memory(MILLION), memory(replace(MILLION, workers=4))
    assert (one["table"], one["gradient"], one["optimizer"]) == (256e6, 256e6, 4e6)
    assert (four["table"], four["gradient"], four["optimizer"]) == (64e6, 64e6, 1e6)
    assert one["checkpoint"] == 260e6 + 12 * 100_000 + 2 * 262_144 * 256
    assert four["checkpoint"] == 65e6 + 12 * 100_000 + 2 * 250_000 * 256
    assert four["activations"] == one["activations"] / 4
    assert (one["items"], one["process"]) == (four["items"], four["process"])


def test_a_sampled_softmax_has_no_gradient_of_the_table():
    sampled = replace(MILLION, negatives=4096)
    assert memory(sampled)["gradient"] == 0
    assert memory(replace(sampled, own_negatives=True))["softmax"] > 1_000 * 4096 * 16


def test_a_replicated_table_is_whole_on_every_worker():
    """Adam's two moments; two gradients of it, and among several workers DDP's copy and 64-bit integers."""
    whole = replace(MILLION, placement="replicated", optimizer="adam")
    one, four = memory(whole), memory(replace(whole, workers=4))
    assert (one["table"], one["optimizer"], one["gradient"]) == (256e6, 512e6, 512e6)
    assert (four["table"], four["optimizer"], four["gradient"]) == (256e6, 512e6, 1024e6)


def test_an_online_objective_has_two_frozen_models_and_what_it_tries():
    """Two tables with a number of each row's optimizer, two backbones; descending a divergence, one gradient more."""
    dpo = replace(MILLION, frozen=2, tries=Tries(positions=800, draws=2, divergence=False, passes=1))
    ppo = replace(MILLION, frozen=2, tries=Tries(positions=800, draws=4, divergence=True, passes=4))
    assert memory(MILLION)["frozen"] == 0
    assert memory(dpo)["frozen"] == memory(ppo)["frozen"] == 2 * (260e6 + 400_000)
    assert (memory(dpo)["gradient"], memory(ppo)["gradient"]) == (256e6, 512e6)
    shared = memory(replace(ppo, workers=4))
    assert (shared["frozen"], shared["gradient"]) == (2 * (65e6 + 400_000), 128e6)
    # Each of 800 · 4 items has an embedding of 256 bytes, four times, and 20 bytes that are kept.
    more = memory(replace(ppo, tries=Tries(positions=800, draws=8, divergence=True, passes=4)))
    assert more["softmax"] - memory(ppo)["softmax"] == 800 * 4 * (4 * 256 + 20)
    asked = replace(ppo, tries=Tries(positions=800, draws=1_000, divergence=True, passes=4))
    layer = 4 * MILLION.model.kept_per_position / MILLION.model.blocks
    assert memory(asked)["activations"] == 2 * layer * (1_500 + 800 * 1_000)


def test_a_reward_model_keeps_a_state_of_each_logged_item_too():
    """Twice the activations, and nothing else."""
    one, tried = memory(MILLION), memory(replace(MILLION, logged_tried=True))
    assert tried.pop("activations") == 2 * one.pop("activations")
    assert tried == one


def test_what_is_tried_follows_from_the_configuration(data: str, tmp_path: Path):
    """At most 3 positions of each of 12 users, or all positions."""
    values = {"dataset": data, "output": str(tmp_path / "run"), "model": MODEL, "batch_users": 12}
    for contexts, positions in ((3, 36), (None, 500)):
        config = build(TrainConfig, {**values, "algorithm": {"name": "ppo", "contexts": contexts}})
        assert Tries.of(config, 500) == Tries(positions, 4, True, 4)
    assert Tries.of(build(TrainConfig, {**values, "algorithm": "dpo"}), 500) == Tries(192, 2, False, 1)
    assert Tries.of(build(TrainConfig, values), 500) is None


def test_sizes_follow_from_the_configuration_and_the_data(data: str, tmp_path: Path):
    """60 users of up to 30 events in three lanes, batches of 12, a model that sees 20 events."""
    values = {"dataset": data, "output": str(tmp_path / "run"), "model": MODEL, "batch_users": 12, "workers": 2}
    planned = plan_run(build(TrainConfig, {**values, "softmax": "sampled", "proposal": "in_batch"}))
    sizes = Sizes.of(planned.config, planned.dataset)
    mean = planned.dataset.statistics("select")["events"] / 60 - 1
    assert sizes.trained == pytest.approx(12 * mean)
    assert sizes.negatives == round(sizes.trained)
    assert sizes.trained <= sizes.positions <= 12 * 2.1 * 20
    assert sizes.share == 2 / 3
    assert not sizes.logged_tried
    reward_model = build(TrainConfig, {**values, "initial": "i", "algorithm": "reward_model"})
    assert Sizes.of(reward_model, planned.dataset).logged_tried
    assert sizes.dense == sum(each.numel() for each in sizes.model.build(0.0).parameters())


@pytest.mark.parametrize("negatives", [None, 4096], ids=["exact", "sampled"])
@pytest.mark.parametrize("placement", ["row_wise", "replicated"])
def test_a_worker_fits_into_what_it_needs_and_not_into_less(placement: Placement, negatives: int | None):
    """TorchRec's planner is what says so for the sharded table; it counts a kilobyte or two more."""
    sizes = replace(MILLION, placement=placement, negatives=negatives, workers=2)
    needed = sum(memory(sizes).values())
    assert fits(sizes, Room(needed + 2_000))
    assert not fits(sizes, Room(needed - 2_000))


def test_on_a_gpu_the_table_is_in_its_memory_and_the_process_in_the_hosts():
    parts = memory(MILLION)
    host = sum(size for name, size in parts.items() if name in planning.ON_HOST)
    device = sum(parts.values()) - host
    assert device > parts["table"] + parts["gradient"] + parts["activations"]
    assert fits(MILLION, Room(host, device + 2_000))
    assert not fits(MILLION, Room(host, device - 2_000))
    assert not fits(MILLION, Room(host - 1, 10 * device))


def test_a_run_without_room_is_refused_with_the_smallest_number_of_workers():
    """Two workers need 1.26 GB each, three 1.13."""
    needs = [sum(memory(replace(MILLION, workers=workers)).values()) / 1e9 for workers in (1, 2, 3)]
    assert needs == pytest.approx([1.67, 1.26, 1.13], abs=0.01)
    require_room(MILLION, lambda workers: Room(2e9))
    require_room(MILLION, lambda workers: None)
    with pytest.raises(InputError, match=r"a worker needs about 1\.\d\d GB \(process 0\.60, checkpoint 0\.\d\d, table"):
        require_room(MILLION, lambda workers: Room(1.15e9))
    with pytest.raises(InputError, match=r"but each of 1 has 1\.15 GB; use workers=3"):
        require_room(MILLION, lambda workers: Room(1.15e9))


def test_where_workers_share_one_machine_more_of_them_do_not_help():
    """Each has its part of the machine only."""
    with pytest.raises(InputError, match=r"3 workers would have room if each had as much, on more or larger machines"):
        require_room(MILLION, lambda workers: Room(1.15e9 / workers))
    with pytest.raises(InputError, match=r"but each of 8 has 0\.25 GB; use workers=1"):
        require_room(replace(MILLION, workers=8), lambda workers: Room(2e9 / workers))


def test_where_no_number_of_workers_helps_something_else_is_named():
    with pytest.raises(InputError, match="no number of workers up to 8 would have room in as much: use more workers"):
        require_room(MILLION, lambda workers: Room(0.5e9))
    whole = replace(MILLION, placement="replicated")
    with pytest.raises(InputError, match="no number of workers up to 8 would have room in as much: use table=row_wise"):
        require_room(whole, lambda workers: Room(0.5e9))


@pytest.mark.slow
def test_the_estimate_is_a_little_above_what_a_worker_really_takes(tmp_path: Path):
    found = compare(tmp_path, {"items": 200_000, "table": "row_wise", "softmax": "sampled"}, workers=1, large=False)
    assert found["measured"] <= found["estimated"] <= 1.5 * found["measured"]
