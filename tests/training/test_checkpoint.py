"""Checkpoints: damage is refused by name, nothing is unpickled, best and newest stay, a full disk loses nothing."""

from __future__ import annotations

import os
import pickle
import random
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.data.small_dataset import MODEL
from tests.faults.test_kill import require_equal

from retilt import artifact, ranks, storage
from retilt.config import TrainConfig, build
from retilt.models.hstu import HSTU
from retilt.training import checkpoint, loop
from retilt.training.assemble import Blueprint, assemble
from retilt.training.parallel import choose_device
from retilt.training.run import plan_run
from retilt.types import DamagedError, InputError, Stopped, StorageError


class Listener:
    """Calls ``committed`` when a checkpoint stands; asks for a stop before step ``stop_at``."""

    def __init__(self, committed: Callable[[int], None] | None = None, stop_at: int | None = None) -> None:
        self.committed, self.stop_at, self.asked, self.notes = committed, stop_at, 0, list[str]()

    def progress(self, update: Mapping[str, Any]) -> None:
        if "committed" in update and self.committed:
            self.committed(update["committed"])
        self.notes += [update["note"]] if "note" in update else []

    def report(self, metrics: Mapping[str, Any]) -> None: ...

    def stop_requested(self) -> bool:
        self.asked += 1
        return self.asked == self.stop_at


def task(data: str, output: Path, **values: Any) -> dict[str, Any]:
    settings = {
        "dataset": data, "output": str(output), "model": MODEL, "epochs": 4, "batch_users": 12, "table": "row_wise",
        "checkpoint": {"every_steps": 2, "keep": 3}, **values,
    }  # fmt: skip
    return plan_run(build(TrainConfig, settings)).task()


def train(each: dict[str, Any], listener: Listener | None = None) -> dict[str, Any]:
    ranks.single()
    return loop.train(each, listener or Listener())


