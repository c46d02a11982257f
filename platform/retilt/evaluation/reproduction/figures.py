"""The paper's figures from results, as PNG. A part that was not run gives no figure.

Every arm has its colour and mark of ``views.methods`` in all of them; bands and bars are 95% intervals unless said
otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from retilt.evaluation.gains import IN_WORDS
from retilt.evaluation.groups import WITHIN
from retilt.evaluation.metrics import TITLES
from retilt.evaluation.plot import INK
from retilt.evaluation.reproduction import tables
from retilt.evaluation.reproduction.results import HEADLINE_METRIC, Results, reached, versus
from retilt.evaluation.reproduction.seeds import SUBJECT
from retilt.evaluation.views import drawing
from retilt.evaluation.views.methods import BLUE, GREY, method, ordered, title

if TYPE_CHECKING:
    from matplotlib.axes import Axes

EPOCHS = {"best": ("-", BLUE, 0.18), "last": ("--", "white", 0.08)}
"""Exp-RSFT's at both epochs: line, inside of its marks, strength of the band."""
COURSES = {
    HEADLINE_METRIC: "NDCG@10, validation",
    "avg_reward": "average score by the reward model",
    "kl": "KL to BC, nats",
}


def differences(results: Results, other: str) -> bytes | None:
    """NDCG@10 of every arm minus another's: thick bars over users, thin ones over seeds."""
    arms = [arm for arm in ordered(results.get("arms", {})) if versus(results, arm, other)]
    if not arms:
        return None
    figure = drawing.figure(8.4, 1.3 + 0.34 * len(arms))
    axes = figure.add_subplot()
    axes.axvline(0, color=INK, linewidth=1)
    for y, arm in enumerate(arms):
        _bars(axes, versus(results, arm, other) or {}, y, arm)
    axes.set_yticks(range(len(arms)), map(title, arms))
    axes.set_ylim(len(arms) - 0.4, -0.6)
    drawing.plain(axes, f"NDCG@10 minus {title(other)}'s (thick: over users, thin: over seeds)", "", "x")
    axes.tick_params(axis="y", labelsize=10, colors=INK)
    return drawing.png(figure)


def _bars(axes: Axes, comparison: Mapping[str, Any], y: float, arm: str) -> None:
    colour = method(arm).colour
    for low, high, width, alpha in (("low", "high", 6, 0.35), ("t_low", "t_high", 1.4, 1.0)):
        if comparison.get(low) is not None:
            ends = [comparison[low], comparison[high]]
            axes.plot(ends, [y, y], color=colour, linewidth=width, alpha=alpha, solid_capstyle="butt")
    axes.plot(comparison["value"], y, linestyle="none", zorder=3, **drawing.style(arm, 7))


def courses(results: Results) -> bytes | None:
    """Figure 2: the true metric, the judge's score and the KL to BC by epoch, without controls; lost trials thin."""
    found = results.get("arms", {})
    arms = [arm for arm in ordered(found) if found[arm].get("curve") and found[arm].get("arm") != "control"]
    shown = [key for key in COURSES if any(_course(found[arm]["curve"], key) for arm in arms)]
    if not shown:
        return None
    figure = drawing.figure(4.4 * len(shown), 4.2)
    panels = figure.subplots(1, len(shown), squeeze=False)[0]
    for axes, key in zip(panels, shown, strict=True):
        for arm in arms:
            for lost in found[arm].get("tried", []):
                if not lost.get("chosen") and (course := _course(lost.get("curve", []), key)):
                    axes.plot(*course, color=method(arm).colour, linewidth=0.8, alpha=0.5)
            if course := _course(found[arm]["curve"], key):
                dash = "--" if method(arm).dashed else "-"
                axes.plot(*course, dash, label=title(arm), linewidth=1.6, **drawing.style(arm, 5))
        drawing.plain(axes, "epoch of post-training", COURSES[key])
        axes.xaxis.get_major_locator().set_params(integer=True)
    drawing.legend(figure, panels[0])
    return drawing.png(figure)


def _course(curve: Sequence[Mapping[str, Any]], key: str) -> tuple[list[int], list[float]] | None:
    """Epochs and the values of one quantity after them; None where it was not followed."""
    known = [point for point in curve if point.get(key) is not None]
    return ([point["epoch"] for point in known], [point[key] for point in known]) if known else None


