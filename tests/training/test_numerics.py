"""Faults of arithmetic and memory: steps skipped on all ranks, a return to the last checkpoint, replicas compared.

The faults are put in by hand, into the loss, a gradient or a parameter of one rank: nothing else causes them reliably.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from tests.data.small_dataset import MODEL
from tests.faults.test_kill import require_equal
from tests.spawning import Ranks

from retilt import ranks, storage
from retilt.config import TrainConfig, build
from retilt.training import loop
from retilt.training.numerics import WINDOW, is_spike
from retilt.training.run import plan_run
from retilt.training.step import take_step
from retilt.types import TrainingError

TAKE_STEP = "retilt.training.loop.take_step"


class Silent:
    def __init__(self) -> None:
        self.notes: list[str] = []

    def progress(self, update: Mapping[str, Any]) -> None:
        self.notes += [update["note"]] if "note" in update else []

    def report(self, metrics: Mapping[str, Any]) -> None: ...

    def stop_requested(self) -> bool:
        return False


def task(data: str, output: Path, **values: Any) -> dict[str, Any]:
    settings = {
        "dataset": data, "output": str(output), "model": MODEL, "epochs": 2, "batch_users": 12, "protocol": "refit",
        **values,
    }  # fmt: skip
    return plan_run(build(TrainConfig, settings)).task()


def state(run: loop.Run) -> dict[str, torch.Tensor]:
    """Copies of everything that training changes, on this rank."""
    found = {f"table.{name}": value for name, value in run.policy.table.state().items()}
    found |= dict(run.policy.network.backbone.state_dict())
    found |= {f"{n}": value for n, value in run.replicas.tensors.items()}
    return {name: ranks.part(value).clone() for name, value in found.items()}


@contextmanager
def nan_in_the_loss(run: loop.Run) -> Iterator[None]:
    real = type(run.config.algorithm).loss

    def poisoned(self: Any, *arguments: Any) -> Any:
        loss = real(self, *arguments)
        return replace(loss, total=loss.total * torch.nan)

    type(run.config.algorithm).loss = poisoned  # type: ignore[method-assign, assignment]
    yield
    type(run.config.algorithm).loss = real  # type: ignore[method-assign]


@contextmanager
def infinite_gradient(parameter: str, run: loop.Run) -> Iterator[None]:
    """Of one parameter; the table's own gradient stays finite: it must be kept out all the same."""
    place, _, name = parameter.rpartition(".")
    handles: list[Any] = []

    def forward(module: Any, _: Any) -> None:  # under FSDP the whole parameter is there in a pass only
        handles.append(getattr(module, name).register_hook(lambda grad: grad + torch.inf))

    handles.append(run.policy.network.backbone.get_submodule(place).register_forward_pre_hook(forward))
    yield
    for handle in handles:
        handle.remove()


@contextmanager
def nan_in_every_gradient(run: loop.Run) -> Iterator[None]:
    real = type(run.config.algorithm).loss

    def poisoned(self: Any, *arguments: Any) -> Any:
        loss = real(self, *arguments)
        total = loss.total.clone()
        total.register_hook(lambda grad: grad * torch.nan)
        return replace(loss, total=total)

    type(run.config.algorithm).loss = poisoned  # type: ignore[method-assign, assignment]
    yield
    type(run.config.algorithm).loss = real  # type: ignore[method-assign]


def with_fault(each: dict[str, Any], fault: Any, at: int) -> tuple[list[str], int, int, list[str]]:
    """A run on this rank whose rank 1 has ``fault`` in step ``at``: what changed there, skipped, steps, notes."""
    run, changed = loop.Run(each, listener := Silent()), list[str]()

    def faulty(*arguments: Any) -> Any:
        if arguments[5] != at:
            return take_step(*arguments)
        before = state(run)
        if ranks.rank() == 1:
            with fault(run):
                result = take_step(*arguments)
        else:
            result = take_step(*arguments)
        after = state(run)
        changed.extend(name for name in before if not torch.equal(before[name], after[name]))
        return result

    with patch(TAKE_STEP, faulty):
        run.train()
    return changed, run.progress.skipped, run.progress.step, listener.notes


@pytest.mark.parametrize(
    "values", [{"table": "replicated"}, {"table": "row_wise"}, {"table": "row_wise", "parallel": "fsdp"}]
)
@pytest.mark.parametrize(
    ("fault", "what"),
    [
        (nan_in_the_loss, "loss"),
        (partial(infinite_gradient, "layers.0.output.bias"), "gradient"),
        (partial(infinite_gradient, "position"), "gradient"),
        (nan_in_every_gradient, "gradient"),
    ],
)
def test_a_step_that_is_not_finite_on_one_rank_is_skipped_on_all(
    data: str, two_ranks: Ranks, tmp_path: Path, values: dict[str, str], fault: Any, what: str
) -> None:
    found = two_ranks(with_fault, task(data, tmp_path / "run", **values), fault, 3)
    for changed, skipped, steps, _ in found:
        assert (changed, skipped, steps) == ([], 1, 10)
    notes = [note for note in found[0][3] if "finite" in note]
    assert len(notes) == 1
    assert notes[0].startswith(
        f"the {what} is not finite at step 3: skipped on all workers; its examples are from shards/"
    )
    assert storage.read_json(str(tmp_path / "run" / "result.json"))["skipped"] == 1


def always(each: dict[str, Any], fault: Any) -> str:
    run = loop.Run(each, Silent())

    def faulty(*arguments: Any) -> Any:
        if ranks.rank() == 1 and arguments[5] >= 4:
            with fault(run):
                return take_step(*arguments)
        return take_step(*arguments)

    with patch(TAKE_STEP, faulty), pytest.raises(TrainingError) as problem:
        run.train()
    assert problem.value.on_all_ranks
    return str(problem.value)


