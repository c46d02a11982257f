"""The report's picture: every metric of every policy with its interval, one row of panels for each group of targets."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from retilt.evaluation.metrics import TITLES
from retilt.evaluation.statistics import verdict
from retilt.evaluation.wording import describe, groups

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

INK, PALE = "#1f2933", "#9aa5b1"
COLOURS = {"first": INK, "better": "#0b7a5c", "worse": "#c2410c", "no difference": "#7b8794", "too few users": PALE}


def png(report: Mapping[str, Any]) -> bytes:
    """The picture as PNG: dots with 95% intervals, coloured by the paired comparison with the first policy."""
    # Imported here: it takes half a second, which training and validation need not pay.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = [group for group in groups(report) if next(iter(report["policies"].values()))[group]["n"]]
    rows = max(1, len(shown))
    figure = Figure(figsize=(13, 0.8 + rows * (0.8 + 0.36 * len(report["policies"]))), layout="constrained")
    FigureCanvasAgg(figure)
    for part, group in zip(figure.subfigures(rows, 1, squeeze=False)[:, 0], shown, strict=False):
        _row(part, report, group)
    _legend(figure, report)
    written = io.BytesIO()
    figure.savefig(written, format="png", dpi=150, metadata={"Software": None})
    return written.getvalue()


def _row(figure: SubFigure, report: Mapping[str, Any], group: str) -> None:
    panels = figure.subplots(1, len(TITLES), sharey=True)
    for axes, (metric, title) in zip(panels, TITLES.items(), strict=True):
        _panel(axes, report, group, metric)
        axes.set_title(title, fontsize=10, color=INK)
    n = next(iter(report["policies"].values()))[group]["n"]
    title = describe(group, report["min_reward"])
    title = f"{title[0].upper()}{title[1:]}   (n = {n:,})"
    figure.suptitle(title, x=0.008, ha="left", fontsize=11, color=INK, fontweight="bold")


def _panel(axes: Axes, report: Mapping[str, Any], group: str, metric: str) -> None:
    from matplotlib.patheffects import withStroke

    policies = report["policies"]
    first = next(iter(policies.values()))[group][metric]["value"]
    if first is not None:
        axes.axvline(first, color=PALE, linewidth=1, linestyle=(0, (3, 3)), zorder=1)
    for y, policy in enumerate(policies.values()):
        found, colour = policy[group][metric], COLOURS[_standing(policy, group, metric)]
        if found["value"] is None:
            continue
        if found["low"] is not None:
            ends = [found["low"], found["high"]]
            axes.plot(ends, [y, y], color=colour, linewidth=3, solid_capstyle="round", alpha=0.45)
        axes.plot(found["value"], y, "o", color=colour, markersize=7, markeredgecolor="white", zorder=3)
        halo = [withStroke(linewidth=3, foreground="white")]
        label: dict[str, Any] = {"ha": "center", "fontsize": 9, "color": colour, "path_effects": halo}
        at = (found["value"], y)
        axes.annotate(f"{found['value']:.4f}", at, xytext=(0, 7), textcoords="offset points", **label)
    axes.set_yticks(range(len(policies)), [_short(name) for name in policies], fontsize=11, color=INK)
    axes.set_ylim(len(policies) - 0.5, -0.75)
    axes.margins(x=0.18)
    axes.locator_params(axis="x", nbins=4)
    axes.tick_params(axis="x", labelsize=9, colors=PALE, length=0)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#e4e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color("#cbd2d9")


def _short(name: str, most: int = 28) -> str:
    """A name that fits beside the panels, its end kept; a dollar sign would start a formula."""
    return (name if len(name) <= most else f"…{name[1 - most :]}").replace("$", r"\$")


def _standing(policy: Mapping[str, Any], group: str, metric: str) -> str:
    return verdict(policy["versus_first"][group][metric]) if "versus_first" in policy else "first"


def _legend(figure: Figure, report: Mapping[str, Any]) -> None:
    from matplotlib.lines import Line2D

    first = _short(next(iter(report["policies"])))
    names = {"first": first}
    if len(report["policies"]) > 1:
        names |= {"better": f"better than {first}", "worse": f"worse than {first}"}
        names["no difference"] = "no difference shown"
    style: dict[str, Any] = {"marker": "o", "markersize": 7, "linewidth": 3}
    marks = [Line2D([], [], color=COLOURS[key], label=name, **style) for key, name in names.items()]
    figure.legend(
        handles=marks, loc="outside lower center", ncols=len(marks), frameon=False, fontsize=10, labelcolor=INK
    )
    title = f"{_short(report['dataset'])}, {report['part']} part: 95% intervals over users; colour: paired difference"
    figure.suptitle(title, x=0.008, ha="left", fontsize=12, color=INK)
