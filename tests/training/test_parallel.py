"""FSDP beside the sharded table takes the steps of DDP and of one worker; layers that run again give the same bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.data.small_dataset import MODEL
from tests.spawning import Ranks
from tests.training.test_backbones import SASREC
from tests.training.test_loop import Listener, alone, losses, planned, run, tables

from retilt import ranks
from retilt.config import TrainConfig, build
from retilt.models.attention import TIME_BUCKETS
from retilt.models.heads import Asked
from retilt.models.policy import Inputs, Read
from retilt.training import loop
from retilt.training.run import PlannedRun
from retilt.types import InputError, Stopped

HSTU = {**MODEL, "blocks": 2}
SAMPLED = {"softmax": "sampled", "proposal": "popularity", "negative_count": 16}


def sharded(data: str, output: Path, **values: Any) -> PlannedRun:
    values = {"model": HSTU, "table": "row_wise", "table_learning_rate": 0.01, "dropout": 0.3, "epochs": 1, **values}
    return planned(data, output, **values)


def require_close(output: Path, expected: Path) -> None:
    """All tensors of the last policies.

    The moments of the gradients are among them: there a factor would show to which Adam's and Adagrad's steps are
    blind. Parameters may differ by a hundredth of one of Adam's steps of 1e-3. The bias of attention's keys cancels in
    SASRec's softmax: its gradient is rounding, which Adam makes whole steps of.
    """
    found, wanted = tables(output), tables(expected)
    assert found.keys() == wanted.keys()
    for name, value in found.items():
        if name.endswith("qkv.bias"):
            continue
        rtol, atol = (1e-3, 1e-7) if "optimizer" in name else (0, 1e-5)
        torch.testing.assert_close(value, wanted[name], rtol=rtol, atol=atol)


def require_equal(output: Path, expected: Path) -> None:
    found, wanted = tables(output), tables(expected)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(value, wanted[name]) for name, value in found.items())


@pytest.mark.parametrize(
    "values",
    [{}, SAMPLED, {"model": SASREC, "algorithm": {"name": "exp_rsft", "temperature": 0.5}}],
    ids=["hstu", "hstu, sampled", "sasrec"],
)
def test_fsdp_takes_the_steps_of_ddp_and_of_one_worker(
    data: str, two_ranks: Ranks, tmp_path: Path, values: dict[str, Any]
) -> None:
    """Losses to 1e-5 relative, validation metrics, the sampled softmax's measured gap, and all that is saved."""
    one = alone(sharded(data, tmp_path / "one", parallel="fsdp", **values))
    assert len(losses(one)) == 5
    for parallel in ("ddp", "fsdp"):
        two = two_ranks(run, sharded(data, tmp_path / parallel, parallel=parallel, **values).task())[0]
        assert losses(two) == pytest.approx(losses(one), rel=1e-5)
        for mine, theirs in zip(two, one, strict=True):
            for name in theirs:
                if name.startswith("validation/"):
                    assert mine[name] == pytest.approx(theirs[name], rel=1e-12)
                if name == "sampling_gap":
                    assert mine[name] == pytest.approx(theirs[name], rel=1e-4)
        require_close(tmp_path / parallel, tmp_path / "one")