def sweep(results: Results) -> bytes | None:
    """Figure 3: every metric by λ, at the best and at the last epoch; the chosen λ, BC and top-rated for comparison."""
    entries = results.get("lambda", [])
    if len(entries) < 2:
        return None
    figure = drawing.figure(14, 3.7)
    panels = figure.subplots(1, len(TITLES), squeeze=False)[0]
    for axes, (metric, name) in zip(panels, TITLES.items(), strict=True):
        for arm in ("bc", "top_rated"):
            if (found := reached(results, arm)) and found[metric]["value"] is not None:
                axes.axhline(
                    found[metric]["value"], color=method(arm).colour, linewidth=1.2, linestyle=":", label=title(arm)
                )
        for which in EPOCHS:
            _swept(axes, [(each["temperature"], each[which][metric]) for each in entries if which in each], which)
        for each in entries:
            if each.get("chosen"):
                axes.axvline(
                    each["temperature"], color=GREY, linewidth=1, linestyle=(0, (4, 3)), label="chosen on validation"
                )
        axes.set_xscale("log")
        ticks = [each["temperature"] for each in entries]
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks], rotation=45 if len(ticks) > 5 else 0)
        axes.minorticks_off()
        axes.set_title(name, fontsize=10, color=INK)
        drawing.plain(axes, "λ", "")
    drawing.legend(figure, panels[0])
    return drawing.png(figure)


def _swept(axes: Axes, points: Sequence[tuple[float, Mapping[str, Any]]], which: str) -> None:
    line, inside, strength = EPOCHS[which]
    known = [(x, each) for x, each in points if each["value"] is not None]
    bounded = [(x, each["low"], each["high"]) for x, each in known if each["low"] is not None]
    if bounded:
        x, low, high = zip(*bounded, strict=True)
        axes.fill_between(x, low, high, color=BLUE, alpha=strength, linewidth=0)
    values = [each["value"] for _, each in known]
    style: dict[str, Any] = {**drawing.style(SUBJECT, 5), "markerfacecolor": inside, "linewidth": 1.6}
    axes.plot([x for x, _ in known], values, line, label=f"{title(SUBJECT)}, {which} epoch", **style)


def judge_against_truth(results: Results) -> bytes | None:
    """What a reward model says of a policy against its true NDCG@10; one panel for each reward model."""
    arms = ordered(results.get("arms", {}))
    names = {"training": "score by the training reward model", "judge": "score by other users' reward model"}
    shown = {key: _judged(results, arms, key) for key in names}
    panels = {key: points for key, points in shown.items() if points}
    if not panels:
        return None
    figure = drawing.figure(5.2 * len(panels) + 0.6, 4.8)
    for axes, (key, points) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for arm, score, truth in points:
            look = {"linestyle": "none", "elinewidth": 1.2, "label": title(arm), **drawing.style(arm, 8)}
            axes.errorbar(score["value"], truth["value"], xerr=_reach(score), yerr=_reach(truth), **look)
        drawing.plain(axes, names[key], "NDCG@10, test")
        axes.margins(0.12)
        last = axes
    drawing.legend(figure, last, 4)
    return drawing.png(figure)


def _judged(results: Results, arms: Sequence[str], key: str) -> list[tuple[str, Mapping[str, Any], Mapping[str, Any]]]:
    found = []
    for arm in arms:
        score, truth = results["arms"][arm].get("avg_reward", {}).get(key), reached(results, arm)
        if score and truth and None not in (score["value"], truth[HEADLINE_METRIC]["value"]):
            found.append((arm, score, truth[HEADLINE_METRIC]))
    return found


def _reach(measure: Mapping[str, Any]) -> list[list[float]] | None:
    if measure["low"] is None:
        return None
    return [[measure["value"] - measure["low"]], [measure["high"] - measure["value"]]]


def groups(results: Results) -> bytes | None:
    """Who gains: NDCG@10 of the tuned arms minus that of BC continued, for each group of targets."""
    arms, names = tables.gaining(results)
    if not names:
        return None
    figure = drawing.figure(8.4, 1.6 + len(names) * (0.14 + 0.14 * len(arms)))
    axes = figure.add_subplot()
    axes.axvline(0, color=INK, linewidth=1)
    for i, arm in enumerate(arms):
        for y, group in enumerate(names):
            if comparison := tables.gain(results, arm, group):
                _bars(axes, comparison, y + 0.7 * ((i + 0.5) / len(arms) - 0.5), arm)
        axes.plot([], [], linestyle="none", label=title(arm), **drawing.style(arm, 7))
    axes.set_yticks(range(len(names)), [IN_WORDS[group.removeprefix(WITHIN)] for group in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    drawing.plain(axes, f"NDCG@10 minus {title(tables.CONTINUED)}'s (thick: over users, thin: over seeds)", "", "x")
    axes.tick_params(axis="y", labelsize=10, colors=INK)
    drawing.legend(figure, axes)
    return drawing.png(figure)
