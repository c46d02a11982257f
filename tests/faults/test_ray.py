"""Workers and drivers of Ray Train, killed, stopped and hung, by real signals; what they run is driver.py."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.faults.processes import alive, command, free_port, kill_tree, tree, until

ROOT = Path(__file__).resolve().parents[2]
RAY = [sys.executable, "-m", "ray.scripts.scripts"]


class Node:
    """A node of a cluster of its own, started from the command line; killed with all that it started."""

    def __init__(self, folder: Path, environment: dict[str, str], cpus: int, head: str | None = None) -> None:
        self.environment = environment
        port = free_port()
        self.address = head or f"127.0.0.1:{port}"
        place = [f"--address={head}"] if head else ["--head", f"--port={port}", "--include-dashboard=false"]
        with (folder / f"node-{port}.log").open("w") as log:
            self.process = subprocess.Popen(
                [*RAY, "start", *place, "--block", f"--num-cpus={cpus}", "--disable-usage-stats",
                 f"--dashboard-agent-listen-port={free_port()}"],
                env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        self.log = folder / f"node-{port}.log"
        until(lambda: "Ray runtime started" in self.log.read_text(), 90, "a node starts")

    def kill(self) -> None:
        kill_tree(self.process)


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return {**kept, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    node = Node(tmp_path_factory.mktemp("cluster"), environment(), cpus=2)
    yield node
    node.kill()


class Job:
    """The driver's process and what its ranks wrote."""

    def __init__(self, folder: Path, node: Node | None, arguments: dict[str, Any], **on_workers: Any) -> None:
        self.folder = folder
        place = {"RAY_ADDRESS": node.address} if node else {}
        given = {"folder": str(folder), "steps": 10_000, **arguments, "on_workers": on_workers}
        self.output = folder / "output"
        with self.output.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(ROOT / "tests" / "faults" / "driver.py"), json.dumps(given)],
                env={**(node.environment if node else environment()), **place},
                stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def steps(self, rank: int = 0) -> list[list[str]]:
        log = self.folder / f"rank-{rank}"
        lines = log.read_text().splitlines() if log.exists() else []
        return [line.split() for line in lines if len(line.split()) == 4]

    def reach(self, step: int, world: int | None = None, seconds: float = 90) -> float:
        """Wait for a step (of ``world`` ranks) of the newest process of rank 0."""

        def reached() -> bool:
            assert self.process.poll() is None, self.output.read_text()
            last = (self.steps() or [["0", "0"]])[-1]
            return int(last[0]) >= step and world in (None, int(last[1]))

        return until(reached, seconds, f"step {step} of {world} workers")

    def pid(self, rank: int) -> int:
        return int(self.steps(rank)[-1][2])

    def pids(self) -> set[int]:
        return {int(step[2]) for log in self.folder.glob("rank-*") for step in self.steps(int(log.name[5:]))}

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self, seconds: float = 90) -> tuple[int, str]:
        """Exit code and output; no worker may be left."""
        code = self.process.wait(timeout=seconds)
        until(lambda: not any(map(alive, self.pids())), 10, "no worker is left")
        return code, self.output.read_text()

    def saved(self) -> int:
        return int((self.folder / "saved").read_text())


def test_a_killed_worker_costs_the_steps_since_the_last_checkpoint(cluster: Node, tmp_path: Path) -> None:
    job = Job(tmp_path, cluster, {"steps": 60}, stop_seconds=60)
    job.reach(25)
    killed = job.pid(1)
    os.kill(killed, signal.SIGKILL)
    started = time.monotonic()
    code, output = job.end()
    assert code == 0, output
    assert "worker 1 ended (killed by a signal, or crashed); all workers start again from the last checkpoint" in output
    assert 'done {"steps": 60, "world": 2}' in output
    steps = [int(step[0]) for step in job.steps()]
    again = steps.index(max(steps[: steps.index(60)], key=lambda step: steps.count(step) > 1))
    assert steps.count(60) == 1
    assert set(steps) == set(range(1, 61))
    assert steps[again] % 10 == 1, "goes on after the last checkpoint"
    assert time.monotonic() - started < 60


def test_sigterm_writes_a_checkpoint_and_exits_with_75(cluster: Node, tmp_path: Path) -> None:
    job = Job(tmp_path, cluster, {"every": 1_000_000}, stop_seconds=60)
    job.reach(5)
    job.send(signal.SIGTERM)
    code, output = job.end(30)
    assert code == 75, output
    assert "SIGTERM: writing a last checkpoint (up to 55 s)" in output
    assert "stopped at step" in output
    assert job.saved() == int(job.steps()[-1][0])


