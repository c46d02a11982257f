"""Seconds of one HSTU training epoch on ml-100k: ours against RecTools 0.19, with the same sizes, loss and events.

    python tests/benchmarks/against_rectools.py [--env FOLDER] [--dataset URI] [--pairs 5] [--threads 2]

Each side is a process of its own, warmed up and then told by turns to train one epoch; the other waits meanwhile.
RecTools lives in its own virtual environment, which is made on the first run (TORCH_INDEX= is passed to pip there).
Both train on the events before each user's test event (split ``last``, protocol ``refit``), the 201 most recent ones,
with exact softmax, Adam and dropout .2; only the epoch's training is timed. The last line is one JSON object.

Only a machine with ``--threads`` idle cores gives a number worth quoting: OpenMP's threads spin at every barrier, so on
oversubscribed cores the side with more and smaller operations (ours) loses most; ``load_before`` says how it was.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
SIZES = {"max_length": 200, "width": 50, "blocks": 2, "heads": 1, "dropout": 0.2, "batch_users": 128}
SETTINGS = {**SIZES, "learning_rate": 1e-3, "temperature": 0.05}


def environment(folder: Path) -> Path:
    """The Python of RecTools' environment; made in ``folder`` if it is not there."""
    python = folder / "bin" / "python"
    if not python.exists() or subprocess.run([python, "-c", "import rectools"], check=False).returncode:
        print(f"installing RecTools 0.19 into {folder}", flush=True)
        venv.create(folder, with_pip=True)
        index = ["--extra-index-url", os.environ["TORCH_INDEX"]] if os.environ.get("TORCH_INDEX") else []
        wanted = ["rectools[torch]==0.19.*", "torch==2.13.*"]
        subprocess.run([python, "-m", "pip", "install", "--quiet", *index, *wanted], check=True)
    return python


def prepared(folder: Path) -> str:
    """ml-100k as a data set with the split ``last``, written to ``folder``."""
    job = [sys.executable, str(REPOSITORY / "jobs" / "prepare.py")]
    subprocess.run([*job, "source=ml-100k", f"dataset={folder}", "split=last"], check=True, stdout=sys.stderr)
    return str(folder)


class Side:
    """A process that answers each line of input with one JSON object."""

    def __init__(self, python: str | Path, script: str, settings: dict[str, Any]) -> None:
        self.script = script
        child_environment = {**os.environ, "OMP_NUM_THREADS": str(settings["threads"])}
        self.process = subprocess.Popen(
            [python, str(HERE / script), json.dumps(settings)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=child_environment,
        )  # fmt: skip

    def ask(self, line: str) -> dict[str, Any]:
        """Send a line and wait for the answer, skipping what the libraries print."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        for answer in self.process.stdout:
            if answer.startswith("{"):
                return dict(json.loads(answer))
        raise SystemExit(f"{self.script} ended with exit code {self.process.wait()}; its error is above")

    def close(self) -> None:
        """End the process and wait for it."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=60)


def measure(ours: Side, rectools: Side, pairs: int) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """One unmeasured epoch each, then ``pairs`` of epochs; which side begins alternates."""
    warm = ours.ask("epoch"), rectools.ask("epoch")
    if warm[0]["positions"] != warm[1]["positions"]:
        raise SystemExit(f"not the same data: {warm[0]['positions']:,} and {warm[1]['positions']:,} positions")
    found = []
    for pair in range(pairs):
        if pair % 2:
            theirs, mine = rectools.ask("epoch"), ours.ask("epoch")
        else:
            mine, theirs = ours.ask("epoch"), rectools.ask("epoch")
        found.append((mine, theirs))
        ratio = theirs["seconds"] / mine["seconds"]
        print(f"{pair + 1:>4} {mine['seconds']:>9.2f} {theirs['seconds']:>11.2f} {ratio:>7.2f}", flush=True)
    return found


def summary(pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> dict[str, Any]:
    """Medians and extremes over the pairs; ``cpu_ratio`` compares processor time, spinning included."""
    ratios = [theirs["seconds"] / mine["seconds"] for mine, theirs in pairs]
    return {
        "benchmark": "against_rectools",
        "ratio": statistics.median(ratios),
        "ratio_low": min(ratios),
        "ratio_high": max(ratios),
        "cpu_ratio": statistics.median(theirs["cpu_seconds"] / mine["cpu_seconds"] for mine, theirs in pairs),
        "seconds": statistics.median(mine["seconds"] for mine, _ in pairs),
        "rectools_seconds": statistics.median(theirs["seconds"] for _, theirs in pairs),
        "pairs": len(pairs),
        "positions": pairs[0][0]["positions"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="One HSTU epoch on ml-100k: ours against RecTools 0.19.")
    cache = Path.home() / ".cache" / "retilt" / "rectools-0.19"
    parser.add_argument("--env", type=Path, default=cache, help="virtual environment that holds RecTools, or will")
    parser.add_argument("--dataset", help="prepared ml-100k with split=last; by default it is prepared for this run")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    python = environment(options.env)
    with tempfile.TemporaryDirectory() as folder:
        dataset = options.dataset or prepared(Path(folder) / "dataset")
        settings = {**SETTINGS, "threads": options.threads, "dataset": dataset, "events": f"{folder}/events.npz"}
        ours = Side(sys.executable, "retilt_side.py", settings)
        ours.ask("events")
        rectools = Side(python, "rectools_side.py", settings)
        load = os.getloadavg()[0]
        print(f"seconds of one epoch, {options.threads} threads; load average {load:.1f} before the first")
        print(f"{'pair':>4} {'ours':>9} {'RecTools':>11} {'ratio':>7}")
        result = {**summary(measure(ours, rectools, options.pairs)), "load_before": load}
        ours.close()
        rectools.close()
    print(f"{'mid':>4} {result['seconds']:>9.2f} {result['rectools_seconds']:>11.2f} {result['ratio']:>7.2f}")
    print(f"ratio {result['ratio_low']:.2f} to {result['ratio_high']:.2f}, of processor time {result['cpu_ratio']:.2f}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
