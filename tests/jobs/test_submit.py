"""``ray job submit`` on a real local cluster with token authentication, in an environment without the editable install.

The environment sees every package of this one through a .pth file, but not retilt: ``deploy/job-env.yaml`` must bring
it. A wheel installed there later stands for the cluster image.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import sysconfig
import time
import urllib.request
import venv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.data import small_dataset
from tests.data.small_dataset import MODEL
from tests.faults.processes import free_port, kill_tree
from tests.training.test_loop import Listener

from retilt import ranks
from retilt.config import TrainConfig, build
from retilt.training import loop
from retilt.training.run import plan_run

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Cluster:
    """A head node started from the command line, as a person would."""

    python: str
    environment: dict[str, str]
    url: str

    def submit(self, job: str, *arguments: str, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        command = [
            self.python,
            "-m",
            "ray.scripts.scripts",
            "job",
            "submit",
            "--address",
            self.url,
            "--submission-id",
            job,
        ]
        return subprocess.run(
            [*command, *options, "--", *arguments],
            env=self.environment, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip

    def cli(self, command: str, job: str) -> subprocess.CompletedProcess[str]:
        """``ray job COMMAND``."""
        return subprocess.run(
            [self.python, "-m", "ray.scripts.scripts", "job", command, "--address", self.url, job],
            env=self.environment, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

    def info(self, job: str) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {self.environment['RAY_AUTH_TOKEN']}"}
        request = urllib.request.Request(f"{self.url}/api/jobs/{job}", headers=headers)
        with urllib.request.urlopen(request, timeout=30) as answer:
            found: dict[str, Any] = json.load(answer)
        return found


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("cluster")
    venv.create(folder / "env", with_pip=False, symlinks=True)
    python = str(folder / "env" / "bin" / "python")
    site = next((folder / "env" / "lib").glob("python*/site-packages"))
    # The .pth files inside a folder that a .pth names are not read, so the editable install stays out.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    port, dashboard = free_port(), free_port()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PYTHONPATH"))}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    environment["PATH"] = f"{folder / 'env' / 'bin'}{os.pathsep}{environment['PATH']}"
    with (folder / "head.log").open("w") as log:
        head = subprocess.Popen(
            [python, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=2", f"--port={port}",
             "--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}",
             f"--dashboard-agent-listen-port={free_port()}",
             "--disable-usage-stats"],
            env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    found = Cluster(python, environment, f"http://127.0.0.1:{dashboard}")
    deadline = time.monotonic() + 90
    while not _answers(found):
        assert head.poll() is None, (folder / "head.log").read_text()
        assert time.monotonic() < deadline, (folder / "head.log").read_text()
        time.sleep(0.5)
    yield found
    kill_tree(head)


def _answers(cluster: Cluster) -> bool:
    headers = {"Authorization": f"Bearer {cluster.environment['RAY_AUTH_TOKEN']}"}
    try:
        with urllib.request.urlopen(urllib.request.Request(f"{cluster.url}/api/jobs/", headers=headers), timeout=5):
            return True
    except OSError:
        return False


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    users = small_dataset.sequences(40, 50, longest=30)
    return small_dataset.write(str(tmp_path_factory.mktemp("data")), users, 50, lanes=2, shards=[[20, 20]])


def install_wheel(cluster: Cluster, folder: Path) -> None:
    """Build the wheel from a copy (setuptools leaves a build folder beside its sources) and install it."""
    shutil.copytree(
        ROOT / "platform", folder / "source" / "platform", ignore=shutil.ignore_patterns("*.egg-info", "__pycache__")
    )
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, folder / "source")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(folder), str(folder / "source")]
    made = subprocess.run(build, capture_output=True, text=True, timeout=200, check=False)
    assert made.returncode == 0, made.stderr
    (wheel,) = folder.glob("retilt-*.whl")
    install = [*pip, "--python", cluster.python, "install", "--no-deps", str(wheel)]
    installed = subprocess.run(install, capture_output=True, text=True, timeout=200, check=False)
    assert installed.returncode == 0, installed.stderr


FROM_CHECKOUT = ("--working-dir", ".", "--runtime-env", "deploy/job-env.yaml")


def test_the_environment_has_no_retilt_of_its_own(cluster: Cluster) -> None:
    found = subprocess.run(
        [cluster.python, "-c", "import torchrec, ray; import retilt"], env=cluster.environment, cwd="/",
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert "ModuleNotFoundError: No module named 'retilt'" in found.stderr


def test_submitted_from_a_checkout_and_from_a_wheel(cluster: Cluster, data: str, tmp_path: Path) -> None:
    common = [f"dataset={data}", "protocol=refit", "batch_users=8", "epochs=1", "workers=2"]
    bc, exp = f"{tmp_path}/bc", f"{tmp_path}/exp"
    model = ["model.width=10", "model.blocks=1", "model.head_width=4", "model.max_length=20", "table=row_wise"]
    done = cluster.submit(
        "pretrain", "python", "jobs/pretrain.py", *common, *model, f"output={bc}", options=FROM_CHECKOUT
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "epoch 1/1 done" in done.stdout
    assert f"policy: {bc}/policy/last" in done.stdout
    assert cluster.info("pretrain")["driver_exit_code"] == 0

    refused = cluster.submit(
        "refused", "python", "jobs/posttrain.py", *common, f"initial={bc}", f"output={exp}", "algorithm=exp_rsft",
        "algorithm.temperature=0", options=FROM_CHECKOUT,
    )  # fmt: skip
    assert refused.returncode == 1
    assert cluster.info("refused")["driver_exit_code"] == 2
    assert "algorithm.temperature" in refused.stdout
    assert not Path(exp).exists()

    install_wheel(cluster, tmp_path)
    done = cluster.submit(
        "posttrain", "python", str(ROOT / "jobs" / "posttrain.py"), *common, f"initial={bc}", f"output={exp}",
        "algorithm=exp_rsft", "algorithm.temperature=0.5", "table=row_wise",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"policy: {exp}/policy/last" in done.stdout


def test_a_search_is_submitted_as_a_run_is(cluster: Cluster, data: str, tmp_path: Path) -> None:
    """Its trials' actors and their workers, processes of other jobs' shape, find the code that the job brought."""
    values = {"dataset": data, "output": str(tmp_path / "bc"), "epochs": 1, "batch_users": 8, "model": MODEL}
    ranks.single()
    loop.train(plan_run(build(TrainConfig, values)).task(), Listener())
    common = [f"dataset={data}", f"initial={tmp_path}/bc", "temperatures=[0.5]", "epochs=1", "batch_users=8"]
    output, options = tmp_path / "search", ["min_reward=3", "replicates=200", "threads=1"]
    done = cluster.submit(
        "search", "python", "jobs/tune_lambda.py", *common, *options, f"output={output}", options=FROM_CHECKOUT
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Chosen: λ = 0.5" in done.stdout
    assert cluster.info("search")["driver_exit_code"] == 0
    assert (output / "report.html").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (FROM_CHECKOUT, "SIGTERM: writing a last checkpoint (up to 55 s)"),
        pytest.param(
            ("--working-dir", "platform"),
            "SIGTERM: Ray gives this job only 3 s, too short for a checkpoint",
            marks=pytest.mark.soak,
        ),
    ],
)
def test_a_stopped_job_gets_the_time_that_its_environment_says(
    cluster: Cluster, tmp_path: Path, options: tuple[str, ...], says: str
) -> None:
    """deploy/job-env.yaml asks Ray for it."""
    job = f"stopped-{len(options)}"
    given = {"folder": str(tmp_path), "steps": 10_000, "on_workers": {"stop_seconds": 60}}
    script = str(ROOT / "tests" / "faults" / "driver.py")
    submitted = cluster.submit(job, "python", script, json.dumps(given), options=("--no-wait", *options))
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    deadline = time.monotonic() + 120
    while not (tmp_path / "rank-0").exists():
        assert time.monotonic() < deadline
        assert cluster.info(job)["status"] in ("PENDING", "RUNNING"), cluster.cli("logs", job).stdout
        time.sleep(0.2)
    stop = cluster.cli("stop", job)
    assert stop.returncode == 0, stop.stdout + stop.stderr
    assert cluster.info(job)["status"] == "STOPPED"
    log = cluster.cli("logs", job).stdout
    assert says in log
    assert ("stopped at step" in log) == ("55 s" in says)
