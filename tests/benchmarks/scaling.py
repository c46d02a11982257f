"""How the time of a step, memory and traffic grow with items, workers, width and positions; measured and by the model.

``python tests/benchmarks/scaling.py --output FOLDER`` measures a grid of sizes (gloo processes of one thread, HSTU,
row-wise table), works the same sizes out by the cost model of ``retilt.training.cost``, projects to sizes that this
machine does not have, draws ``scaling.png`` and prints tables and, as its last line, one JSON object, also in
``scaling.json``. Nothing else may use the loopback
meanwhile: its counters are the traffic.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    mpl.use("Agg")

import matplotlib.pyplot as plt
from tests.benchmarks import stepping
from tests.spawning import Ranks

from retilt.models.hstu import HSTU
from retilt.models.policy import Network
from retilt.training.cost import Machine, measured, step_seconds
from retilt.training.planning import Sizes

BASE = {"items": 100_000, "width": 64, "users": 32, "length": 50, "softmax": "sampled", "workers": 1}
GRID: dict[str, list[dict[str, Any]]] = {
    "items, sampled": [{"items": n, "workers": w} for w in (1, 2) for n in (10_000, 100_000, 1_000_000, 4_000_000)],
    "items, exact": [
        {"items": n, "softmax": "exact", "workers": w} for w in (1, 2) for n in (10_000, 100_000, 1_000_000)
    ],
    "width": [{"width": d, "softmax": s} for s in ("sampled", "exact") for d in (32, 64, 128)],
    "positions": [{"users": b, "softmax": s} for s in ("sampled", "exact") for b in (8, 32, 128)],
}
GPU = Machine(flops=40e12, memory=2.5e12, network=25e9)
"""Assumed for the projection: a GPU of 2023 with float32 products at 40 TFLOP/s, 2.5 TB/s, and 200 Gbit/s a GPU."""


def loopback() -> int:
    """Bytes sent over the loopback so far."""
    line = next(each for each in Path("/proc/net/dev").read_text().splitlines() if each.strip().startswith("lo:"))
    return int(line.split(":")[1].split()[8])


def sizes(point: dict[str, Any]) -> Sizes:
    """The same for the model of cost and memory."""
    width = point["width"]
    model = HSTU(max_length=point["length"], width=width, blocks=2, heads=2, head_width=width // 2)
    positions = float(point["users"] * point["length"])
    return Sizes(
        model=model,
        dense=sum(each.numel() for each in Network(model.build(0.0), None).parameters()),
        items=point["items"],
        placement="row_wise",
        optimizer="row_wise_adagrad",
        negatives=4096 if point["softmax"] == "sampled" else None,
        own_negatives=False,
        trained=positions,
        positions=positions,
        evaluated=positions,
        slices=32,
        lanes=64,
        workers=point["workers"],
    )


def measure(point: dict[str, Any], machine: Machine) -> dict[str, Any]:
    """One point of the grid, in processes of its own."""
    group = Ranks(point["workers"])
    group(stepping.prepare, {name: value for name, value in point.items() if name != "workers"}, timeout=600)
    group(stepping.take, 1, timeout=600)
    seconds, sent, steps = [], [], 2
    for _ in range(3):
        before = loopback()
        found = group(stepping.take, steps, timeout=600)
        sent.append((loopback() - before) / steps / point["workers"])
        seconds.append(statistics.median(part["seconds"] for part in found))
    held = max(part["held"] for part in group(stepping.held))
    group.stop()
    parts = step_seconds(sizes(point), machine)
    return {
        **point,
        "seconds": statistics.median(seconds),
        "low": min(seconds),
        "high": max(seconds),
        "modelled": sum(parts.values()),
        "sent_mb": statistics.median(sent) / 1e6 if point["workers"] > 1 else 0.0,
        "held_mib": held,
    }


def projected() -> list[dict[str, Any]]:
    """A hundred million items of width 128 on 64 GPUs, by the model alone."""
    found = []
    for softmax in ("exact", "sampled"):
        for items, workers in ((1_000_000, 8), (10_000_000, 8), (100_000_000, 64)):
            point = {"items": items, "width": 128, "users": 1024, "length": 200, "softmax": softmax, "workers": workers}
            each = sizes(point)
            shard = each.rows * each.row / 1e9
            found.append({**point, **step_seconds(each, GPU), "shard_gb": shard})
    return found


def draw(points: dict[str, list[dict[str, Any]]], place: Path) -> None:
    """Measured times as points, the model's as lines."""
    axes = {"items, sampled": "items", "items, exact": "items", "width": "width", "positions": "users"}
    figure, panels = plt.subplots(1, len(axes), figsize=(15, 3.6), constrained_layout=True)
    for panel, (title, key) in zip(panels, axes.items(), strict=True):
        kinds = sorted({(each["softmax"], each["workers"]) for each in points[title]})
        for place_, kind in enumerate(kinds):
            some = [each for each in points[title] if (each["softmax"], each["workers"]) == kind]
            x, colour = [each[key] for each in some], f"C{place_}"
            label = f"{kind[0]}, {kind[1]} worker(s)"
            panel.plot(x, [each["seconds"] for each in some], "o", color=colour, label=label)
            panel.plot(x, [each["modelled"] for each in some], "-", color=colour, alpha=0.5)
        panel.set(xscale="log", yscale="log", title=title, xlabel=key, ylabel="seconds a step")
        panel.grid(alpha=0.3)
        panel.legend(fontsize=7)
    figure.savefig(place, dpi=110)


def main() -> None:
    """Run, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    flags = parser.parse_args()
    torch.set_num_threads(1)
    machine = measured(torch.device("cpu"), 64, 1)
    points: dict[str, list[dict[str, Any]]] = {}
    for title, changes in GRID.items():
        points[title] = []
        for change in changes:
            points[title].append(measure({**BASE, **change}, machine))
            print(title, {name: round(v, 4) if isinstance(v, float) else v for name, v in points[title][-1].items()})
    errors = [each["modelled"] / each["seconds"] for some in points.values() for each in some]
    result: dict[str, Any] = {"machine": vars(machine), "points": points, "projected": projected()}
    result["modelled_over_measured"] = {"median": statistics.median(errors), "low": min(errors), "high": max(errors)}
    flags.output.mkdir(parents=True, exist_ok=True)
    draw(points, flags.output / "scaling.png")
    (flags.output / "scaling.json").write_text(json.dumps(result, indent=1) + "\n")
    for each in result["projected"]:
        print("projected", {name: round(v, 5) if isinstance(v, float) else v for name, v in each.items()})
    print(json.dumps(result))


if __name__ == "__main__":
    main()