class Stopping(Listener):
    """Asks for a stop with a checkpoint after ``steps`` steps."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.left = steps

    def stop_requested(self) -> bool:
        self.left -= 1
        return self.left == 0


def begin(task: dict[str, Any], steps: int) -> list[dict[str, Any]]:
    ranks.single()
    listener = Stopping(steps)
    with pytest.raises(Stopped):
        loop.train(task, listener)
    return listener.lines


def test_a_run_goes_on_under_the_other_on_other_workers(data: str, two_ranks: Ranks, tmp_path: Path) -> None:
    """The same output folder and command but for ``parallel`` and ``workers``, which are no part of the identity."""

    def each(name: str, **values: Any) -> PlannedRun:
        return sharded(data, tmp_path / name, epochs=2, **values)

    whole = losses(alone(each("whole")))
    first = two_ranks(begin, each("a", parallel="fsdp", workers=2).task(), 4)[0]
    assert losses(first) + losses(alone(each("a"))) == pytest.approx(whole, rel=1e-5)
    require_close(tmp_path / "a", tmp_path / "whole")
    first = begin(each("b").task(), 4)
    then = two_ranks(run, each("b", parallel="fsdp", workers=2).task())[0]
    assert losses(first) + losses(then) == pytest.approx(whole, rel=1e-5)
    require_close(tmp_path / "b", tmp_path / "whole")


def test_resumed_and_recomputed_runs_equal_the_whole_one_to_the_bit(
    data: str, two_ranks: Ranks, tmp_path: Path
) -> None:
    two_ranks(run, sharded(data, tmp_path / "whole", parallel="fsdp").task())
    cut = sharded(data, tmp_path / "cut", parallel="fsdp", activation_checkpointing=True).task()
    two_ranks(begin, cut, 3)
    two_ranks(run, cut)
    require_equal(tmp_path / "cut", tmp_path / "whole")


def call(trained: loop.Run) -> torch.Tensor:
    """Hidden states of some users."""
    x_MD, item_BT = torch.rand(5 * 20, 10, requires_grad=True), torch.ones(5, 20, dtype=torch.int64)
    nothing = torch.zeros(0, dtype=torch.int64)
    asked = Asked(nothing, nothing, nothing[:, None], item_BT, item_BT.float())
    read: Read = trained.policy.network(
        item_BT.flatten(), x_MD, Inputs(item_BT, torch.arange(21).expand(5, -1), None, asked)
    )
    return read.hidden_BTD


def held(task: dict[str, Any]) -> tuple[dict[str, int], dict[str, int], bool]:
    """Numbers of each parameter, and of it and Adam's state on this rank after an epoch; whether all are spread."""
    trained = loop.Run(task, Listener())
    trained.train()
    call(trained)  # as in a step that is left out: no backward pass follows
    parameters = dict(trained.policy.network.backbone.named_parameters())
    mine = {
        name: sum(ranks.part(each).numel() for each in (value.data, *trained.dense.state[value].values()))
        for name, value in parameters.items()
    }
    whole = {name: value.numel() for name, value in parameters.items()}
    return whole, mine, all(map(ranks.is_spread, parameters.values()))


def test_a_worker_holds_its_part_of_parameters_and_moments(data: str, two_ranks: Ranks, tmp_path: Path) -> None:
    (whole, first, spread), (_, second, _) = two_ranks(held, sharded(data, tmp_path, parallel="fsdp").task())
    assert spread
    counters = 2  # of Adam's steps, one on each rank
    assert {name: first[name] + second[name] - counters for name in whole} == {name: 3 * n for name, n in whole.items()}
    assert first["layers.1.uvqk"] == second["layers.1.uvqk"]
    assert first["layers.1.w_time"] == 3 * (TIME_BUCKETS + 1) // 2 + 1


def kept(trained: loop.Run) -> int:
    """Numbers that one call of the network keeps for its backward pass, but for parameters."""
    sizes: dict[int, int] = {}
    parameters = {value.data_ptr() for value in trained.policy.network.parameters()}

    def pack(value: torch.Tensor) -> torch.Tensor:
        if value.data_ptr() not in parameters:
            sizes[value.data_ptr()] = value.numel()
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        call(trained)
    return sum(sizes.values())


@pytest.mark.parametrize("model", [HSTU, SASREC], ids=["hstu", "sasrec"])
def test_recomputed_layers_give_the_same_bits_and_keep_little(data: str, tmp_path: Path, model: dict[str, Any]) -> None:
    ranks.single()
    sizes = []
    for recompute in (False, True):
        output = tmp_path / str(recompute)
        trained = loop.Run(sharded(data, output, model=model, activation_checkpointing=recompute).task(), Listener())
        trained.train()
        sizes.append(kept(trained))
    require_equal(tmp_path / "True", tmp_path / "False")
    assert sizes[1] < sizes[0] / 3


@pytest.mark.parametrize("model", [HSTU, SASREC], ids=["hstu", "sasrec"])
def test_bf16_stays_near_float32(data: str, two_ranks: Ranks, tmp_path: Path, model: dict[str, Any]) -> None:
    """bfloat16 has 8 significant bits; what is saved is not in it."""
    wanted = losses(alone(sharded(data, tmp_path / "float32", model=model)))
    values = {"model": model, "precision": "bf16"}
    for parallel in ("ddp", "fsdp"):
        found = losses(two_ranks(run, sharded(data, tmp_path / parallel, parallel=parallel, **values).task())[0])
        assert found != pytest.approx(wanted, rel=1e-5)
        assert found == pytest.approx(wanted, rel=3 * 2**-8)
        assert {value.dtype for value in tables(tmp_path / parallel).values()} == {torch.float32}


def test_a_replicated_table_is_refused_under_fsdp(data: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'fsdp' does not go with a replicated table.*use table=row_wise"):
        sharded(data, tmp_path, table="auto", parallel="fsdp")
    config = build(TrainConfig, {"dataset": data, "output": str(tmp_path), "parallel": "fsdp"})
    assert config.placement_for(1_000_000) == "row_wise"
