"""The picture of the experiment on section 4: bounds, gains over λ, fresh noise, and the map of who wins."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from retilt.evaluation.plot import INK, PALE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

WINNERS = {"exp_rsft": "#0b7a5c", "rlhf": "#c2410c", "no difference": "#e4e7eb"}
LINES = ("#0b7a5c", "#2563eb", "#7c3aed", "#c2410c")
SHOWN = 1.0
"""σ of the panel of bounds, or the nearest to it."""


def png(results: Mapping[str, Any]) -> bytes:
    """The picture as PNG."""
    # Imported here, as in ``plot``: it takes half a second.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 9), layout="constrained")
    FigureCanvasAgg(figure)
    top, bottom = figure.subfigures(2, 1, squeeze=False)[:, 0]
    for draw, axes in zip((_bounds, _gains, _fresh), top.subplots(1, 3).flat, strict=True):
        draw(axes, results)
        _tidy(axes)
    _map(bottom, results["winners"])
    written = io.BytesIO()
    figure.savefig(written, format="png", dpi=130, metadata={"Software": None})
    return written.getvalue()


def _tidy(axes: Axes) -> None:
    axes.tick_params(labelsize=9, colors=INK)
    axes.legend(fontsize=8.5, framealpha=0.9, edgecolor="none", labelcolor=INK)
    axes.grid(color="#eef0f2", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _title(axes: Axes, text: str) -> None:
    axes.set_title(text, fontsize=11, color=INK, loc="left")


def _bounds(axes: Axes, results: Mapping[str, Any]) -> None:
    found = min(results["bounds"], key=lambda each: abs(each["noise"] - SHOWN))
    at = results["temperatures"]
    for name, label, colour, style in (
        ("exponential", "eq. 13", LINES[3], "-"),
        ("linear", "eq. 14", LINES[3], ":"),
        ("tanh", "tanh bound", LINES[1], "-"),
        ("two_items", "worst two items", LINES[2], "--"),
        ("largest_loss", "simulated: worst state", INK, "-"),
        ("mean_loss", "simulated: mean", PALE, "-"),
    ):
        loss = [float("nan") if each is None else each for each in found[name]]
        axes.plot(at, loss, label=label, color=colour, linestyle=style)
    axes.axhline(found["any_temperature"], color=LINES[0], linewidth=1, label="2 ε (eq. 12)")
    axes.set_xscale("log")
    axes.set_ylim(min(found["mean_loss"]) - 0.3, 1.2 * found["any_temperature"])
    axes.set_xlabel("λ")
    axes.set_ylabel("loss of true value")
    _title(axes, f"Frozen noise, σ = {found['noise']:g}, ε = {found['radius']:.2f}")


def _gains(axes: Axes, results: Mapping[str, Any]) -> None:
    at = results["temperatures"]
    clean = [-each for each in results["bounds"][0]["mean_loss_without_noise"]]
    axes.plot(at, clean, color=PALE, linestyle="--", label="no noise")
    for colour, found in zip(LINES, results["bounds"], strict=False):
        axes.plot(at, [-each for each in found["mean_loss"]], color=colour, label=f"σ = {found['noise']:g}")
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xlabel("λ")
    axes.set_ylabel("mean gain of true value over π_β")
    _title(axes, "Noise moves the best λ")


def _fresh(axes: Axes, results: Mapping[str, Any]) -> None:
    equal, unequal = results["fresh_noise"]
    for found, name, label, colour in (
        (equal, "true_tilt", "equal noise, from the tilt of r*", LINES[0]),
        (unequal, "true_tilt", "unequal noise, from the tilt of r*", LINES[3]),
        (unequal, "limit", "unequal noise, from π_β E exp(r̂/λ)/Z", LINES[1]),
    ):
        at, distance = zip(*((each["events"], each[name]) for each in found["logs"]), strict=True)
        axes.plot(at, distance, marker="o", markersize=4, label=label, color=colour)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("events")
    axes.set_ylabel("total variation of the optimum of eq. 11")
    _title(axes, "Fresh noise")


def _map(figure: SubFigure, winners: Mapping[str, Any]) -> None:
    from matplotlib.patches import Patch

    coverages = list(dict.fromkeys(log["coverage"] for log in winners["logs"]))
    panels = figure.subplots(1, len(coverages), sharey=True, squeeze=False)[0]
    for axes, coverage in zip(panels, coverages, strict=True):
        _cells(axes, [log for log in winners["logs"] if log["coverage"] == coverage])
        _title(axes, f"{coverage:g} events an item")
    panels[0].set_ylabel("noise σ of a logged reward", fontsize=9.5)
    names = {"exp_rsft": "Exp-RSFT is worth more", "rlhf": "RLHF is worth more", "no difference": "no difference shown"}
    marks = [Patch(color=WINNERS[key], label=name) for key, name in names.items()]
    figure.legend(handles=marks, loc="outside lower center", ncols=3, frameon=False, fontsize=10, labelcolor=INK)
    title = f"Who wins: true value of Exp-RSFT − RLHF; no reward model at all has RMSE {winners['reward_sd']:.2f}"
    figure.suptitle(title, x=0.008, ha="left", fontsize=12, color=INK)


def _cells(axes: Axes, logs: Sequence[Mapping[str, Any]]) -> None:
    """One coverage: the noise upwards, the reward model's error to the right."""
    from matplotlib.patches import Rectangle

    for y, log in enumerate(logs):
        for x, cell in enumerate(log["cells"]):
            axes.add_patch(Rectangle((x - 0.48, y - 0.46), 0.96, 0.92, color=WINNERS[cell["winner"]], linewidth=0))
            ink = INK if cell["winner"] == "no difference" else "white"
            difference = f"{cell['difference']['value']:+.2f}"
            axes.text(x, y, difference, ha="center", va="center", fontsize=9.5, color=ink)
    cells = logs[0]["cells"]
    axes.set_xticks(range(len(cells)), [f"{cell['error']:g}\n({cell['rmse']:.2f})" for cell in cells])
    axes.set_yticks(range(len(logs)), [f"{log['noise']:g}" for log in logs])
    axes.set_xlim(-0.5, len(cells) - 0.5)
    axes.set_ylim(-0.5, len(logs) - 0.5)
    axes.tick_params(length=0, labelsize=9, colors=INK)
    axes.set_xlabel("reward model's error τ (its RMSE)", fontsize=9.5)
    for spine in axes.spines.values():
        spine.set_visible(False)
