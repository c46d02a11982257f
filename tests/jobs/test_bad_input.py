"""Bad input through the jobs' own scripts: exit code 2, one sentence that names the place, nothing left behind.

Each case runs ``jobs/*.py`` as ``__main__`` in this process, with one Ray cluster for all of them.
"""

from __future__ import annotations

import json
import math
import os
import runpy
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
import ray
from ray.core.generated import autoscaler_pb2
from ray.experimental import internal_kv
from tests.data import small_dataset

from retilt import artifact, lease, ranks
from retilt.cluster import session
from retilt.command_line import parse
from retilt.config import TrainConfig, build
from retilt.training import checkpoint, loop
from retilt.training.run import plan_run

ROOT = Path(__file__).resolve().parents[2]
TIME = 978_300_760
ITEMS = 20
MODEL = ["model.max_length=8", "model.width=4", "model.blocks=1", "model.head_width=4"]
TRAIN = ["epochs=1", "batch_users=12", "protocol=refit", "table=replicated", "threads=1", *MODEL]
POSTTRAIN = ["dataset=data", "initial=policy", "output=run", *TRAIN[:-4], "algorithm=exp_rsft"]


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with session.connect(cpus=2, dashboard=False):
        yield


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``data`` and ``policy``, whole and fitting each other; every case damages a copy."""
    folder = tmp_path_factory.mktemp("good")
    users = small_dataset.sequences(40, ITEMS, longest=10)
    data = small_dataset.write(str(folder / "data"), users, ITEMS, lanes=8, shards=[[5] * 4, [5] * 4])
    values = {"dataset": data, "output": str(folder / "run"), "epochs": 1, "batch_users": 12, "protocol": "refit"}
    model = {"name": "hstu", "max_length": 8, "width": 4, "blocks": 1, "head_width": 4}
    loop.train(plan_run(build(TrainConfig, {**values, "model": model})).task(), Silent())
    shutil.copytree(folder / "run" / "policy" / "last", folder / "policy")
    return folder


class Silent:
    """A reporter that nobody listens to."""

    def progress(self, update: Mapping[str, Any]) -> None: ...

    def report(self, metrics: Mapping[str, Any]) -> None: ...

    def stop_requested(self) -> bool:
        return False


@pytest.fixture
def place(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to damage, with copies of ``data`` and ``policy``; the job runs in it."""
    for name in ("data", "policy"):
        shutil.copytree(good / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(job: str, argv: list[str], monkeypatch: pytest.MonkeyPatch) -> object:
    """Exit code of a job's script."""
    monkeypatch.setattr(sys, "argv", [f"jobs/{job}.py", *argv])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "jobs" / f"{job}.py"), run_name="__main__")
    return ended.value.code


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every file and folder below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def refused(job: str, argv: list[str], place: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> str:
    """The one sentence with which a job ends; nothing on the disk has changed."""
    before = contents(place)
    capfd.readouterr()
    code = run(job, argv, monkeypatch)
    error = capfd.readouterr().err
    assert code == 2, error
    assert error.startswith("error: ")
    assert error.count("\n") == 1, error
    assert contents(place) == before
    return str(error)


def put(path: Path, text: str) -> None:
    path.write_text(text)


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def log(users: int = 6, events: int = 5) -> dict[str, list[Any]]:
    rows = [(user, event) for user in range(users) for event in range(events)]
    return {
        "user": [user for user, _ in rows],
        "item": [(user + event) % 7 for user, event in rows],
        "reward": [float(1 + (user + event) % 5) for user, event in rows],
        "time": [TIME + event for _, event in rows],
    }


def parquet(**columns: list[Any] | None) -> Callable[[Path], None]:
    """Writes ``log.parquet`` with other columns, or without those that are None."""
    changed = {name: values for name, values in {**log(), **columns}.items() if values is not None}
    return lambda place: pq.write_table(pa.table(changed), place / "log.parquet", write_page_checksum=True)


def with_reward(value: float | None) -> Callable[[Path], None]:
    return parquet(reward=[1.0, 2.0, value, *log()["reward"][3:]])


def broken(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """Writes a good ``log.parquet``, then changes its bytes."""

    def write(place: Path) -> None:
        parquet()(place)
        (place / "log.parquet").write_bytes(change((place / "log.parquet").read_bytes()))

    return write


def csv(text: str | None) -> Callable[[Path], None]:
    def write(place: Path) -> None:
        pacsv.write_csv(pa.table(log()), place / "log.csv")
        if text is not None:
            (place / "log.csv").write_text(text)

    return write


def occupied(place: Path) -> None:
    parquet()(place)
    (place / "set").mkdir()
    (place / "set" / "thesis.tex").write_text("mine")


def policy_in_the_way(place: Path) -> None:
    parquet()(place)
    shutil.copytree(place / "policy", place / "set")


def file_in_the_way(place: Path) -> None:
    parquet()(place)
    (place / "set").write_text("mine")


STRINGS = ["x"] * len(log()["user"])
PREPARE: dict[str, tuple[Callable[[Path], None], list[str], str]] = {
    "missing column": (parquet(reward=None), [], "log.parquet: no column 'reward' (columns.reward)"),
    "missing column, csv": (csv("user,item,rating,time\n1,2,3,4\n"), ["source=log.csv"], "log.csv: no column 'reward'"),
    "text for a reward": (parquet(reward=STRINGS), [], "log.parquet: column 'reward' (columns.reward) holds string"),
    "text for a reward, csv": (csv("user,item,reward,time\n1,2,x,978300760\n"), ["source=log.csv"], "log.csv"),
    "text for a time": (parquet(time=STRINGS), [], "log.parquet: column 'time' (columns.time) holds string"),
    "decimals for an id": (parquet(item=log()["reward"]), [], "log.parquet: column 'item' (columns.item) holds double"),
    "a time in another unit": (
        parquet(time=[each * 1000 for each in log()["time"]]),
        [],
        "log.parquet, row 1: time = 978300760000 is outside 1990–2100 as columns.time_unit=s; it looks like",
    ),
    "empty file": (broken(lambda _: b""), [], "log.parquet: the file is empty"),
    "empty csv": (csv(""), ["source=log.csv"], "log.csv: the file is empty"),
    "no rows": (lambda place: pq.write_table(pa.table(log())[:0], place / "log.parquet"), [], "log.parquet: no rows"),
    "no rows, csv": (csv("user,item,reward,time\n"), ["source=log.csv"], "log.csv: no rows"),
    "a row cut short, csv": (csv("user,item,reward,time\n1,2\n"), ["source=log.csv"], "log.csv: cannot be read"),
    "empty folder": (lambda place: (place / "logs").mkdir(), ["source=logs"], "logs: the folder holds no data files"),
    "truncated": (broken(lambda data: data[:-30]), [], "log.parquet: cannot be read"),
    "no Parquet at all": (broken(lambda data: b"x" * 100), [], "log.parquet: not a Parquet file"),
    "flipped byte in the log": (
        broken(lambda data: data[:60] + bytes([data[60] ^ 1]) + data[61:]),
        [],
        "log.parquet: cannot be read",
    ),
    "null reward": (with_reward(None), [], "log.parquet, row 3: reward is null; on_bad_rows=drop"),
    "NaN reward": (with_reward(math.nan), [], "log.parquet, row 3: reward is nan"),
    "infinite reward": (with_reward(math.inf), [], "log.parquet, row 3: reward is inf"),
    "a reward beyond float32": (with_reward(1e39), [], "log.parquet, row 3: reward is 1e+39"),
    "null user": (parquet(user=[None, *log()["user"][1:]]), [], "log.parquet, row 1: user is null"),
    "no user long enough": (parquet(**log(9, 2)), [], "log.parquet: none of 9 users has the 3 events"),
    "nothing there": (parquet(), ["source=none.parquet"], "none.parquet: no such file or folder"),
    "no file matches": (parquet(), ["source=*.csv"], "*.csv: no file matches"),
    "unknown scheme": (parquet(), ["source=nosuch://bucket/x"], "nosuch://bucket/x: no file system for nosuch://"),
    "memory": (parquet(), ["dataset=memory://set"], "dataset = memory://set: memory:// lives in one process"),
    "secret in a URI": (parquet(), ["source=s3://AKIA:topsecret@bucket/x"], "a s3:// URI holds credentials"),
    "a vocabulary that is no data set": (parquet(), ["vocabulary=none"], "none: no dataset here"),
    "a vocabulary of other ids": (parquet(), ["vocabulary=data"], "data: its item ids are string, those of the source"),
    "output of something else": (occupied, [], "set: the folder holds other files (thesis.tex)"),
    "output of a policy": (policy_in_the_way, [], "set/manifest.json: expected a dataset, found 'checkpoint'"),
    "output is a file": (file_in_the_way, [], "set: dataset must be a folder, this is a file"),
    "output below a file": (file_in_the_way, ["dataset=set/inner"], "set/inner"),
    "unknown key": (parquet(), ["columns.usr=x"], "did you mean 'columns.user'?"),
}


@pytest.mark.parametrize("case", PREPARE)
def test_prepare(case: str, place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    make, keys, said = PREPARE[case]
    make(place)
    error = refused("prepare", ["source=log.parquet", "dataset=set", *keys], place, monkeypatch, capfd)
    assert said in error
    assert "topsecret" not in error


def test_prepare_over_another_data_set(
    place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    parquet()(place)
    assert run("prepare", ["source=log.parquet", "dataset=set"], monkeypatch) == 0
    error = refused("prepare", ["source=log.parquet", "dataset=set", "k=2"], place, monkeypatch, capfd)
    assert "set: holds a data set prepared from" in error
    parquet(**log(7))(place)
    error = refused("prepare", ["source=log.parquet", "dataset=set"], place, monkeypatch, capfd)
    assert "set: its source has changed since" in error


def shard_flipped(place: Path) -> None:
    flip(place / "data" / "shards" / "part-00001.parquet", 100)


def rewrite(place: Path, users: list[list[small_dataset.Event]], items: int = ITEMS) -> None:
    """Another data set in ``data``, consistent in itself."""
    shutil.rmtree(place / "data")
    small_dataset.write(str(place / "data"), users, items, lanes=8, shards=[[5] * 8])


def item_outside(place: Path) -> None:
    """Hashes fit: only reading the values shows it."""
    users = small_dataset.sequences(20, ITEMS, longest=10)
    users[7][1] = (ITEMS + 1, 1.0, users[7][1][2])
    small_dataset.write_shard(str(place / "data" / "shards" / "part-00001.parquet"), users, [5] * 4, 20)
    seal(place / "data", "shards/part-00001.parquet")


def seal(folder: Path, path: str) -> None:
    """Enter a changed file into its manifest."""
    manifest = json.loads((folder / "manifest.json").read_text())
    files = [entry for entry in manifest["files"] if entry["path"] != path]
    manifest["files"] = [*files, artifact.file_entry(str(folder), path)]
    (folder / "manifest.json").write_text(json.dumps(manifest))


def negative(place: Path) -> None:
    users = small_dataset.sequences(40, ITEMS, longest=10)
    rewrite(place, [[(item, reward - 3, time) for item, reward, time in events] for events in users])


def escape(folder: Path, path: str) -> None:
    """A checkpoint's manifest, right in itself, that names a file outside its folder."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][0]["path"] = path
    manifest["manifest_sha256"] = artifact.fingerprint([manifest["step"], manifest["files"]])
    put(folder / "manifest.json", json.dumps(manifest))


def edit(place: Path, name: str, **values: Any) -> None:
    manifest = json.loads((place / name / "manifest.json").read_text())
    (place / name / "manifest.json").write_text(json.dumps({**manifest, **values}))


def another_run(place: Path) -> None:
    (place / "run").mkdir()
    (place / "run" / "run.json").write_text('{"identity": "0", "data": "0", "config": {}}')


def other_run_file(place: Path) -> None:
    (place / "run").mkdir()
    (place / "run" / "run.json").write_text("[]")


def files_in_the_run(place: Path) -> None:
    (place / "run").mkdir()
    (place / "run" / "thesis.tex").write_text("mine")


def file_for_a_run(place: Path) -> None:
    (place / "run").write_text("mine")


def begun(place: Path, *more: str) -> Path:
    """The only checkpoint of the first epoch of the run that the command continues."""
    argv = ["dataset=data", "output=run", *TRAIN, *more]
    ranks.single()
    loop.train(plan_run(parse(TrainConfig, argv, prog="", description="").config).task(), Silent())
    (newest,) = checkpoint.committed(str(place / "run"))
    return Path(newest)


def another_vocabulary(place: Path) -> None:
    newest = begun(place)
    state = json.loads((newest / "state.json").read_text())
    put(newest / "state.json", json.dumps({**state, "vocabulary_sha256": "1" * 64}))
    files = [path.name for path in newest.iterdir() if path.name != "manifest.json"]
    checkpoint.commit(str(newest), state["step"], [artifact.file_entry(str(newest), name) for name in files])


def another_configuration(place: Path) -> None:
    newest = begun(place, "learning_rate=0.01")
    (place / "run").rename(place / "other")
    shutil.rmtree(begun(place))
    shutil.copytree(place / "other" / "checkpoints" / newest.name, place / "run" / "checkpoints" / newest.name)


def outside_its_folder(place: Path) -> None:
    escape(begun(place), "../../run.json")


def of_the_future(place: Path) -> None:
    newest = begun(place)
    edit(newest.parent, newest.name, format=99)


def going_on(place: Path) -> None:
    (place / "run").mkdir()
    (place / "run" / "lease.json").write_bytes(lease.Lease(str(place / "run" / "lease.json")).data())


def configuration(text: str) -> Callable[[Path], None]:
    return lambda place: put(place / "bc.yaml", text)


def nothing(place: Path) -> None:
    """The case is in the keys alone."""


def a_log_there(place: Path) -> None:
    (place / "log").mkdir()
    put(place / "log" / "manifest.json", json.dumps({"kind": "event_log", "format": 1, "config": {}, "files": []}))


def something_else_there(place: Path) -> None:
    (place / "log").mkdir()
    put(place / "log" / "thesis.tex", "mine")


SIMULATE: dict[str, tuple[Callable[[Path], None], list[str], str]] = {
    "no such preset": (nothing, ["preset=book"], "must be 'ratings', 'books', 'watch_time' or 'theory'"),
    "no items": (nothing, ["items=1"], "items = 1: must be at least 2"),
    "too few events": (nothing, ["events=999"], "events = 999 for users = 50: each user has at least 20"),
    "too many events": (nothing, ["events=4000"], "give between 1,000 and 3,000 events"),
    "too few items": (nothing, ["items=20"], "with so few items that do not repeat, at most 12; give more items"),
    "a log of other settings": (a_log_there, [], "log: holds a log that was simulated with other settings"),
    "output of something else": (something_else_there, [], "log: the folder holds other files (thesis.tex)"),
    "output of a data set": (nothing, ["output=data"], "data/manifest.json: expected a event_log"),
    "output is a file": (lambda place: put(place / "log", "mine"), [], "log: output must be a folder, this is a file"),
    "output where nothing can be written": (nothing, ["output=/sys/log"], "/sys/log: cannot be written"),
    "unknown scheme": (nothing, ["output=nosuch://bucket/log"], "no file system for nosuch://"),
    "memory for several files": (
        nothing,
        ["output=memory://log", "events=2500000", "users=60000", "items=100000"],
        "output = memory://log: memory:// lives in one process",
    ),
    "unknown key": (nothing, ["item=100"], "unknown key 'item'; did you mean 'items'?"),
}


@pytest.mark.parametrize("case", SIMULATE)
def test_simulate(case: str, place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    make, keys, said = SIMULATE[case]
    make(place)
    argv = ["output=log", "users=50", "items=100", "events=1200", *keys]
    assert said in refused("simulate", argv, place, monkeypatch, capfd)


PRETRAIN: dict[str, tuple[Callable[[Path], None], list[str], str]] = {
    "no data set": (nothing, ["dataset=none"], "none: no dataset here (manifest.json is missing)"),
    "a data set of another scheme": (nothing, ["dataset=nosuch://b/x"], "nosuch://b/x"),
    "a policy for a data set": (nothing, ["dataset=policy"], "policy/manifest.json: expected a dataset, found 'check"),
    "manifest cut off": (
        lambda place: put(place / "data" / "manifest.json", '{"kind": "data'),
        [],
        "data/manifest.json: not valid JSON",
    ),
    "manifest of the future": (
        lambda place: edit(place, "data", format=99),
        [],
        "data/manifest.json: format 99 is not one that this version reads (1)",
    ),
    "manifest that leaves the folder": (
        lambda place: edit(place, "data", files=[{"path": "../x", "bytes": 1, "sha256": "0" * 64}]),
        [],
        "data/manifest.json: the path '../x' leaves the folder",
    ),
    "flipped byte in a shard": (shard_flipped, [], "shards/part-00001.parquet: sha256 differs"),
    "shard absent": (
        lambda place: (place / "data" / "shards" / "part-00001.parquet").unlink(),
        [],
        "shards/part-00001.parquet: listed in manifest.json but absent",
    ),
    "item outside the vocabulary": (
        item_outside,
        [],
        f"shards/part-00001.parquet, row group 1: item {ITEMS + 1} is outside the vocabulary (1 … {ITEMS})",
    ),
    "negative reward with rsft": (negative, ["algorithm=rsft"], "rsft cannot weight negative rewards (the smallest"),
    "temperature 0": (nothing, ["algorithm=exp_rsft", "algorithm.temperature=0"], "algorithm.temperature = 0: must be"),
    "temperature below 0": (nothing, ["algorithm=exp_rsft", "algorithm.temperature=-1"], "must be greater than 0"),
    "temperature that is none": (
        nothing,
        ["algorithm=exp_rsft", "algorithm.temperature=.nan"],
        "algorithm.temperature",
    ),
    "more threads than the cluster has": (nothing, ["threads=3"], "workers = 1 of 3 CPUs (threads) each"),
    "more workers than lanes": (nothing, ["workers=9"], "workers = 9, but the data set has 8 lanes"),
    "more workers than rows": (
        nothing,
        ["workers=5", "table=row_wise"],
        f"workers = 5, but a table of {ITEMS} items cannot be sharded over more than 4",
    ),
    "a plan that has no room": (nothing, ["memory_per_worker=0.1"], "but each of 1 has 0.10 GB; no number of workers"),
    "a checkpoint of another configuration": (another_configuration, ["epochs=2"], "of another configuration or data"),
    "a checkpoint of another vocabulary": (another_vocabulary, ["epochs=2"], "was trained with another vocabulary"),
    "a checkpoint that leaves its folder": (outside_its_folder, ["epochs=2"], "'../../run.json' leaves the folder"),
    "a checkpoint of the future": (of_the_future, ["epochs=2"], "format 99 is not one that this version reads"),
    "an output in which a run is going on": (going_on, [], f"run: another run (process {os.getpid()} on "),
    "no number of workers": (nothing, ["workers=[3,1]"], "workers: [3, 1]: a range is [fewest, most]"),
    "output of another run": (another_run, [], "run holds another run"),
    "output that another program keeps": (other_run_file, [], "run/run.json: does not describe a run"),
    "output of something else": (files_in_the_run, [], "run is not empty and holds no run"),
    "output is a file": (file_for_a_run, [], "run is a file, not a folder"),
    "output below a file": (file_for_a_run, ["output=run/inner"], "run is a file, not a folder"),
    "output where nothing can be written": (nothing, ["output=/sys/retilt"], "/sys/retilt: cannot be written"),
    "unknown key in a file": (configuration("epoch: 3\n"), ["--config", "bc.yaml"], "did you mean 'epochs'?"),
    "bad value in a file": (configuration("seed: many\n"), ["--config", "bc.yaml"], "seed = 'many'"),
    "a file that is no YAML": (
        configuration("epochs: [\n"),
        ["--config", "bc.yaml"],
        "bc.yaml, line 2: not valid YAML",
    ),
    "no such file": (nothing, ["--config", "none.yaml"], "none.yaml: no such file"),
    "a file of another scheme": (nothing, ["--config", "nosuch://b/x.yaml"], "nosuch://b/x.yaml: no file system"),
}


@pytest.mark.parametrize("case", PRETRAIN)
def test_pretrain(case: str, place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    make, keys, said = PRETRAIN[case]
    make(place)
    assert said in refused("pretrain", ["dataset=data", "output=run", *TRAIN, *keys], place, monkeypatch, capfd)


def policy_file(place: Path, start: str) -> Path:
    return next(path for path in sorted((place / "policy").iterdir()) if path.name.startswith(start))


def other_vocabulary(place: Path) -> None:
    edit(place, "data", vocabulary_sha256="1" * 64)


def escaping(place: Path) -> None:
    escape(place / "policy", "../../etc/passwd")


POLICY: dict[str, tuple[Callable[[Path], None], str]] = {
    "no policy": (lambda place: shutil.rmtree(place / "policy"), "policy: no policy here"),
    "a data set for a policy": (
        lambda place: put(place / "policy" / "manifest.json", (place / "data" / "manifest.json").read_text()),
        "policy/manifest.json: expected a checkpoint, found 'dataset'",
    ),
    "flipped byte in the state": (lambda place: flip(place / "policy" / "state.json", 5), "state.json: sha256 differs"),
    "table truncated": (
        lambda place: put(policy_file(place, "table-0"), "x"),
        ".safetensors: 1 bytes, but manifest.json says",
    ),
    "table absent": (lambda place: policy_file(place, "table-0").unlink(), "listed in manifest.json but absent"),
    "path outside the folder": (escaping, "policy/manifest.json: the path '../../etc/passwd' leaves the folder"),
    "another vocabulary": (other_vocabulary, f"was trained with another vocabulary ({ITEMS} items)"),
}


@pytest.mark.parametrize("case", POLICY)
def test_posttrain(case: str, place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    make, said = POLICY[case]
    make(place)
    assert said in refused("posttrain", POSTTRAIN, place, monkeypatch, capfd)


def test_a_flipped_byte_in_the_initial_policy_is_found_by_a_worker(
    place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    flip(policy_file(place, "dense.safe"), -1)
    error = refused("posttrain", POSTTRAIN, place, monkeypatch, capfd)
    assert "policy/dense.safetensors: sha256 differs from manifest.json" in error


def files_in_the_evaluation(place: Path) -> None:
    (place / "evaluation").mkdir()
    (place / "evaluation" / "thesis.tex").write_text("mine")


def file_for_an_evaluation(place: Path) -> None:
    (place / "evaluation").write_text("mine")


EVALUATE: dict[str, tuple[Callable[[Path], None], list[str], str]] = {
    **{case: (make, [], said) for case, (make, said) in POLICY.items()},
    "no data set": (nothing, ["dataset=none"], "none: no dataset here"),
    "shard absent": (
        lambda place: (place / "data" / "shards" / "part-00001.parquet").unlink(),
        [],
        "shards/part-00001.parquet: listed in manifest.json but absent",
    ),
    "item outside the vocabulary": (item_outside, [], f"row group 1: item {ITEMS + 1} is outside the vocabulary"),
    "more workers than the cluster has": (nothing, ["workers=8"], "but the cluster has 2 CPUs"),
    "more workers than lanes": (nothing, ["workers=9"], "workers = 9, but the data set has 8 lanes"),
    "a part that was trained on": (nothing, ["part=validation"], "trained on validation events"),
    "output of something else": (files_in_the_evaluation, [], "evaluation holds something else (thesis.tex)"),
    "output is a file": (file_for_an_evaluation, [], "evaluation is a file, not a folder"),
    "output below a file": (
        file_for_an_evaluation,
        ["output=evaluation/inner"],
        "evaluation is a file, not a folder",
    ),
}


@pytest.mark.parametrize("case", EVALUATE)
def test_evaluate(case: str, place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    make, keys, said = EVALUATE[case]
    make(place)
    argv = ["dataset=data", "policies=[policy]", "output=evaluation", "threads=1", *keys]
    assert said in refused("evaluate", argv, place, monkeypatch, capfd)


TUNE: dict[str, tuple[Callable[[Path], None], list[str], str]] = {
    "a policy that knows the validation events": (nothing, [], "trained on validation events of this data set"),
    "no policy": (nothing, ["initial=none"], "none"),
    "rewards of a data set that is damaged": (
        lambda place: (place / "data" / "shards" / "part-00001.parquet").unlink(),
        [],
        "shards/part-00001.parquet: listed in manifest.json but absent",
    ),
    "output of something else": (files_in_the_evaluation, [], "evaluation holds something else (thesis.tex)"),
    "output is a file": (file_for_an_evaluation, [], "evaluation"),
    "unknown key": (nothing, ["temperature=1"], "did you mean 'temperatures' or 'algorithm.temperature'"),
}


@pytest.mark.parametrize("case", TUNE)
def test_tune_lambda(
    case: str, place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    make, keys, said = TUNE[case]
    make(place)
    argv = ["dataset=data", "initial=policy", "output=evaluation", "epochs=1", *keys]
    assert said in refused("tune_lambda", argv, place, monkeypatch, capfd)


def test_more_workers_than_the_autoscaler_may_add(
    place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The cluster's autoscaler, as far as anyone can see: its configuration in Ray's store."""
    messages, names = cast(Any, autoscaler_pb2), cast(Any, ray._raylet)  # neither declares its attributes
    group = messages.NodeGroupConfig(resources={"CPU": 2}, min_count=0, max_count=3, name="workers")
    key = names.GCS_AUTOSCALER_CLUSTER_CONFIG_KEY.encode()
    namespace = names.GCS_AUTOSCALER_STATE_NAMESPACE.encode()
    config = messages.ClusterConfig(node_group_configs=[group]).SerializeToString()
    internal_kv._internal_kv_put(key, config, overwrite=True, namespace=namespace)
    try:
        argv = ["dataset=data", "output=run", *TRAIN, "workers=8"]
        error = refused("pretrain", argv, place, monkeypatch, capfd)
    finally:
        internal_kv._internal_kv_del(key, namespace=namespace)
    assert "workers = 8 of 1 CPU each, but the cluster has 2 CPUs on 1 node(s) and may grow to 6 CPUs" in error


def test_more_workers_than_this_machine_has_in_a_process_of_its_own(place: Path) -> None:
    """The script with nothing around it: a Ray of its own, one line on stderr, at once and not after a time-out."""
    before, started = contents(place), time.monotonic()
    argv = ["dataset=data", "output=run", *TRAIN, "workers=8", "threads=1000"]
    ended = subprocess.run(
        [sys.executable, str(ROOT / "jobs" / "pretrain.py"), *argv],
        env={name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
        cwd=place, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1), ended.stderr
    assert ended.stderr.startswith("error: workers = 8 of 1000 CPUs (threads) each, but the cluster has ")
    assert time.monotonic() - started < 60
    assert contents(place) == before


@pytest.mark.parametrize(
    ("job", "argv"),
    [
        ("prepare", ["source=s3://bucket/log.parquet", "dataset=set"]),
        ("pretrain", ["dataset=s3://bucket/data", "output=run"]),
        ("pretrain", ["dataset=data", "output=run", "--config", "s3://bucket/bc.yaml"]),
        ("evaluate", ["dataset=data", "policies=[s3://bucket/policy]", "output=evaluation"]),
    ],
)
def test_a_store_that_is_gone(
    job: str, argv: list[str], place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Exit code 3, because nothing is wrong with the input. It takes two minutes to say so."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{closed.getsockname()[1]}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "canary")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary")
    monkeypatch.setattr("retilt.storage.patience.PATIENCE", 2)
    before, started = contents(place), time.monotonic()
    capfd.readouterr()
    assert run(job, argv, monkeypatch) == 3
    error = capfd.readouterr().err
    assert error.startswith("error: s3://bucket/")
    assert error.count("\n") == 1
    assert "cannot be read" in error
    assert "canary" not in error
    assert contents(place) == before
    assert time.monotonic() - started < 30
