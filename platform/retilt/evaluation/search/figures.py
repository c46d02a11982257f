"""The figures of a λ search, as PNG. A part that was not run gives no figure.

A mark's size grows with the epochs that a trial had; a hollow one ended before the rung in which λ was chosen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from retilt.evaluation.metrics import TITLES
from retilt.evaluation.plot import INK
from retilt.evaluation.search import axis
from retilt.evaluation.search.axis import Axis
from retilt.evaluation.search.layout import (
    REFERENCES,
    SUBJECT,
    Search,
    Trial,
    best,
    called,
    decisive,
    done,
    in_deciding_rung,
    known,
    look,
    metric,
    part,
    rates,
    title,
)
from retilt.evaluation.views import drawing
from retilt.evaluation.views.methods import BLUE, NAVY, PURPLE, SKY, VERMILLION, method

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RATES = ((BLUE, "D"), (VERMILLION, "v"), (PURPLE, "P"), (NAVY, "X"), (SKY, "h"))
"""Colour and mark of each learning rate, the largest first; used again where there are more."""
BEFORE, IN_IT, GONE_ON = range(3)
"""Where a trial ended, seen from the deciding rung."""
SIZES = (4.5, 6.5, 9.5)
"""Marks of those, in points."""
SECONDS = {"ess": "ESS / n", "kl": "KL to BC, nats"}
"""What is drawn on second axes, in ink: every colour is a method's or a learning rate's."""
FLOOR = "#9c4f00"


def metrics(search: Search) -> bytes | None:
    """λ against every metric: the headline metric large, the others below it."""
    at, head = axis.of(search), metric(search)
    if at is None or not any(known(each.get(head)) for each in done(search)):
        return None
    others = [name for name in TITLES if name != head and any(known(each.get(name)) for each in done(search))]
    figure = drawing.figure(12, 7.4 if others else 4.6)
    rows = figure.add_gridspec(2 if others else 1, max(1, len(others)), height_ratios=[1.55, 1][: 2 if others else 1])
    large = figure.add_subplot(rows[0, :])
    _panel(large, search, at, head)
    _notes(large, search, at)
    at.settle(large, 14)
    drawing.plain(large, "λ", f"{title(head)}, validation")
    for i, name in enumerate(others):
        small = figure.add_subplot(rows[1, i])
        _panel(small, search, at, name)
        _lines(small, search, at)
        at.settle(small, 4, short=True)
        small.set_title(title(name), fontsize=10, color=INK)
        drawing.plain(small, "λ", "")
        small.tick_params(labelsize=8)
    _legend(figure, large, search)
    return drawing.png(figure)


def _panel(axes: Axes, search: Search, at: Axis, name: str) -> None:
    """A line with its band for each learning rate, and the references at their places."""
    for reference in REFERENCES:
        trial = best(search, reference)
        if trial is not None and reference in at.places and (found := trial.get(name)) and known(found):
            colour = method(look(reference)).colour
            axes.axhline(found["value"], color=colour, linewidth=1.1, linestyle=(0, (2, 3)), zorder=1)
            _mark(axes, search, trial, at.places[reference], found, colour, method(look(reference)).marker)
    subject = [each for each in done(search, SUBJECT) if each.get("temperature")]
    for rate, (colour, marker) in _looks(subject).items():
        mine = [
            (each, found) for each in subject if each.get("learning_rate") == rate and (found := decisive(each, name))
        ]
        _band(axes, [(each["temperature"], found) for each, found in mine], colour)
        _line(axes, [(each["temperature"], found["value"], _length(search, each)) for each, found in mine], colour)
        for each, found in mine:
            x, further = each["temperature"], each.get("deciding") and known(each.get(name))
            bar = len(mine) == 1 or (not further and _rank(search, each) == GONE_ON)
            _mark(axes, search, each, x, found, colour, marker, IN_IT if further else None, bar)
            if further:
                _mark(axes, search, each, x, each[name], colour, marker)


def _band(axes: Axes, points: Sequence[tuple[float, Mapping[str, Any]]], colour: str) -> None:
    bounded = [(x, each["low"], each["high"]) for x, each in points if each.get("low") is not None]
    if bounded:
        x, low, high = zip(*bounded, strict=True)
        axes.fill_between(x, low, high, color=colour, alpha=0.13, linewidth=0, zorder=1)


def _line(axes: Axes, points: Sequence[tuple[float, float, int]], colour: str) -> None:
    """Through (x, y, epochs); dotted between points of different epochs, which do not compare."""
    for (x, y, epochs), (next_x, next_y, next_epochs) in pairwise(points):
        style: dict[str, Any] = {"linewidth": 1.6} if epochs == next_epochs else {"linewidth": 1, "linestyle": ":"}
        axes.plot([x, next_x], [y, next_y], color=colour, zorder=2, **style)


def _mark(
    axes: Axes,
    search: Search,
    trial: Trial,
    x: float,
    found: Mapping[str, Any],
    colour: str,
    marker: str,
    rank: int | None = None,
    bar: bool = True,
) -> None:
    """A mark by how long the trial trained (or of a given rank), with a bar where no band shows its interval."""
    rank = _rank(search, trial) if rank is None else rank
    if bar and found.get("low") is not None:
        axes.plot([x, x], [found["low"], found["high"]], color=colour, linewidth=2, zorder=2)
    face = "white" if rank == BEFORE else colour
    style: dict[str, Any] = {"markersize": SIZES[rank], "markerfacecolor": face, "markeredgewidth": 1.4}
    axes.plot(x, found["value"], marker=marker, color=colour, linestyle="none", zorder=3, **style)


def _rank(search: Search, trial: Trial) -> int:
    """Whether a trial ended before the deciding rung, ended in it, or went on."""
    if not in_deciding_rung(search, trial):
        return BEFORE
    return GONE_ON if (trial.get("epochs") or 0) > (part(search, "protocol").get("deciding_epochs") or 0) else IN_IT


def _length(search: Search, trial: Trial) -> int:
    """Epochs behind what ``decisive`` returns."""
    epochs = int(trial.get("epochs") or 0)
    deciding = part(search, "protocol").get("deciding_epochs") or epochs
    return min(epochs, int(deciding)) if trial.get("deciding") else epochs


def _looks(found: Sequence[Trial]) -> dict[float | None, tuple[str, str]]:
    """Learning rate → colour and mark."""
    if not (known_rates := rates(found)):
        return {None: RATES[0]}
    return {rate: RATES[i % len(RATES)] for i, rate in enumerate(known_rates)}


def _lines(axes: Axes, search: Search, at: Axis) -> None:
    """The chosen λ, and the theory's floors where the axis reaches them."""
    temperature = part(search, "choice").get("temperature")
    if temperature is not None and at.shows(temperature):
        axes.axvline(temperature, color=INK, linewidth=1, linestyle=(0, (5, 3)), zorder=1)
    for value in axis.floors(search).values():
        if at.shows(value):
            axes.axvline(value, color=FLOOR, linewidth=1, linestyle=":", zorder=1)


