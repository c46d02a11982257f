"""Whole training runs: alike on one worker and on two, for every objective and placement; resumed as uninterrupted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.data import small_dataset
from tests.data.small_dataset import MODEL
from tests.spawning import Ranks

from retilt import artifact, ranks, storage
from retilt.config import TrainConfig, build
from retilt.data.dataset import Dataset
from retilt.data.stream import evaluation_batches
from retilt.training import checkpoint, loop
from retilt.training.run import PlannedRun, check_output, finished, plan_run
from retilt.types import InputError, TrainingError

ALGORITHMS: dict[str, dict[str, Any]] = {
    "bc": {"name": "bc"},
    "rsft": {"name": "rsft"},
    "exp_rsft": {"name": "exp_rsft", "temperature": 0.5},
    "exp_rsft, batch": {"name": "exp_rsft", "temperature": 0.5, "normalize": "batch"},
    "exp_rsft, trajectory": {"name": "exp_rsft", "temperature": 1.0, "level": "trajectory"},
    "exp_rsft, equal contexts": {"name": "exp_rsft", "rewards": "user_centred", "context_weight": "equal"},
    "top_rated": {"name": "top_rated"},
}


class Listener:
    """Keeps what a run reports; ``stop_after`` ends it after that many epochs as a crash would."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.lines: list[dict[str, Any]] = []
        self.notes: list[dict[str, Any]] = []
        self.epochs = 0
        self.stop_after = stop_after

    def progress(self, update: Mapping[str, Any]) -> None:
        (self.lines if "loss" in update else self.notes).append(dict(update))

    def report(self, metrics: Mapping[str, Any]) -> None:
        self.epochs += 1
        if self.epochs == self.stop_after:
            raise KeyboardInterrupt

    def stop_requested(self) -> bool:
        return False


def planned(data: str, output: Path | str, **values: Any) -> PlannedRun:
    values = {"dropout": 0.0, "log_every": 1, "batch_users": 12, "epochs": 4, "min_reward": 4.0, **values}
    if "initial" not in values:
        values.setdefault("model", MODEL)
    return plan_run(build(TrainConfig, {"dataset": data, "output": str(output), **values}))


def run(task: dict[str, Any], stop_after: int | None = None) -> list[dict[str, Any]]:
    """One rank's run; rank 0 returns the lines of its steps and epochs."""
    listener = Listener(stop_after)
    try:
        loop.train(task, listener)
    except KeyboardInterrupt:
        ranks.barrier()
    return listener.lines


def alone(each: PlannedRun, stop_after: int | None = None, **task: Any) -> list[dict[str, Any]]:
    ranks.single()
    check_output(each)
    return run({**each.task(), **task}, stop_after)


def losses(lines: list[dict[str, Any]]) -> list[float]:
    return [line["loss"] for line in lines if "epoch_done" not in line]


def tables(output: Path | str) -> dict[str, torch.Tensor]:
    """Every tensor of the last policy, files of rows joined."""
    place = storage.join(str(output), "policy", "last")
    found: dict[str, list[torch.Tensor]] = {}
    for file in storage.list_files(place):
        if file.path.endswith(".safetensors"):
            kind = file.path.split("-0")[0]
            for name, value in artifact.load_tensors(storage.join(place, file.path)).items():
                found.setdefault(f"{kind}:{name}", []).append(value)
    return {name: torch.cat(parts) if parts[0].ndim else parts[0] for name, parts in found.items()}