@pytest.mark.soak
def test_a_second_sigterm_exits_at_once(cluster: Node, tmp_path: Path) -> None:
    job = Job(tmp_path, cluster, {"deaf": True}, stop_seconds=60)
    job.reach(5)
    job.send(signal.SIGTERM)
    until(lambda: "SIGTERM: writing" in job.output.read_text(), 10, "the first is heard")
    job.send(signal.SIGTERM)
    code, output = job.end(5)
    assert code == 75, output
    assert "error" not in output


@pytest.mark.soak
def test_workers_that_do_not_stop_are_released_within_the_grace_period(cluster: Node, tmp_path: Path) -> None:
    job = Job(tmp_path, cluster, {"deaf": True}, stop_seconds=12)
    job.reach(5)
    job.send(signal.SIGTERM)
    code, output = job.end(12)
    assert code == 75, output
    assert "SIGTERM: no checkpoint within 7 s; workers released" in output


@pytest.mark.soak
@pytest.mark.parametrize("seconds", [None, 3])
def test_without_time_or_anything_to_write_sigterm_ends_at_once(
    cluster: Node, tmp_path: Path, seconds: int | None
) -> None:
    job = Job(tmp_path, cluster, {"deaf": True}, stop_seconds=seconds)
    job.reach(5)
    job.send(signal.SIGTERM)
    code, output = job.end(15)
    assert code == 75, output
    assert "SIGTERM: " in output


@pytest.mark.soak
def test_a_killed_controller_costs_the_steps_since_the_last_checkpoint(tmp_path: Path) -> None:
    job = Job(tmp_path, None, {"steps": 60}, stop_seconds=60)
    job.reach(25)
    (controller,) = [pid for pid in tree(job.process.pid) if "TrainController" in command(pid)]
    os.kill(controller, signal.SIGKILL)
    code, output = job.end()
    assert code == 0, output
    assert "Ray Train's controller ended (killed by a signal, or crashed); all workers start again" in output


@pytest.mark.soak
def test_a_worker_that_ends_again_and_again_without_progress_ends_the_run(cluster: Node, tmp_path: Path) -> None:
    job = Job(tmp_path, cluster, {"every": 1_000_000, "crash": 3}, stop_seconds=60)
    code, output = job.end(240)
    assert code == 4, output
    assert "error: worker 1 ended (crashed at step 3); 3 restarts brought no new checkpoint" in output


@pytest.mark.soak
def test_a_hung_worker_is_found_killed_and_replaced(cluster: Node, tmp_path: Path) -> None:
    job = Job(tmp_path, cluster, {"steps": 100}, stop_seconds=60, hang_seconds=8)
    job.reach(25)
    hung = job.pid(1)
    os.kill(hung, signal.SIGSTOP)
    until(lambda: "worker 1 ended (it did not answer" in job.output.read_text(), 8 + 5, "found")
    until(lambda: not alive(hung), 15, "killed although it is stopped")
    code, output = job.end()
    assert code == 0, output


@pytest.mark.soak
@pytest.mark.parametrize("local", [False, True])
def test_a_lost_driver_leaves_no_worker_behind(cluster: Node, tmp_path: Path, local: bool) -> None:
    """Not even one that is stopped; a cluster that was there before stays."""
    job = Job(tmp_path, None if local else cluster, {}, stop_seconds=60)
    job.reach(5)
    os.kill(job.pid(1), signal.SIGSTOP)
    time.sleep(1)
    job.send(signal.SIGKILL)
    assert job.process.wait(timeout=10) == -signal.SIGKILL
    assert until(lambda: not any(map(alive, job.pids())), 20, "no worker is left") < 20
    subprocess.run([*RAY, "status", f"--address={cluster.address}"], env=cluster.environment, check=True, timeout=60)


@pytest.mark.soak
def test_a_range_of_workers_follows_the_cluster(tmp_path: Path) -> None:
    """A head and a node of one CPU each: 2 workers; the node is killed: 1; another joins: 2 again."""
    variables = {**environment(), "RAY_health_check_period_ms": "1000", "RAY_health_check_failure_threshold": "3"}
    nodes = [Node(tmp_path, variables, cpus=1)]
    try:
        nodes.append(Node(tmp_path, variables, cpus=1, head=nodes[0].address))
        job = Job(tmp_path, nodes[0], {}, workers=[1, 3], resize_seconds=10, stop_seconds=60)
        job.reach(15, world=2)
        nodes[1].kill()
        print(f"1 worker after {job.reach(15, world=1, seconds=120):.1f} s")
        nodes.append(Node(tmp_path, variables, cpus=1, head=nodes[0].address))
        print(f"2 workers after {job.reach(15, world=2, seconds=120):.1f} s")
        job.send(signal.SIGTERM)
        code, output = job.end()
        assert code == 75, output
    finally:
        for node in reversed(nodes):
            node.kill()