def _notes(axes: Axes, search: Search, at: Axis) -> None:
    """The lines with their names."""
    _lines(axes, search, at)
    temperature = part(search, "choice").get("temperature")
    named = {f"floor ({name}): {value:.3g}": value for name, value in axis.floors(search).items()}
    if temperature is not None:
        named[f"chosen: λ = {temperature:g}"] = temperature
    shown = sorted((value, name) for name, value in named.items() if at.shows(value))
    for i, (x, name) in enumerate(shown):
        # One above the other: two of them may lie side by side.
        style: dict[str, Any] = {"xytext": (0, 3 + 11 * i), "textcoords": "offset points", "ha": "center"}
        axes.annotate(name, (x, 1), xycoords=("data", "axes fraction"), fontsize=9, color=INK, **style)


def _legend(figure: Figure, axes: Axes, search: Search) -> None:
    subject = [each for each in done(search, SUBJECT) if each.get("temperature")]
    looks = _looks(subject)
    for rate, (colour, marker) in looks.items():
        label = called(SUBJECT) if rate is None or len(looks) == 1 else f"{called(SUBJECT)}, learning rate {rate:g}"
        axes.plot([], [], color=colour, marker=marker, markersize=6, linewidth=1.6, label=label)
    for reference in REFERENCES:
        if best(search, reference):
            arm = method(look(reference))
            style: dict[str, Any] = {"linestyle": (0, (2, 3)), "linewidth": 1.1, "markersize": 6}
            axes.plot([], [], color=arm.colour, marker=arm.marker, label=arm.title, **style)
    found = lengths(search)
    for rank, epochs in found.items():
        face = "white" if rank == 0 else drawing.MUTED
        size: dict[str, Any] = {"markersize": SIZES[rank], "markerfacecolor": face, "markeredgewidth": 1.4}
        label = f"{epochs} epoch{'' if epochs == '1' else 's'}" + (
            " (deciding rung)" if rank == IN_IT and len(found) > 1 else ""
        )
        axes.plot([], [], "o", color=drawing.MUTED, label=label, **size)
    drawing.legend(figure, axes, 8 if len(looks) == 1 else 5)