@pytest.mark.parametrize("placement", ["replicated", "row_wise"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_two_workers_take_the_steps_of_one(
    data: str, two_ranks: Ranks, tmp_path: Path, algorithm: str, placement: str
) -> None:
    """First 20 steps to 1e-5 relative, dropout 0; validation metrics of each epoch equal, so ranks are."""
    values = {"algorithm": ALGORITHMS[algorithm], "table": placement, "table_learning_rate": 0.01}
    one = alone(planned(data, tmp_path / "one", **values))
    both = planned(data, tmp_path / "two", **values)
    two = two_ranks(run, both.task())[0]
    assert len(losses(one)) == 20
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
    for mine, theirs in zip(two, one, strict=True):
        for name in theirs:
            if name.startswith("validation/"):
                assert mine[name] == pytest.approx(theirs[name], rel=1e-12)


@pytest.mark.parametrize("values", [{"table": "replicated"}, {"table": "row_wise", "table_learning_rate": 0.01}])
def test_two_hundred_steps_stay_together(data: str, two_ranks: Ranks, tmp_path: Path, values: dict[str, Any]) -> None:
    """Adam and row-wise Adagrad at .01: 200 steps to 1e-3 (rounding alone moves them apart)."""
    values = {"epochs": 10, "batch_users": 3, "protocol": "refit", **values}
    one = alone(planned(data, tmp_path / "one", **values))
    both = planned(data, tmp_path / "two", **values)
    two = two_ranks(run, both.task())[0]
    assert len(losses(one)) == 200
    assert losses(two) == pytest.approx(losses(one), rel=1e-3)


def test_dropout_does_not_depend_on_the_workers_either(data: str, two_ranks: Ranks, tmp_path: Path) -> None:
    one = alone(planned(data, tmp_path / "one", epochs=2, dropout=0.3))
    both = planned(data, tmp_path / "two", epochs=2, dropout=0.3)
    assert losses(two_ranks(run, both.task())[0]) == pytest.approx(losses(one), rel=1e-5)


def test_a_sampled_run_on_two_workers_takes_the_steps_of_one(data: str, two_ranks: Ranks, tmp_path: Path) -> None:
    """With two negatives the approximation is poor, which the run says after each epoch, alike on both."""
    values = {"softmax": "sampled", "negative_count": 2, "proposal": "uniform", "epochs": 2, "table": "row_wise"}
    one = alone(planned(data, tmp_path / "one", **values))
    two = two_ranks(run, planned(data, tmp_path / "two", **values).task())[0]
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
    gaps = [[line["sampling_gap"] for line in lines if "epoch_done" in line] for lines in (one, two)]
    assert gaps[0] == pytest.approx(gaps[1], rel=1e-4)
    assert len(gaps[0]) == 2
    notes = storage.read_json(str(tmp_path / "one" / "result.json"))["notes"]
    assert (
        sum("with 2 uniform negatives the sampled softmax differs from the exact one by" in note for note in notes) == 2
    )


@pytest.mark.parametrize("softmax", ["exact", "sampled"])
@pytest.mark.parametrize("placement", ["replicated", "row_wise"])
def test_a_resumed_run_equals_an_uninterrupted_one_to_the_bit(
    data: str, tmp_path: Path, placement: str, softmax: str
) -> None:
    values = {"table": placement, "dropout": 0.2, "algorithm": ALGORITHMS["exp_rsft"], "softmax": softmax}
    alone(planned(data, tmp_path / "whole", **values))
    alone(planned(data, tmp_path / "cut", **values), stop_after=2)
    assert finished(planned(data, tmp_path / "cut", **values)) is None
    alone(planned(data, tmp_path / "cut", **values))
    whole, cut = tables(tmp_path / "whole"), tables(tmp_path / "cut")
    assert whole.keys() == cut.keys()
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    kept = storage.read_bytes(str(tmp_path / "cut" / "metrics.jsonl")).decode().splitlines()
    assert len(kept) == len(storage.read_bytes(str(tmp_path / "whole" / "metrics.jsonl")).decode().splitlines())


def test_a_finished_run_is_found_and_more_epochs_continue_it(data: str, tmp_path: Path) -> None:
    alone(planned(data, tmp_path / "run", epochs=2))
    again = planned(data, tmp_path / "run", epochs=2, workers=2)
    check_output(again)
    result = finished(again)
    assert result is not None
    assert result["epochs"] == 2
    alone(planned(data, tmp_path / "run", epochs=4))
    alone(planned(data, tmp_path / "whole", epochs=4))
    longer, whole = tables(tmp_path / "run"), tables(tmp_path / "whole")
    assert all(torch.equal(whole[name], longer[name]) for name in whole)


def test_the_best_epoch_is_published_beside_the_last(data: str, tmp_path: Path) -> None:
    lines = alone(planned(data, tmp_path / "run", epochs=3))
    values = [line["validation/ndcg@10"] for line in lines if "epoch_done" in line]
    result = storage.read_json(str(tmp_path / "run" / "result.json"))
    assert result["best"]["epoch"] == values.index(max(values)) + 1
    assert checkpoint.find(str(tmp_path / "run")).endswith("policy/best")
    assert checkpoint.read_state(str(tmp_path / "run" / "policy" / "last"))["step"] == 15


def ranks_of(data: str, policy: str, placement: str) -> dict[int, list[int]]:
    """Exact ranks of the test targets by user, from this rank's share."""
    from retilt.models.hstu import HSTU
    from retilt.training.assemble import Blueprint, assemble

    ranks.single()
    dataset = Dataset.open(data)
    blueprint = Blueprint(HSTU(**MODEL), dataset.items, placement, "row_wise_adagrad", 1e-3, 1e-3, 0.0, 5)  # type: ignore[arg-type]
    found, _ = assemble(blueprint, dataset.active(), torch.device("cpu"))
    checkpoint.load(policy, found, None)
    answer: dict[int, list[int]] = {}
    for batch in evaluation_batches(dataset, "test", 20, "all", 12, ranks.rank(), ranks.world()):
        assert batch.seen_item is not None
        assert batch.seen_length_P is not None
        places = found.eval().exact(batch).ranks(batch.target_item_P, batch.seen_item, batch.seen_length_P)
        for user, place in zip(batch.target_example_P.tolist(), places.tolist(), strict=True):
            answer.setdefault(user, []).append(place)
    return answer


def test_equal_ranks_from_one_checkpoint(data: str, two_ranks: Ranks, tmp_path: Path) -> None:
    """Saved by one rank, read by one and by two, in both placements: every target has the same rank."""
    alone(planned(data, tmp_path / "run", table="row_wise"))
    policy = checkpoint.find(str(tmp_path / "run"))
    wanted = ranks_of(data, policy, "replicated")
    assert len(wanted) == 60
    assert ranks_of(data, policy, "row_wise") == wanted
    for placement in ("replicated", "row_wise"):
        first, second = two_ranks(ranks_of, data, policy, placement)
        assert {**first, **second} == wanted


def test_a_policy_saved_by_two_ranks_is_loaded_by_one(data: str, two_ranks: Ranks, tmp_path: Path) -> None:
    both = planned(data, tmp_path / "run", table="row_wise", epochs=1)
    two_ranks(run, both.task())
    policy = checkpoint.find(str(tmp_path / "run"))
    assert sum(file.path.startswith("table-0") for file in storage.list_files(policy)) == 2
    assert len(ranks_of(data, policy, "replicated")) == 60


def test_post_training_keeps_or_resets_the_optimizer(data: str, tmp_path: Path) -> None:
    alone(planned(data, tmp_path / "bc", epochs=2, protocol="refit"))
    values = {"initial": str(tmp_path / "bc"), "protocol": "refit", "algorithm": ALGORITHMS["exp_rsft"], "epochs": 1}
    kept = alone(planned(data, tmp_path / "kept", **values))
    reset = alone(planned(data, tmp_path / "reset", optimizer_state="reset", **values))
    assert losses(kept)[0] == losses(reset)[0]
    assert losses(kept)[1] != losses(reset)[1]
    state = checkpoint.read_state(str(tmp_path / "kept" / "policy" / "last"))
    assert [entry["protocol"] for entry in state["lineage"]] == ["refit", "refit"]


def test_a_huge_temperature_is_behaviour_cloning_and_a_tiny_one_top_rated(data: str, tmp_path: Path) -> None:
    def trained(name: str, algorithm: dict[str, Any]) -> list[float]:
        return losses(alone(planned(data, tmp_path / name, algorithm=algorithm, epochs=2)))

    bc, top = trained("bc", {"name": "bc"}), trained("top", {"name": "top_rated"})
    assert trained("warm", {"name": "exp_rsft", "temperature": 1e6}) == pytest.approx(bc, rel=1e-4)
    assert trained("cold", {"name": "exp_rsft", "temperature": 1e-2}) == pytest.approx(top, rel=1e-5)


def test_what_is_refused_before_anything_is_written(data: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"workers = 4, but the data set has 3 lanes"):
        planned(data, tmp_path / "run", workers=4)
    alone(planned(data, tmp_path / "bc", epochs=1, protocol="refit"))
    other = str(tmp_path / "other")
    small_dataset.write(other, small_dataset.sequences(30, 40), 40, lanes=1, shards=[[30]])
    manifest = storage.read_json(storage.join(other, "manifest.json"))
    storage.write_json(storage.join(other, "manifest.json"), {**manifest, "vocabulary_sha256": "1" * 64})
    with pytest.raises(InputError, match="another vocabulary"):
        planned(other, tmp_path / "run", initial=str(tmp_path / "bc"), algorithm={"name": "bc"})
    with pytest.raises(InputError, match=r"trained on validation events"):
        planned(data, tmp_path / "run", initial=str(tmp_path / "bc"), protocol="select")
    with pytest.raises(InputError, match="no policy here"):
        planned(data, tmp_path / "run", initial=str(tmp_path))
    with pytest.raises(InputError, match="expected a checkpoint, found 'dataset'"):
        planned(data, tmp_path / "run", initial=data)
    with pytest.raises(InputError, match="model differs"):
        planned(data, tmp_path / "run", initial=str(tmp_path / "bc"), protocol="refit", model={**MODEL, "blocks": 2})
    assert not (tmp_path / "run").exists()


def test_another_run_or_other_files_in_the_output(data: str, tmp_path: Path) -> None:
    alone(planned(data, tmp_path / "run", epochs=1))
    with pytest.raises(InputError, match=r"holds another run \(learning_rate = 0.001\)"):
        check_output(planned(data, tmp_path / "run", epochs=1, learning_rate=0.01))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match="not empty"):
        check_output(planned(data, tmp_path / "full"))


def test_a_flipped_byte_in_a_shard_ends_the_run_on_all_ranks(data: str, two_ranks: Ranks, tmp_path: Path) -> None:
    copy = tmp_path / "data"
    for file in storage.list_files(data):
        storage.copy(storage.join(data, file.path), storage.join(str(copy), file.path))
    shard = copy / "shards" / "part-00001.parquet"
    flipped = bytearray(shard.read_bytes())
    flipped[len(flipped) // 2] ^= 1
    shard.write_bytes(flipped)
    each = planned(str(copy), tmp_path / "run")
    found = two_ranks(refusal, each.task())
    assert found[0] == found[1]
    assert "part-00001.parquet: sha256 differs" in found[0]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("placement", ["replicated", "row_wise"])
def test_what_only_one_rank_reads_ends_the_run_on_all_ranks(two_ranks: Ranks, tmp_path: Path, placement: str) -> None:
    """The hashes fit and one rank alone meets the item, while the other is on its way to a sum over ranks."""
    place, users = str(tmp_path / "data"), small_dataset.sequences(60, 50, longest=30)
    users[35][0] = (50, *users[35][0][1:])
    small_dataset.write(place, users, 50, lanes=3, shards=[[11, 9, 10], [10, 10, 10]])
    users[35][0] = (51, *users[35][0][1:])
    shard = "shards/part-00001.parquet"
    small_dataset.write_shard(storage.join(place, shard), users[30:], [10, 10, 10], 30)
    manifest = storage.read_json(storage.join(place, "manifest.json"))
    files = [file for file in manifest["files"] if file["path"] != shard] + [artifact.file_entry(place, shard)]
    storage.write_json(storage.join(place, "manifest.json"), {**manifest, "files": files})
    found = two_ranks(refusal, planned(place, tmp_path / "run", table=placement).task(), timeout=60)
    assert found[0] == found[1]
    assert "part-00001.parquet, row group 0: item 51 is outside the vocabulary" in found[0]
    assert not (tmp_path / "run").exists()


def refusal(task: dict[str, Any]) -> str:
    with pytest.raises(InputError) as refused:
        loop.train(task, Listener())
    assert refused.value.on_all_ranks
    return str(refused.value)


def test_a_loss_that_is_not_finite_ends_the_run_before_a_parameter_moves(data: str, tmp_path: Path) -> None:
    each = planned(data, tmp_path / "run", learning_rate=1e39, epochs=3)
    with pytest.raises(
        TrainingError,
        match="the loss is not finite at step 6, like 5 steps before it; its examples are from shards/part-0",
    ):
        alone(each)
