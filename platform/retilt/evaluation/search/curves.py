"""The training curves of a λ search: coloured by λ, with the rungs at which trials ended."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from retilt.evaluation.plot import INK, PALE
from retilt.evaluation.search import axis
from retilt.evaluation.search.layout import SUBJECT, Search, Trial, called, done, look, metric, part, rates, title
from retilt.evaluation.views import drawing
from retilt.evaluation.views.methods import method

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

LIGHTEST = 0.88
"""Where the colour map is cut: beyond it, yellow cannot be seen on white."""


def png(search: Search) -> bytes | None:
    """The headline metric, and the training loss where it was logged, by epoch; a column for each learning rate."""
    trials = [each for each in done(search) if each.get("curve")]
    head = metric(search)
    shown = [
        key for key in (head, "loss") if any(point.get(key) is not None for each in trials for point in each["curve"])
    ]
    if not shown:
        return None
    columns: Sequence[float | None] = rates(trials) or [None]
    # One learning rate: side by side, so that neither is a strip.
    rows, width = (1, len(shown)) if len(columns) == 1 else (len(shown), len(columns))
    figure = drawing.figure(min(6 * width, 14) if width > 1 else 8, 0.6 + 3.3 * rows)
    panels = figure.subplots(rows, width, squeeze=False, sharey="row" if len(columns) > 1 else "none", sharex=True)
    colours = _colours(search)
    for i, key in enumerate(shown):
        for j, rate in enumerate(columns):
            axes = panels[0, i] if len(columns) == 1 else panels[i, j]
            mine = [each for each in trials if rate is None or each.get("learning_rate") == rate]
            _panel(axes, search, mine, key, colours)
            if len(columns) > 1 and i == 0:
                axes.set_title(f"learning rate {rate:g}", fontsize=10, color=INK)
            drawing.plain(axes, "epoch of post-training", _named(key) if len(columns) == 1 or j == 0 else "")
    _legend(figure, panels[0, 0], search, trials)
    if colours is not None:
        _bar(figure, panels, colours, search)
    return drawing.png(figure)


def _named(key: str) -> str:
    return "training loss" if key == "loss" else f"{title(key)}, validation"


def _colours(search: Search) -> ScalarMappable | None:
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, LogNorm

    at = axis.of(search)
    if at is None:
        return None
    low, high = at.ends if len(at.temperatures) == 1 else (at.temperatures[0], at.temperatures[-1])
    shades = [colormaps["viridis"](LIGHTEST * i / 255) for i in range(256)]
    return ScalarMappable(LogNorm(low, high), ListedColormap(shades))


def _panel(axes: Axes, search: Search, trials: Sequence[Trial], key: str, colours: ScalarMappable | None) -> None:
    from matplotlib.ticker import MaxNLocator

    start = (part(search, "initial_policy").get(key) or {}).get("value")
    picked = part(search, "choice").get("trial")
    for each in trials:
        points = [(point["epoch"], point[key]) for point in each["curve"] if point.get(key) is not None]
        if start is not None:
            points = [(0, start), *points]
        if not points:
            continue
        style = _style(each, colours)
        wide = each["name"] == picked
        x, y = zip(*points, strict=True)
        axes.plot(x, y, linewidth=3 if wide else 1.5, zorder=3 if wide else 2, **style)
        best = each.get("best_epoch") if key != "loss" else None
        if best in x or len(x) == 1:
            i = x.index(best) if best in x else 0
            axes.plot(x[i], y[i], "o", color=style["color"], markersize=7 if wide else 4, zorder=4)
    for rung in part(search, "protocol").get("rungs") or []:
        axes.axvline(rung["epochs"], color=PALE, linewidth=0.9, linestyle=(0, (3, 3)), zorder=1)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _style(trial: Trial, colours: ScalarMappable | None) -> dict[str, Any]:
    if trial["method"] == SUBJECT and trial.get("temperature") and colours is not None:
        return {"color": colours.to_rgba(trial["temperature"])}
    return {"color": method(look(trial["method"])).colour, "linestyle": (0, (4, 2))}


def _legend(figure: Figure, axes: Axes, search: Search, trials: Sequence[Trial]) -> None:
    for name in dict.fromkeys(each["method"] for each in trials):
        if name != SUBJECT:
            axes.plot([], [], color=method(look(name)).colour, linestyle=(0, (4, 2)), label=called(name))
    temperature = part(search, "choice").get("temperature")
    if temperature is not None:
        axes.plot([], [], color=INK, linewidth=3, label=f"chosen: λ = {temperature:g}")
    axes.plot([], [], "o", color=INK, markersize=4, label="best epoch")
    drawing.legend(figure, axes, 6)


def _bar(figure: Figure, panels: Any, colours: ScalarMappable, search: Search) -> None:
    at = axis.of(search)
    assert at is not None
    bar = figure.colorbar(colours, ax=panels, aspect=30, pad=0.02)
    ticks = axis.thinned(at.temperatures, 10)
    bar.set_ticks(ticks, labels=[f"{each:g}" for each in ticks])
    bar.ax.minorticks_off()
    bar.ax.tick_params(labelsize=9, colors=drawing.MUTED, length=0)
    bar.ax.set_title("λ", fontsize=10, color=INK)
    bar.outline.set_visible(False)