def lengths(search: Search) -> dict[int, str]:
    """How many epochs the trials of each size of mark had, such as ``{0: "1", 1: "3", 2: "10"}``."""
    found: dict[int, set[int]] = {}
    for each in done(search):
        if each.get("epochs") is not None:
            found.setdefault(_rank(search, each), set()).add(each["epochs"])
    return {rank: " or ".join(map(str, sorted(found[rank]))) for rank in sorted(found)}


def tilt(search: Search) -> bytes | None:
    """The headline metric with ESS/n and with KL to BC on second axes, over λ."""
    at, head = axis.of(search), metric(search)
    subject = [each for each in done(search, SUBJECT) if each.get("temperature") and decisive(each, head)]
    shown = [key for key in SECONDS if any(each.get(key) is not None for each in subject)]
    if at is None or not shown:
        return None
    figure = drawing.figure(12, 4)
    for axes, key in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        _panel(axes, search, at, head)
        _lines(axes, search, at)
        drawing.plain(axes, "λ", f"{title(head)}, validation", "y")
        _second(axes, search, at, key)
        at.settle(axes, 10)
    return drawing.png(figure)


def _second(axes: Axes, search: Search, at: Axis, key: str) -> None:
    """ESS/n (one line: it follows from λ alone) or KL (a line for each learning rate) on an axis to the right."""
    other = axes.twinx()
    subject = [each for each in done(search, SUBJECT) if each.get("temperature") and each.get(key) is not None]
    for rate, (_, marker) in _looks(subject).items():
        mine = [each for each in subject if each.get("learning_rate") == rate]
        if key == "kl":
            _line(other, [(each["temperature"], *_decisive_kl(search, each)) for each in mine], INK)
        for each in mine:
            _dots(other, search, each, each["temperature"], key, marker if key == "kl" else "o")
    if key == "ess":
        points = sorted({each["temperature"]: each[key] for each in subject}.items())
        _line(other, [(x, y, 0) for x, y in points], INK)
    for name, x in at.places.items():
        if (trial := best(search, name)) is not None and trial.get(key) is not None:
            _dots(other, search, trial, x, key, "o")
    other.set_ylim(0, 1.04 if key == "ess" else None)
    other.set_ylabel(SECONDS[key], fontsize=10, color=INK)
    other.tick_params(labelsize=9, colors=INK, length=0)
    for spine in other.spines.values():
        spine.set_visible(False)


def _dots(axes: Axes, search: Search, trial: Trial, x: float, key: str, marker: str) -> None:
    """Where the trial ended, and for KL where it stood when the choice was made."""
    shown = {IN_IT if key == "ess" else _rank(search, trial): trial[key]}
    if key == "kl" and (trial.get("deciding") or {}).get("kl") is not None:
        shown[IN_IT] = trial["deciding"]["kl"]
    for rank, y in shown.items():
        face = "white" if rank == BEFORE else INK
        axes.plot(x, y, marker, color=INK, markersize=0.7 * SIZES[rank], markerfacecolor=face)


def _decisive_kl(search: Search, trial: Trial) -> tuple[float, int]:
    """KL, and epochs behind it: when the choice was made, where that is known, else at the trial's end."""
    found = (trial.get("deciding") or {}).get("kl")
    if found is None:
        return float(trial["kl"]), int(trial.get("epochs") or 0)
    return float(found), _length(search, trial)