def test_too_many_in_a_row_end_the_run_and_name_the_shards_of_the_rank(
    data: str, two_ranks: Ranks, tmp_path: Path
) -> None:
    each = task(data, tmp_path / "run", table="row_wise", numerics={"max_skipped": 2})
    first, second = two_ranks(always, each, nan_in_the_loss)
    assert first == second
    assert first.startswith(
        "the loss is not finite at step 6, like 2 steps before it; its examples are from shards/part-0"
    )


def jumping(each: dict[str, Any], at: list[int], times: int) -> tuple[int, list[str]]:
    """A run whose loss is a thousand times too large at some steps, the first ``times`` times that it gets there."""
    run, left = loop.Run(each, listener := Silent()), [times]

    def faulty(policy: Any, dense: Any, algorithm: Any, batch: Any, statistics: Any, step: int, *more: Any) -> Any:
        if step in at and left[0]:
            left[0] -= 1
            signals, spikes, *rest = more
            return take_step(
                policy, dense, algorithm, batch, statistics, step, signals, lambda loss: spikes(loss * 1000), *rest
            )
        return take_step(policy, dense, algorithm, batch, statistics, step, *more)

    with patch(TAKE_STEP, faulty):
        run.train()
    return run.progress.returns, listener.notes


def test_a_loss_that_jumps_sends_the_run_back_once(data: str, two_ranks: Ranks, tmp_path: Path) -> None:
    """A jump that was the machine's is gone the second time; one that is the data's is taken then. The same bits."""
    values: dict[str, Any] = {"batch_users": 3, "epochs": 4, "table": "row_wise", "checkpoint": {"every_steps": 7}}
    plain = tmp_path / "plain"
    assert two_ranks(jumping, task(data, plain, **values), [], 0)[0][0] == 0
    for name, at, times in (("once", [73], 1), ("always", [73, 75], 100), ("for long", list(range(73, 77)), 100)):
        output = tmp_path / name
        returns, notes = two_ranks(jumping, task(data, output, **values), at, times)[0]
        assert returns == 1
        assert len([note for note in notes if "the loss rose to" in note and "at step 73: back to" in note]) == 1
        require_equal(output, plain, "policy/last")
        assert storage.read_json(str(output / "result.json"))["returns"] == 1
        lines, expected = ((each / "metrics.jsonl").read_text().splitlines() for each in (output, plain))
        assert len(lines) == len(expected)


def test_a_spike_is_known_by_the_recent_losses() -> None:
    recent = [2.0 + 0.1 * (i % 2) for i in range(WINDOW)]  # median 2.05, median absolute deviation .05
    deviation = 1.4826 * 0.05
    assert not is_spike(2.05 + 19 * deviation, recent, 20.0)
    assert is_spike(2.05 + 21 * deviation, recent, 20.0)
    assert not is_spike(1e9, recent, None)
    assert not is_spike(1e9, recent[1:], 20.0)
    assert not is_spike(2.0 + 20 * 0.02, [2.0] * WINDOW, 20.0)  # equal losses: 2% of the median stand for a deviation


def flipping(each: dict[str, Any], name: str, at: int, times: int) -> tuple[int, list[str]]:
    """A run in which, after step ``at``, one bit of one rank's copy of a tensor is flipped."""
    run, left = loop.Run(each, listener := Silent()), [times]

    def faulty(*arguments: Any) -> Any:
        result = take_step(*arguments)
        if arguments[5] >= at and left[0]:
            left[0] -= 1
            if ranks.rank() == 1:
                words = run.replicas.tensors[name].view(-1).view(torch.int32)
                words[len(words) // 2] ^= 1 << 3
        return result

    with patch(TAKE_STEP, faulty):
        run.train()
    return run.progress.returns, listener.notes


@pytest.mark.parametrize(
    ("placement", "name"),
    [
        ("row_wise", "layers.0.uvqk"),
        ("row_wise", "position.exp_avg_sq"),
        ("replicated", "table.weight"),
        ("replicated", "table.exp_avg"),
    ],
)
def test_a_flipped_bit_is_found_within_the_interval_and_undone(
    data: str, two_ranks: Ranks, tmp_path: Path, placement: str, name: str
) -> None:
    values: dict[str, Any] = {"table": placement, "checkpoint": {"every_steps": 3}, "numerics": {"compare_every": 2}}
    two_ranks(flipping, task(data, tmp_path / "plain", **values), name, 0, 0)
    (returns, notes), _ = two_ranks(flipping, task(data, tmp_path / "run", **values), name, 5, 1)
    assert returns == 1
    (note,) = [note for note in notes if "is not the same" in note]
    assert note.startswith(f"{name} is not the same on worker(s) 0 and worker(s) 1 at step ")
    assert 6 <= int(note.split("at step ")[1].split(":")[0]) <= 5 + 1 + 2
    require_equal(tmp_path / "run", tmp_path / "plain", "policy/last")


def refused(each: dict[str, Any]) -> str:
    with pytest.raises(TrainingError) as problem:
        flipping(each, "position", 4, 100)
    return str(problem.value)


def test_bits_that_flip_again_end_the_run(data: str, two_ranks: Ranks, tmp_path: Path) -> None:
    each = task(data, tmp_path / "run", checkpoint={"every_steps": 3}, numerics={"compare_every": 2})
    first, second = two_ranks(refused, each)
    assert first == second
    assert "for the second time; a machine of the workers may be faulty" in first