@pytest.fixture(scope="module")
def whole(data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("whole") / "run"
    train(task(data, output))
    return output


def load(place: str) -> None:
    """Everything that a resumed run reads of a checkpoint."""
    ranks.single()
    blueprint = Blueprint(HSTU(**MODEL), 50, "row_wise", "row_wise_adagrad", 1e-3, 1e-3, 0.0, 5)  # type: ignore[arg-type]
    from retilt.data.dataset import Dataset

    state = checkpoint.read_state(place)
    dataset = Dataset.open(state["config"]["dataset"])
    policy, dense = assemble(blueprint, dataset.active(), choose_device("cpu"))
    checkpoint.load(place, policy, dense)


def test_any_flipped_byte_is_refused_with_the_name_of_its_file(whole: Path, tmp_path: Path) -> None:
    """100 of 100 at random offsets of random files, the manifest among them: one bit, or all of the byte's."""
    source, chance = Path(checkpoint.committed(str(whole))[0]), random.Random(0)
    files = sorted(path for path in source.iterdir())
    load(str(source))
    copy = tmp_path / source.name
    shutil.copytree(source, copy)
    refused = []
    for number in range(100):
        victim = copy / chance.choice(files).name
        right = victim.read_bytes()
        wrong, at = bytearray(right), chance.randrange(len(right))
        wrong[at] ^= 0xFF if number % 2 else 1 << chance.randrange(8)
        victim.write_bytes(wrong)
        with pytest.raises(InputError) as problem:
            load(str(copy))
        refused.append(victim.name in str(problem.value))
        victim.write_bytes(right)
    assert refused == [True] * 100
    load(str(copy))


def test_a_damaged_checkpoint_is_passed_over_and_the_run_ends_with_the_same_bits(
    data: str, whole: Path, tmp_path: Path
) -> None:
    each, output = task(data, tmp_path / "run"), tmp_path / "run"
    with pytest.raises(Stopped):
        train(each, Listener(stop_at=12))
    newest, older = checkpoint.committed(str(output))[:2]
    table = next(Path(newest).glob("table-0*"))
    table.write_bytes(table.read_bytes()[:-1])
    listener = Listener()
    train(each, listener)
    assert f"{table.name}: " in listener.notes[0]
    assert listener.notes[0].endswith("continues from the checkpoint before it")
    assert listener.notes[1].startswith(f"continues at step {int(Path(older).name.split('-')[0])} ")
    require_equal(output, whole)


def test_no_whole_checkpoint_left_is_an_error_and_not_a_fresh_start(data: str, tmp_path: Path) -> None:
    each = task(data, tmp_path / "run", checkpoint={"every_steps": 2, "keep": 1})
    with pytest.raises(Stopped):
        train(each, Listener(stop_at=4))
    (only,) = checkpoint.committed(str(tmp_path / "run"))
    (Path(only) / "dense.safetensors").unlink()
    with pytest.raises(DamagedError, match=r"dense\.safetensors: listed in manifest\.json but absent"):
        train(each)


def test_a_stop_is_a_checkpoint_and_exit_code_75(data: str, whole: Path, tmp_path: Path) -> None:
    each = task(data, tmp_path / "run", checkpoint={"every_seconds": None})
    with pytest.raises(Stopped, match="stopped at step 8, with a checkpoint") as stopped:
        train(each, Listener(stop_at=8))
    assert stopped.value.exit_code == 75
    assert stopped.value.on_all_ranks
    assert Path(checkpoint.committed(str(tmp_path / "run"))[0]).name.startswith("00000008-")
    train(each)
    require_equal(tmp_path / "run", whole)


def test_the_newest_and_the_best_are_kept(data: str, tmp_path: Path) -> None:
    values = {"checkpoint": {"every_steps": 2, "keep": 2, "keep_best": 2, "every_seconds": None}}
    train(task(data, tmp_path / "run", **values))
    kept = [storage.name(place) for place in checkpoint.committed(str(tmp_path / "run"))]
    state = checkpoint.read_state(checkpoint.committed(str(tmp_path / "run"))[0])
    best = state["progress"]["best"]
    values_of_epochs = sorted((each["validation/ndcg@10"] for each in state["progress"]["epochs"]), reverse=True)
    assert [each["value"] for each in best] == values_of_epochs[:2]
    assert {each["checkpoint"] for each in best} <= set(kept)
    assert len(kept) <= 4
    assert kept[0].startswith("00000020")


class Bomb:
    """Makes a folder where it is unpickled."""

    def __init__(self, place: str) -> None:
        self.place = place

    def __reduce__(self) -> Any:
        return os.mkdir, (self.place,)


@pytest.mark.parametrize(
    "name", ["dense.safetensors", "dense-optimizer.safetensors", "table", "state.json", "manifest.json"]
)
def test_a_planted_pickle_is_never_reached(whole: Path, tmp_path: Path, name: str) -> None:
    """The manifest vouches for the planted file, so that it gets as far as it can; an audit hook listens for pickle."""
    source = Path(checkpoint.committed(str(whole))[0])
    copy = tmp_path / source.name
    shutil.copytree(source, copy)
    victim = next(copy.glob("table-0*")) if name == "table" else copy / name
    victim.write_bytes(pickle.dumps(Bomb(str(tmp_path / "unpickled"))))
    if name != "manifest.json":
        entries = [artifact.file_entry(str(copy), path.name) for path in copy.iterdir() if path.name != "manifest.json"]
        checkpoint.commit(str(copy), 20, entries)
    program = f"""
        import sys
        from tests.training.test_checkpoint import load, InputError
        load({str(source)!r})
        found = []
        sys.addaudithook(lambda event, _: event.startswith(("pickle.", "marshal.loads")) and found.append(event))
        try:
            load({str(copy)!r})
        except InputError as problem:
            print(found, problem)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.startswith("[] ")
    assert victim.name in done.stdout
    assert not (tmp_path / "unpickled").exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip("mounting a tmpfs needs root")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk_leaves_the_checkpoint_before_it(data: str, whole: Path, small_disk: Path) -> None:
    output, ballast = small_disk / "run", small_disk / "ballast"

    def fill(step: int) -> None:
        if step >= 6 and not ballast.exists():
            with ballast.open("wb", buffering=0) as file:
                while True:
                    try:
                        file.write(bytes(4096))
                    except OSError:
                        break

    each = task(data, output)
    with pytest.raises(StorageError) as problem:
        train(each, Listener(committed=fill))
    assert "No space left on device" in str(problem.value)
    assert str(output) in str(problem.value)
    newest = checkpoint.committed(str(output))[0]
    load(newest)
    ballast.unlink()
    train(each)
    require_equal(output, whole)


def test_a_checkpoint_of_another_run_or_format_is_refused(data: str, whole: Path, tmp_path: Path) -> None:
    newest = Path(checkpoint.committed(str(whole))[0])
    other = task(data, tmp_path / "other", learning_rate=0.01)
    shutil.copytree(newest, tmp_path / "other" / "checkpoints" / newest.name)
    with pytest.raises(InputError, match="is a checkpoint of another configuration"):
        train(other)
    manifest = storage.read_json(str(newest / "manifest.json"))
    shutil.copytree(newest, place := tmp_path / "same" / "checkpoints" / newest.name)
    storage.write_json(str(place / "manifest.json"), {**manifest, "format": 99})
    with pytest.raises(InputError, match="format 99 is not one that this version reads"):
        train(task(data, tmp_path / "same"))
    files = [{**manifest["files"][0], "path": "../../../run.json"}, *manifest["files"][1:]]
    sums = {"manifest_sha256": artifact.fingerprint([manifest["step"], files])}
    storage.write_json(str(place / "manifest.json"), {**manifest, "files": files, **sums})
    with pytest.raises(InputError, match=r"the path '\.\./\.\./\.\./run\.json' leaves the folder"):
        train(task(data, tmp_path / "same"))
