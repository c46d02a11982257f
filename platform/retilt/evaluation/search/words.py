"""What a λ search found, in sentences: for the report's lead and for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from retilt.evaluation.search import axis
from retilt.evaluation.search.layout import (
    SUBJECT,
    Search,
    Trial,
    called,
    chosen,
    failed,
    known,
    metric,
    part,
    title,
    trials,
    where,
)
from retilt.evaluation.wording import interval

COMPARED = ("bc", "top_rated")


def epochs(number: int | None) -> str:
    """``1 epoch``, ``3 epochs``."""
    return f"{'–' if number is None else number} epoch{'' if number == 1 else 's'}"


def settings(trial: Mapping[str, Any]) -> str:
    """λ and learning rate of a trial or of the choice, such as ``λ = 0.5 at learning rate 0.001``."""
    temperature, rate = trial.get("temperature"), trial.get("learning_rate")
    which = called(trial.get("method", SUBJECT)) if temperature is None else f"λ = {temperature:g}"
    return which if rate is None else f"{which} at learning rate {rate:g}"


def choice(search: Search) -> str:
    """What was chosen, what it reached, and why."""
    found = part(search, "choice")
    if not found:
        return "Nothing was chosen."
    trial, head = chosen(search), metric(search)
    text = f"Chosen: {settings(found)}, after {epochs(found.get('epochs'))}"
    if trial is not None and known(trial.get(head)):
        text += f"; validation {title(head)} on {where(search)}: {interval(trial[head])}"
    return f"{text}. {found.get('reason') or ''}".rstrip()


def comparisons(search: Search) -> Iterator[str]:
    """How the choice stands against BC continued and top-rated, a sentence each."""
    if not part(search, "choice"):
        return
    for name in COMPARED:
        found = part(part(search, "choice"), "versus").get(name)
        if not found:
            why = "it failed" if any(each["method"] == name for each in failed(search)) else "it was not trained"
            yield f"Not compared with {called(name)}: {why}."
            continue
        verdict = {
            "better": "Better than",
            "worse": "Worse than",
            "no difference": "Cannot be told from",
        }.get(found.get("standing"), "Too few users to compare it with")
        yield f"{verdict} {called(name)}, both after {epochs(found.get('epochs'))}: {_difference(search, found)}."


def _difference(search: Search, found: Mapping[str, Any]) -> str:
    return f"{title(metric(search))} differs by {interval(found, '+')}, paired by user"


def warnings(search: Search) -> Iterator[str]:
    """What nobody should overlook."""
    yield from _not_told(search)
    yield from _at_an_edge(search)
    if found := failed(search):
        yield f"{len(found)} of {len(trials(search))} trials failed and could not be chosen; see Trials for why."


def _not_told(search: Search) -> Iterator[str]:
    versus = part(part(search, "choice"), "versus")
    found = {name: versus[name].get("standing") for name in COMPARED if versus.get(name)}
    same = [name for name, standing in found.items() if standing in ("no difference", None)]
    if none := [called(name) for name in same if not versus[name].get("better")]:
        yield (
            f"No λ can be told from {' or '.join(none)}: the paired 95% intervals of all differences contain 0, or lie "
            "below it. What is gained by the chosen one may be chance."
        )
    for name in same:
        if better := versus[name].get("better"):
            yield (
                f"The chosen λ, the largest near the best, cannot be told from {called(name)}; better than that are "
                f"{', '.join(_lambda(search, each) for each in better)}."
            )
    if few := [called(name) for name, standing in found.items() if standing == "too few users"]:
        yield f"No λ can be told from {' or '.join(few)}: there are too few validation users for an interval."
    for name, standing in found.items():
        if standing == "worse":
            yield f"The chosen λ is worse than {called(name)}, which is the better policy by this metric."


def _lambda(search: Search, name: str) -> str:
    return next(settings(each) for each in trials(search) if each["name"] == name)


def _at_an_edge(search: Search) -> Iterator[str]:
    at, temperature = axis.of(search), part(search, "choice").get("temperature")
    if at is None or temperature is None or len(at.temperatures) < 2:
        return
    low, high = at.temperatures[0], at.temperatures[-1]
    for end, name, beyond, limit in ((low, "smallest", "below", "top_rated"), (high, "largest", "above", "bc")):
        if temperature == end:
            yield f"The chosen λ is the {name} tried: what lies {beyond} it, towards {called(limit)}, is not known."


def cost(search: Search) -> str | None:
    """Positions trained and worker-seconds beside one full-length run; None if unknown."""
    found = part(search, "cost")
    if found.get("positions") is None:
        return None
    text = f"{found['positions']:,} positions trained"
    if found.get("seconds") is not None:
        text += f" in {found['seconds']:,.0f} worker-seconds"
    if found.get("ratio") is None or found.get("full_run_positions") is None:
        return f"{text}."
    return f"{text}: {found['ratio']:.2f} times the {found['full_run_positions']:,} of one full-length run."


def floor(search: Search) -> Iterator[str]:
    """Noise, the theory's floors and whether the axis reaches them, and how loose they are."""
    noise, floors = part(search, "noise"), axis.floors(search)
    if noise.get("sd") is None:
        return
    yield _noise(noise)
    if floors and noise.get("radius") is not None and noise.get("tolerance") is not None:
        bounds = " and ".join(f"λ ≥ {value:.3g} ({name})" for name, value in floors.items())
        failure = "" if noise.get("failure") is None else f" with probability {1 - noise['failure']:.0%}"
        yield (
            f"No item of a state has more noise than ε = {noise['radius']:.3g}{failure}. That the loss against the "
            f"logging policy is at most {noise['tolerance']:.3g} of a range of {noise['reward_range']:g} is then "
            f"guaranteed for {bounds}. {_on_the_axis(search, floors)}"
        )
    yield (
        "Both are floors for the worst world and very loose: in a simulated world with σ = 1 the tanh bound asked for "
        "81 and eq. 15 for 327, but no state lost that much from λ = 0.29 on, and at λ = 60 nearly all of the gain was "
        "gone (docs/theory.md). A smaller λ is no mistake: choose by validation, not by the floor."
    )


def _noise(noise: Mapping[str, Any]) -> str:
    text = f"Noise of a logged reward: σ = {noise['sd']:.3g}, by {noise.get('method', 'an unnamed method')}"
    if noise.get("events") is not None:
        text += f" on {noise['events']:,} events"
    if str(noise.get("method", "")).startswith("residual"):
        return f"{text}. It also counts what those means do not explain, so it is too large rather than too small."
    return f"{text}."


def _on_the_axis(search: Search, floors: Mapping[str, float]) -> str:
    at = axis.of(search)
    if at is None:
        return ""
    drawn = [name for name, value in floors.items() if at.shows(value)]
    low, high = at.temperatures[0], at.temperatures[-1]
    beyond = [f"{name} {'above' if value > high else 'below'}" for name, value in floors.items() if name not in drawn]
    inside = [f"Drawn as a dotted line: {', '.join(drawn)}."] if drawn else []
    outside = [f"Beyond the axis of λ ({low:g} to {high:g}), so not drawn: {', '.join(beyond)}."] if beyond else []
    return " ".join(inside + outside)


def state(search: Search, trial: Trial) -> str:
    """How a trial ended, in a word or two."""
    if trial.get("state") == "failed":
        return "failed"
    if trial["name"] == part(search, "choice").get("trial"):
        return "chosen"
    if trial["name"] == part(search, "choice").get("best"):
        return "best"
    deciding = part(search, "protocol").get("deciding_epochs") or 0
    return "ended early" if (trial.get("epochs") or 0) < deciding else "done"
