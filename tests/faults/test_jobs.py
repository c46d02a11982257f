"""jobs/pretrain.py as a user runs it, its processes killed by SIGKILL: the same bits as a run that nobody disturbs."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.data.small_dataset import MODEL
from tests.faults import killing
from tests.faults.processes import alive, tree, until
from tests.faults.test_kill import losses, require_equal
from tests.faults.test_ray import Node, environment

from retilt import lease, storage
from retilt.config import TrainConfig, build
from retilt.training.run import plan_run

ROOT = Path(__file__).resolve().parents[2]
EPOCHS = 12


class Job:
    """The script in a process of its own, on a Ray of its own."""

    def __init__(self, data: str, output: Path, log: Path, *more: str, variables: dict[str, str] | None = None) -> None:
        model = [f"model.{name}={value}" for name, value in MODEL.items()]
        keys = [
            f"dataset={data}", f"output={output}", "workers=2", "threads=1", "batch_users=3", f"epochs={EPOCHS}",
            "table=row_wise", "protocol=refit", "checkpoint.every_steps=5", "log_every=1", *model, *more,
        ]  # fmt: skip
        self.log = log
        with log.open("w") as out:
            self.process = subprocess.Popen(
                [sys.executable, str(ROOT / "jobs" / "pretrain.py"), *keys],
                env=variables or environment(), cwd=ROOT, stdout=out, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def steps(self) -> list[int]:
        return [int(step) for step in re.findall(r" step (\d+) ", self.log.read_text())]

    def reach(self, step: int, after: int = 0) -> None:
        """Wait until a line says that ``step`` was reached, not counting the first ``after`` lines."""

        def reached() -> bool:
            assert self.process.poll() is None, self.log.read_text()
            return any(each >= step for each in self.steps()[after:])

        until(reached, 120, f"step {step}")

    def workers(self) -> list[int]:
        found = []
        for pid in tree(self.process.pid):
            try:
                if b"RayTrainWorker" in Path(f"/proc/{pid}/cmdline").read_bytes() and alive(pid):
                    found.append(pid)
            except OSError:
                continue
        return found

    def end(self, seconds: float = 180) -> str:
        assert self.process.wait(timeout=seconds) == 0, self.log.read_text()
        return self.log.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("one_first", [False, pytest.param(True, marks=pytest.mark.soak)])
def test_one_worker_both_and_the_driver_killed(data: str, tmp_path: Path, one_first: bool) -> None:
    """Also: a second run on the output is refused meanwhile, and the killed driver's lease is taken over at once.

    The death of a single worker is what test_ray.py shows too.
    """
    output = tmp_path / "run"
    job = Job(data, output, tmp_path / "first")
    job.reach(15)
    second = subprocess.run(job.process.args, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert second.returncode == 2
    assert re.fullmatch(rf"error: {output}: another run \(process {job.process.pid} on .*\n", second.stderr)

    if one_first:
        before = len(job.steps())
        os.kill(job.workers()[0], signal.SIGKILL)
        killed = time.monotonic()
        until(lambda: len(job.steps()) > before + 20, 60, "the workers go on")
        print(f"a worker's death to the next step shown: {time.monotonic() - killed:.1f} s")
        job.reach(70)

    before = len(job.steps())
    for pid in job.workers():
        os.kill(pid, signal.SIGKILL)
    job.reach(120, after=before)

    workers = job.workers()
    job.process.kill()
    job.process.wait()
    gone = until(lambda: not any(map(alive, workers)), 30, "no worker of the lost driver is left")
    print(f"the driver's death to that of its workers: {gone:.1f} s")

    text = Job(data, output, tmp_path / "again").end()
    assert "continues at step " in text
    assert not storage.exists(str(output / lease.LEASE))
    values = {
        "dataset": data, "output": str(tmp_path / "whole"), "model": MODEL, "epochs": EPOCHS, "batch_users": 3,
        "table": "row_wise", "protocol": "refit",
    }  # fmt: skip
    killing.run(plan_run(build(TrainConfig, values)).task(), [2], tmp_path / "log", [])
    require_equal(output, tmp_path / "whole", "policy/last")


@pytest.mark.soak
def test_sigterm_and_the_same_command_again(data: str, tmp_path: Path) -> None:
    output = tmp_path / "run"
    job = Job(data, output, tmp_path / "first", "checkpoint.every_steps=null", "epochs=6")
    job.reach(33)
    job.process.send_signal(signal.SIGTERM)
    asked = time.monotonic()
    assert job.process.wait(timeout=60) == 75, job.log.read_text()
    print(f"SIGTERM to the end of the process: {time.monotonic() - asked:.1f} s")
    text = job.log.read_text()
    stopped = int(re.search(r"stopped at step (\d+), with a checkpoint", text)[1])  # type: ignore[index]
    again = Job(data, output, tmp_path / "again", "checkpoint.every_steps=null", "epochs=6").end()
    assert f"continues at step {stopped} (" in again
    values = {
        "dataset": data, "output": str(tmp_path / "whole"), "model": MODEL, "epochs": 6, "batch_users": 3,
        "table": "row_wise", "protocol": "refit",
    }  # fmt: skip
    killing.run(plan_run(build(TrainConfig, values)).task(), [2], tmp_path / "log", [])
    require_equal(output, tmp_path / "whole", "policy/last")


@pytest.mark.soak
def test_a_range_of_workers_trains_the_same_steps(data: str, tmp_path: Path) -> None:
    """A head and a node of one CPU each; the node is lost, another joins: the losses of one process, to 1e-5.

    Learning rates are tiny, so that rounding does not grow from step to step; each batch has a loss of its own.
    """
    variables = {**environment(), "RAY_health_check_period_ms": "1000", "RAY_health_check_failure_threshold": "3"}
    rates = {"learning_rate": 1e-6, "table_learning_rate": 1e-5, "dropout": 0.0}
    keys = [f"{name}={value}" for name, value in rates.items()]
    keys += ["workers=[1,3]", "storage.shared_filesystem=true", "epochs=10000", "protocol=refit"]
    nodes = [Node(tmp_path, variables, cpus=1)]
    try:
        nodes.append(Node(tmp_path, variables, cpus=1, head=nodes[0].address))
        address = {**nodes[0].environment, "RAY_ADDRESS": nodes[0].address}
        job = Job(data, tmp_path / "run", tmp_path / "out", *keys, variables=address)
        job.reach(30)
        nodes[1].kill()
        shrunk = until(lambda: "on 1 worker(s)" in job.log.read_text(), 180, "goes on with one worker")
        nodes.append(Node(tmp_path, variables, cpus=1, head=nodes[0].address))
        grown = until(lambda: "on 2 worker(s)" in job.log.read_text(), 240, "goes on with two workers")
        print(f"from the loss of a node to one worker {shrunk:.1f} s, from a new node to two {grown:.1f} s")
        job.reach(job.steps()[-1] + 30)
        job.process.send_signal(signal.SIGTERM)
        assert job.process.wait(timeout=60) == 75, job.log.read_text()
    finally:
        for node in reversed(nodes):
            node.kill()
    found = losses(tmp_path / "run")
    values = {
        "dataset": data, "output": str(tmp_path / "whole"), "model": MODEL, "epochs": len(found) // 20,
        "batch_users": 3, "table": "row_wise", "log_every": 1, "protocol": "refit", **rates,
    }  # fmt: skip
    killing.run(plan_run(build(TrainConfig, values)).task(), [1], tmp_path / "log", [])
    wanted = losses(tmp_path / "whole")
    assert len(wanted) > 100
    assert found[: len(wanted)] == pytest.approx(wanted, rel=1e-5)
